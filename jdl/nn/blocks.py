"""What convolutional networks are built from, above single layers.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jdl.nn.convolution import Conv
from jdl.nn.dropout import Dropout, require_rate
from jdl.nn.linear import Dense
from jdl.nn.normalization import BatchNorm

Activation = Callable[[jax.Array], jax.Array]

he_normal = linen.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Keeps the gradient's variance through convolutions and ReLUs (He et al. 2015, equation 14); for layers that
are normalised, which brings what they give to variance 1 whatever their kernels are."""

he_normal_forward = linen.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Keeps the variance of what convolutions and ReLUs give (He et al. 2015, equation 10)."""


def he_normal_of_groups(groups: int) -> Any:
    """`he_normal` for a convolution of several groups, each of whose outputs has a part of the features."""
    return linen.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def same_padding(kernel: int, dilation: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Equal zero-padding of rows and columns that keeps an image's size at stride 1.

    With stride 2 it differs from ``"SAME"``, which pads an even image at its end only; published weights of
    PyTorch models need this one.

    Raises:
        ValueError: for an even kernel.

    Example:
        >>> same_padding(3), same_padding(3, dilation=2)
        (((1, 1), (1, 1)), ((2, 2), (2, 2)))
    """
    if kernel % 2 == 0:
        raise ValueError(f"only an odd kernel keeps an image's size with equal padding; got {kernel}")
    each = (kernel - 1) // 2 * dilation
    return ((each, each), (each, each))


class ConvNorm(linen.Module):
    """Convolution without bias, batch normalisation, activation.

    Submodules are ``conv`` and ``norm``.

    Attributes:
        features: channels of the output.
        kernel: side of the square kernel, or its height and width.
        stride: steps between outputs, pixels.
        groups: groups of channels; as many as input channels make it depthwise.
        activation: applied last; None leaves it out.
        padding: as in `flax.linen.Conv`; None pads equally on all sides (`same_padding`).
        scale_init: initialises the normalisation's scale.
        momentum: share of the running statistics kept at each step.
        epsilon: added to the variance.
        dtype: of the computation.

    Example:
        >>> layer = ConvNorm(8, stride=2)
        >>> x, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> x.shape, sorted(variables["params"])
        ((1, 16, 16, 8), ['conv', 'norm'])
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    groups: int = 1
    activation: Activation | None = jax.nn.relu
    padding: Any = None
    scale_init: Any = linen.initializers.ones
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H', W', features]."""
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        padding = self.padding
        if padding is None:
            padding = (same_padding(kernel[0])[0], same_padding(kernel[1])[1])
        x_BHWC = Conv(
            self.features,
            kernel,
            self.stride,
            padding=padding,
            feature_group_count=self.groups,
            use_bias=False,
            kernel_init=he_normal_of_groups(self.groups),
            dtype=self.dtype,
            name="conv",
        )(x_BHWC)
        x_BHWC = BatchNorm(self.momentum, self.epsilon, self.dtype, scale_init=self.scale_init, name="norm")(
            x_BHWC, train
        )
        return x_BHWC if self.activation is None else self.activation(x_BHWC)


class SqueezeExcite(linen.Module):
    """Scales each channel by a gate computed from the means of all channels.

    y = x * gate(W2 activation(W1 mean(x) + b1) + b2). Submodules are ``reduce`` and ``expand``.

    Attributes:
        reduced: channels between the two layers.
        activation: between them.
        gate: of the result.
        dtype: of the computation.

    Example:
        >>> x = jnp.ones((2, 4, 4, 16))
        >>> SqueezeExcite(4).init_with_output(jax.random.key(0), x)[0].shape
        (2, 4, 4, 16)

    Reference:
        Hu, Shen and Sun, "Squeeze-and-excitation networks", 2018, equations 2 to 4.
    """

    reduced: int
    activation: Activation = jax.nn.relu
    gate: Activation = jax.nn.sigmoid
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same shape."""
        B, _, _, C = x_BHWC.shape
        gate_BC = self.activation(Dense(self.reduced, dtype=self.dtype, name="reduce")(x_BHWC.mean((1, 2))))
        gate_BC = self.gate(Dense(C, dtype=self.dtype, name="expand")(gate_BC))
        return x_BHWC * gate_BC.reshape(B, 1, 1, C)


class StochasticDepth(linen.Module):
    """Drops a residual branch, for each example apart, and scales what is kept to the same expectation.

    Attributes:
        rate: probability of dropping, in [0, 1).

    Example:
        >>> layer, x = StochasticDepth(0.5), jnp.ones((1000, 4))
        >>> y = layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
        >>> sorted(set(y.ravel().tolist())), bool(abs(y.mean() - 1) < 0.1)
        ([0.0, 2.0], True)

    Reference:
        Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016.
    """

    rate: float

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, ...] to the same shape."""
        require_rate("stochastic_depth", self.rate)
        dims = tuple(range(1, x.ndim))
        return Dropout(self.rate, broadcast_dims=dims, deterministic=not train)(x)


class Stage(linen.Module):
    """Blocks one after another under a name of their own, as ``block1``, ``block2``, ...

    Attributes:
        blocks: a constructor for each block, which takes a ``name``; a block is called with images and
            ``train``.

    Example:
        >>> import functools
        >>> stage = Stage([functools.partial(ConvNorm, 8, stride=2), functools.partial(ConvNorm, 8)])
        >>> x, variables = stage.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        >>> x.shape, sorted(variables["params"])
        ((1, 4, 4, 8), ['block1', 'block2'])
    """

    blocks: Sequence[Callable[..., Any]]

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H', W', C']."""
        for i, make in enumerate(self.blocks, 1):
            x_BHWC = make(name=f"block{i}")(x_BHWC, train)
        return x_BHWC


def depth_rates(last: float, depth: int) -> list[float]:
    """Rates of stochastic depth that grow linearly from 0 at the first of ``depth`` blocks to ``last``.

    Example:
        >>> depth_rates(0.2, 3)
        [0.0, 0.1, 0.2]
    """
    return [last * i / max(1, depth - 1) for i in range(depth)]


def require_images(inputs: jax.Array, model: str, smallest: int = 1, channels: Sequence[int] = ()) -> None:
    """Refuses inputs that are not images [B, H, W, C].

    Args:
        inputs: what a model was given.
        model: its name, for the error.
        smallest: least height and width, pixels.
        channels: numbers of channels that it takes; any when empty.

    Raises:
        ValueError: if the inputs are something else.

    Example:
        >>> require_images(jnp.zeros((1, 3, 32, 32)), "ResNet", smallest=8)
        Traceback (most recent call last):
        ValueError: ResNet takes images [batch, height, width, channels] of at least 8x8 pixels; got shape
        (1, 3, 32, 32), which looks like channels first: transpose it with x.transpose(0, 2, 3, 1)
    """
    shape = tuple(inputs.shape)
    channels_first = inputs.ndim == 4 and shape[1] <= 4 and min(shape[2:]) > 4
    fits = inputs.ndim == 4 and min(shape[1:3]) >= smallest and (not channels or shape[3] in channels)
    if fits and not channels_first:
        return
    wanted = f"images [batch, height, width, {' or '.join(map(str, channels)) or 'channels'}]"
    hint = ", which looks like channels first: transpose it with x.transpose(0, 2, 3, 1)"
    raise ValueError(
        f"{model} takes {wanted} of at least {smallest}x{smallest} pixels; got shape {shape}"
        + (hint if channels_first else "")
    )


def require_patches(
    model: str, image: tuple[int, int], patch: int, grid: tuple[int, int] | None = None
) -> None:
    """Refuses images that square patches do not tile, or tile in another grid than weights are for.

    Args:
        model: its name, for the error.
        image: height and width, pixels.
        patch: side of a patch, pixels.
        grid: rows and columns of patches; any square when None.

    Raises:
        ValueError: saying what would be right.

    Example:
        >>> require_patches("ViT", (32, 48), 16, grid=(2, 3))
        >>> require_patches("ViT", (32, 48), 16)
        Traceback (most recent call last):
        ValueError: ViT takes square images where it has no grid; for images of 32x48 pixels give grid=(2, 3)
    """
    H, W = image
    if H % patch or W % patch:
        raise ValueError(
            f"{model} needs images whose sides are multiples of its patch, {patch} pixels; got {H}x{W}"
        )
    found = H // patch, W // patch
    if grid is None and H != W:
        raise ValueError(f"{model} takes square images where it has no grid; for images of {H}x{W} pixels "
                         f"give grid={found}")  # fmt: skip
    if grid is not None and tuple(grid) != found:
        raise ValueError(f"{model} has a grid of {grid[0]}x{grid[1]} patches; images of {H}x{W} pixels make "
                         f"{found[0]}x{found[1]}")  # fmt: skip


def zero_head(num_classes: int, dtype: Any = None) -> Dense:
    """A last layer ``head`` that begins as zeros, so that at first all classes are equally likely."""
    return Dense(num_classes, kernel_init=linen.initializers.zeros, dtype=dtype, name="head")


def global_mean(x_BHWC: jax.Array) -> jax.Array:
    """The mean of each channel over the image, [B, H, W, C] to [B, C].

    Example:
        >>> global_mean(jnp.ones((2, 7, 7, 5))).shape
        (2, 5)
    """
    return jnp.mean(x_BHWC, (1, 2))
