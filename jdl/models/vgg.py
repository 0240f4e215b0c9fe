"""VGG: stages of 3x3 convolutions, and three products.

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
from jdl.nn.plain import ConvRelu
from jdl.nn.pooling import adaptive_avg_pool, flatten_channels_first

DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(linen.Module):
    """A network of 3x3 convolutions whose image is halved after each stage.

    Made by `vgg`. Submodules are ``stage1``, ``stage2``, ... (their outputs, before the maximum:
    `jdl.nn.features`), ``hidden1``, ``hidden2`` and ``head``. Before the products the image is averaged to
    7x7, which changes nothing where it is 224x224.

    Attributes:
        depths: convolutions of each stage.
        widths: channels of each stage.
        num_classes: number of logits; 0 gives the last hidden layer [B, hidden] instead.
        hidden: features of the two hidden layers.
        pooled: side of the image that the products see.
        norm: normalise after each convolution.
        dropout: share of the hidden features dropped in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] large enough to be halved after each stage.

    Reference:
        Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015,
        table 1.
    """

    depths: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    num_classes: int = 1000
    hidden: int = 4096
    pooled: int = 7
    norm: bool = False
    dropout: float = 0.5
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "VGG", smallest=2 ** len(self.depths))
        x = as_float(inputs, self.dtype)
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            block = functools.partial(ConvRelu, width, norm=self.norm, dtype=self.dtype)
            x = Stage([block] * depth, name=f"stage{s}")(x, train)
            x = max_pool(x, (2, 2))
        x = flatten_channels_first(adaptive_avg_pool(x, (self.pooled, self.pooled)))
        for i in (1, 2):
            init = linen.initializers.he_normal()
            x = Dense(self.hidden, kernel_init=init, dtype=self.dtype, name=f"hidden{i}")(x)
            x = Dropout(self.dropout, deterministic=not train)(jax.nn.relu(x))
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x) if self.num_classes else x


def vgg(depth: int, num_classes: int = 1000, *, norm: bool = False, **options: Any) -> VGG:
    """VGG-11, 13, 16 or 19 (the paper's columns A, B, D and E), with batch normalisation or as published.

    Args:
        depth: 11, 13, 16 or 19 layers with weights.
        num_classes: number of logits; 0 gives the last hidden layer.
        norm: normalise after each convolution. Without it the deeper networks are hard to train from scratch.
        **options: further attributes of `VGG`; ``hidden=512, pooled=1`` is usual for 32x32 images.

    Returns:
        The module.

    Raises:
        ValueError: for another depth.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(vgg(16).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        138357544
    """
    if depth not in DEPTHS:
        raise ValueError(f"vgg has the depths {', '.join(map(str, DEPTHS))}; got {depth}")
    return VGG(DEPTHS[depth], num_classes=num_classes, norm=norm, **options)


def tiny() -> tuple[VGG, dict[str, np.ndarray]]:
    """A network of two normalised stages, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return VGG((1, 1), (8, 8), num_classes=4, hidden=16, pooled=3, norm=True, dropout=0.2), batch
