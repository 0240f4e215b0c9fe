"""Preprocessing: predictable shapes, interpolation as in Pillow, statistics of the training images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.data import Preprocess, fit_preprocess


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_scales_and_normalises():
    raw = images(5, 4, 4, 3)
    out = Preprocess(mean=(0.1, 0.2, 0.3), std=(1, 2, 4))(raw)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, (raw / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4], atol=1e-6)
    np.testing.assert_allclose(Preprocess()(raw / np.float32(255)), Preprocess()(raw), atol=1e-7)


@pytest.mark.parametrize("how", ["pad", "resize"])
@pytest.mark.parametrize(
    ("height", "width", "have", "channels"), [(1, 1, 1, 3), (40, 3, 3, 1), (2, 37, 3, 3), (16, 12, 1, 1)]
)
def test_one_image_of_any_size(height, width, have, channels, how):
    preprocess = Preprocess((16, 12), how, channels)
    raw = images(height, width, have)
    single = preprocess(raw)
    assert single.shape == (16, 12, channels)
    np.testing.assert_allclose(preprocess(raw[None])[0], single, atol=1e-6)
    if have == 1:
        np.testing.assert_array_equal(preprocess(raw[..., 0]), single)
    assert float(single.min()) >= -1e-6
    assert float(single.max()) <= 1 + 1e-6


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (7, 45), (13, 21), (64, 20)])
def test_resize_is_that_of_pillow(size):
    image = pytest.importorskip("PIL.Image")
    raw = images(20, 31)
    reference = image.fromarray(raw.astype(np.float32)).resize(size[::-1], image.Resampling.BILINEAR)
    out = Preprocess(size, "resize")(raw)[..., 0]
    np.testing.assert_allclose(out * 255, np.asarray(reference), atol=2e-3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_middle_is_that_of_pillow(interpolation):
    image = pytest.importorskip("PIL.Image")
    raw = images(20, 31)
    # 8 is 0.8 of 10, to which the shorter side comes.
    scaled = image.fromarray(raw.astype(np.float32)).resize(
        (16, 10), getattr(image.Resampling, interpolation.upper())
    )
    out = Preprocess((8, 8), "crop", crop=0.8, interpolation=interpolation)(raw)[..., 0]
    np.testing.assert_allclose(out * 255, np.asarray(scaled)[1:9, 4:12], atol=2e-3)
    whole = Preprocess((20, 20), "crop", crop=1.0)(raw)[..., 0]
    np.testing.assert_allclose(whole * 255, raw[:, 6:26], atol=1e-3)


def test_grey_is_that_of_pillow():
    image = pytest.importorskip("PIL.Image")
    raw = images(9, 9, 3)
    reference = np.asarray(image.fromarray(raw).convert("L"), np.float32)
    np.testing.assert_allclose(Preprocess(channels=1)(raw)[..., 0] * 255, reference, atol=1)
    repeated = Preprocess(channels=3)(raw[..., :1])
    assert np.ptp(np.asarray(repeated), axis=-1).max() == 0


def test_pad_centres_and_shrinks_what_does_not_fit():
    out = Preprocess((6, 7))(np.full((2, 3), 255, np.uint8))[..., 0]
    assert float(out.sum()) == 6
    np.testing.assert_array_equal(out[2:4, 2:5], np.ones((2, 3)))
    wide = np.asarray(Preprocess((8, 8))(np.full((10, 40), 255, np.uint8))[..., 0])
    np.testing.assert_allclose(wide[3:5], 1, atol=1e-6)
    assert wide[:3].sum() == wide[5:].sum() == 0
    raw = images(2, 6, 7, 1)
    np.testing.assert_array_equal(Preprocess((6, 7))(raw), Preprocess()(raw))


@pytest.mark.parametrize("how", ["pad", "resize"])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_gives_zero_mean_and_unit_deviation(how, channels):
    raw = images(300, 7, 5, 3) // np.array([1, 2, 4], np.uint8)
    preprocess = fit_preprocess(raw, (8, 9), how, channels=channels)
    out = np.asarray(preprocess(raw), np.float64)
    assert out.shape == (300, 8, 9, channels)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_fit_in_chunks_and_without_variation(monkeypatch):
    raw = images(1, 1024, 1024, 1).repeat(17, 0)  # one image more than a chunk
    raw[16] = 0
    preprocess = fit_preprocess(raw, None)
    np.testing.assert_allclose(preprocess.mean, (raw / 255).mean(), rtol=1e-6)
    np.testing.assert_allclose(preprocess.std, (raw / 255).std(), rtol=1e-6)
    assert fit_preprocess(np.zeros((3, 4, 4, 1), np.uint8), None).std == (1.0,)


def test_is_a_value():
    preprocess = fit_preprocess(images(9, 8, 8, 3), (32, 32))
    again = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    assert again == preprocess
    assert hash(again) == hash(preprocess)
    assert Preprocess.from_json(Preprocess().to_json()) == Preprocess()
    jitted = jax.jit(lambda preprocess, x: preprocess(x))
    raw = images(2, 10, 10, 3)
    np.testing.assert_allclose(jitted(preprocess, raw), again(raw), atol=1e-6)
    assert jitted._cache_size() == 1
    jitted(again, raw)
    assert jitted._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 3)}, "size must be"),
        ({"size": (3,)}, "size must be"),
        ({"how": "stretch"}, "how must be one of"),
        ({"how": "crop"}, "needs a size to cut out"),
        ({"crop": 1.5}, "crop, a share, must be above 0 and at most 1; got 1.5"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"channels": 2}, "channels must be 1, 3 or None, got 2"),
        ({"mean": (0.0, 1.0)}, "one value a channel"),
        ({"mean": (0.0,) * 3, "std": (1.0,) * 3, "channels": 1}, "one value a channel"),
        ({"std": (0.0,)}, "std positive"),
        ({"mean": (float("nan"),)}, "finite"),
    ],
)
def test_values_it_does_not_take(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**options)


def test_images_it_does_not_take():
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        Preprocess()(np.zeros(3))
    with pytest.raises(ValueError, match="got int32"):
        Preprocess()(np.zeros((2, 2), np.int32))
    with pytest.raises(ValueError, match="4 channels do not become images with 3"):
        Preprocess(channels=3)(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(ValueError, match="images have 1 channels, mean and std are for 3"):
        Preprocess(mean=(0,) * 3, std=(1,) * 3)(np.zeros((2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="batch of images"):
        fit_preprocess(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="has no colour"):
        Preprocess.from_json({"colour": 1})
