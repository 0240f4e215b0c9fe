"""Mixtures of examples: inputs and labels in the same shares, padding left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdl.data import cutmix, mixup

KEY = jax.random.key(0)


def test_mixup_mixes_inputs_and_labels_alike():
    count = 512
    data = {"inputs": jnp.eye(count), "labels": jnp.arange(count)}
    mixed = mixup(0.7, count)(KEY, data)
    np.testing.assert_allclose(mixed["inputs"], mixed["labels"], atol=1e-6)
    np.testing.assert_allclose(mixed["labels"].sum(1), 1, atol=1e-5)
    assert int((mixed["labels"] > 0).sum(1).max()) == 2
    ratio = np.asarray(jnp.diagonal(mixed["labels"]))
    assert stats.kstest(ratio[ratio < 1], stats.beta(0.7, 0.7).cdf).pvalue > 1e-4
    assert len(np.unique(ratio)) > count // 2


def test_mixup_of_soft_labels_and_other_precision():
    data = {"inputs": jnp.ones((4, 3), jnp.bfloat16), "labels": jnp.full((4, 2), 0.5)}
    mixed = mixup(1.0, 2)(KEY, data)
    assert mixed["inputs"].dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed["labels"], 0.5, atol=1e-6)


def test_mixup_leaves_padding_out():
    count = 64
    weights = jnp.asarray(np.arange(count) % 3 > 0, jnp.float32)
    data = {"inputs": jnp.eye(count), "labels": jnp.arange(count), "weights": weights}
    mixed = mixup(1.0, count)(KEY, data)
    np.testing.assert_array_equal(mixed["weights"], weights)
    into_real = mixed["inputs"][weights > 0][:, weights == 0]
    assert float(into_real.max()) == 0
    assert float(mixed["inputs"][weights > 0].max(1).min()) < 1
    np.testing.assert_allclose(mixed["inputs"].sum(1), 1, atol=1e-5)
    empty = mixup(1.0, count)(KEY, {**data, "weights": jnp.zeros(count)})
    np.testing.assert_array_equal(empty["inputs"], data["inputs"])


def painted(count, height=16, width=12):
    """Images of one value each, the number of the example, so that a pixel says where it came from."""
    values = jnp.arange(count, dtype=jnp.int32)
    images = jnp.broadcast_to(values[:, None, None, None], (count, height, width, 2))
    return {"inputs": images, "labels": values, "extra": values}


def test_cutmix_pastes_one_rectangle_and_labels_say_how_much():
    count, height, width = 256, 16, 12
    data = painted(count, height, width)
    mixed = cutmix(1.0, count)(KEY, data)
    images = np.asarray(mixed["inputs"])
    assert images.dtype == np.int32
    pasted = images != np.arange(count)[:, None, None, None]
    np.testing.assert_array_equal(pasted[..., 0], pasted[..., 1])
    rows, columns = pasted[..., 0].any(2), pasted[..., 0].any(1)
    np.testing.assert_array_equal(pasted[..., 0], rows[:, :, None] & columns[:, None])
    for spans in (rows, columns):
        assert (np.abs(np.diff(spans.astype(int), axis=1)).sum(1) <= 2).all()
    shares = np.zeros((count, count))
    for i, image in enumerate(images[..., 0]):
        found, pixels = np.unique(image, return_counts=True)
        assert len(found) <= 2
        shares[i, found] = pixels / image.size
    np.testing.assert_allclose(mixed["labels"], shares, atol=1e-6)
    np.testing.assert_array_equal(mixed["extra"], data["extra"])


def test_cutmix_area_and_place():
    """A rectangle that lies inside has an area of 1 - r, r uniform; its centre is anywhere."""
    count, height, width = 4000, 40, 40
    data = painted(count, height, width)
    pasted = np.asarray(cutmix(1.0, 2)(KEY, {**data, "labels": jnp.zeros(count, int)})["inputs"])[..., 0]
    pasted = pasted != np.arange(count)[:, None, None]
    middle = pasted[:, 20, 20].mean()
    # The centre is within half a side s of the pixel along both axes, and E[(s clipped at the border)^2]:
    sides = np.floor(40 * np.sqrt(1 - (np.arange(100_000) + 0.5) / 100_000))
    half = np.minimum(sides // 2, 20) + np.minimum(sides - sides // 2, 20)
    expected = ((np.minimum(half, 40) / 40) ** 2).mean()
    assert abs(middle - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 0.01
    corner = pasted[:, 0, 0].mean()
    assert corner == pytest.approx(expected / 4, abs=0.03)


def test_cutmix_is_pure_and_each_example_is_drawn():
    data = painted(64)
    one, again = (cutmix(1.0, 64)(KEY, data)["labels"] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert (one != cutmix(1.0, 64)(jax.random.key(1), data)["labels"]).any()
    assert len(np.unique(np.diagonal(one))) > 20


def test_cutmix_leaves_padding_out():
    count = 64
    weights = jnp.asarray(np.arange(count) % 3 > 0, jnp.float32)
    mixed = cutmix(1.0, count)(KEY, {**painted(count), "weights": weights})
    np.testing.assert_array_equal(mixed["weights"], weights)
    sources = np.asarray(mixed["inputs"])[np.asarray(weights) > 0]
    assert (np.asarray(weights)[sources] > 0).all()
    assert float(mixed["labels"][weights > 0][:, weights == 0].max()) == 0
    own = np.flatnonzero(weights)[:, None, None, None]
    assert (sources != own).any()
    nothing = cutmix(1.0, count)(KEY, {**painted(count), "weights": jnp.zeros(count)})
    np.testing.assert_array_equal(nothing["inputs"], painted(count)["inputs"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixup(0.0, 3), "alpha"),
        (lambda: mixup(1.0, 0), "num_classes"),
        (lambda: cutmix(-1.0, 3), "alpha"),
        (lambda: cutmix(1.0, 0), "num_classes"),
        (
            lambda: cutmix(1.0, 3)(KEY, {"inputs": jnp.zeros((2, 3)), "labels": jnp.zeros(2, int)}),
            "be images",
        ),
        (
            lambda: cutmix(1.0, 3)(KEY, {**painted(2), "weights": jnp.ones((2, 1))}),
            r"weights must have shape \(2,\)",
        ),
        (
            lambda: mixup(1.0, 3)(KEY, {"inputs": jnp.zeros((2, 3), jnp.uint8), "labels": jnp.zeros(2, int)}),
            "uint8",
        ),
        (
            lambda: mixup(1.0, 3)(KEY, {"inputs": jnp.zeros((2, 3)), "labels": jnp.zeros((2, 4))}),
            r"got float32 \(2, 4\)",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
