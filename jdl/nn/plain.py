"""Layers of networks from before batch normalisation became the rule.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jdl.nn.blocks import he_normal_forward, same_padding
from jdl.nn.convolution import Conv
from jdl.nn.normalization import BatchNorm


class ConvRelu(linen.Module):
    """Convolution with bias, batch normalisation where asked for, ReLU.

    Submodules are ``conv`` and ``norm``.

    Attributes:
        features: channels of the output.
        kernel: side of the square kernel.
        stride: steps between outputs, pixels.
        padding: pixels added on each side; None keeps the image's size at stride 1.
        norm: normalise between the two. The bias is kept, though it then does nothing in training: published
            weights have it.
        dtype: of the computation.

    Example:
        >>> x, variables = ConvRelu(8).init_with_output(jax.random.key(0), jnp.ones((1, 6, 6, 3)))
        >>> x.shape, sorted(variables["params"]["conv"])
        ((1, 6, 6, 8), ['bias', 'kernel'])
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    norm: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H', W', features]."""
        padding = same_padding(self.kernel) if self.padding is None else ((self.padding,) * 2,) * 2
        x_BHWC = Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            padding=padding,
            kernel_init=he_normal_forward,
            dtype=self.dtype,
            name="conv",
        )(x_BHWC)
        if self.norm:
            x_BHWC = BatchNorm(dtype=self.dtype, name="norm")(x_BHWC, train)
        return jax.nn.relu(x_BHWC)


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divides each channel by the activity of its neighbours.

    b_c = a_c / (k + alpha sum_{c'} a_c'^2)^beta, the sum over the ``size`` channels around c. (PyTorch's and
    Caffe's alpha is ``size`` times this one.)

    Args:
        x: [..., C].
        size: number of neighbouring channels, odd.
        k: keeps the divisor from zero.
        alpha: weight of the activity.
        beta: power.

    Returns:
        Array of x's shape.

    Example:
        >>> local_response_norm(jnp.ones((1, 4)), size=3, k=0.0, alpha=1.0, beta=1.0)[0, :1].tolist()
        [0.5]

    Reference:
        Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks",
        2012, section 3.3.
    """
    if size % 2 == 0:
        raise ValueError(
            f"size must be odd, so that a channel has as many neighbours on each side; got {size}"
        )
    window = (1,) * (x.ndim - 1) + (size,)
    pads = ((0, 0),) * (x.ndim - 1) + ((size // 2, size // 2),)
    activity = lax.reduce_window(jnp.square(x.astype(jnp.float32)), 0.0, lax.add, window, (1,) * x.ndim, pads)
    return (x * (k + alpha * activity) ** -beta).astype(x.dtype)


class UpConv(linen.Module):
    """Transposed convolution whose stride is as large as its kernel: every pixel becomes a square of pixels.

    The squares do not overlap, so it is one matrix product, where a convolution of an image spread out with
    zeros would multiply mostly zeros. Parameters are those of `flax.linen.ConvTranspose`: ``kernel``
    [n, n, C, features], ``bias`` [features].

    Attributes:
        features: channels of the output.
        factor: n, the side of the square.
        dtype: of the computation.

    Example:
        >>> UpConv(8).init_with_output(jax.random.key(0), jnp.ones((1, 4, 5, 16)))[0].shape
        (1, 8, 10, 8)
    """

    features: int
    factor: int = 2
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, n H, n W, features]."""
        B, H, W, C = x_BHWC.shape
        n, F = self.factor, self.features
        # Every output has C inputs, whatever the size of its square.
        init = linen.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=2, out_axis=3, batch_axis=(0, 1)
        )
        kernel = self.param("kernel", init, (n, n, C, F))
        bias = self.param("bias", linen.initializers.zeros, (F,))
        x_BHWC, kernel, bias = linen.dtypes.promote_dtype(x_BHWC, kernel, bias, dtype=self.dtype)
        # Linen mirrors the kernel of a transposed convolution.
        matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(C, n * n * F)
        y = (x_BHWC.reshape(-1, C) @ matrix).reshape(B, H, W, n, n, F).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(B, n * H, n * W, F) + bias.reshape(1, 1, 1, F)
