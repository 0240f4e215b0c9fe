"""Augmentation: pure in the key, independent over examples, with the distributions that the papers state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdl.data import compose, cutout, mixup, random_crop, random_flip

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


def test_compose_gives_each_its_own_key():
    noise = [lambda key, data: {**data, "inputs": data["inputs"] + jax.random.normal(key, (2,))}] * 2
    data = {"inputs": jnp.zeros(2)}
    both = compose(*noise)(KEY, data)["inputs"]
    draws = [jax.random.normal(jax.random.fold_in(KEY, i), (2,)) for i in range(2)]
    np.testing.assert_allclose(both, draws[0] + draws[1], atol=1e-6)
    assert (draws[0] != draws[1]).all()
    np.testing.assert_array_equal(compose()(KEY, data)["inputs"], data["inputs"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_flip(1.5), "probability"),
        (lambda: random_crop(-1), "padding"),
        (lambda: random_crop(1, "wrap"), "mode"),
        (lambda: cutout(0), "size"),
        (lambda: mixup(0.0, 3), "alpha"),
        (lambda: mixup(1.0, 0), "num_classes"),
        (lambda: cutout(1)(KEY, {"inputs": jnp.zeros((2, 3))}), r"got shape \(2, 3\)"),
        (
            lambda: random_crop(4, "reflect")(KEY, {"inputs": jnp.zeros((2, 4, 4, 1))}),
            "4x4 cannot be reflected by 4",
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
