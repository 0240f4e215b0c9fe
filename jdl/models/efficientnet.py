"""EfficientNet B0 to B7 and EfficientNet-Lite 0 to 4: one network scaled in depth, width and resolution.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen

from jdl.nn import ConvNorm, Dense, Stage, as_float, global_mean
from jdl.nn.blocks import Activation, depth_rates, require_images
from jdl.nn.dropout import Dropout
from jdl.nn.inverted import InvertedResidual, round_channels


class Blocks(NamedTuple):
    """A stage: equal blocks one after another.

    Attributes:
        depth: number of blocks.
        features: channels of their output.
        kernel: side of the depthwise convolution.
        stride: of the first block.
        expansion: channels inside a block over channels at its entry.
    """

    depth: int
    features: int
    kernel: int
    stride: int
    expansion: int


BASE = (
    Blocks(1, 16, 3, 1, 1),
    Blocks(2, 24, 3, 2, 6),
    Blocks(2, 40, 5, 2, 6),
    Blocks(3, 80, 3, 2, 6),
    Blocks(3, 112, 5, 1, 6),
    Blocks(4, 192, 5, 2, 6),
    Blocks(1, 320, 3, 1, 6),
)
"""The stages of B0 (Tan and Le 2019, table 1)."""


class Scaling(NamedTuple):
    """How a size differs from B0.

    Attributes:
        width: factor of the channels.
        depth: factor of the blocks.
        image_size: side of the images it was published for, pixels; the network takes any other.
        dropout: before the last layer.
    """

    width: float
    depth: float
    image_size: int
    dropout: float


SIZES = {
    "b0": Scaling(1.0, 1.0, 224, 0.2),
    "b1": Scaling(1.0, 1.1, 240, 0.2),
    "b2": Scaling(1.1, 1.2, 260, 0.3),
    "b3": Scaling(1.2, 1.4, 300, 0.3),
    "b4": Scaling(1.4, 1.8, 380, 0.4),
    "b5": Scaling(1.6, 2.2, 456, 0.4),
    "b6": Scaling(1.8, 2.6, 528, 0.5),
    "b7": Scaling(2.0, 3.1, 600, 0.5),
    "lite0": Scaling(1.0, 1.0, 224, 0.2),
    "lite1": Scaling(1.0, 1.1, 240, 0.2),
    "lite2": Scaling(1.1, 1.2, 260, 0.3),
    "lite3": Scaling(1.2, 1.4, 280, 0.3),
    "lite4": Scaling(1.4, 1.8, 300, 0.3),
}
"""The published sizes; their images: ``SIZES["b3"].image_size``."""


class EfficientNet(linen.Module):
    """A stem that halves the image, stages of inverted residual blocks, a 1x1 convolution, a head.

    Made by `efficientnet`, which knows the published sizes. Submodules are ``stem``, ``stage1``, ...,
    ``top`` and ``head``; the last stages of each resolution of B0 are stages 1, 2, 3, 5 and 7.

    Attributes:
        stages: the stages.
        stem_width: channels of the stem.
        top_width: channels before pooling.
        num_classes: number of logits; 0 gives the pooled features [B, C] instead.
        squeeze: channels inside squeeze-and-excitation over channels at a block's entry; 0 leaves it out.
        activation: everywhere.
        dropout: before the head.
        stochastic_depth: grows from 0 along the depth: of n blocks, block i = 0, 1, ... is dropped with
            probability i / n of it, as in TensorFlow.
        padding: "SAME" as in TensorFlow, whose weights most publishers carried over; None pads equally on all
            sides, as torchvision does.
        momentum: share of the running statistics kept at each step.
        epsilon: added to variances.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] of at least 8x8 pixels.

    Reference:
        Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019.
    """

    stages: tuple[Blocks, ...] = BASE
    stem_width: int = 32
    top_width: int = 1280
    num_classes: int = 1000
    squeeze: float = 0.25
    activation: Activation = jax.nn.silu
    dropout: float = 0.2
    stochastic_depth: float = 0.2
    padding: Any = "SAME"
    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: Any = None

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage, which some maps of names ask for."""
        return tuple(stage.depth for stage in self.stages)

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "EfficientNet", smallest=8)
        common: dict[str, Any] = {
            "activation": self.activation,
            "padding": self.padding,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "dtype": self.dtype,
        }
        x = as_float(inputs, self.dtype)
        x = ConvNorm(self.stem_width, 3, 2, name="stem", **common)(x, train)
        # The full rate would be that of a block after the last one.
        rates = iter(depth_rates(self.stochastic_depth, sum(self.depths) + 1))
        entering = self.stem_width
        for s, stage in enumerate(self.stages, 1):
            blocks = []
            for b in range(stage.depth):
                block = functools.partial(
                    InvertedResidual,
                    stage.features,
                    expanded=entering * stage.expansion,
                    kernel=stage.kernel,
                    stride=1 if b else stage.stride,
                    squeeze=max(1, int(entering * self.squeeze)) if self.squeeze else 0,
                    squeeze_activation=self.activation,
                    stochastic_depth=next(rates),
                    **common,
                )
                blocks.append(block)
                entering = stage.features
            x = Stage(blocks, name=f"stage{s}")(x, train)
        x = global_mean(ConvNorm(self.top_width, 1, name="top", **common)(x, train))
        if not self.num_classes:
            return x
        x = Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def efficientnet(size: str, num_classes: int = 1000, **options: Any) -> EfficientNet:
    """A published size: "b0" to "b7", or "lite0" to "lite4".

    The sizes scale B0's depth, width and resolution together. The Lite sizes are for devices that quantise:
    ReLU6 instead of SiLU, no squeeze-and-excitation, and a stem, a head, a first and a last stage that are
    not scaled.

    Args:
        size: the size's name.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `EfficientNet`.

    Returns:
        The module.

    Raises:
        ValueError: for another size.

    Example:
        >>> import jax.numpy as jnp
        >>> model, images = efficientnet("b0"), jnp.zeros((1, 224, 224, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        5288548

    Reference:
        Tan and Le 2019, equation 3 and table 1; Lite: R. Liu, "Higher accuracy on vision models with
        EfficientNet-Lite", TensorFlow blog, 2020.
    """
    if size not in SIZES:
        raise ValueError(f"efficientnet has the sizes {', '.join(SIZES)}; got {size!r}")
    scaling = SIZES[size]
    is_lite = size.startswith("lite")

    def channels(features: int) -> int:
        return round_channels(features * scaling.width)

    def depth(s: int) -> int:
        is_fixed = is_lite and s in (0, len(BASE) - 1)
        return BASE[s].depth if is_fixed else math.ceil(BASE[s].depth * scaling.depth)

    own: dict[str, Any] = {
        "stages": tuple(
            stage._replace(depth=depth(s), features=channels(stage.features)) for s, stage in enumerate(BASE)
        ),
        "dropout": scaling.dropout,
    }
    if is_lite:
        own |= {"squeeze": 0.0, "activation": jax.nn.relu6}
    else:
        own |= {"stem_width": channels(32), "top_width": channels(1280)}
    return EfficientNet(num_classes=num_classes, **{**own, **options})


def tiny() -> tuple[EfficientNet, dict[str, np.ndarray]]:
    """A network of two stages with stochastic depth, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    stages = (Blocks(1, 8, 3, 1, 1), Blocks(1, 8, 3, 1, 2))
    module = EfficientNet(stages, stem_width=8, top_width=16, num_classes=4, stochastic_depth=0.5)
    return module, batch
