"""Convolution and pooling of images.

A layer chooses how it computes by shape and, when a program is lowered, by platform; what it computes, and
its parameters, are the same everywhere.

Axes: B batch, H height, W width, C channels, F features (channels of the output).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

_FEW_CHANNELS = 8
"""Below so many input channels XLA:CPU is faster at a product with a banded matrix than at a convolution."""


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, on CPU as a matrix product where that is faster.

    Accelerators have hardware for convolutions and always get one.

    Args:
        x: images [B, H, W, C], or what else ``dimension_numbers`` says.
        kernel: [kh, kw, C, F], likewise.
        strides: as in `lax.conv_general_dilated`, like all that follow.
        padding: "SAME", "VALID" or rows and columns to add on each side.
        lhs_dilation: dilation of the images.
        rhs_dilation: dilation of the kernel.
        dimension_numbers: order of the axes.
        feature_group_count: number of groups of channels.
        **options: passed on.

    Returns:
        [B, H', W', F].

    Example:
        >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), (1, 1), "VALID",
        ...          dimension_numbers=("NHWC", "HWIO", "NHWC"))[0, 0, 0].tolist()
        [9.0, 9.0]
    """

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            **options,
        )

    dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    is_simple = x.ndim == 4 and feature_group_count == 1 and all(n == 1 for n in (*strides, *dilations))
    if not is_simple or not _banded_is_faster(x, kernel, dimension_numbers):
        return plain(x, kernel)

    def banded(x: jax.Array, kernel: jax.Array) -> jax.Array:
        pads = (
            lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
            if isinstance(padding, str)
            else padding
        )
        return banded_convolution(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel)

    return lax.platform_dependent(x, kernel, cpu=banded, default=plain)


def _banded_is_faster(x: jax.Array, kernel: jax.Array, dimension_numbers: Any) -> bool:
    """Whether XLA:CPU is faster at `banded_convolution`: measured in float32 and for kernels up to 5x5."""
    order = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    as_usual = order == lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    return (
        as_usual
        and x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[2] < _FEW_CHANNELS
        and 1 < kernel.shape[0] * kernel.shape[1] <= 25
    )


def banded_convolution(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation without padding, stride 1, as one product with a banded (Toeplitz) matrix.

    A row of the product takes a patch of kh rows and t + kw - 1 columns to t neighbouring outputs. Tiles are
    as wide as they can be up to the kernel's width: wider ones multiply more of the matrix's zeros, narrower
    ones copy each pixel more often.

    Args:
        x_BHWC: images [B, H, W, C].
        kernel: [kh, kw, C, F].

    Returns:
        [B, H - kh + 1, W - kw + 1, F].

    Example:
        >>> x, kernel = jnp.arange(32.0).reshape(1, 4, 8, 1), jnp.ones((3, 3, 1, 1))
        >>> banded_convolution(x, kernel)[0, :, :, 0].tolist()
        [[81.0, 90.0, 99.0, 108.0, 117.0, 126.0], [153.0, 162.0, 171.0, 180.0, 189.0, 198.0]]
    """
    B, H, W, C = x_BHWC.shape
    kh, kw, _, F = kernel.shape
    rows, columns = H - kh + 1, W - kw + 1
    t = max(t for t in range(1, kw + 1) if columns % t == 0)
    width = t + kw - 1
    tiles = jnp.stack([x_BHWC[:, :, i : i + width].reshape(B, H, -1) for i in range(0, columns, t)], 2)
    patches = jnp.concatenate([tiles[:, i : i + rows] for i in range(kh)], -1)
    # band[i, v, c, o, f] = kernel[i, v - o, c, f]
    shifts = np.stack([np.eye(width, t, -j, dtype=kernel.dtype) for j in range(kw)])
    band = jnp.einsum("ijcf,jvo->ivcof", kernel, shifts)
    y = patches.reshape(-1, kh * width * C) @ band.reshape(kh * width * C, t * F)
    return y.reshape(B, rows, columns, F)


class Conv(linen.Conv):
    """`flax.linen.Conv`, computed by `convolve`.

    x [B, H, W, C] is correlated with ``kernel`` [kh, kw, C, F], and ``bias`` [F] is added.
    """

    conv_general_dilated: Any = convolve


def _tiles(x_BHWC: jax.Array, window: tuple[int, int]) -> jax.Array | None:
    """x as [B, H/h, h, W/w, w, C], if the windows tile it exactly."""
    B, H, W, C = x_BHWC.shape
    h, w = window
    if H % h or W % w:
        return None
    return x_BHWC.reshape(B, H // h, h, W // w, w, C)


@jax.custom_jvp
def _max_of_tiles(tiles: jax.Array) -> jax.Array:
    """[B, H, h, W, w, C] to [B, H, W, C]: ``tiles.max((2, 4))``, with a faster backward pass."""
    return tiles.max((2, 4))


@_max_of_tiles.defjvp
def _max_of_tiles_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (tiles,), (change,) = primals, tangents
    y = _max_of_tiles(tiles)
    # Equal maxima share the gradient, as in jnp.max, which counts them by a slower reduction.
    positions = np.ndindex(tiles.shape[2], tiles.shape[4])
    count = sum((tiles[:, :, i, :, j] == y).astype(change.dtype) for i, j in positions)
    is_max = tiles == y[:, :, None, :, None]
    return y, jnp.where(is_max, change, 0).sum((2, 4)) / count


def max_pool(x_BHWC: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None) -> jax.Array:
    """The largest value in each window, without padding.

    Windows that tile the image are a reshape and a maximum, several times faster on CPU, forward and
    backward, than the general sliding window.

    Args:
        x_BHWC: images [B, H, W, C].
        window: height and width of a window.
        strides: steps between windows; the window itself when None.

    Returns:
        [B, (H - h) // s + 1, (W - w) // s' + 1, C].

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    strides = strides or window
    tiles = _tiles(x_BHWC, window) if strides == window else None
    if tiles is None:
        return linen.max_pool(x_BHWC, window, strides)
    return _max_of_tiles(tiles)


def avg_pool(x_BHWC: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None) -> jax.Array:
    """The mean of each window, without padding; arguments and shapes as in `max_pool`.

    Example:
        >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2))[0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    strides = strides or window
    tiles = _tiles(x_BHWC, window) if strides == window else None
    if tiles is None:
        return linen.avg_pool(x_BHWC, window, strides)
    return jnp.mean(tiles, (2, 4))
