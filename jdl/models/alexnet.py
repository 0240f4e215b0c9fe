"""AlexNet, in the version of a single column whose weights are published.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import Dense, Stage, as_float, max_pool
from jdl.nn.blocks import require_images
from jdl.nn.dropout import Dropout
from jdl.nn.plain import ConvRelu, local_response_norm
from jdl.nn.pooling import adaptive_avg_pool, flatten_channels_first


class AlexNet(linen.Module):
    """Five convolutions and three products.

    This is the single column of Krizhevsky's 2014 report, as torchvision has it: 64, 192, 384, 256 and 256
    channels, each convolution connected to all channels below, no local response normalisation. The 2012
    network had 96, 256, 384, 384 and 256 channels split between two GPUs, of which the second, fourth and
    fifth convolution saw only their own half, and normalised after the first two.

    Submodules are ``stem``, ``stage1`` (1/8 of the image's size), ``stage2`` (1/16), ``hidden1``, ``hidden2``
    and ``head``. Before the products the image is averaged to 6x6, which changes nothing where it is 224x224.

    Attributes:
        num_classes: number of logits; 0 gives the last hidden layer [B, hidden] instead.
        widths: channels of the five convolutions.
        hidden: features of the two hidden layers.
        response_norm: local response normalisation after the first two convolutions, as in 2012.
        dropout: share of the inputs of the hidden layers dropped in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] of at least 63x63 pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(AlexNet().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        61100840

    Reference:
        Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks",
        2012; Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    """

    num_classes: int = 1000
    widths: Sequence[int] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    response_norm: bool = False
    dropout: float = 0.5
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "AlexNet", smallest=63)
        if len(self.widths) != 5:
            raise ValueError(f"AlexNet has five convolutions; got widths {tuple(self.widths)}")
        x = as_float(inputs, self.dtype)
        block = functools.partial(ConvRelu, dtype=self.dtype)
        x = block(self.widths[0], 11, 4, 2, name="stem")(x)
        x = self._pooled(x)
        x = Stage([functools.partial(block, self.widths[1], 5)], name="stage1")(x)
        x = self._pooled(x)
        x = Stage([functools.partial(block, width) for width in self.widths[2:]], name="stage2")(x)
        x = flatten_channels_first(adaptive_avg_pool(max_pool(x, (3, 3), (2, 2)), (6, 6)))
        for i in (1, 2):
            x = Dropout(self.dropout, deterministic=not train)(x)
            init = linen.initializers.he_normal()
            x = jax.nn.relu(Dense(self.hidden, kernel_init=init, dtype=self.dtype, name=f"hidden{i}")(x))
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x) if self.num_classes else x

    def _pooled(self, x: jax.Array) -> jax.Array:
        return max_pool(local_response_norm(x) if self.response_norm else x, (3, 3), (2, 2))


def tiny() -> tuple[AlexNet, dict[str, np.ndarray]]:
    """A narrow AlexNet with response normalisation, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 64, 64, 1)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return AlexNet(4, (8, 8, 8, 8, 8), hidden=16, response_norm=True, dropout=0.1), batch
