"""Augmentation: pure in the key, independent over examples, with the distributions that the papers state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdl.data import compose, cutmix, cutout, mixup, one_of, random_crop, random_flip

KEY = jax.random.key(0)


def batch(count=64, height=12, width=9, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": jnp.asarray(rng.normal(size=(count, height, width, channels)), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, 5, count), jnp.int32),
        "extra": jnp.arange(count),
    }


IMAGE = [random_flip(), random_crop(2), random_crop(2, "reflect"), cutout(4)]
MIXED = mixup(0.5, 5)


@pytest.mark.parametrize("transform", [*IMAGE, MIXED, compose(*IMAGE)])
def test_pure_in_the_key(transform):
    data = batch(channels=1)
    one, again, other = transform(KEY, data), transform(KEY, data), transform(jax.random.key(1), data)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (one["inputs"] != other["inputs"]).any()
    assert (one["inputs"] != data["inputs"]).any()
    assert one["inputs"].shape == data["inputs"].shape
    assert one["inputs"].dtype == data["inputs"].dtype
    np.testing.assert_array_equal(one["extra"], data["extra"])


@pytest.mark.parametrize("transform", IMAGE)
def test_bytes_stay_bytes(transform):
    data = {"inputs": jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 6, 10, 1), np.uint8))}
    assert transform(KEY, data)["inputs"].dtype == jnp.uint8


def test_composed_under_jit():
    data = batch()
    transform = compose(*IMAGE)
    traced = jax.jit(lambda key, data: transform(key, data))(KEY, data)
    jax.tree.map(np.testing.assert_array_equal, traced, transform(KEY, data))


def test_flip_rate():
    data = batch(4000, 2, 3, 1)
    out = random_flip(0.3)(KEY, data)["inputs"]
    flipped = np.asarray((out == data["inputs"][:, :, ::-1]).all((1, 2, 3)))
    kept = np.asarray((out == data["inputs"]).all((1, 2, 3)))
    assert (flipped ^ kept).all()
    assert stats.binomtest(int(flipped.sum()), 4000, 0.3).pvalue > 1e-4
    np.testing.assert_array_equal(random_flip(0.0)(KEY, data)["inputs"], data["inputs"])


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_offsets_are_uniform(mode):
    count, padding, height, width = 5000, 2, 6, 7
    image = np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)
    out = np.asarray(
        random_crop(padding, mode)(KEY, {"inputs": jnp.tile(image[None, ..., None], (count, 1, 1, 1))})[
            "inputs"
        ]
    )
    padded = np.pad(image, padding, mode=mode)
    windows = {padded[y : y + height, x : x + width].tobytes(): (y, x) for y in range(5) for x in range(5)}
    offsets = [windows[each[..., 0].tobytes()] for each in out]
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(np.transpose(offsets)), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_cutout_squares():
    count, height, width, size = 4000, 8, 5, 4
    out = cutout(size)(KEY, {"inputs": jnp.ones((count, height, width, 2))})["inputs"]
    hole = np.asarray(out == 0)
    np.testing.assert_array_equal(hole[..., 0], hole[..., 1])
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    np.testing.assert_array_equal(hole[..., 0], rows[:, :, None] & columns[:, None])
    expected = {length: span_counts(length, size) for length in (height, width)}
    for spans, length in ((rows, height), (columns, width)):
        found, counts = np.unique(spans, axis=0, return_counts=True)
        assert {span.tobytes() for span in found} == set(expected[length])
        shares = np.array([expected[length][span.tobytes()] for span in found]) * count / length
        assert stats.chisquare(counts, shares).pvalue > 1e-4


def span_counts(length, size):
    counts = {}
    for centre in range(length):
        span = np.zeros(length, bool)
        span[max(0, centre - size // 2) : centre - size // 2 + size] = True
        counts[span.tobytes()] = counts.get(span.tobytes(), 0) + 1
    return counts


def test_compose_gives_each_its_own_key():
    noise = [lambda key, data: {**data, "inputs": data["inputs"] + jax.random.normal(key, (2,))}] * 2
    data = {"inputs": jnp.zeros(2)}
    both = compose(*noise)(KEY, data)["inputs"]
    draws = [jax.random.normal(jax.random.fold_in(KEY, i), (2,)) for i in range(2)]
    np.testing.assert_allclose(both, draws[0] + draws[1], atol=1e-6)
    assert (draws[0] != draws[1]).all()
    np.testing.assert_array_equal(compose()(KEY, data)["inputs"], data["inputs"])


def test_one_of_draws_each_batch():
    data = batch(8)
    chosen = one_of([random_flip(0.0), random_flip(1.0)], [0.25, 0.75])
    keys = jax.random.split(KEY, 400)
    flipped = [bool((chosen(key, data)["inputs"] != data["inputs"]).any()) for key in keys]
    assert stats.binomtest(sum(flipped), 400, 0.75).pvalue > 1e-4
    for key in keys[:10]:
        images = chosen(key, data)["inputs"]
        assert (images == data["inputs"]).all() or (images == data["inputs"][:, :, ::-1]).all()
    jax.tree.map(np.testing.assert_array_equal, chosen(KEY, data), chosen(KEY, data))
    mixed = one_of([mixup(0.2, 5), cutmix(1.0, 5)])(KEY, data)
    assert mixed["labels"].shape == (8, 5)


@pytest.mark.parametrize(
    "transform", [random_flip(also=("labels", "map")), random_crop(3, also=("labels", "map"))]
)
def test_masks_move_along(transform):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (32, 12, 9))
    data = {
        "inputs": jnp.asarray(np.repeat(labels[..., None], 3, -1), jnp.float32),
        "labels": jnp.asarray(labels, jnp.uint8),
        "map": jnp.asarray(labels[..., None], jnp.bfloat16),
        "names": jnp.arange(32),
    }
    moved = transform(KEY, data)
    assert (moved["inputs"] != data["inputs"]).any()
    assert moved["labels"].dtype == jnp.uint8
    np.testing.assert_array_equal(moved["labels"], moved["inputs"][..., 0])
    np.testing.assert_array_equal(moved["map"].astype(jnp.float32), moved["inputs"][..., :1])
    np.testing.assert_array_equal(moved["names"], data["names"])
    alone = transform_alone(transform, data)
    np.testing.assert_array_equal(alone, moved["inputs"])


def transform_alone(transform, data):
    zeros = {**data, "labels": jnp.zeros((32, 12, 9)), "map": jnp.zeros((32, 12, 9))}
    return transform(KEY, zeros)["inputs"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_flip(1.5), "probability"),
        (lambda: random_crop(-1), "padding"),
        (lambda: random_crop(1, "wrap"), "mode"),
        (lambda: cutout(0), "size"),
        (lambda: cutout(1)(KEY, {"inputs": jnp.zeros((2, 3))}), r"got shape \(2, 3\)"),
        (
            lambda: random_crop(4, "reflect")(KEY, {"inputs": jnp.zeros((2, 4, 4, 1))}),
            "4x4 cannot be reflected by 4",
        ),
        (lambda: random_flip(also="labels"), "tuple of entries beside inputs"),
        (lambda: random_crop(1, also=("inputs",)), "tuple of entries beside inputs"),
        (lambda: random_flip(also=("mask",))(KEY, batch(2)), "names 'mask', and the batch has only"),
        (
            lambda: random_flip(also=("labels",))(KEY, batch(2)),
            r"'labels' must be \[B, H, W\].* got shape \(2,\)",
        ),
        (lambda: one_of([]), "at least one"),
        (lambda: one_of([cutout(1)], [0.5, 0.5]), "as many probabilities, got 2"),
        (lambda: one_of([cutout(1)] * 2, [0.5, 0.6]), "sum 1"),
        (lambda: one_of([cutout(1)] * 2, [-0.5, 1.5]), "at least 0"),
        (
            lambda: one_of([cutout(1), mixup(1.0, 5)])(KEY, batch(2)),
            r"number 0 makes .*labels int32 \[2\].*number 1 makes .*labels float32 \[2, 5\]",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
