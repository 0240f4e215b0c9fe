"""Network in network: convolutions followed by small networks at every pixel, and no product at the end.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import Conv, Stage, as_float, global_mean
from jdl.nn.blocks import he_normal_forward, require_images
from jdl.nn.dropout import Dropout
from jdl.nn.plain import ConvRelu
from jdl.nn.pooling import avg_pool_over_edge, max_pool_over_edge


class NiN(linen.Module):
    """Three stages of a convolution and two 1x1 convolutions; the last gives a map a class, and its mean.

    The CIFAR layout of the paper's released configuration: 5x5, 5x5 and 3x3 convolutions, a maximum after the
    first stage, a mean after the second, dropout after both. The maps of the classes pass a ReLU too, as
    there. Submodules are ``stage1``, ``stage2``, ``stage3`` and ``head`` (1x1).

    Attributes:
        num_classes: number of logits; 0 gives the pooled features [B, C] below the last 1x1 convolution.
        widths: channels of the three convolutions of each stage; the last stage has ``head`` for a third.
        kernels: side of each stage's first convolution.
        dropout: share of values dropped after each of the first two stages in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] of at least 8x8 pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(NiN().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        966986

    Reference:
        Lin, Chen and Yan, "Network in network", 2014, section 3 and figure 2.
    """

    num_classes: int = 10
    widths: Sequence[Sequence[int]] = ((192, 160, 96), (192, 192, 192), (192, 192))
    kernels: Sequence[int] = (5, 5, 3)
    dropout: float = 0.5
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "NiN", smallest=8)
        x = as_float(inputs, self.dtype)
        pools = (max_pool_over_edge, avg_pool_over_edge)
        for s, (widths, kernel) in enumerate(zip(self.widths, self.kernels, strict=True)):
            kernels = (kernel, *[1] * (len(widths) - 1))
            blocks = [
                functools.partial(ConvRelu, width, kernel, dtype=self.dtype)
                for width, kernel in zip(widths, kernels, strict=True)
            ]
            x = Stage(blocks, name=f"stage{s + 1}")(x, train)
            if s < len(pools):
                x = Dropout(self.dropout, deterministic=not train)(pools[s](x, 3, 2))
        if self.num_classes:
            x = Conv(self.num_classes, (1, 1), kernel_init=he_normal_forward, dtype=self.dtype, name="head")(
                x
            )
            x = jax.nn.relu(x)
        return global_mean(x)


def tiny() -> tuple[NiN, dict[str, np.ndarray]]:
    """A narrow network, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 12, 12, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return NiN(4, ((16, 16), (16, 16), (16, 16)), (3, 3, 3), dropout=0.1), batch
