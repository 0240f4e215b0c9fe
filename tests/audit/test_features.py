"""What units answer to, found by brute force and by construction."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jdl import data
from jdl.audit import feature_visualization, invert, layer_activation, maximally_activating
from jdl.audit.features import Strongest, merge
from jdl.models import TwoConv

MODEL = TwoConv(4, (4, 8), (3, 3))
IMAGES = np.random.default_rng(0).normal(size=(23, 8, 8, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), IMAGES[:1])


@pytest.mark.parametrize("layer", ["Conv_0", "Conv_1", "Dense_0"])
def test_strongest_inputs_are_those_of_a_sort(variables, layer):
    x = np.asarray(layer_activation(MODEL, variables, IMAGES, layer))[..., 3].reshape(len(IMAGES), -1)
    expected = np.argsort(-x.max(1))[:5]
    batches = [{"inputs": IMAGES[i : i + 7]} for i in range(0, 23, 7)]
    strongest, boxes = maximally_activating(MODEL, variables, batches, layer, channel=3, k=5)
    np.testing.assert_array_equal(strongest.indices, expected)
    np.testing.assert_allclose(strongest.values, x.max(1)[expected], rtol=1e-5)
    np.testing.assert_array_equal(strongest.inputs, IMAGES[expected])
    if layer == "Dense_0":
        assert strongest.positions.shape == (5, 0)
    else:
        width = 8 if layer == "Conv_0" else 4
        np.testing.assert_array_equal(strongest.positions @ np.array([width, 1]), x.argmax(1)[expected])
    assert boxes.shape == (5, 4)


def test_boxes_of_the_first_convolution_are_its_windows(variables):
    found = maximally_activating(MODEL, variables, [IMAGES], "Conv_0", channel=0, k=23)
    for (row, column), box in zip(np.asarray(found.strongest.positions), found.boxes, strict=True):
        window = max(0, row - 1), max(0, column - 1), min(8, row + 2), min(8, column + 2)
        assert tuple(box) == window
    height, width = (found.boxes[:, i + 2] - found.boxes[:, i] for i in (0, 1))
    assert [crop.shape for crop in found.crops()] == [(h, w, 2) for h, w in zip(height, width, strict=True)]


def test_nothing_outside_the_box_counts(variables):
    found = maximally_activating(MODEL, variables, [IMAGES], "Conv_1", channel=2, k=3)
    rng = np.random.default_rng(1)
    for x, box, position in zip(found.strongest.inputs, found.boxes, found.strongest.positions, strict=True):
        top, left, bottom, right = box
        assert (bottom - top) * (right - left) < 64
        # Too little to change which values win.
        moved = np.asarray(x) + 1e-5 * rng.normal(size=x.shape).astype(np.float32)
        moved[top:bottom, left:right] = x[top:bottom, left:right]
        before, after = (layer_activation(MODEL, variables, each[None], "Conv_1") for each in (x, moved))
        where = (0, *np.asarray(position), 2)
        np.testing.assert_allclose(after[where], before[where], rtol=1e-6)


def test_padding_does_not_count_and_few_data_give_few_inputs(variables):
    batches = data.in_order({"inputs": IMAGES[:6]}, 4)
    found = maximally_activating(MODEL, variables, (batches(i) for i in range(2)), "Conv_0", channel=0, k=50)
    assert sorted(found.strongest.indices.tolist()) == list(range(6))
    assert np.isfinite(found.strongest.values).all()


def test_merging_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    parts = [
        Strongest(*map(jnp.asarray, (rng.normal(size=4), np.arange(4) + 4 * i, np.zeros((4, 2)), np.ones(4))))
        for i in range(3)
    ]
    results = [merge(merge(a, b, 5), c, 5) for a, b, c in itertools.permutations(parts)]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    assert (np.diff(results[0].values) < 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channel": 8}, r"'Conv_1' has the channels 0 to 7; got \[8\]"),
        ({"channel": 0, "batches": []}, "batches is empty"),
        ({"channel": 0, "k": 0}, "k must be at least 1; got 0"),
        ({"channel": 0, "layer": "Conv_9"}, "there is no layer 'Conv_9'"),
    ],
)
def test_says_what_is_wrong_with_a_question(variables, options, words):
    with pytest.raises(ValueError, match=words):
        maximally_activating(MODEL, variables, **{"batches": [IMAGES], "layer": "Conv_1", **options})


def smooth_images():
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    return np.stack([np.add.outer(np.sin(2 * x), x), np.multiply.outer(x, x)])[..., None].repeat(2, -1)


def test_inversion_finds_the_image_that_was_seen(variables):
    images = smooth_images()
    target = layer_activation(MODEL, variables, images, "Conv_0")
    made = invert(
        MODEL, variables, target, "Conv_0", shape=(8, 8, 2), key=jax.random.key(1), total_variation=1e-4
    )
    reached = layer_activation(MODEL, variables, made.images, "Conv_0")
    error = jnp.square(reached - target).sum((1, 2, 3)) / jnp.square(target).sum((1, 2, 3))
    np.testing.assert_allclose(made.scores, error, rtol=1e-3)
    assert (made.scores < 1e-3).all()
    # 64 * 4 numbers determine the 64 * 2 of the image.
    assert np.abs(made.images - images).mean() < 0.1 * np.abs(images).mean()
    assert made.losses.shape == (500,)
    assert made.losses[-1] < 0.01 * made.losses[0]


def test_priors_make_smaller_and_smoother_images(variables):
    target = layer_activation(MODEL, variables, smooth_images(), "Conv_1")
    make = lambda **options: (
        invert(
            MODEL, variables, target, "Conv_1", shape=(8, 8, 2), key=jax.random.key(1), steps=200, **options
        ).images
    )
    plain = make(total_variation=0.0, alpha_norm=0.0)
    roughness = lambda x: float(np.abs(np.diff(x, axis=1)).mean())
    assert roughness(make(total_variation=1.0, alpha_norm=0.0)) < 0.5 * roughness(plain)
    assert np.abs(make(total_variation=0.0, alpha_norm=1.0)).max() < 0.9 * np.abs(plain).max()
    assert roughness(make(total_variation=1.0, beta=1.0)) < 0.5 * roughness(plain)


def test_each_image_is_inverted_by_itself(variables):
    """A batch of two gives what each gives alone, from the same start."""
    target = layer_activation(MODEL, variables, smooth_images(), "Conv_1")
    options = {"shape": (8, 8, 2), "key": jax.random.key(1), "steps": 20}
    both = invert(MODEL, variables, target, "Conv_1", **options)
    replaced = invert(MODEL, variables, target.at[1].set(0.5), "Conv_1", **options)
    np.testing.assert_allclose(both.images[0], replaced.images[0], atol=1e-5)
    assert np.abs(both.images[1] - replaced.images[1]).max() > 1e-2


class Template(linen.Module):
    """One 3x3 filter whose best input is known: the filter itself."""

    @linen.compact
    def __call__(self, inputs, train=False):
        return linen.Conv(2, (3, 3), padding="VALID", use_bias=False, name="conv")(inputs)


def test_visualization_finds_the_template():
    module = Template()
    variables = module.init(jax.random.key(3), jnp.zeros((1, 3, 3, 1)))
    made = feature_visualization(
        module, variables, "conv", [1, 0], shape=(3, 3, 1), key=jax.random.key(1), jitter=0,
        total_variation=0.0, l2=1.0, steps=400,
    )  # fmt: skip
    for image, score, channel in zip(made.images, made.scores, (1, 0), strict=True):
        kernel = np.asarray(variables["params"]["conv"]["kernel"])[..., channel]
        # The largest of k.x - mean x^2 is at x = 9 k / 2.
        np.testing.assert_allclose(image, 4.5 * kernel, atol=0.05)
        np.testing.assert_allclose(score, 4.5 * np.square(kernel).sum(), rtol=0.02)


def test_visualization_of_a_neuron_and_of_a_channel_differ(variables):
    options = {"shape": (8, 8, 2), "key": jax.random.key(1), "steps": 50, "total_variation": 0.1, "l2": 0.01}
    channel = feature_visualization(MODEL, variables, "Conv_1", 5, **options)
    neuron = feature_visualization(MODEL, variables, "Conv_1", 5, position=(1, 1), jitter=0, **options)
    x = layer_activation(MODEL, variables, jnp.concatenate([channel.images, neuron.images]), "Conv_1")[..., 5]
    assert x[0].mean() > x[1].mean()
    assert x[1, 1, 1] > x[0, 1, 1]
    np.testing.assert_allclose([channel.scores[0], neuron.scores[0]], [x[0].mean(), x[1, 1, 1]], rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v: invert(MODEL, v, jnp.ones((1, 5)), "Conv_0", shape=(8, 8, 2), key=jax.random.key(0)),
         r"target has shape \(1, 5\), but layer 'Conv_0' makes \(1, 8, 8, 4\)"),
        (lambda v: feature_visualization(MODEL, v, "Conv_0", 0, shape=(8, 8), key=jax.random.key(0)),
         "shape is that of one image"),
        (lambda v: feature_visualization(
            MODEL, v, "Conv_1", 0, shape=(8, 8, 2), key=jax.random.key(0), position=(4, 0)),
         r"positions in a map of \(4, 4\); got \(4, 0\)"),
        (lambda v: feature_visualization(MODEL, v, "Conv_1", [0, 9], shape=(8, 8, 2), key=jax.random.key(0)),
         r"channels 0 to 7; got \[9\]"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_an_image_to_make(variables, call, words):
    with pytest.raises(ValueError, match=words):
        call(variables)
