"""Changes of colour against Pillow and the standard library, and the jitter's distribution."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from jdl.data import color_jitter
from jdl.data.augment_color import (
    black,
    blend,
    grey,
    mean_grey,
    smooth,
    with_hue,
)

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 20, 17, 3), np.uint8)
FACTORS = np.array([0.0, 0.3, 1.0, 1.4, 1.9], np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("start", "enhancer"),
    [
        (black, ImageEnhance.Brightness),
        (mean_grey, ImageEnhance.Contrast),
        (grey, ImageEnhance.Color),
        (smooth, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_those_of_pillow(start, enhancer, channels):
    images = IMAGES[..., :channels]
    levels = jnp.asarray(images, jnp.float32)
    got = np.asarray(blend(start(levels), levels, jnp.asarray(FACTORS)))
    for i, factor in enumerate(FACTORS):
        source = Image.fromarray(images[i] if channels == 3 else images[i, ..., 0])
        wanted = np.asarray(enhancer(source).enhance(float(factor)), float).reshape(images[i].shape)
        # Pillow cuts off the fraction, and rounds the grey or smoothed image that it blends with.
        assert np.abs(got[i] - wanted).max() <= 1.5
        assert np.abs(np.floor(got[i]) - wanted).max() <= 1


def test_hue_is_that_of_the_standard_library():
    levels = np.concatenate([IMAGES[0].reshape(-1, 3), [[0, 0, 0], [9, 9, 9], [255, 0, 0], [0, 255, 255]]])
    for shift in (-0.5, -0.13, 0.0, 0.3):
        turned = [colorsys.rgb_to_hsv(*pixel) for pixel in levels / 255]
        wanted = [colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in turned]
        got = with_hue(jnp.asarray(levels, jnp.float32)[None, None], jnp.asarray([shift]))[0, 0]
        np.testing.assert_allclose(got, 255 * np.array(wanted), atol=2e-3)


def test_jitter_of_one_kind_has_a_uniform_factor():
    images = jnp.full((4000, 1, 1, 3), 0.5)
    factor = np.asarray(color_jitter(brightness=0.3)(KEY, {"inputs": images})["inputs"])[:, 0, 0, 0] / 0.5
    assert stats.kstest(factor, stats.uniform(0.7, 0.6).cdf).pvalue > 1e-4
    red = jnp.asarray([1.0, 0.0, 0.0]) * jnp.ones((4000, 1, 1, 3))[0, 0, 0]
    images = jnp.broadcast_to(red[None, None, None], (4000, 1, 1, 3))
    turned = np.asarray(color_jitter(hue=0.1)(KEY, {"inputs": images})["inputs"])[:, 0, 0]
    hues = np.array([(colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1 - 0.5 for pixel in turned])
    assert stats.kstest(hues, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-4
    dark = color_jitter(brightness=3.0)(KEY, {"inputs": images})["inputs"]
    assert float(dark.min()) >= 0


def test_jitter_takes_either_order():
    """Brightening first clips and changes the mean that contrast turns about; both orders must be seen."""
    image = np.array([[0.1, 0.5], [0.8, 0.3]], np.float32)[..., None]
    images = jnp.tile(image[None], (2000, 1, 1, 1))
    out = np.asarray(color_jitter(brightness=0.5, contrast=0.5)(KEY, {"inputs": images})["inputs"])
    drawn = np.random.default_rng(0).uniform(0.5, 1.5, (2, 20_000)).astype(np.float32)
    levels = jnp.tile(image[None] * 255, (20_000, 1, 1, 1))
    bright, contrast = jnp.asarray(drawn)
    one = blend(black(levels), levels, bright)
    one = blend(mean_grey(one), one, contrast)
    other = blend(mean_grey(levels), levels, contrast)
    other = blend(black(other), other, bright)
    half = np.concatenate([one[:10_000], other[:10_000]]) / 255
    for pixel in np.ndindex(2, 2):
        assert stats.ks_2samp(out[:, *pixel, 0], half[:, *pixel, 0]).pvalue > 1e-4


def test_jitter_keeps_types_and_is_pure():
    data = {"inputs": jnp.asarray(IMAGES), "labels": jnp.arange(5)}
    transform = color_jitter(0.4, 0.4, 0.4, 0.1)
    one = transform(KEY, data)
    assert one["inputs"].dtype == jnp.uint8
    np.testing.assert_array_equal(one["inputs"], transform(KEY, data)["inputs"])
    assert (one["inputs"] != transform(jax.random.key(1), data)["inputs"]).any()
    floating = transform(KEY, {"inputs": jnp.asarray(IMAGES / 255, jnp.float32)})["inputs"]
    np.testing.assert_allclose(floating * 255, one["inputs"].astype(jnp.float32), atol=0.51)
    assert transform(KEY, {"inputs": jnp.zeros((2, 4, 4, 1), jnp.bfloat16)})["inputs"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(color_jitter()(KEY, data)["inputs"], data["inputs"])


def test_normalised_images_are_not_clipped_in_silence():
    images = jnp.stack([jnp.full((4, 4, 3), 0.5), jnp.full((4, 4, 3), 0.5).at[0, 0, 0].set(-1.0)])
    out = color_jitter(0.1)(KEY, {"inputs": images})["inputs"]
    assert jnp.isfinite(out[0]).all()
    assert jnp.isnan(out[1]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: color_jitter(brightness=-0.1), "brightness must be at least 0"),
        (lambda: color_jitter(hue=0.6), "hue must lie in"),
        (lambda: color_jitter(0.1)(KEY, {"inputs": jnp.zeros((1, 4, 4, 2))}), r"got shape \(1, 4, 4, 2\)"),
        (lambda: color_jitter(0.1)(KEY, {"inputs": jnp.zeros((1, 4, 4, 3), int)}), "got int32"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
