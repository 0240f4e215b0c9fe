"""Inverted residual blocks, the part that MobileNet v2, MobileNet v3 and EfficientNet have in common.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen

from jdl.nn.blocks import Activation, ConvNorm, SqueezeExcite, StochasticDepth


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to a scaled number of channels, never below nine tenths of it.

    Example:
        >>> round_channels(32 * 1.1), round_channels(24 * 0.35), round_channels(11.9)
        (32, 8, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class InvertedResidual(linen.Module):
    """Expansion by a 1x1 convolution, depthwise convolution, projection without activation.

    The input is added where the shape stays what it was. Submodules are ``expand`` (left out where it would
    not change the number of channels), ``depthwise``, with squeeze-and-excitation ``squeeze``, and
    ``project``.

    Attributes:
        features: channels of the output.
        expanded: channels of the depthwise convolution.
        kernel: side of the depthwise convolution.
        stride: of the depthwise convolution.
        squeeze: channels inside squeeze-and-excitation; 0 leaves it out.
        activation: after the expansion and the depthwise convolution.
        squeeze_activation: inside squeeze-and-excitation.
        gate: at its end.
        stochastic_depth: probability of dropping the block in training, where its input is added.
        padding: as in `ConvNorm`.
        momentum: likewise.
        epsilon: likewise.
        dtype: of the computation.

    Example:
        >>> import jax.numpy as jnp
        >>> block = InvertedResidual(16, expanded=48, stride=2)
        >>> x, variables = block.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 8)))
        >>> x.shape, sorted(variables["params"])
        ((1, 4, 4, 16), ['depthwise', 'expand', 'project'])

    Reference:
        Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals and linear bottlenecks",
        2018, table 1.
    """

    features: int
    expanded: int
    kernel: int = 3
    stride: int = 1
    squeeze: int = 0
    activation: Activation = jax.nn.relu6
    squeeze_activation: Activation = jax.nn.relu
    gate: Activation = jax.nn.sigmoid
    stochastic_depth: float = 0.0
    padding: Any = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        common: dict[str, Any] = {
            "padding": self.padding,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "dtype": self.dtype,
        }
        h = x_BHWC
        if self.expanded != x_BHWC.shape[-1]:
            h = ConvNorm(self.expanded, 1, activation=self.activation, name="expand", **common)(h, train)
        h = ConvNorm(
            self.expanded,
            self.kernel,
            self.stride,
            self.expanded,
            self.activation,
            name="depthwise",
            **common,
        )(h, train)
        if self.squeeze:
            h = SqueezeExcite(
                self.squeeze, self.squeeze_activation, self.gate, dtype=self.dtype, name="squeeze"
            )(h)
        h = ConvNorm(self.features, 1, activation=None, name="project", **common)(h, train)
        if h.shape == x_BHWC.shape and self.stride == 1:
            return x_BHWC + StochasticDepth(self.stochastic_depth)(h, train)
        return h
