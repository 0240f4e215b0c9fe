"""Images as rows of square patches.

Axes: B batch, H height, W width, C channels, T patches, V values of a patch.
"""

from __future__ import annotations

import jax


def patches(images_BHWC: jax.Array, side: int) -> jax.Array:
    """Images [B, H, W, C] as rows of squares [B, T, side * side * C].

    Example:
        >>> import jax.numpy as jnp
        >>> patches(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
        [2, 3, 6, 7]
    """
    B, H, W, C = images_BHWC.shape
    x = images_BHWC.reshape(B, H // side, side, W // side, side, C).swapaxes(2, 3)
    return x.reshape(B, (H // side) * (W // side), side * side * C)


def from_patches(x_BTV: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """The inverse of `patches`, for images of ``shape`` [H, W, C]."""
    H, W, C = shape
    x = x_BTV.reshape(-1, H // side, W // side, side, side, C).swapaxes(2, 3)
    return x.reshape(-1, H, W, C)
