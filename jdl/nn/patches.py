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


def token_map(x_BTD: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Tokens of patches as the map that they are of, such as a detector takes it.

    Args:
        x_BTD: tokens [B, T, D], those of the patches last, row by row: the stage ``"encoder/block12"`` of a
            `jdl.models.vit`, say (`jdl.nn.features`).
        grid: rows and columns of patches.

    Returns:
        [B, rows, columns, D]; tokens before those of the patches, a class token, are left out.

    Raises:
        ValueError: if there are fewer tokens than patches.

    Example:
        >>> import jax.numpy as jnp
        >>> token_map(jnp.zeros((1, 197, 192)), (14, 14)).shape
        (1, 14, 14, 192)
    """
    rows, columns = grid
    T = x_BTD.shape[1]
    if rows * columns > T:
        raise ValueError(f"{rows}x{columns} patches are {rows * columns} tokens; there are {T}")
    return from_patches(x_BTD[:, T - rows * columns :], (rows, columns, x_BTD.shape[-1]), 1)
