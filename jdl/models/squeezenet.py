"""SqueezeNet: AlexNet's accuracy with a fiftieth of its parameters.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import Conv, Stage, as_float, global_mean
from jdl.nn.blocks import require_images
from jdl.nn.dropout import Dropout
from jdl.nn.plain import ConvRelu
from jdl.nn.pooling import max_pool_over_edge


class Fire(linen.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions side by side.

    Submodules are ``squeeze``, ``expand1x1`` and ``expand3x3``.

    Attributes:
        squeeze: channels of the first.
        expand: channels of each of the others.
        dtype: of the computation.
    """

    squeeze: int
    expand: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H, W, 2 expand]."""
        x = ConvRelu(self.squeeze, 1, dtype=self.dtype, name="squeeze")(x)
        one = ConvRelu(self.expand, 1, dtype=self.dtype, name="expand1x1")(x)
        three = ConvRelu(self.expand, 3, dtype=self.dtype, name="expand3x3")(x)
        return jnp.concatenate([one, three], -1)


class SqueezeNet(linen.Module):
    """A convolution, three stages of fire modules with a maximum before each, and a 1x1 convolution.

    Made by `squeezenet`. Submodules are ``stem``, ``stage1``, ``stage2``, ``stage3`` and ``head``. As in the
    paper, the maps of the classes pass a ReLU before their mean is taken.

    Attributes:
        stem: channels, kernel size of the first convolution.
        stages: for each fire module of each stage, the channels (squeeze, expand).
        num_classes: number of logits; 0 gives the pooled features [B, C] below the last 1x1 convolution.
        dropout: share of values dropped before ``head`` in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] at least as large as the first
            kernel.

    Reference:
        Iandola, Han, Moskewicz, Ashraf, Dally and Keutzer, "SqueezeNet: AlexNet-level accuracy with 50x fewer
        parameters and <0.5MB model size", 2016, table 1.
    """

    stem: tuple[int, int]
    stages: Sequence[Sequence[tuple[int, int]]]
    num_classes: int = 1000
    dropout: float = 0.5
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "SqueezeNet", smallest=self.stem[1])
        x = as_float(inputs, self.dtype)
        x = ConvRelu(self.stem[0], self.stem[1], 2, 0, dtype=self.dtype, name="stem")(x)
        for s, stage in enumerate(self.stages, 1):
            fires = [functools.partial(Fire, *channels, dtype=self.dtype) for channels in stage]
            x = Stage(fires, name=f"stage{s}")(max_pool_over_edge(x, 3, 2), train)
        if self.num_classes:
            x = Dropout(self.dropout, deterministic=not train)(x)
            x = Conv(
                self.num_classes,
                (1, 1),
                kernel_init=linen.initializers.normal(0.01),
                dtype=self.dtype,
                name="head",
            )(x)
            x = jax.nn.relu(x)
        return global_mean(x)


_FIRES = [(channels, 4 * channels) for channels in (16, 16, 32, 32, 48, 48, 64, 64)]

LAYOUTS = {
    "1.0": ((96, 7), (_FIRES[:3], _FIRES[3:7], _FIRES[7:])),
    "1.1": ((64, 3), (_FIRES[:2], _FIRES[2:4], _FIRES[4:])),
}


def squeezenet(version: str = "1.1", num_classes: int = 1000, **options: Any) -> SqueezeNet:
    """SqueezeNet 1.0, the paper's, or 1.1, which computes less than half as much by pooling earlier.

    Args:
        version: "1.0" or "1.1".
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `SqueezeNet`.

    Returns:
        The module.

    Raises:
        ValueError: for another version.

    Example:
        >>> variables = jax.eval_shape(squeezenet().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        1235496
    """
    if version not in LAYOUTS:
        raise ValueError(f'squeezenet has the versions "1.0" and "1.1"; got {version!r}')
    return SqueezeNet(*LAYOUTS[version], num_classes, **options)


def tiny() -> tuple[SqueezeNet, dict[str, np.ndarray]]:
    """A network of two stages, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 16, 16, 1)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return SqueezeNet((8, 3), (((8, 8),), ((8, 8),)), num_classes=4, dropout=0.1), batch
