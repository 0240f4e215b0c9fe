"""Crops, erasing and deformation: what is drawn is read off a ramp, and compared with Pillow and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from jdl.data import elastic, random_erasing, random_resized_crop

KEY = jax.random.key(0)


def photos(count, height, width, channels=3, seed=0):
    """Smooth random images, uint8."""
    noise = np.random.default_rng(seed).normal(size=(count, height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.round(255 * smooth).astype(np.uint8)


def coordinates(count, height, width):
    """Every pixel's own row and column: after a deformation they say where the pixel came from."""
    grid = np.stack(np.mgrid[:height, :width], -1).astype(np.float32)
    return jnp.asarray(np.broadcast_to(grid, (count, height, width, 2)))


def rectangles(count, size, image, scale, ratio, key=KEY):
    """The rectangles that a crop draws, [B, 4] (top, left, height, width), read off a mask of positions."""
    height, width = image
    positions = jnp.tile(jnp.arange(height * width).reshape(1, height, width), (count, 1, 1))
    data = {"inputs": jnp.zeros((count, height, width, 1)), "at": positions}
    at = np.asarray(random_resized_crop(size, scale, ratio, also=("at",))(key, data)["at"])
    rows, columns = at[:, :, 0] // width, at[:, 0] % width
    np.testing.assert_array_equal(at, rows[:, :, None] * width + columns[:, None, :])
    return np.stack([rows[:, 0], columns[:, 0], *(1 + np.ptp(x, 1) for x in (rows, columns))], 1)


@pytest.mark.parametrize("size", [(16, 20), (70, 90)])
def test_crop_resizes_as_pillow_does(size):
    images = photos(12, 48, 64)
    shape, ratio = (0.1, 0.9), (0.5, 2.0)
    # A mask enlarged by nearest neighbours shows the rectangle's first and last row and column.
    boxes = rectangles(12, (256, 256), (48, 64), shape, ratio)
    masks = photos(12, 48, 64, 1, seed=1)[..., 0]
    data = {"inputs": jnp.asarray(images), "mask": jnp.asarray(masks), "map": jnp.asarray(masks, jnp.float32)}
    cropped = random_resized_crop(size, shape, ratio, also=("mask", "map"))(KEY, data)
    assert cropped["inputs"].dtype == cropped["mask"].dtype == jnp.uint8
    assert cropped["map"].dtype == jnp.float32
    for i, (top, left, height, width) in enumerate(boxes):
        box = (left, top, left + width, top + height)
        wanted = Image.fromarray(images[i]).resize(size[::-1], Image.Resampling.BILINEAR, box)
        np.testing.assert_allclose(cropped["inputs"][i].astype(int), np.asarray(wanted, int), atol=1)
        wanted = Image.fromarray(masks[i]).resize(size[::-1], Image.Resampling.NEAREST, box)
        # Pillow adds up steps, so that a centre on the border of two pixels may fall to either.
        rows, columns = (
            (2 * np.arange(n) + 1) * side % (2 * n) > 0 for n, side in zip(size, (height, width), strict=True)
        )
        assert rows.mean() > 0.4
        assert columns.mean() > 0.4
        np.testing.assert_array_equal(
            np.asarray(cropped["mask"][i])[rows][:, columns], np.asarray(wanted)[rows][:, columns]
        )
        floating = Image.fromarray(masks[i].astype(np.float32))
        wanted = floating.resize(size[::-1], Image.Resampling.BILINEAR, box)
        np.testing.assert_allclose(cropped["map"][i], wanted, atol=0.05)


def test_crop_rectangles_have_the_stated_distribution():
    count, height, width = 1000, 100, 120
    top, left, rows, columns = rectangles(count, (128, 128), (height, width), (0.1, 0.4), (3 / 4, 4 / 3)).T
    area, aspect = rows * columns / (height * width), columns / rows
    # Every such rectangle fits, so nothing is drawn again; sides are whole pixels.
    assert stats.kstest(area, stats.uniform(0.1, 0.3).cdf).pvalue > 1e-4
    low, high = np.log(3 / 4), np.log(4 / 3)
    assert stats.kstest(np.log(aspect), stats.uniform(low, high - low).cdf).pvalue > 1e-4
    rng = np.random.default_rng(0)
    for start, room in ((top, height - rows + 1), (left, width - columns + 1)):
        assert (start >= 0).all()
        assert (start < room).all()
        assert stats.kstest((start + rng.random(count)) / room, stats.uniform.cdf).pvalue > 1e-4


def test_crop_that_never_fits_is_centred():
    boxes = rectangles(20, (256, 256), (20, 100), (0.9, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(boxes, np.tile([0, 36, 20, 27], (20, 1)))
    boxes = rectangles(20, (256, 256), (100, 20), (0.9, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(boxes, np.tile([36, 0, 27, 20], (20, 1)))


def test_whole_image_is_left_alone():
    images = photos(3, 24, 24)
    same = random_resized_crop(24, (1.0, 1.0), (1.0, 1.0))(KEY, {"inputs": jnp.asarray(images)})["inputs"]
    np.testing.assert_array_equal(same, images)
    half = jnp.asarray(images / 255, jnp.bfloat16)
    same = random_resized_crop(24, (1.0, 1.0), (1.0, 1.0))(KEY, {"inputs": half})["inputs"]
    assert same.dtype == jnp.bfloat16
    np.testing.assert_array_equal(same, half)


def test_erased_rectangles():
    count, height, width = 3000, 40, 50
    transform = random_erasing(0.6, scale=(0.05, 0.3), ratio=(0.5, 2.0), value=0.0)
    hole = np.asarray(transform(KEY, {"inputs": jnp.ones((count, height, width, 2))})["inputs"] == 0)
    np.testing.assert_array_equal(hole[..., 0], hole[..., 1])
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    np.testing.assert_array_equal(hole[..., 0], rows[:, :, None] & columns[:, None])
    erased = rows.any(1)
    assert stats.binomtest(int(erased.sum()), count, 0.6).pvalue > 1e-4
    sides = rows.sum(1)[erased], columns.sum(1)[erased]
    area = sides[0] * sides[1] / (height * width)
    # Whole pixels: half a pixel on a side of ten.
    assert 0.05 * 0.9 < area.min() < 0.06
    assert 0.28 < area.max() < 0.3 * 1.1
    assert abs(area.mean() - 0.175) < 0.01
    aspect = np.log(sides[1] / sides[0])
    assert abs(np.median(aspect)) < 0.06
    assert np.abs(aspect).max() < np.log(2.0) + 0.1
    assert rows[:, 0].any()
    assert rows[:, -1].any()
    assert columns[:, 0].any()
    assert columns[:, -1].any()


def test_erasing_writes_noise():
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    floating = random_erasing(1.0, **whole)(KEY, {"inputs": jnp.full((4, 32, 32, 3), 9.0)})["inputs"]
    assert stats.kstest(np.asarray(floating).ravel(), stats.norm.cdf).pvalue > 1e-4
    levels = random_erasing(1.0, **whole)(KEY, {"inputs": jnp.zeros((4, 32, 32, 3), jnp.uint8)})["inputs"]
    assert levels.dtype == jnp.uint8
    assert stats.chisquare(np.bincount(np.asarray(levels).ravel(), minlength=256)).pvalue > 1e-4
    grey = random_erasing(1.0, **whole, value=7)(KEY, {"inputs": jnp.zeros((1, 8, 8, 1), jnp.uint8)})[
        "inputs"
    ]
    assert (grey == 7).all()


def test_nothing_is_erased_where_nothing_fits():
    data = {"inputs": jnp.ones((16, 4, 40, 1))}
    tall = random_erasing(1.0, scale=(0.9, 1.0), ratio=(0.3, 0.4))
    np.testing.assert_array_equal(tall(KEY, data)["inputs"], data["inputs"])


def test_elastic_moves_pixels_as_scipy_does():
    count, height, width = 6, 29, 33
    transform = elastic(30, 4, also=("mask", "map"))
    images, masks = photos(count, height, width), photos(count, height, width, 1, seed=1)[..., 0]
    data = {
        "inputs": jnp.asarray(images),
        "mask": jnp.asarray(masks),
        "map": coordinates(count, height, width),
    }
    moved = transform(KEY, data)
    assert moved["inputs"].dtype == moved["mask"].dtype == jnp.uint8
    at = np.moveaxis(np.asarray(moved["map"], np.float64), -1, 1)
    # A ramp shows the coordinates themselves, except where they lie outside and the ramp is reflected.
    inner = ((at > 0.02) & (at < np.array([height - 1.02, width - 1.02])[None, :, None, None])).all(1)
    assert inner.mean() > 0.8
    assert np.abs(at - np.mgrid[:height, :width]).max() > 1
    for i in range(count):
        for channel in range(3):
            wanted = ndimage.map_coordinates(
                images[i, ..., channel].astype(float), at[i], order=1, mode="reflect"
            )
            got = np.asarray(moved["inputs"][i, ..., channel], float)
            np.testing.assert_allclose(got[inner[i]], wanted[inner[i]], atol=0.51)
        wanted = ndimage.map_coordinates(masks[i], at[i], order=0, mode="reflect")
        clear = inner[i] & (np.abs(at[i] % 1 - 0.5) > 1e-3).all(0)
        np.testing.assert_array_equal(np.asarray(moved["mask"][i])[clear], wanted[clear])


def test_elastic_reflects_at_the_border():
    """What comes into view is made of the image's own pixels, and never of zeros."""
    images = np.zeros((8, 16, 16, 1), np.float32)
    images[:, 0] = images[:, -1] = images[:, :, 0] = images[:, :, -1] = 1
    moved = np.asarray(elastic(60, 4)(KEY, {"inputs": jnp.asarray(1 + images)})["inputs"])
    assert moved.min() >= 1 - 1e-5
    assert moved.max() <= 2 + 1e-5


def test_elastic_displacement_is_a_smoothed_uniform():
    count, side, alpha, sigma = 64, 64, 20.0, 3.0
    at = np.asarray(
        elastic(alpha, sigma, also=("map",))(
            KEY, {"inputs": jnp.zeros((count, side, side, 1)), "map": coordinates(count, side, side)}
        )["map"]
    )
    moved = (at - np.stack(np.mgrid[:side, :side], -1))[:, 16:-16, 16:-16]
    noise = np.random.default_rng(0).uniform(-1, 1, (count, 2, side, side))
    reference = alpha * ndimage.gaussian_filter(noise, (0, 0, sigma, sigma), mode="constant")
    reference = np.moveaxis(reference, 1, -1)[:, 16:-16, 16:-16]
    assert moved.std() == pytest.approx(reference.std(), rel=0.05)
    assert moved.std() == pytest.approx(alpha / (sigma * np.sqrt(12 * np.pi)), rel=0.05)
    assert abs(moved.mean()) < 4 * reference.std() / np.sqrt(count * 20)
    for lag in (2, 4):

        def related(field, lag=lag):
            return np.corrcoef(field[:, lag:].ravel(), field[:, :-lag].ravel())[0, 1]

        # Two points at a distance d share exp(-d^2 / (4 sigma^2)) of a Gaussian-filtered field.
        assert related(moved) == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.05)
    assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.1


def test_pure_in_the_key():
    data = {"inputs": jnp.asarray(photos(4, 20, 24)), "labels": jnp.arange(4)}
    for transform in (random_resized_crop(12), random_erasing(1.0), elastic(20, 3)):
        one, again, other = transform(KEY, data), transform(KEY, data), transform(jax.random.key(1), data)
        jax.tree.map(np.testing.assert_array_equal, one, again)
        assert (one["inputs"] != other["inputs"]).any()
        np.testing.assert_array_equal(one["labels"], data["labels"])
    same = {"inputs": jnp.tile(data["inputs"][:1], (8, 1, 1, 1))}
    for transform in (random_resized_crop(12), random_erasing(1.0), elastic(20, 3)):
        out = np.asarray(transform(KEY, same)["inputs"])
        assert len(np.unique(out.reshape(8, -1), axis=0)) == 8
    np.testing.assert_array_equal(elastic(0.0, 3)(KEY, data)["inputs"], data["inputs"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_resized_crop(0), "size"),
        (lambda: random_resized_crop(8, scale=(0.5, 1.5)), "scale must be .* <= 1"),
        (lambda: random_resized_crop(8, scale=(0.0, 1.0)), "scale"),
        (lambda: random_resized_crop(8, ratio=(2.0, 1.0)), "ratio"),
        (lambda: random_resized_crop(8, also="mask"), "also"),
        (lambda: random_resized_crop(8)(KEY, {"inputs": jnp.zeros((1, 9, 9, 1), int)}), "got int32"),
        (lambda: random_erasing(-0.1), "probability"),
        (lambda: random_erasing(scale=(0.1, 2.0)), "scale"),
        (lambda: random_erasing()(KEY, {"inputs": jnp.zeros((1, 9, 9, 1), bool)}), "got bool"),
        (lambda: elastic(-1, 1), "alpha"),
        (lambda: elastic(1, 0), "sigma"),
        (lambda: elastic(1, 1)(KEY, {"inputs": jnp.zeros((9, 9))}), r"got shape \(9, 9\)"),
        (
            lambda: elastic(1, 1, also=("mask",))(
                KEY, {"inputs": jnp.zeros((1, 9, 9, 1)), "mask": jnp.zeros((1, 9, 8))}
            ),
            r"'mask' must be .* got shape \(1, 9, 8\)",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
