"""Augmentation with a gradient: what a discriminator may see in place of its images, real and generated.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jdl.data.augment import Transform, compose, cutout, images_of, random_crop

Policy = Literal["color", "translation", "cutout"]


def differentiable(
    policy: Sequence[Policy] = ("color", "translation", "cutout"), *, size: tuple[int, int] = (32, 32)
) -> Transform:
    """Random changes of floating images through which gradients pass, each image by itself.

    - "color": adds a number uniform on -0.5..0.5; multiplies the distance from the pixel's mean over channels
      by a factor on 0..2 (saturation), then that from the image's mean by one on 0.5..1.5 (contrast).
    - "translation": shifts by up to an eighth of the height and width, zeros moving in.
    - "cutout": sets a square of half the side to zero; part of it may lie outside.

    With few training images they keep a discriminator from learning those by heart. Both players must see
    augmented images, and the generator's own stay as they are: give it to `jdl.tasks.gan` as ``augment``.

    Args:
        policy: which, in order.
        size: (height, width) of the images, pixels.

    Returns:
        A transform of ``inputs`` [B, H, W, C], floating point about 0, such as -1..1.

    Raises:
        ValueError: for an unknown change, none, or images of another size or type.

    Example:
        >>> transform = differentiable(("translation", "cutout"), size=(8, 8))
        >>> slope = jax.grad(lambda x: transform(jax.random.key(0), {"inputs": x})["inputs"].sum())
        >>> sorted({float(g) for g in slope(jnp.ones((4, 8, 8, 1))).ravel()})
        [0.0, 1.0]

    Reference:
        Zhao, Liu, Lin, Zhu and Han, "Differentiable augmentation for data-efficient GAN training", 2020.
    """
    height, width = size
    known = {
        "color": _color,
        "translation": random_crop(max(1, round(min(height, width) / 8))),
        "cutout": cutout(max(1, min(height, width) // 2)),
    }
    if not policy or isinstance(policy, str) or set(policy) - known.keys():
        raise ValueError(f"policy must be some of {tuple(known)}; got {policy!r}")
    changes = compose(*[known[name] for name in policy])

    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        if images.shape[1:3] != size or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floating point of {height}x{width} pixels; got {images.dtype} of shape "
                f"{images.shape}"
            )
        return changes(key, batch)

    return transform


def _color(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    x = images_of(batch)
    keys = jax.random.split(key, 3)

    def drawn(i: int, low: float, high: float) -> jax.Array:
        return jax.random.uniform(keys[i], (len(x), 1, 1, 1), x.dtype, low, high)

    x = x + drawn(0, -0.5, 0.5)
    for i, axes, low, high in ((1, (3,), 0, 2), (2, (1, 2, 3), 0.5, 1.5)):
        mean = x.mean(axes, keepdims=True)
        x = mean + (x - mean) * drawn(i, low, high)
    return {**batch, "inputs": x}
