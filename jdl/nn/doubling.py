"""Convolutions that halve or double an image: 4x4 kernels with stride 2, plain and transposed.

On CPU they are products of two matrices, patches and kernel: XLA:CPU takes several times as long for the
gradient of the transposed convolution, and of one of few channels. Accelerators get the convolution.

Axes: B batch, H height, W width, C channels, F features; h, w half of H, W.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jdl.nn.spectral import Spectral

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def halve(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlation with a 4x4 kernel, stride 2, one pixel of zeros around: half the height and width.

    Args:
        x_BHWC: images of even height and width.
        kernel: [4, 4, C, F].

    Returns:
        [B, H / 2, W / 2, F].

    Raises:
        ValueError: if a side of the images is odd, or the kernel is not 4x4.
    """
    _check(x_BHWC, kernel)
    B, H, W, C = x_BHWC.shape
    if H % 2 or W % 2:
        raise ValueError(f"images to halve must have an even height and width; got {H}x{W}")

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        h, w = H // 2, W // 2
        blocks = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(B, h + 1, 2, w + 1, 2, C)
        patches = _patches(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(B, h + 1, w + 1, 4 * C))
        matrix = kernel.reshape(2, 2, 2, 2, C, -1).transpose(0, 2, 1, 3, 4, 5).reshape(16 * C, -1)
        return (patches.reshape(-1, 16 * C) @ matrix).reshape(B, h, w, -1)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)

    return lax.platform_dependent(x_BHWC, kernel, cpu=product, default=convolution)


def double(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 4x4 kernel and stride 2: twice the height and width.

    `jax.lax.conv_transpose` with padding "SAME"; PyTorch's ``ConvTranspose2d(C, F, 4, 2, 1)`` with the kernel
    mirrored in both directions. Every output pixel sees 2x2 of the input.

    Args:
        x_BHWC: images.
        kernel: [4, 4, C, F].

    Returns:
        [B, 2 H, 2 W, F].

    Raises:
        ValueError: if the kernel is not 4x4.
    """
    _check(x_BHWC, kernel)
    B, H, W, C = x_BHWC.shape
    F = kernel.shape[-1]

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        patches = _patches(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
        matrix = kernel.reshape(2, 2, 2, 2, C, F).transpose(0, 2, 4, 1, 3, 5).reshape(4 * C, 4 * F)
        y = (patches.reshape(-1, 4 * C) @ matrix).reshape(B, H + 1, W + 1, 2, 2, F)
        rows = jnp.stack([y[:, i : i + H, :, i] for i in (0, 1)], 2)
        return jnp.stack([rows[:, :, :, j : j + W, j] for j in (0, 1)], 4).reshape(B, 2 * H, 2 * W, F)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_LAYOUT)

    return lax.platform_dependent(x_BHWC, kernel, cpu=product, default=convolution)


def _check(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[:3] != (4, 4, x.shape[-1]):
        raise ValueError(
            f"a kernel [4, 4, C, F] and images [B, H, W, C] are needed; got {kernel.shape} and {x.shape}"
        )


def _patches(x_BHWC: jax.Array) -> jax.Array:
    """What each 2x2 window sees: [B, H - 1, W - 1, 4 C]."""
    _, H, W, _ = x_BHWC.shape
    return jnp.concatenate([x_BHWC[:, i : H - 1 + i, j : W - 1 + j] for i in (0, 1) for j in (0, 1)], -1)


class Halve(linen.Module):
    """The layer of `halve`, with ``kernel`` [4, 4, C, F] and ``bias`` [F].

    Attributes:
        features: F.
        use_bias: whether to add ``bias``.
        kernel_init: initialises ``kernel``.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> Halve(8).init_with_output(jax.random.key(0), jnp.ones((2, 6, 4, 3)))[0].shape
        (2, 3, 2, 8)
    """

    features: int
    use_bias: bool = True
    kernel_init: Any = linen.initializers.lecun_normal()
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / 2, W / 2, F]."""
        return _layer(self, halve, x_BHWC)


class Double(Halve):
    """The layer of `double`, with the attributes of `Halve`.

    Example:
        >>> Double(8).init_with_output(jax.random.key(0), jnp.ones((2, 3, 2, 3)))[0].shape
        (2, 6, 4, 8)
    """

    @linen.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, 2 H, 2 W, F]."""
        return _layer(self, double, x_BHWC)


class SpectralHalve(Spectral, Halve):
    """`Halve` with its kernel, as a matrix [16 C, F], divided by its largest singular value."""


def _layer(module: Halve, function: Any, x: jax.Array) -> jax.Array:
    F = module.features
    kernel = module.param("kernel", module.kernel_init, (4, 4, x.shape[-1], F), jnp.float32)
    bias = module.param("bias", linen.initializers.zeros, (F,), jnp.float32) if module.use_bias else None
    x, kernel, bias = linen.dtypes.promote_dtype(x, kernel, bias, dtype=module.dtype)
    y = function(x, kernel)
    return y if bias is None else y + bias.reshape(1, 1, 1, F)
