"""MobileNet v1, v2 and v3: networks of depthwise convolutions for small devices.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import linen

from jdl.nn import ConvNorm, Dense, Stage, as_float, global_mean
from jdl.nn.blocks import Activation, require_images
from jdl.nn.dropout import Dropout
from jdl.nn.inverted import InvertedResidual, round_channels

ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
}


class SeparableConv(linen.Module):
    """A depthwise convolution and a 1x1 convolution, each normalised and activated.

    Submodules are ``depthwise`` and ``pointwise``. Attributes are those of `jdl.nn.ConvNorm`.

    Reference:
        Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications",
        2017, figure 3.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    activation: Activation = jax.nn.relu
    padding: Any = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        common: dict[str, Any] = {
            "activation": self.activation,
            "padding": self.padding,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "dtype": self.dtype,
        }
        C = x_BHWC.shape[-1]
        x_BHWC = ConvNorm(C, self.kernel, self.stride, C, name="depthwise", **common)(x_BHWC, train)
        return ConvNorm(self.features, 1, name="pointwise", **common)(x_BHWC, train)


class BlockShape(NamedTuple):
    """A block.

    Attributes:
        features: channels of the output.
        expanded: channels of the depthwise convolution of an inverted residual block; 0 makes the block a
            separable convolution.
        kernel: side of the depthwise convolution.
        stride: of the depthwise convolution.
        squeeze: channels inside squeeze-and-excitation; 0 leaves it out.
        activation: "relu", "relu6" or "hard_swish".
    """

    features: int
    expanded: int
    kernel: int = 3
    stride: int = 1
    squeeze: int = 0
    activation: str = "relu6"


class MobileNet(linen.Module):
    """A stem that halves the image, stages of one resolution each, a head.

    Made by `mobilenet_v1`, `mobilenet_v2` and `mobilenet_v3`. Submodules are ``stem``, ``stage1``, ...,
    ``top``, ``hidden`` and ``head``.

    Attributes:
        stages: the blocks of each stage.
        stem_width: channels of the stem.
        top_width: channels of a 1x1 convolution before pooling; 0 leaves it out.
        hidden_width: features of a layer between pooling and logits; 0 leaves it out.
        num_classes: number of logits; 0 gives the pooled features [B, C] instead.
        activation: of stem, top and hidden layer: "relu", "relu6" or "hard_swish".
        dropout: before the head.
        padding: None pads equally on all sides, as torchvision does; "SAME" is for weights from TensorFlow.
        momentum: share of the running statistics kept at each step.
        epsilon: added to variances.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C], or an activation is unknown.
    """

    stages: tuple[tuple[BlockShape, ...], ...]
    stem_width: int
    top_width: int = 0
    hidden_width: int = 0
    num_classes: int = 1000
    activation: str = "relu6"
    dropout: float = 0.2
    padding: Any = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "MobileNet", smallest=8)
        activation = _activation(self.activation)
        common: dict[str, Any] = {
            "padding": self.padding,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "dtype": self.dtype,
        }
        x = as_float(inputs, self.dtype)
        x = ConvNorm(self.stem_width, 3, 2, activation=activation, name="stem", **common)(x, train)
        for s, stage in enumerate(self.stages, 1):
            x = Stage([_constructor(block, common) for block in stage], name=f"stage{s}")(x, train)
        if self.top_width:
            x = ConvNorm(self.top_width, 1, activation=activation, name="top", **common)(x, train)
        x = global_mean(x)
        if not self.num_classes:
            return x
        if self.hidden_width:
            x = activation(Dense(self.hidden_width, dtype=self.dtype, name="hidden")(x))
        x = Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ValueError(f"MobileNet has the activations {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]


def _constructor(block: BlockShape, common: dict[str, Any]) -> Any:
    own: dict[str, Any] = {
        "kernel": block.kernel,
        "stride": block.stride,
        "activation": _activation(block.activation),
        **common,
    }
    if not block.expanded:
        return functools.partial(SeparableConv, block.features, **own)
    return functools.partial(
        InvertedResidual,
        block.features,
        expanded=block.expanded,
        squeeze=block.squeeze,
        gate=jax.nn.hard_sigmoid,
        **own,
    )


def mobilenet_v1(width: float = 1.0, num_classes: int = 1000, **options: Any) -> MobileNet:
    """MobileNet v1: separable convolutions.

    Args:
        width: factor of the channels; published are 0.25, 0.5, 0.75 and 1.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `MobileNet`.

    Returns:
        The module.

    Raises:
        ValueError: if the width is not above 0 and at most 4.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(mobilenet_v1().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        4231976

    Reference:
        Howard et al. 2017, table 1.
    """
    _check_width(width)

    def channels(features: int) -> int:
        return max(8, int(features * width))

    stages = tuple(
        tuple(
            BlockShape(channels(features), 0, stride=2 if s and not b else 1, activation="relu")
            for b in range(depth)
        )
        for s, (features, depth) in enumerate([(64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)])
    )
    options = {"activation": "relu", "dropout": 0.001, **options}
    return MobileNet(stages, channels(32), num_classes=num_classes, **options)


def mobilenet_v2(width: float = 1.0, num_classes: int = 1000, **options: Any) -> MobileNet:
    """MobileNet v2: inverted residual blocks with ReLU6.

    Args:
        width: factor of the channels; published are 0.35, 0.5, 0.75, 1, 1.3 and 1.4.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `MobileNet`.

    Returns:
        The module.

    Raises:
        ValueError: if the width is not above 0 and at most 4.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(mobilenet_v2().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        3504872

    Reference:
        Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals and linear bottlenecks",
        2018, table 2.
    """
    _check_width(width)
    # Channels, blocks, stride of the first: those of one resolution belong to one stage.
    table = [
        [(16, 1, 1)],
        [(24, 2, 2)],
        [(32, 3, 2)],
        [(64, 4, 2), (96, 3, 1)],
        [(160, 3, 2), (320, 1, 1)],
    ]
    stem_width = entering = round_channels(32 * width)
    stages = []
    for s, rows in enumerate(table):
        blocks = []
        for features, depth, stride in rows:
            leaving = round_channels(features * width)
            for b in range(depth):
                expanded = entering * (6 if s else 1)
                blocks.append(BlockShape(leaving, expanded, stride=1 if b else stride))
                entering = leaving
        stages.append(tuple(blocks))
    top_width = max(1280, round_channels(1280 * width))
    return MobileNet(tuple(stages), stem_width, top_width, num_classes=num_classes, **options)


# Kernel, expanded channels, channels, squeeze-and-excitation, hard swish (else ReLU), stride.
_V3 = {
    "large": [
        [(3, 16, 16, False, False, 1)],
        [(3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1)],
        [(5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1)],
        [
            (3, 240, 80, False, True, 2),
            (3, 200, 80, False, True, 1),
            (3, 184, 80, False, True, 1),
            (3, 184, 80, False, True, 1),
            (3, 480, 112, True, True, 1),
            (3, 672, 112, True, True, 1),
        ],
        [(5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1)],
    ],
    "small": [
        [(3, 16, 16, True, False, 2)],
        [(3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1)],
        [
            (5, 96, 40, True, True, 2),
            (5, 240, 40, True, True, 1),
            (5, 240, 40, True, True, 1),
            (5, 120, 48, True, True, 1),
            (5, 144, 48, True, True, 1),
        ],
        [(5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1)],
    ],
}


def mobilenet_v3(
    size: Literal["large", "small"], num_classes: int = 1000, *, width: float = 1.0, **options: Any
) -> MobileNet:
    """MobileNet v3: inverted residual blocks with squeeze-and-excitation and hard swish.

    Momentum and epsilon are those of torchvision's weights.

    Args:
        size: "large" or "small".
        num_classes: number of logits; 0 gives pooled features.
        width: factor of the channels.
        **options: further attributes of `MobileNet`.

    Returns:
        The module.

    Raises:
        ValueError: for another size, or a width that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> model, images = mobilenet_v3("small"), jnp.zeros((1, 224, 224, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        2542856

    Reference:
        Howard et al., "Searching for MobileNetV3", 2019, tables 1 and 2.
    """
    if size not in _V3:
        raise ValueError(f"mobilenet_v3 has the sizes large and small; got {size!r}")
    _check_width(width)

    def block(row: tuple[int, int, int, bool, bool, int]) -> BlockShape:
        kernel, expanded, features, has_squeeze, is_swish, stride = row
        expanded = round_channels(expanded * width)
        return BlockShape(
            round_channels(features * width),
            expanded,
            kernel,
            stride,
            round_channels(expanded // 4) if has_squeeze else 0,
            "hard_swish" if is_swish else "relu",
        )

    stages = tuple(tuple(block(row) for row in rows) for rows in _V3[size])
    top_width = 6 * stages[-1][-1].features
    hidden_width = round_channels({"large": 1280, "small": 1024}[size] * width)
    options = {"activation": "hard_swish", "momentum": 0.99, "epsilon": 1e-3, **options}
    stem_width = round_channels(16 * width)
    return MobileNet(stages, stem_width, top_width, hidden_width, num_classes, **options)


def _check_width(width: float) -> None:
    # No published width is above 1.4; a number of classes given in its place is.
    if not 0 < width <= 4:
        raise ValueError(
            f"the width is a factor of the channels, above 0 and at most 4; got {width}. "
            "The number of classes is num_classes"
        )


def tiny() -> tuple[MobileNet, dict[str, np.ndarray]]:
    """A network with a block of each kind and all other layers, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    stages = (
        (BlockShape(8, 0),),
        (BlockShape(8, 16, squeeze=8, activation="hard_swish"),),
    )
    module = MobileNet(stages, 8, top_width=16, hidden_width=16, num_classes=4, activation="hard_swish")
    return module, batch
