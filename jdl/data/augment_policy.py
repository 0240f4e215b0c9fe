"""Random operations from one table, without a search: RandAugment and TrivialAugment.

The operations are those of Pillow that AutoAugment introduced, on a whole batch at once. An image cannot
choose its own operation cheaply on a vector machine, where all fourteen would be computed for every image.
Here they fall into three families, and each image goes through one of each, most of them neutral:

* the geometric operations are one affine map with other coefficients,
* autocontrast, equalize, solarize and posterize are maps of single grey levels,
* brightness, contrast, color and sharpness are blends of the image with another one, with other factors.

B batch, H height, W width, C channels, 1 or 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.data.augment import Transform, images_of
from jdl.data.augment_color import (
    black,
    chosen_blend,
    each,
    grey,
    mean_grey,
    on_levels,
    smooth,
)

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear x",
    "shear y",
    "translate x",
    "translate y",
)
"""Names of the operations, in the order of the paper."""

_STRONGEST = 30


class Ranges(NamedTuple):
    """What the greatest strength means.

    Attributes:
        shear: pixels a pixel.
        translate: ``length -> pixels``, the shift of an image with that many pixels along the axis.
        rotate: degrees.
        posterize: bits that are dropped, of 8.
        enhance: distance of the factor of color, contrast, brightness and sharpness from 1.
    """

    shear: float
    translate: Callable[[int], float]
    rotate: float
    posterize: int
    enhance: float


RAND_AUGMENT = Ranges(0.3, lambda length: length * 150 / 331, 30, 4, 0.9)
"""AutoAugment's ranges (arXiv:1805.09501, table 6), its 150 pixels taken as a share of its 331."""

TRIVIAL_AUGMENT = Ranges(0.99, lambda length: 32, 135, 6, 0.99)
"""The wide ranges of TrivialAugment (arXiv:2103.10158)."""


def operate(
    levels: jax.Array, operation: jax.Array, strength: jax.Array, ranges: Ranges, fill: float
) -> jax.Array:
    """One operation for each image.

    Args:
        levels: [B, H, W, C], float32 in 0..255.
        operation: [B], index into `OPERATIONS`.
        strength: [B] in [-1, 1]; the sign says which way to rotate, shear, shift or enhance, and means
            nothing to the others.
        ranges: what strength 1 means.
        fill: the level outside the image.

    Returns:
        Levels of the same shape.
    """
    chosen = {name: operation == i for i, name in enumerate(OPERATIONS)}
    levels = _warped(levels, chosen, strength, ranges, fill)
    size = jnp.abs(strength)
    whole = jnp.round(levels)
    step = each(2.0 ** jnp.round(size * ranges.posterize))
    pointwise = {
        "autocontrast": _autocontrast(levels),
        "equalize": _equalized(whole),
        "solarize": jnp.where(whole < each(256 * (1 - size)), levels, 255 - levels),
        "posterize": jnp.floor(whole / step) * step,
    }
    levels = jnp.select([each(chosen[name]) for name in pointwise], list(pointwise.values()), levels)
    factor = 1 + strength * ranges.enhance
    starts = {"color": grey, "contrast": mean_grey, "brightness": black, "sharpness": smooth}
    return chosen_blend(
        [chosen[name] for name in starts],
        [start(levels) for start in starts.values()],
        levels,
        [factor] * len(starts),
    )


def _warped(
    levels: jax.Array, chosen: Mapping[str, jax.Array], strength: jax.Array, ranges: Ranges, fill: float
) -> jax.Array:
    """The affine map from output to input, nearest pixel; rotates about the centre, shears about a corner."""
    count, height, width, channels = levels.shape

    def amount(name: str, most: float) -> jax.Array:
        return jnp.where(chosen[name], strength * most, 0)[:, None, None]

    angle = jnp.deg2rad(amount("rotate", ranges.rotate))
    y, x = jnp.arange(height)[None, :, None] + 0.5, jnp.arange(width)[None, None, :] + 0.5
    down, right = y - height / 2, x - width / 2
    source_x = jnp.cos(angle) * right - jnp.sin(angle) * down + width / 2
    source_y = jnp.sin(angle) * right + jnp.cos(angle) * down + height / 2
    source_x += amount("shear x", ranges.shear) * y + amount("translate x", ranges.translate(width))
    source_y += amount("shear y", ranges.shear) * x + amount("translate y", ranges.translate(height))
    row, column = jnp.floor(source_y).astype(jnp.int32), jnp.floor(source_x).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = jnp.where(inside, row * width + column, 0).reshape(count, -1, 1)
    found = jnp.take_along_axis(levels.reshape(count, -1, channels), at, 1).reshape(levels.shape)
    return jnp.where(inside[..., None], found, fill)


def _autocontrast(levels: jax.Array) -> jax.Array:
    """Stretches each channel to 0..255."""
    low, high = levels.min((1, 2), keepdims=True), levels.max((1, 2), keepdims=True)
    return jnp.where(high > low, (levels - low) * 255 / jnp.where(high > low, high - low, 1), levels)


def _equalized(levels: jax.Array) -> jax.Array:
    """Whole levels mapped so that each channel's histogram becomes flat, in Pillow's integer arithmetic."""
    count, height, width, channels = levels.shape
    bins = jnp.moveaxis(levels, -1, 1).reshape(count * channels, -1).astype(jnp.int32)
    image = jnp.arange(count * channels)[:, None]
    histogram = jnp.zeros((count * channels, 256), jnp.int32).at[image, bins].add(1)
    last = jnp.take_along_axis(histogram, bins.max(1, keepdims=True), 1)
    step = (height * width - last) // 255
    below = histogram.cumsum(1) - histogram
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    table = jnp.where(step > 0, table, jnp.arange(256)[None])
    mapped = jnp.take_along_axis(table, bins, 1).reshape(count, channels, height, width)
    return jnp.moveaxis(mapped, 1, -1).astype(levels.dtype)


def rand_augment(num_ops: int = 2, magnitude: float = 9, fill: float = 128) -> Transform:
    """Applies operations to each image that are drawn uniformly, all with one strength.

    The operations are those of the paper: identity, autocontrast, equalize, rotate, solarize, color,
    posterize, contrast, brightness, sharpness, and shear and translate along either axis. Where an operation
    has two directions, one is drawn. At magnitude 30 an image rotates by 30 degrees, is sheared by 0.3 pixels
    a pixel, moves by 150 / 331 of its length, keeps 4 bits a channel or has its factor of color, contrast,
    brightness or sharpness at 0.1 or 1.9; all are linear in the magnitude. Pixels are moved without
    interpolation, as in the reference implementations.

    Args:
        num_ops: operations one after another, at least 1, drawn with replacement.
        magnitude: in [0, 30].
        fill: the grey level, 0 to 255, of what comes into view from outside the image.

    Returns:
        A transform of ``inputs`` [B, H, W, 1 or 3], uint8 or floating point in [0, 1]; a floating point image
        with values outside becomes NaN. It goes before normalisation.

    Example:
        >>> batch = {"inputs": jnp.zeros((2, 32, 32, 3), jnp.uint8)}
        >>> rand_augment()(jax.random.key(0), batch)["inputs"].shape
        (2, 32, 32, 3)

    Reference: Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space",
    arXiv:1909.13719, section 3 and figure 2.
    """
    if num_ops < 1:
        raise ValueError(f"num_ops must be at least 1, got {num_ops}")
    if not 0 <= magnitude <= _STRONGEST:
        raise ValueError(f"magnitude must lie in [0, {_STRONGEST}], got {magnitude}")
    return _random_operations(
        num_ops, lambda key, shape: jnp.full(shape, magnitude / _STRONGEST), RAND_AUGMENT, fill
    )


def trivial_augment(fill: float = 128) -> Transform:
    """Applies one random operation to each image with a random strength: nothing to tune.

    The operations are those of `rand_augment`, with the paper's wide ranges: rotation by up to 135 degrees,
    shear by up to 0.99, translation by up to 32 pixels, 2 to 8 bits a channel, factors of color, contrast,
    brightness and sharpness from 0.01 to 1.99. The strength is one of 31, equally likely, from none to all.

    Args:
        fill: the grey level, 0 to 255, of what comes into view from outside the image.

    Returns:
        A transform of ``inputs``, as `rand_augment` gives.

    Example:
        >>> batch = {"inputs": jnp.zeros((2, 32, 32, 3), jnp.uint8)}
        >>> trivial_augment()(jax.random.key(0), batch)["inputs"].shape
        (2, 32, 32, 3)

    Reference: Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation",
    arXiv:2103.10158, section 3.
    """
    return _random_operations(
        1, lambda key, shape: jax.random.randint(key, shape, 0, 31) / 30.0, TRIVIAL_AUGMENT, fill
    )


def _random_operations(
    num_ops: int, strength: Callable[[jax.Array, tuple[int, ...]], jax.Array], ranges: Ranges, fill: float
) -> Transform:
    if not 0 <= fill <= 255:
        raise ValueError(f"fill must be a grey level, 0 to 255, got {fill}")

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        shape = num_ops, len(images)
        operation_key, strength_key, sign_key = jax.random.split(key, 3)
        operations = jax.random.randint(operation_key, shape, 0, len(OPERATIONS))
        strengths = strength(strength_key, shape) * jax.random.rademacher(sign_key, shape, jnp.float32)

        def operated(levels: jax.Array) -> jax.Array:
            for operation, size in zip(operations, strengths, strict=True):
                levels = operate(levels, operation, size, ranges, fill)
            return levels

        return {**batch, "inputs": on_levels(images, operated)}

    return transform
