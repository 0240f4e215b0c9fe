"""Residual networks: ImageNet and CIFAR layouts, pre-activation, wide, ResNeXt, and plain ones to compare.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import (
    BatchNorm,
    Conv,
    ConvNorm,
    Dense,
    Stage,
    StochasticDepth,
    as_float,
    global_mean,
    max_pool,
)
from jdl.nn.blocks import depth_rates, he_normal_of_groups, require_images, same_padding
from jdl.nn.dropout import Dropout

Shortcut = Literal["projection", "padding", "none"]


def _padded(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A of the paper: every other pixel, and zeros for the channels that are new."""
    extra = features - x.shape[-1]
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


class Block(linen.Module):
    """A residual block: relu(x + F(x)), where F is two 3x3 convolutions, or 1x1, 3x3, 1x1.

    Submodules are ``conv1``, ``conv2``, with a bottleneck ``conv3``, and ``shortcut`` where the shape changes
    and the shortcut is a projection.

    Attributes:
        features: channels of the output.
        inner: channels of the 3x3 convolution of a bottleneck; None for the basic block.
        stride: of the (first) 3x3 convolution.
        groups: of the bottleneck's 3x3 convolution.
        shortcut: "projection" (option B), "padding" (option A) or "none".
        stochastic_depth: probability of dropping F in training.
        zero_init: starts F as nothing, by a zero scale of its last normalisation.
        dtype: of the computation.
    """

    features: int
    inner: int | None = None
    stride: int = 1
    groups: int = 1
    shortcut: Shortcut = "projection"
    stochastic_depth: float = 0.0
    zero_init: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        last: dict[str, Any] = {"activation": None, "dtype": self.dtype}
        if self.zero_init:
            last["scale_init"] = linen.initializers.zeros
        if self.inner is None:
            h = ConvNorm(self.features, 3, self.stride, dtype=self.dtype, name="conv1")(x, train)
            h = ConvNorm(self.features, 3, name="conv2", **last)(h, train)
        else:
            h = ConvNorm(self.inner, 1, dtype=self.dtype, name="conv1")(x, train)
            h = ConvNorm(self.inner, 3, self.stride, self.groups, dtype=self.dtype, name="conv2")(h, train)
            h = ConvNorm(self.features, 1, name="conv3", **last)(h, train)
        if self.shortcut == "none":
            return jax.nn.relu(h)
        if x.shape != h.shape:
            if self.shortcut == "padding":
                x = _padded(x, self.features, self.stride)
            else:
                x = ConvNorm(
                    self.features, 1, self.stride, activation=None, dtype=self.dtype, name="shortcut"
                )(x, train)
        h = StochasticDepth(self.stochastic_depth)(h, train)
        return jax.nn.relu(x + h)


class PreActivationBlock(linen.Module):
    """A residual block whose shortcut is the identity: x + F(x), normalised and activated inside F.

    Submodules are ``norm1``, ``conv1``, ``norm2``, ``conv2``, with a bottleneck ``norm3``, ``conv3``, and
    ``shortcut``. Attributes are those of `Block`; ``dropout``, applied before the last 3x3 convolution; and
    ``is_first``, of the block after the stem, whose first activation is that of the stem and so lies before
    the two paths part.

    Reference:
        He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016, figure 4e; dropout:
        Zagoruyko and Komodakis, "Wide residual networks", 2016, figure 1d.
    """

    features: int
    inner: int | None = None
    stride: int = 1
    groups: int = 1
    shortcut: Shortcut = "projection"
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    is_first: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        if self.inner is None:
            plan = [(self.features, 3, self.stride, 1), (self.features, 3, 1, 1)]
        else:
            plan = [
                (self.inner, 1, 1, 1),
                (self.inner, 3, self.stride, self.groups),
                (self.features, 1, 1, 1),
            ]
        h = x
        for i, (features, kernel, stride, groups) in enumerate(plan, 1):
            h = jax.nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(h, train))
            if i == 1:
                first = h
            if i == 2:
                h = Dropout(self.dropout, deterministic=not train)(h)
            h = _conv(features, kernel, stride, groups, self.dtype, f"conv{i}")(h)
        if self.shortcut == "none":
            return h
        if self.is_first:
            x = first
        if x.shape != h.shape:
            if self.shortcut == "padding":
                x = _padded(x, self.features, self.stride)
            else:
                x = _conv(self.features, 1, self.stride, 1, self.dtype, "shortcut")(first)
        return x + StochasticDepth(self.stochastic_depth)(h, train)


def _conv(features: int, kernel: int, stride: int, groups: int, dtype: Any, name: str) -> Conv:
    return Conv(
        features,
        (kernel, kernel),
        stride,
        padding=same_padding(kernel),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=he_normal_of_groups(groups),
        dtype=dtype,
        name=name,
    )


class ResNet(linen.Module):
    """A residual network: a stem, stages of blocks that halve the image and double the channels, a head.

    Made by `resnet`, `resnet_cifar` and `wide_resnet`, which know the published layouts. Submodules are
    ``stem``, ``stage1``, ``stage2``, ... (their outputs: `jdl.nn.features`), for pre-activation ``norm``,
    and ``head``.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage's output.
        inner: channels of each stage's bottleneck; None for basic blocks.
        num_classes: number of logits; 0 gives the pooled features [B, C] instead.
        stem: "imagenet" (7x7 of stride 2 and a 3x3 maximum of stride 2) or "cifar" (3x3).
        stem_width: channels of the stem.
        shortcut: where the shape changes: "projection" (1x1 convolution, option B) or "padding" (zeros,
            option A). "none" leaves out every shortcut: the plain network.
        pre_activation: normalise and activate before each convolution, He et al. 2016.
        groups: of a bottleneck's 3x3 convolution; 32 makes ResNeXt.
        dropout: inside pre-activation blocks, as in wide residual networks.
        stochastic_depth: probability of dropping the last block; it grows from 0 along the depth.
        zero_init: starts each block as the identity (Goyal et al. 2017, section 5.1); it needs a shortcut.
        remat: computes the inside of each block again for the gradient rather than keep it, to save memory.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C], or attributes contradict one another.

    Example:
        >>> variables = jax.eval_shape(resnet_cifar(20).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        269722

    Reference:
        He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, table 1 and section 4.2.
    """

    depths: Sequence[int]
    widths: Sequence[int]
    inner: Sequence[int] | None = None
    num_classes: int = 1000
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_width: int = 64
    shortcut: Shortcut = "projection"
    pre_activation: bool = False
    groups: int = 1
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    zero_init: bool = False
    remat: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "ResNet", smallest=4)
        self._check()
        x = as_float(inputs, self.dtype)
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[self.stem]
        if self.pre_activation:
            x = _conv(self.stem_width, kernel, stride, 1, self.dtype, "stem")(x)
        else:
            x = ConvNorm(self.stem_width, kernel, stride, dtype=self.dtype, name="stem")(x, train)
        if self.stem == "imagenet":
            x = max_pool(x, (3, 3), (2, 2), padding=1)
        blocks = self._blocks()
        for s, depth in enumerate(self.depths):
            x = Stage(blocks[:depth], name=f"stage{s + 1}")(x, train)
            blocks = blocks[depth:]
        if self.pre_activation:
            x = jax.nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train))
        x = global_mean(x)
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x) if self.num_classes else x

    def _blocks(self) -> list[Any]:
        """A constructor for each block, in order."""
        rates = iter(depth_rates(self.stochastic_depth, sum(self.depths)))
        own = {"dropout": self.dropout} if self.pre_activation else {"zero_init": self.zero_init}
        block: Any = PreActivationBlock if self.pre_activation else Block
        if self.remat:
            block = linen.remat(block, static_argnums=(2,))
        return [
            functools.partial(
                block,
                features=self.widths[s],
                inner=self.inner[s] if self.inner else None,
                stride=2 if s and not b else 1,
                groups=self.groups,
                shortcut=self.shortcut,
                stochastic_depth=next(rates),
                dtype=self.dtype,
                **own,
                **({"is_first": not s and not b} if self.pre_activation else {}),
            )
            for s, depth in enumerate(self.depths)
            for b in range(depth)
        ]

    def _check(self) -> None:
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f'ResNet has the stems "imagenet" and "cifar"; got {self.stem!r}')
        if self.shortcut not in ("projection", "padding", "none"):
            raise ValueError(
                f'ResNet has the shortcuts "projection", "padding" and "none"; got {self.shortcut!r}'
            )
        if len(self.depths) != len(self.widths) or (self.inner and len(self.inner) != len(self.widths)):
            raise ValueError(
                f"ResNet needs as many widths as depths, got depths {tuple(self.depths)}, widths "
                f"{tuple(self.widths)}, inner {self.inner and tuple(self.inner)}"
            )
        if self.shortcut == "none" and (self.zero_init or self.stochastic_depth):
            raise ValueError("a plain network has no shortcut to fall back on: leave out zero_init and "
                             "stochastic_depth")  # fmt: skip
        if self.zero_init and self.pre_activation:
            raise ValueError("zero_init is for blocks that end in a normalisation, not for pre-activation")
        if self.groups != 1 and not self.inner:
            raise ValueError(
                f"groups are of a bottleneck's 3x3 convolution; basic blocks have none, got {self.groups}"
            )
        if self.dropout and not self.pre_activation:
            raise ValueError("dropout is inside pre-activation blocks; other blocks have stochastic_depth")


DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def resnet(
    depth: int, num_classes: int = 1000, *, groups: int = 1, group_width: int = 64, **options: Any
) -> ResNet:
    """The ImageNet layout: ResNet-18, 34 (basic blocks), 50, 101, 152 (bottlenecks), ResNeXt, wide.

    The stride of a bottleneck is at its 3x3 convolution, where every published set of weights has it, not at
    the first 1x1 as in the paper.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: number of logits; 0 gives pooled features.
        groups: groups of a bottleneck's 3x3 convolution.
        group_width: channels of a group in the first stage: ``groups=32, group_width=4`` is ResNeXt 32x4d,
            ``group_width=128`` the wide ResNet-50-2.
        **options: further attributes of `ResNet`, such as ``stem="cifar"`` for small images.

    Returns:
        The module.

    Raises:
        ValueError: for another depth, or groups without bottlenecks.

    Example:
        >>> variables = jax.eval_shape(resnet(50).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        25557032

    Reference:
        He et al. 2016, table 1; ResNeXt: Xie et al., "Aggregated residual transformations for deep neural
        networks", 2017.
    """
    if depth not in DEPTHS:
        raise ValueError(f"resnet has the depths {', '.join(map(str, DEPTHS))}; got {depth} "
                         "(resnet_cifar has 20, 32, 44, 56, 110)")  # fmt: skip
    widths: tuple[int, ...] = (64, 128, 256, 512)
    inner = None
    if depth >= 50:
        inner = tuple(groups * group_width * 2**s for s in range(4))
        widths = tuple(4 * width for width in widths)
    elif groups != 1 or group_width != 64:
        raise ValueError(f"groups and group_width are of bottlenecks, which depth {depth} does not have")
    return ResNet(DEPTHS[depth], widths, inner, num_classes, groups=groups, **options)


def resnet_cifar(depth: int, num_classes: int = 10, **options: Any) -> ResNet:
    """The CIFAR layout: three stages of 16, 32 and 64 channels on 32x32 images.

    Args:
        depth: 6n + 2 (20, 32, 44, 56, 110) for basic blocks. With ``bottleneck=True`` 9n + 2 (164, 1001).
        num_classes: number of logits; 0 gives pooled features.
        **options: ``bottleneck``, and further attributes of `ResNet`: ``shortcut="none"`` is the plain
            network, ``pre_activation=True`` that of He et al. 2016. The shortcut is "padding", the paper's
            option A, or for pre-activation "projection".

    Returns:
        The module.

    Raises:
        ValueError: if the depth does not fit.

    Example:
        >>> resnet_cifar(56).depths
        (9, 9, 9)

    Reference:
        He et al. 2016, section 4.2.
    """
    bottleneck = options.pop("bottleneck", False)
    of_a_block = 3 if bottleneck else 2
    blocks, rest = divmod(depth - 2, 3 * of_a_block)
    if blocks < 1 or rest:
        raise ValueError(f"resnet_cifar needs a depth of {3 * of_a_block}n + 2, got {depth}")
    widths = (64, 128, 256) if bottleneck else (16, 32, 64)
    inner = (16, 32, 64) if bottleneck else None
    usual = "projection" if options.get("pre_activation") else "padding"
    options = {"stem": "cifar", "stem_width": 16, "shortcut": usual, **options}
    return ResNet((int(blocks),) * 3, widths, inner, num_classes, **options)


def wide_resnet(depth: int, widen: int, num_classes: int = 10, **options: Any) -> ResNet:
    """WRN-depth-widen for CIFAR: pre-activation blocks, ``widen`` times as many channels.

    Args:
        depth: 6n + 4: 16, 22, 28, 40.
        widen: factor of the channels; WRN-28-10 has 10.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `ResNet`; ``dropout=0.3`` is the paper's.

    Returns:
        The module.

    Raises:
        ValueError: if the depth does not fit.

    Example:
        >>> model = wide_resnet(28, 10)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        36479194

    Reference:
        Zagoruyko and Komodakis, "Wide residual networks", 2016, table 1.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"wide_resnet needs a depth of 6n + 4, got {depth}")
    widths = tuple(widen * width for width in (16, 32, 64))
    options = {"stem": "cifar", "stem_width": 16, "pre_activation": True, **options}
    return ResNet((blocks,) * 3, widths, None, num_classes, **options)


def tiny() -> tuple[ResNet, dict[str, np.ndarray]]:
    """A network of two stages with stochastic depth, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    module = ResNet((1, 1), (8, 16), num_classes=4, stem="cifar", stem_width=8, stochastic_depth=0.5)
    return module, batch
