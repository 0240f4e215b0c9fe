"""Ways through codes, active units, and the warning that names those that carry nothing."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl import audit, data
from jdl.audit.latent import PosteriorCollapse

RNG = np.random.default_rng(0)
go = jax.jit(audit.interpolate, static_argnums=(2, 3))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), how=st.sampled_from(["linear", "spherical"]))
def test_a_way_begins_and_ends_at_its_ends(seed, how):
    a, b = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    way = np.asarray(go(a, b, 5, how))
    np.testing.assert_allclose(way[:, 0], a, atol=1e-4)
    np.testing.assert_allclose(way[:, -1], b, atol=1e-4)
    if how == "spherical":
        lengths, ends = np.linalg.norm(way, axis=-1), [np.linalg.norm(x, axis=-1) for x in (a, b)]
        np.testing.assert_allclose(lengths, np.linspace(*ends, 5, axis=1), rtol=1e-3)
        units = way / lengths[..., None]
        turns = np.arccos(np.clip((units[:, 1:] * units[:, :-1]).sum(-1), -1, 1))
        np.testing.assert_allclose(turns, turns[:, :1] * np.ones((1, 4)), atol=5e-3)


def test_a_spherical_way_between_equal_or_opposite_or_no_directions_is_finite():
    a = np.array([[1, 0], [1, 0], [0, 0]], np.float32)
    b = np.array([[2, 0], [-1, 0], [1, 1]], np.float32)
    assert np.isfinite(go(a, b, 4, "spherical")).all()
    np.testing.assert_allclose(go(a, b, 3, "spherical")[0, 1], [1.5, 0], atol=1e-5)


def test_grids_of_codes_become_grids_of_data():
    z = jnp.arange(4.0)
    moved = np.asarray(audit.traverse(z, [1, 3], jnp.array([-2.0, 0.0, 2.0])))
    assert moved.shape == (2, 3, 4)
    np.testing.assert_array_equal(moved[1, :, 3], [-2, 0, 2])
    np.testing.assert_array_equal(np.delete(moved[1], 3, 1), np.tile([0, 1, 2], (3, 1)))
    made = audit.decoded(lambda z: z.reshape(-1, 2, 2, 1), moved)
    np.testing.assert_array_equal(made.reshape(moved.shape), moved)
    cells = np.asarray(audit.plane(5, edge=0.1))
    from scipy import stats

    np.testing.assert_allclose(stats.norm.cdf(cells[:, 0, 0]), [0.1, 0.3, 0.5, 0.7, 0.9], atol=1e-5)
    np.testing.assert_array_equal(cells[..., 1], cells[..., 0].T)


def test_images_are_laid_out_row_by_row():
    images = RNG.random((5, 2, 3, 1)).astype(np.float32)
    sheet = audit.tile(images, columns=3, gap=1, fill=0.5)
    assert sheet.shape == (5, 11, 1)
    np.testing.assert_array_equal(sheet[3:5, 4:7], images[4])
    assert (sheet[2] == 0.5).all()
    assert (audit.tile(images[:2], gap=0)[:, 3:] == images[1]).all()
    np.testing.assert_array_equal(audit.beside(images, 1 - images)[2:4], [images[1], 1 - images[1]])


MEAN = np.array([[1, 0.0, 0, 0], [-1, 0.05, 0, 0]], np.float32)


def test_active_units_and_their_divergence():
    log_std = np.array([[-1, 0, 0, -1], [-1, 0, 0, -1]], np.float32)
    report = audit.units(MEAN, log_std)
    assert report.collapsed == [1, 2, 3]
    np.testing.assert_allclose(report.activity, [1, 0.000625, 0, 0], atol=1e-7)
    std = np.exp(-1)
    kl = [0.5 * (1 + std**2 - 1) + 1, 0.25 * 0.05**2, 0, 0.5 * (std**2 - 1) + 1]
    np.testing.assert_allclose(report.kl, kl, rtol=1e-5)


def test_the_watch_warns_of_collapsed_units_by_name_once_training_has_begun():
    batches = data.in_order({"inputs": MEAN}, 2)
    watch = audit.watch_collapse(lambda variables, x: (x * variables["on"], 0 * x))
    predict = functools.partial(lambda variables, x: x, {"on": jnp.ones(4)[None]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watch(predict, batches) == {"active_units": 1}
    with pytest.warns(PosteriorCollapse, match="3 of 4 units of the code: 1, 2, 3"):
        watch(predict, batches)
    quiet = audit.watch_collapse(lambda variables, x: (x, 0 * x), limit=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [quiet(predict, batches) for _ in range(2)] == [{"active_units": 1}] * 2


def test_the_watch_looks_at_rows_that_count_and_says_what_is_not_finite():
    batches = data.in_order({"inputs": MEAN[:1]}, 2)  # filled up with a row of weight 0
    seen = []
    monitored = audit.watch_collapse(lambda variables, x: (x, 0 * x))
    predict = functools.partial(lambda variables, x: x, {})
    assert monitored(predict, batches) == {"active_units": 0}, "one row has no variance"
    broken = audit.watch_collapse(lambda variables, x: (x * jnp.nan, 0 * x))
    with pytest.warns(PosteriorCollapse, match="the posterior is not finite"):
        seen.append(broken(predict, batches))
    assert seen == [{"active_units": 0}]


def test_says_what_is_wrong():
    z = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="got 'round', 8"):
        audit.interpolate(z, z, how="round")
    with pytest.raises(ValueError, match="the units 0 to 1; got 2"):
        audit.traverse(z[0], [0, 2], jnp.zeros(1))
    with pytest.raises(ValueError, match=r"two arrays of codes \[B, Z\]; got \(4,\)"):
        audit.interpolate(jnp.zeros(4), jnp.zeros(4))
    with pytest.raises(ValueError, match="edge between 0 and 1/2; got 12 and 0.7"):
        audit.plane(edge=0.7)
    with pytest.raises(ValueError, match="needs 1 column or more"):
        audit.tile(np.zeros((2, 3, 3, 1)), columns=0)
    with pytest.raises(ValueError, match="the posterior is not finite"):
        audit.units(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"tile takes images .* got shape \(2, 3\)"):
        audit.tile(np.zeros((2, 3)))
