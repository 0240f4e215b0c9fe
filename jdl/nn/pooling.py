"""Pooling whose output size does not come from windows that fit: given sizes, and windows over the edge.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn.convolution import max_pool


def _bins(length: int, bins: int) -> np.ndarray:
    """The matrix [bins, length] whose row i averages pixels i length / bins to (i + 1) length / bins."""
    i = np.arange(bins)[:, None]
    pixels = np.arange(length)[None]
    inside = (pixels >= i * length // bins) & (pixels < -(-(i + 1) * length // bins))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def adaptive_avg_pool(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Means over bins that divide an image of any size into ``size``, so that a fixed layer can follow.

    Row i of h averages the rows floor(i H / h) up to ceil((i + 1) H / h) of H, so bins may overlap; an image
    smaller than ``size`` is repeated.

    Args:
        x_BHWC: images [B, H, W, C].
        size: height and width of the output.

    Returns:
        [B, height, width, C].

    Example:
        >>> adaptive_avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2))[0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    _, H, W, _ = x_BHWC.shape
    if tuple(size) == (H, W):
        return x_BHWC
    rows, columns = (jnp.asarray(_bins(*pair), x_BHWC.dtype) for pair in ((H, size[0]), (W, size[1])))
    return jnp.einsum("hH,bHWc,wW->bhwc", rows, x_BHWC, columns)


def _overhang(length: int, window: int, stride: int) -> int:
    """Pixels by which the last window hangs over the edge, if no pixel is to be left out."""
    windows = max(0, -(-(length - window) // stride)) + 1
    return max(0, (windows - 1) * stride + window - length)


def max_pool_over_edge(x_BHWC: jax.Array, window: int, stride: int) -> jax.Array:
    """The largest value in each window; a last window that does not fit hangs over the edge.

    `jdl.nn.max_pool` leaves such pixels out. Networks from Caffe, and their weights, need this one, which is
    PyTorch's ``ceil_mode``.

    Args:
        x_BHWC: images [B, H, W, C].
        window: side of the square window.
        stride: steps between windows, at most ``window``.

    Returns:
        [B, ceil((H - window) / stride) + 1, ceil((W - window) / stride) + 1, C].

    Example:
        >>> max_pool_over_edge(jnp.arange(16.0).reshape(1, 4, 4, 1), 3, 2)[0, :, :, 0].tolist()
        [[10.0, 11.0], [14.0, 15.0]]
    """
    below, right = (_overhang(length, window, stride) for length in x_BHWC.shape[1:3])
    return max_pool(x_BHWC, (window, window), (stride, stride), ((0, below), (0, right)))


def avg_pool_over_edge(x_BHWC: jax.Array, window: int, stride: int) -> jax.Array:
    """The mean of the pixels in each window; arguments and shapes as in `max_pool_over_edge`.

    Example:
        >>> avg_pool_over_edge(jnp.arange(16.0).reshape(1, 4, 4, 1), 3, 2)[0, :, :, 0].tolist()
        [[5.0, 6.5], [11.0, 12.5]]
    """
    pads = [(0, _overhang(length, window, stride)) for length in x_BHWC.shape[1:3]]
    return linen.avg_pool(x_BHWC, (window, window), (stride, stride), pads, count_include_pad=False)


def flatten_channels_first(x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, C * H * W] in PyTorch's order, so that published weights of a product fit.

    Example:
        >>> flatten_channels_first(jnp.arange(8.0).reshape(1, 2, 2, 2))[0].tolist()
        [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]
    """
    B = x_BHWC.shape[0]
    return x_BHWC.transpose(0, 3, 1, 2).reshape(B, -1)
