"""U-Net's weights of pixels, against the formula computed pixel by pixel."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jdl import data, models, tasks


def areas(mask):
    """Sets of places that hang together by edges, by walking from each pixel."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        area, ahead = set(), [left.pop()]
        while ahead:
            y, x = ahead.pop()
            area.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            ahead += near
        found.append(area)
    return found


def by_hand(labels, strength, sigma):
    """Equation 2 of the paper without the balance of classes, of one image."""
    cells = [np.array(sorted(area)) for kind in (1, 2) for area in areas(labels == kind)]
    weights = np.ones(labels.shape)
    for y, x in np.argwhere(labels == 0):
        away = sorted(np.sqrt(((cell - [y, x]) ** 2).sum(1)).min() for cell in cells)
        if len(away) > 1:
            weights[y, x] += strength * np.exp(-((away[0] + away[1]) ** 2) / (2 * sigma**2))
    return weights


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(np.int32, (12, 9), elements=st.integers(0, 2)),
    st.floats(0, 20),
    st.floats(0.5, 6),
)
def test_weights_are_those_of_the_formula(labels, strength, sigma):
    found = data.border_weights(labels[None], strength=strength, sigma=sigma, balanced=False)
    # Cells beyond five sigma are left out.
    np.testing.assert_allclose(found[0], by_hand(labels, strength, sigma), rtol=1e-5, atol=4e-6 * strength)


def test_cells_far_from_the_rest_of_a_large_image_are_found():
    labels = np.zeros((1, 200, 90), np.uint8)
    labels[0, 150:190, 10:40], labels[0, 150:190, 44:80] = 1, 1
    weights = data.border_weights(labels, balanced=False)
    np.testing.assert_allclose(weights[0], by_hand(labels[0], 10, 5), rtol=1e-5, atol=4e-5)
    assert weights[0, 170, 41] > 4
    assert weights[0, 170, 20] == 1 == weights[0, 20, 20]


def test_classes_weigh_alike_when_balanced():
    labels = (np.random.default_rng(0).random((3, 8, 8)) < 0.2).astype(np.int32)
    weights = data.border_weights(labels, strength=0.0)
    np.testing.assert_allclose(weights[labels == 0].sum(), weights[labels == 1].sum(), rtol=1e-5)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    other = data.border_weights(1 - labels, background=1)
    np.testing.assert_array_equal(other, data.border_weights(labels))


def test_images_of_one_class_have_no_borders():
    for kind in (0, 1):
        np.testing.assert_array_equal(data.border_weights(np.full((2, 5, 4), kind)), 1)


@pytest.mark.parametrize(
    ("labels", "arguments", "said"),
    [
        (np.zeros((4, 4), int), {}, r"labels must be integers \[B, H, W\], got int64 of shape \(4, 4\)"),
        (np.zeros((1, 4, 4)), {}, "got float64"),
        (np.zeros((0, 4, 4), int), {}, r"of shape \(0, 4, 4\)"),
        (np.zeros((1, 4, 4), int), {"strength": -1.0}, "strength must be at least 0, got -1.0"),
        (np.zeros((1, 4, 4), int), {"strength": float("nan")}, "strength must be at least 0"),
        (np.zeros((1, 4, 4), int), {"sigma": 0.0}, "sigma must be above 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_told(labels, arguments, said):
    with pytest.raises(ValueError, match=said):
        data.border_weights(labels, **arguments)


def test_the_loss_of_a_segmentation_counts_by_them():
    labels = np.ones((1, 16, 16), np.int32)
    labels[:, :, 7:9] = 0
    task = tasks.segmentation(models.UNet(2, width=2, depth=1))
    batch = {"inputs": np.ones((1, 16, 16, 1), np.float32), "labels": labels}
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    weights = data.border_weights(labels)
    logits = task.predict(variables, batch["inputs"])
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), labels[..., None], -1)[..., 0]
    loss = task.evaluate(variables, {**batch, "weights": weights}, jax.random.key(1))["loss"]
    np.testing.assert_allclose(loss.total / loss.weight, -(picked * weights).sum() / weights.sum(), rtol=1e-5)
