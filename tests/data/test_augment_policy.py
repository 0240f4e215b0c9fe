"""RandAugment and TrivialAugment: each operation against Pillow's, and the draws against the papers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from jdl.data import rand_augment, trivial_augment
from jdl.data.augment_policy import OPERATIONS, RAND_AUGMENT, TRIVIAL_AUGMENT, operate

KEY = jax.random.key(0)
HEIGHT, WIDTH, FILL = 37, 44, 77
compiled = jax.jit(operate, static_argnums=(3, 4))


def photo(seed=0, channels=3):
    """A smooth image that does not use all grey levels, with a different histogram in each channel."""
    noise = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, channels))
    smooth = ndimage.gaussian_filter(noise, (1.5, 1.5, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.round(20 + 200 * smooth ** (1 + np.arange(channels))).astype(np.uint8)


def pillow(name, image, strength, ranges):
    """What Pillow makes of it."""
    picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    fill = (FILL,) * 3 if image.shape[-1] == 3 else FILL
    size = abs(strength)

    def affine(*coefficients):
        return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, fillcolor=fill)

    factor = 1 + strength * ranges.enhance
    made = {
        "identity": lambda: picture,
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "rotate": lambda: picture.rotate(strength * ranges.rotate, fillcolor=fill),
        "solarize": lambda: ImageOps.solarize(picture, 256 * (1 - size)),
        "color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "posterize": lambda: ImageOps.posterize(picture, 8 - round(size * ranges.posterize)),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        "shear x": lambda: affine(1, strength * ranges.shear, 0, 0, 1, 0),
        "shear y": lambda: affine(1, 0, 0, strength * ranges.shear, 1, 0),
        "translate x": lambda: affine(1, 0, strength * ranges.translate(WIDTH), 0, 1, 0),
        "translate y": lambda: affine(1, 0, 0, 0, 1, strength * ranges.translate(HEIGHT)),
    }
    return np.asarray(made[name]()).reshape(image.shape)


STRENGTHS = np.array([-1.0, -0.61, -0.3, 0.0, 0.27, 0.8, 1.0], np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ranges", [RAND_AUGMENT, TRIVIAL_AUGMENT], ids=["rand", "trivial"])
def test_operations_are_those_of_pillow(ranges, channels):
    image = photo(channels=channels)
    count = len(OPERATIONS) * len(STRENGTHS)
    operation = np.repeat(np.arange(len(OPERATIONS)), len(STRENGTHS))
    strength = np.tile(STRENGTHS, len(OPERATIONS))
    levels = jnp.asarray(np.broadcast_to(image, (count, *image.shape)), jnp.float32)
    made = compiled(levels, operation, strength, ranges, FILL)
    for got, i, size in zip(np.asarray(made), operation, strength, strict=True):
        name = OPERATIONS[i]
        wanted = pillow(name, image, float(size), ranges).astype(int)
        far = np.abs(np.round(got) - wanted) > 1
        if name in ("rotate", "shear x", "shear y", "translate x", "translate y"):
            # Pillow steps in fixed point, so that a source on the border of two pixels may fall to either.
            assert far.mean() < 0.02, (name, size, far.mean())
        else:
            assert not far.any(), (name, size, np.abs(np.round(got) - wanted).max())
        if name in ("equalize", "solarize", "posterize", "identity"):
            np.testing.assert_array_equal(got, wanted, err_msg=f"{name} {size}")


def test_images_without_contrast_stay():
    flat = jnp.full((len(OPERATIONS), 8, 8, 3), 50.0)
    made = compiled(flat, jnp.arange(len(OPERATIONS)), jnp.zeros(len(OPERATIONS)), RAND_AUGMENT, 0)
    np.testing.assert_allclose(made, 50, atol=1e-4)


def found(images, outcomes):
    """Which outcome each image is, within one grey level; -1 where it is none."""
    distance = np.stack([np.abs(images.astype(int) - each).max((1, 2, 3)) for each in outcomes], 1)
    assert ((distance <= 1).sum(1) <= 1).all()
    return np.where(distance.min(1) <= 1, distance.argmin(1), -1)


def every(operations, strengths, ranges, image):
    """What each operation makes of an image at each strength, rounded, [O * S, H, W, C]."""
    operation, strength = (x.ravel() for x in np.meshgrid(operations, strengths, indexing="ij"))
    levels = jnp.asarray(np.broadcast_to(image, (len(operation), *image.shape)), jnp.float32)
    made = compiled(levels, jnp.asarray(operation), jnp.asarray(strength, jnp.float32), ranges, 128)
    return np.clip(np.round(made), 0, 255).astype(int)


def test_rand_augment_draws_operations_and_directions_uniformly():
    count, image = 2800, photo()[:22, :22]
    one_way = [OPERATIONS.index(x) for x in ("identity", "autocontrast", "equalize", "solarize", "posterize")]
    two_ways = [i for i in range(len(OPERATIONS)) if i not in one_way]
    outcomes = [
        *every(one_way, [0.5], RAND_AUGMENT, image),
        *every(two_ways, [0.5, -0.5], RAND_AUGMENT, image),
    ]
    images = jnp.asarray(np.broadcast_to(image, (count, *image.shape)))
    drawn = found(np.asarray(rand_augment(1, 15)(KEY, {"inputs": images})["inputs"]), outcomes)
    assert drawn.min() >= 0
    counts = np.bincount(drawn, minlength=len(outcomes))
    expected = np.array([1.0] * len(one_way) + [0.5] * 2 * len(two_ways)) * count / len(OPERATIONS)
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_rand_augment_applies_num_ops():
    count = 3000
    image = photo()[:22, :22]
    images = jnp.asarray(np.broadcast_to(image, (count, *image.shape)))
    kept = [
        int((rand_augment(n, 30)(KEY, {"inputs": images})["inputs"] == images).all((1, 2, 3)).sum())
        for n in (1, 2)
    ]
    # Only the identity leaves this image alone at full strength, and twice it is rare.
    assert stats.binomtest(kept[0], count, 1 / 14).pvalue > 1e-4
    assert stats.binomtest(kept[1], count, 1 / 14**2).pvalue > 1e-4


def test_trivial_augment_draws_the_strength_too():
    count, image = 2000, photo()[:22, :22]
    strengths = np.arange(1, 31) / 30
    outcomes = every([OPERATIONS.index("brightness")], [*strengths, *-strengths], TRIVIAL_AUGMENT, image)
    data = {"inputs": jnp.asarray(np.broadcast_to(image, (count, *image.shape)))}
    out = trivial_augment()(KEY, data)["inputs"]
    drawn = found(np.asarray(out), outcomes)
    drawn = drawn[drawn >= 0]
    # Brightness by any of 30 strengths, and by none it is the identity.
    assert stats.binomtest(len(drawn), count, 30 / 31 / 14).pvalue > 1e-4
    assert stats.chisquare(np.bincount(drawn % 30 // 6, minlength=5)).pvalue > 1e-4
    assert stats.binomtest(int((drawn < 30).sum()), len(drawn), 0.5).pvalue > 1e-4
    np.testing.assert_array_equal(out, trivial_augment()(KEY, data)["inputs"])
    assert (out != trivial_augment()(jax.random.key(1), data)["inputs"]).any()


def test_floating_point_images_go_the_same_way():
    images = np.stack([photo(seed)[:24, :24] for seed in range(56)])
    data = {"inputs": jnp.asarray(images), "labels": jnp.arange(56)}
    transform = rand_augment(2, 9)
    levels = transform(KEY, data)["inputs"]
    assert levels.dtype == jnp.uint8
    floating = transform(KEY, {"inputs": jnp.asarray(images / 255, jnp.float32)})["inputs"]
    assert floating.dtype == jnp.float32
    np.testing.assert_allclose(255 * floating, levels.astype(jnp.float32), atol=0.51)
    again = transform(KEY, data)
    np.testing.assert_array_equal(levels, again["inputs"])
    np.testing.assert_array_equal(again["labels"], data["labels"])
    assert (levels != transform(jax.random.key(1), data)["inputs"]).any()


def test_normalised_images_are_not_clipped_in_silence():
    images = jnp.full((30, 8, 8, 3), 0.5).at[3, 0, 0, 0].set(2.0)
    out = rand_augment()(KEY, {"inputs": images})["inputs"]
    np.testing.assert_array_equal(jnp.isnan(out).any((1, 2, 3)), np.arange(30) == 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rand_augment(0), "num_ops"),
        (lambda: rand_augment(magnitude=31), r"magnitude must lie in \[0, 30\]"),
        (lambda: rand_augment(fill=0.5 - 1), "fill"),
        (lambda: trivial_augment(fill=256), "fill"),
        (lambda: trivial_augment()(KEY, {"inputs": jnp.zeros((1, 4, 4, 4))}), r"got shape \(1, 4, 4, 4\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
