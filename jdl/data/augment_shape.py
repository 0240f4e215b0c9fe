"""Random crops of another size, erased rectangles and elastic deformation of the images of a batch.

``also`` names entries that move along with the images, as `jdl.data.augment` says. B batch, H height, W
width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.augment import Transform, check_pixels, check_probability, checked_also, images_of, move

_ATTEMPTS = 10


def check_interval(name: str, interval: tuple[float, float], highest: float = math.inf) -> None:
    """Raises ValueError unless ``interval`` is (low, high) with 0 < low <= high <= ``highest``."""
    if len(interval) != 2 or not 0 < interval[0] <= interval[1] <= highest:
        bound = "" if highest == math.inf else f" <= {highest:g}"
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high{bound}, got {tuple(interval)}")


def _boxes(
    key: jax.Array,
    count: int,
    image: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random rectangles within an image: corners [B, 2], sizes [B, 2] (rows, columns), and which were found.

    The first of ten draws that fits: the area uniform, the logarithm of width / height uniform.
    """
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    drawn = (count, _ATTEMPTS)
    area = math.prod(image) * jax.random.uniform(area_key, drawn, minval=scale[0], maxval=scale[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(jax.random.uniform(ratio_key, drawn, minval=low, maxval=high))
    sizes = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], -1))).astype(jnp.int32)
    bound = jnp.asarray(image, jnp.int32)
    fits = ((sizes >= 1) & (sizes <= bound[None, None])).all(-1)
    size = jnp.take_along_axis(sizes, fits.argmax(1)[:, None, None], 1)[:, 0]
    return jax.random.randint(corner_key, size.shape, 0, bound[None] - size + 1), size, fits.any(1)


def random_resized_crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    also: Sequence[str] = (),
) -> Transform:
    """Cuts a random rectangle out of each image and resizes it, so that objects come in many sizes.

    The rectangle is the first of ten draws that fits into the image, or the largest centred one whose
    proportions are allowed. Interpolation is bilinear, with antialiasing where it shrinks, as in Pillow.

    Args:
        size: (height, width) of the output in pixels, or one number for both.
        scale: bounds of the rectangle's share of the image's area, uniform.
        ratio: bounds of its width / height, log-uniform.
        also: entries that are cut and resized alike.

    Returns:
        A transform of ``inputs`` [B, H, W, C] to [B, height, width, C] of the same type.

    Example:
        >>> batch = {"inputs": jnp.ones((2, 48, 64, 3)), "labels": jnp.zeros((2, 48, 64), jnp.int32)}
        >>> cropped = random_resized_crop(32, also=("labels",))(jax.random.key(0), batch)
        >>> cropped["inputs"].shape, cropped["labels"].shape
        ((2, 32, 32, 3), (2, 32, 32))

    Reference: Szegedy et al., "Going deeper with convolutions", arXiv:1409.4842, section 6.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be positive, in pixels, got {size}")
    check_interval("scale", scale, highest=1)
    check_interval("ratio", ratio)
    also = checked_also(also)

    def resized(image: jax.Array, corner: jax.Array, box: jax.Array) -> jax.Array:
        factor = jnp.asarray((height, width), jnp.float32) / box
        shape = (height, width, image.shape[-1])
        pixels = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        pixels = jax.image.scale_and_translate(pixels, shape, (0, 1), factor, -corner * factor, "linear")
        if image.dtype == jnp.uint8:
            pixels = jnp.clip(jnp.round(pixels), 0, 255)
        return pixels.astype(image.dtype)

    def nearest(image: jax.Array, corner: jax.Array, box: jax.Array) -> jax.Array:
        rows, columns = (
            corner[axis] + ((2 * jnp.arange(length) + 1) * box[axis]) // (2 * length)
            for axis, length in enumerate((height, width))
        )
        return image[rows][:, columns]

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        check_pixels(images)
        image = images.shape[1], images.shape[2]
        corner, box, found = _boxes(key, len(images), image, scale, ratio)
        centred = largest_box(image, ratio)
        middle = [(whole - part) // 2 for whole, part in zip(image, centred, strict=True)]
        box = jnp.where(found[:, None], box, jnp.asarray([centred], jnp.int32))
        corner = jnp.where(found[:, None], corner, jnp.asarray([middle], jnp.int32))
        return move(
            batch,
            also,
            lambda x: jax.vmap(resized)(x, corner, box),
            lambda x: jax.vmap(nearest)(x, corner, box),
        )

    return transform


def largest_box(image: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int]:
    """The largest (height, width) within an image whose width / height lies within ``ratio``."""
    height, width = image
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return max(1, min(height, round(width / aspect))), max(1, min(width, round(height * aspect)))


def random_erasing(
    probability: float = 0.5,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 10 / 3),
    value: float | None = None,
) -> Transform:
    """Overwrites a random rectangle of an image with noise or with one value.

    The rectangle is the first of ten draws that fits into the image; if none does, nothing is erased.

    Args:
        probability: of erasing anything, for each image, in [0, 1].
        scale: bounds of the rectangle's share of the image's area, uniform.
        ratio: bounds of its width / height, log-uniform (the paper leaves the distribution open).
        value: what is written; None writes noise, for each pixel and channel: standard normal into floating
            point images, which are taken to be normalised, and uniform on 0..255 into uint8.

    Returns:
        A transform of ``inputs`` [B, H, W, C], uint8 or floating point.

    Example:
        >>> batch = {"inputs": jnp.ones((2, 10, 10, 3))}
        >>> erased = random_erasing(1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0), value=0.0)
        >>> erased(jax.random.key(0), batch)["inputs"].sum((1, 2, 3))
        Array([225., 225.], dtype=float32)

    Reference: Zhong et al., "Random erasing data augmentation", arXiv:1708.04896, algorithm 1.
    """
    check_probability(probability)
    check_interval("scale", scale, highest=1)
    check_interval("ratio", ratio)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        check_pixels(images)
        count, height, width, _ = images.shape
        apply_key, box_key, noise_key = jax.random.split(key, 3)
        corner, box, found = _boxes(box_key, count, (height, width), scale, ratio)
        erased = found & jax.random.bernoulli(apply_key, probability, (count,))

        def inside(axis: int, length: int) -> jax.Array:
            pixels = jnp.arange(length)[None]
            start = corner[:, axis, None]
            return (pixels >= start) & (pixels < start + box[:, axis, None])

        hole = inside(0, height)[:, :, None] & inside(1, width)[:, None, :] & erased[:, None, None]
        if value is not None:
            written = jnp.full(images.shape, value, images.dtype)
        elif images.dtype == jnp.uint8:
            written = jax.random.bits(noise_key, images.shape, jnp.uint8)
        else:
            written = jax.random.normal(noise_key, images.shape, images.dtype)
        return {**batch, "inputs": jnp.where(hole[..., None], written, images)}

    return transform


def elastic(alpha: float, sigma: float, also: Sequence[str] = ()) -> Transform:
    """Deforms each image by a smooth random displacement of its pixels.

    With u uniform on [-1, 1] for each pixel and direction, and G the Gaussian filter of deviation sigma (cut
    at 4 sigma, zeros outside the image), ::

        output(y, x) = image(y + alpha (G u_y)(y, x), x + alpha (G u_x)(y, x))

    interpolated bilinearly; outside the image lies its mirror image. A displacement has the standard
    deviation alpha / (sigma sqrt(12 pi)) pixels away from the border: 1.4 with the paper's alpha 34 and
    sigma 4 for digits of 29x29.

    Args:
        alpha: strength in pixels, at least 0.
        sigma: deviation of the Gaussian in pixels, positive.
        also: entries that are deformed alike.

    Returns:
        A transform of ``inputs`` [B, H, W, C], uint8 or floating point.

    Example:
        >>> batch = {"inputs": jnp.ones((2, 29, 29, 1)), "labels": jnp.ones((2, 29, 29), jnp.int32)}
        >>> deformed = elastic(34, 4, also=("labels",))(jax.random.key(0), batch)
        >>> bool(jnp.allclose(deformed["inputs"], 1)), deformed["labels"].dtype
        (True, dtype('int32'))

    Reference: Simard, Steinkraus and Platt, "Best practices for convolutional neural networks applied to
    visual document analysis", ICDAR 2003, section 2.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0 pixels, got {alpha}")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, in pixels, got {sigma}")
    also = checked_also(also)

    def sampled(order: int, at: jax.Array, x: jax.Array) -> jax.Array:
        def channel(image: jax.Array, at: jax.Array) -> jax.Array:
            return jax.scipy.ndimage.map_coordinates(image, list(at), order, mode="reflect")

        return jax.vmap(jax.vmap(channel, (2, None), 2))(x, at)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        check_pixels(images)
        count, height, width, _ = images.shape
        noise = jax.random.uniform(key, (count, 2, height, width), minval=-1, maxval=1)
        rows, columns = _gaussian(height, sigma), _gaussian(width, sigma)
        smooth = jnp.einsum("hi,bdij,wj->bdhw", rows, noise, columns, precision="highest")
        at = jnp.stack(jnp.mgrid[:height, :width]).astype(jnp.float32)[None] + alpha * smooth
        return move(batch, also, lambda x: sampled(1, at, x), lambda x: sampled(0, at, x))

    return transform


def _gaussian(length: int, sigma: float) -> jax.Array:
    """The matrix [length, length] of a Gaussian filter that is cut at 4 sigma and sees zeros outside."""
    radius = int(4 * sigma + 0.5)
    density = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    kernel = np.where(distance <= radius, np.exp(-0.5 * (distance / sigma) ** 2), 0) / density.sum()
    return jnp.asarray(kernel, jnp.float32)
