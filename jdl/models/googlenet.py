"""GoogLeNet (Inception v1), with batch normalisation as its published weights have it.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import ConvNorm, Dense, as_float, global_mean, max_pool
from jdl.nn.blocks import require_images
from jdl.nn.dropout import Dropout
from jdl.nn.pooling import adaptive_avg_pool, flatten_channels_first, max_pool_over_edge

# Channels of the paper's table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection.
BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def _conv(features: int, kernel: int, stride: int = 1, *, dtype: Any, name: str) -> ConvNorm:
    return ConvNorm(features, kernel, stride, epsilon=1e-3, dtype=dtype, name=name)


class Inception(linen.Module):
    """Convolutions of several sizes and a maximum side by side.

    Submodules are ``branch1``, ``branch2_1``, ``branch2_2``, ``branch3_1``, ``branch3_2`` and ``branch4``.

    Attributes:
        channels: as in `BLOCKS`.
        kernel: size of the third branch's second convolution.
        dtype: of the computation.
    """

    channels: tuple[int, ...]
    kernel: int = 3
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H, W, sum of the branches' channels]."""
        conv = functools.partial(_conv, dtype=self.dtype)
        one, reduce3, three, reduce5, five, projection = self.channels
        pooled = max_pool(x, (3, 3), (1, 1), padding=1)
        branches = [
            conv(one, 1, name="branch1")(x, train),
            conv(three, 3, name="branch2_2")(conv(reduce3, 1, name="branch2_1")(x, train), train),
            conv(five, self.kernel, name="branch3_2")(conv(reduce5, 1, name="branch3_1")(x, train), train),
            conv(projection, 1, name="branch4")(pooled, train),
        ]
        return jnp.concatenate(branches, -1)


class Auxiliary(linen.Module):
    """A classifier on a map inside the network. Submodules are ``conv``, ``hidden`` and ``head``.

    Attributes:
        num_classes: number of logits.
        features: channels of the convolution.
        hidden: features of the hidden layer.
        dropout: share of the hidden features dropped.
        dtype: of the computation.
    """

    num_classes: int
    features: int
    hidden: int
    dropout: float
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to logits [B, num_classes]."""
        x = _conv(self.features, 1, dtype=self.dtype, name="conv")(adaptive_avg_pool(x, (4, 4)), train)
        x = jax.nn.relu(Dense(self.hidden, dtype=self.dtype, name="hidden")(flatten_channels_first(x)))
        x = Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x)


class GoogLeNet(linen.Module):
    """Twenty-two layers of inception modules.

    As torchvision has it: batch normalisation after every convolution, which the paper does not have, in
    place of local response normalisation, and 3x3 where the paper has 5x5 convolutions (``kernel=5``: the
    paper's). Submodules are ``stem`` (7x7), ``stem_1x1``, ``stem_3x3``, ``inception3a`` ... ``inception5b``,
    ``head`` and ``auxiliary1``, ``auxiliary2``. The last at each size are ``stem``, ``stem_3x3``,
    ``inception3b``, ``inception4e`` and ``inception5b``.

    With ``auxiliary``, the output in training is a tuple: the logits and those of two further classifiers, on
    ``inception4a`` and ``inception4d``; `jdl.tasks.classification` adds their losses. In evaluation it is
    always the logits.

    Attributes:
        num_classes: number of logits; 0 gives the pooled features [B, 1024] instead.
        auxiliary: whether there are auxiliary classifiers.
        kernel: size of the third branch's second convolution.
        blocks: channels of the inception modules, by name.
        stem: channels of the three convolutions before them.
        auxiliary_widths: channels of the auxiliary classifiers' convolution, features of their hidden layer.
        dropout: share of the pooled features dropped in training. The auxiliary classifiers drop 0.7 of their
            hidden features unless this is 0.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] of at least 15x15 pixels, or there are to be
            auxiliary classifiers of no classes.

    Example:
        >>> variables = jax.eval_shape(GoogLeNet().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        6624904

    Reference:
        Szegedy et al., "Going deeper with convolutions", 2015, table 1 and section 5.
    """

    num_classes: int = 1000
    auxiliary: bool = False
    kernel: int = 3
    blocks: Mapping[str, tuple[int, ...]] = linen.FrozenDict(BLOCKS)
    stem: tuple[int, int, int] = (64, 64, 192)
    auxiliary_widths: tuple[int, int] = (128, 1024)
    dropout: float = 0.2
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> Any:
        """Images [B, H, W, C] to logits [B, num_classes]; in training with ``auxiliary`` a tuple of three."""
        require_images(inputs, "GoogLeNet", smallest=15)
        if self.auxiliary and not self.num_classes:
            raise ValueError("auxiliary classifiers need num_classes")
        conv = functools.partial(_conv, dtype=self.dtype)
        x = as_float(inputs, self.dtype)
        x = conv(self.stem[0], 7, 2, name="stem")(x, train)
        x = conv(self.stem[1], 1, name="stem_1x1")(max_pool_over_edge(x, 3, 2), train)
        x = conv(self.stem[2], 3, name="stem_3x3")(x, train)
        extra: list[jax.Array] = []
        stage = "2"
        for name, channels in self.blocks.items():
            if name[0] != stage:
                x = max_pool_over_edge(x, 2, 2) if name[0] == "5" else max_pool_over_edge(x, 3, 2)
                stage = name[0]
            x = Inception(channels, self.kernel, self.dtype, name=f"inception{name}")(x, train)
            # Made when the module is initialised, computed in training.
            if name in ("4a", "4d") and self.auxiliary and (train or self.is_initializing()):
                dropout = 0.7 if self.dropout else 0.0
                widths, label = self.auxiliary_widths, f"auxiliary{len(extra) + 1}"
                head = Auxiliary(self.num_classes, *widths, dropout, self.dtype, name=label)
                extra.append(head(x, train))
        x = Dropout(self.dropout, deterministic=not train)(global_mean(x))
        if not self.num_classes:
            return x
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return (logits, *extra) if self.auxiliary and train else logits


def tiny() -> tuple[GoogLeNet, dict[str, np.ndarray]]:
    """A network of one narrow module and an auxiliary classifier, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 16, 16, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    blocks: Mapping[str, tuple[int, ...]] = linen.FrozenDict({"4a": (4, 4, 4, 4, 4, 4)})
    module = GoogLeNet(4, True, blocks=blocks, stem=(8, 8, 8), auxiliary_widths=(8, 16), dropout=0.1)
    return module, batch
