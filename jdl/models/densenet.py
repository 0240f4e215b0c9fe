"""DenseNet: every layer of a stage sees the outputs of all layers before it.

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

from jdl.nn import BatchNorm, Conv, ConvNorm, Dense, Stage, as_float, avg_pool, global_mean, max_pool
from jdl.nn.blocks import he_normal, require_images, same_padding
from jdl.nn.dropout import Dropout


class _NormConv(linen.Module):
    """Normalisation, ReLU, convolution. Submodules are ``norm`` and ``conv``."""

    features: int
    kernel: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = jax.nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train))
        return Conv(
            self.features,
            (self.kernel, self.kernel),
            padding=same_padding(self.kernel),
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
            name="conv",
        )(x)


class DenseLayer(linen.Module):
    """Appends ``growth`` channels to its input: [x, F(x)].

    F is a 3x3 convolution, with a 1x1 convolution to 4 ``growth`` channels before it where there is a
    bottleneck; each comes after a normalisation and a ReLU. Submodules are ``layer1`` and ``layer2``.

    Attributes:
        growth: channels that are added.
        bottleneck: whether there is a 1x1 convolution.
        dropout: share of each convolution's values dropped in training.
        dtype: of the computation.
    """

    growth: int
    bottleneck: bool = True
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C + growth]."""
        plan = [(4 * self.growth, 1)] * self.bottleneck + [(self.growth, 3)]
        new = x
        for i, (features, kernel) in enumerate(plan, 1):
            new = _NormConv(features, kernel, self.dtype, name=f"layer{i}")(new, train)
            new = Dropout(self.dropout, deterministic=not train)(new)
        return jnp.concatenate([x, new], -1)


class DenseNet(linen.Module):
    """A stem, stages of dense layers with a 1x1 convolution and a mean of 2x2 between them, a head.

    Made by `densenet` and `densenet_cifar`. Submodules are ``stem``, ``stage1``, ``transition1``, ``stage2``,
    ..., ``norm`` and ``head``.

    Attributes:
        depths: layers of each stage.
        growth: channels that each layer adds.
        num_classes: number of logits; 0 gives the pooled features [B, C] instead.
        stem: "imagenet" (7x7 of stride 2 and a 3x3 maximum of stride 2) or "cifar" (3x3).
        stem_width: channels of the stem.
        bottleneck: a 1x1 convolution in each layer, the paper's B.
        compression: share of the channels that a transition keeps; 0.5 is the paper's C.
        dropout: share of each convolution's values dropped in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C], or too small to be halved between stages.

    Reference:
        Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks", 2017, table 1
        and section 3.
    """

    depths: Sequence[int]
    growth: int
    num_classes: int = 1000
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_width: int = 64
    bottleneck: bool = True
    compression: float = 0.5
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f'DenseNet has the stems "imagenet" and "cifar"; got {self.stem!r}')
        if not 0 < self.compression <= 1:
            raise ValueError(f"DenseNet needs a compression in (0, 1]; got {self.compression}")
        halvings = len(self.depths) - 1
        # The stem's two halvings round up, the others down.
        smallest = 4 * 2**halvings - 3 if self.stem == "imagenet" else 2**halvings
        require_images(inputs, "DenseNet", smallest)
        x = as_float(inputs, self.dtype)
        if self.stem == "imagenet":
            x = ConvNorm(self.stem_width, 7, 2, dtype=self.dtype, name="stem")(x, train)
            x = max_pool(x, (3, 3), (2, 2), padding=1)
        else:
            # Its normalisation is that of the first layer.
            x = Conv(
                self.stem_width,
                (3, 3),
                use_bias=False,
                kernel_init=he_normal,
                dtype=self.dtype,
                name="stem",
            )(x)
        layer = functools.partial(DenseLayer, self.growth, self.bottleneck, self.dropout, self.dtype)
        for s, depth in enumerate(self.depths, 1):
            x = Stage([layer] * depth, name=f"stage{s}")(x, train)
            if s < len(self.depths):
                width = int(self.compression * x.shape[-1])
                x = _NormConv(width, 1, self.dtype, name=f"transition{s}")(x, train)
                if self.stem == "cifar":
                    x = Dropout(self.dropout, deterministic=not train)(x)
                x = avg_pool(x, (2, 2))
        x = global_mean(jax.nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train)))
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x) if self.num_classes else x


LAYOUTS = {
    121: ((6, 12, 24, 16), 32, 64),
    161: ((6, 12, 36, 24), 48, 96),
    169: ((6, 12, 32, 32), 32, 64),
    201: ((6, 12, 48, 32), 32, 64),
}


def densenet(depth: int, num_classes: int = 1000, **options: Any) -> DenseNet:
    """The ImageNet layout: DenseNet-121, 161, 169 or 201.

    Args:
        depth: 121, 161, 169 or 201.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `DenseNet`.

    Returns:
        The module.

    Raises:
        ValueError: for another depth.

    Example:
        >>> variables = jax.eval_shape(densenet(121).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        7978856
    """
    if depth not in LAYOUTS:
        raise ValueError(f"densenet has the depths {', '.join(map(str, LAYOUTS))}; got {depth}")
    depths, growth, stem_width = LAYOUTS[depth]
    return DenseNet(depths, growth, num_classes, stem_width=stem_width, **options)


def densenet_cifar(
    depth: int = 100, growth: int = 12, num_classes: int = 10, *, bottleneck: bool = True, **options: Any
) -> DenseNet:
    """The CIFAR layout: three stages of equal depth on 32x32 images, DenseNet-BC unless told otherwise.

    Args:
        depth: 6n + 4 with a bottleneck (100, 190, 250), 3n + 4 without (40, 100).
        growth: channels that each layer adds.
        num_classes: number of logits; 0 gives pooled features.
        bottleneck: DenseNet-BC, whose transitions halve the channels; otherwise the paper's plain DenseNet.
        **options: further attributes of `DenseNet`; ``dropout=0.2`` is the paper's without augmentation.

    Returns:
        The module.

    Raises:
        ValueError: if the depth does not fit.

    Example:
        >>> variables = jax.eval_shape(densenet_cifar().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        769162

    Reference:
        Huang et al. 2017, section 4.2 and table 2.
    """
    of_a_layer = 2 if bottleneck else 1
    layers, rest = divmod(depth - 4, 3 * of_a_layer)
    if layers < 1 or rest:
        raise ValueError(f"densenet_cifar needs a depth of {3 * of_a_layer}n + 4, got {depth}")
    options = {
        "stem": "cifar",
        "stem_width": 2 * growth if bottleneck else 16,
        "compression": 0.5 if bottleneck else 1.0,
        **options,
    }
    return DenseNet((layers,) * 3, growth, num_classes, bottleneck=bottleneck, **options)


def tiny() -> tuple[DenseNet, dict[str, np.ndarray]]:
    """A network of two stages of a layer each, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return DenseNet((1, 1), 4, num_classes=4, stem="cifar", stem_width=8, dropout=0.1), batch
