"""Changes of colour: pure functions of grey levels, and the random colour jitter that is made of them.

The functions take levels [B, H, W, C], float32 in 0..255, and one number for each image [B]; they compute
what Pillow's ``ImageEnhance`` does to 8-bit images, but for its rounding to whole levels.

B batch, H height, W width, C channels, 1 or 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jdl.data.augment import Transform, check_pixels, images_of

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow
_TOLERANCE = 1e-3


def on_levels(images: jax.Array, change: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """``change`` of the images' grey levels: uint8 as it is, floating point in [0, 1] times 255.

    A floating point image with a value outside [0, 1] becomes NaN, which training reports, since normalised
    images would otherwise be clipped in silence.

    Raises:
        ValueError: if images have another type, or neither 1 nor 3 channels.
    """
    check_pixels(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"inputs must be grey or RGB images [B, H, W, 1 or 3], got shape {images.shape}")
    if images.dtype == jnp.uint8:
        return jnp.clip(jnp.round(change(images.astype(jnp.float32))), 0, 255).astype(jnp.uint8)
    pixels = images.astype(jnp.float32)
    outside = (pixels < -_TOLERANCE) | (pixels > 1 + _TOLERANCE) | jnp.isnan(pixels)
    changed = jnp.clip(change(jnp.clip(pixels, 0, 1) * 255) / 255, 0, 1)
    return jnp.where(outside.any((1, 2, 3), keepdims=True), jnp.nan, changed).astype(images.dtype)


def each(values: jax.Array) -> jax.Array:
    """One number for each image [B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]


def blend(start: jax.Array, levels: jax.Array, factor: jax.Array) -> jax.Array:
    """``start`` where the factor is 0, the image where it is 1, and beyond it above; kept within 0..255."""
    return jnp.clip(start + each(factor) * (levels - start), 0, 255)


def chosen_blend(
    chosen: Sequence[jax.Array], starts: Sequence[jax.Array], levels: jax.Array, factors: Sequence[jax.Array]
) -> jax.Array:
    """For each image the blend of which ``chosen`` [B] is true, and the image itself where none is."""
    start = jnp.select([each(x) for x in chosen], list(starts), levels)
    return blend(start, levels, jnp.select(list(chosen), list(factors), jnp.ones_like(factors[0])))


def black(levels: jax.Array) -> jax.Array:
    """What brightness blends with."""
    return jnp.zeros_like(levels)


def mean_grey(levels: jax.Array) -> jax.Array:
    """What contrast blends with: the mean luma, a whole level, everywhere."""
    return jnp.broadcast_to(jnp.round(grey(levels).mean((1, 2, 3), keepdims=True)), levels.shape)


def grey(levels: jax.Array) -> jax.Array:
    """What saturation blends with: luma in every channel."""
    if levels.shape[-1] == 1:
        return levels
    luma = (levels * jnp.asarray(_LUMA, jnp.float32)[None, None, None]).sum(-1, keepdims=True)
    return jnp.broadcast_to(luma, levels.shape)


def smooth(levels: jax.Array) -> jax.Array:
    """What sharpness blends with: the kernel (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay."""
    height, width = levels.shape[1:3]
    padded = jnp.pad(levels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
    inner = jnp.zeros((1, height, width, 1), bool).at[:, 1:-1, 1:-1].set(True)
    return jnp.where(inner, jnp.round((around + 4 * levels) / 13), levels)


def with_hue(levels: jax.Array, shift: jax.Array) -> jax.Array:
    """The hue turned by ``shift``, in full turns, at the same saturation and value (HSV)."""
    if levels.shape[-1] == 1:
        return levels
    red, green, blue = jnp.moveaxis(levels, -1, 0)
    value = levels.max(-1)
    chroma = value - levels.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # Never value == red: the compiler may compute the same pixel twice, and round it differently.
    red_leads, green_leads = (red >= green) & (red >= blue), green >= blue
    sixths = jnp.where(
        red_leads,
        (green - blue) / divisor,
        jnp.where(green_leads, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sixths + 6 * shift[:, None, None]

    def channel(offset: int) -> jax.Array:
        k = (offset + turned) % 6
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], -1)


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Transform:
    """Changes brightness, contrast, saturation and hue of each image, in a random order.

    Each factor is uniform on [max(0, 1 - x), 1 + x] for the strength x given, and 1 leaves the image alone;
    the hue turns by a share of a full turn that is uniform on [-hue, hue].

    Args:
        brightness: at least 0.
        contrast: at least 0.
        saturation: at least 0.
        hue: in [0, 0.5].

    Returns:
        A transform of ``inputs`` [B, H, W, 1 or 3], uint8 or floating point in [0, 1]; a floating point image
        with values outside becomes NaN.

    Example:
        >>> batch = {"inputs": jnp.full((2, 4, 4, 3), 100, jnp.uint8)}
        >>> color_jitter(0.4, 0.4, 0.4, 0.1)(jax.random.key(0), batch)["inputs"].dtype
        dtype('uint8')

    Reference: Chen et al., "A simple framework for contrastive learning of visual representations",
    arXiv:2002.05709, appendix A.
    """
    for name, strength in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        if strength < 0:
            raise ValueError(f"{name} must be at least 0, got {strength}")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue must lie in [0, 0.5], as a share of a full turn, got {hue}")
    bounds = [(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)]
    blended = [(start, *x) for start, x in zip((black, mean_grey, grey), bounds, strict=True) if x[0] < x[1]]
    turns = len(blended) + (hue > 0)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        order_key, hue_key, *keys = jax.random.split(key, 2 + len(blended))
        # Which turn each change has, [B, turns]; the hue's is the last column.
        turn_of = jax.random.uniform(order_key, (len(images), turns)).argsort(1)
        factors = [
            jax.random.uniform(key, (len(images),), minval=low, maxval=high)
            for key, (_, low, high) in zip(keys, blended, strict=True)
        ]
        shift = jax.random.uniform(hue_key, (len(images),), minval=-hue, maxval=hue)

        def jittered(levels: jax.Array) -> jax.Array:
            for turn in range(turns):
                now = [turn_of[:, i] == turn for i in range(turns)]
                if blended:
                    starts = [start(levels) for start, _, _ in blended]
                    levels = chosen_blend(now[: len(blended)], starts, levels, factors)
                if hue > 0:
                    levels = with_hue(levels, jnp.where(now[-1], shift, 0))
            return levels

        return {**batch, "inputs": on_levels(images, jittered)}

    return transform
