"""ShuffleNet v2: half the channels pass each block untouched, and a shuffle mixes the halves.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import ConvNorm, Dense, Stage, as_float, global_mean, max_pool
from jdl.nn.blocks import require_images


def shuffle_channels(x_BHWC: jax.Array, groups: int) -> jax.Array:
    """Deals the channels of ``groups`` groups out in turn: a1 a2 b1 b2 becomes a1 b1 a2 b2.

    Example:
        >>> shuffle_channels(jnp.arange(6).reshape(1, 1, 1, 6), 2).ravel().tolist()
        [0, 3, 1, 4, 2, 5]
    """
    B, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(B, H, W, groups, C // groups).swapaxes(3, 4).reshape(B, H, W, C)


class ShuffleBlock(linen.Module):
    """A block of ShuffleNet v2.

    With stride 1 one half of the channels passes untouched and the other through 1x1, depthwise 3x3 and 1x1
    convolutions (``conv1``, ``depthwise``, ``conv2``). With stride 2 every channel goes both that way and
    through ``shortcut_depthwise`` and ``shortcut_conv``.

    Attributes:
        features: channels of the output; even.
        stride: 1 or 2.
        dtype: of the computation.

    Reference:
        Ma, Zhang, Zheng and Sun, "ShuffleNet V2: practical guidelines for efficient CNN architecture design",
        2018, figure 3c and 3d.
    """

    features: int
    stride: int = 1
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        half = self.features // 2
        if self.stride == 1:
            kept, h = jnp.split(x_BHWC, 2, -1)
        else:
            kept = h = x_BHWC
            C = x_BHWC.shape[-1]
            kept = ConvNorm(
                C, 3, 2, C, activation=None, dtype=self.dtype, name="shortcut_depthwise"
            )(kept, train)  # fmt: skip
            kept = ConvNorm(half, 1, dtype=self.dtype, name="shortcut_conv")(kept, train)
        h = ConvNorm(half, 1, dtype=self.dtype, name="conv1")(h, train)
        h = ConvNorm(
            half, 3, self.stride, half, activation=None, dtype=self.dtype, name="depthwise"
        )(h, train)  # fmt: skip
        h = ConvNorm(half, 1, dtype=self.dtype, name="conv2")(h, train)
        return shuffle_channels(jnp.concatenate([kept, h], -1), 2)


class ShuffleNet(linen.Module):
    """A stem that quarters the image, stages that halve it and begin with stride 2, a head.

    Made by `shufflenet_v2`. Submodules are ``stem``, ``stage1``, ``stage2``, ..., ``top`` and ``head``.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage's output; even.
        stem_width: channels of the stem.
        top_width: channels before pooling.
        num_classes: number of logits; 0 gives the pooled features [B, C] instead.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C], or depths and widths do not fit.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int = 24
    top_width: int = 1024
    num_classes: int = 1000
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "ShuffleNet", smallest=8)
        if len(self.depths) != len(self.widths) or any(width % 2 for width in self.widths):
            raise ValueError(
                f"ShuffleNet needs as many widths as depths, all even; got depths {self.depths}, "
                f"widths {self.widths}"
            )
        x = as_float(inputs, self.dtype)
        x = ConvNorm(self.stem_width, 3, 2, dtype=self.dtype, name="stem")(x, train)
        x = max_pool(x, (3, 3), (2, 2), padding=1)
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            blocks = [
                functools.partial(ShuffleBlock, width, stride=1 if b else 2, dtype=self.dtype)
                for b in range(depth)
            ]
            x = Stage(blocks, name=f"stage{s}")(x, train)
        x = global_mean(ConvNorm(self.top_width, 1, dtype=self.dtype, name="top")(x, train))
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x) if self.num_classes else x


WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def shufflenet_v2(width: float = 1.0, num_classes: int = 1000, **options: Any) -> ShuffleNet:
    """ShuffleNet v2 x0.5, x1, x1.5 or x2.

    Args:
        width: 0.5, 1, 1.5 or 2.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `ShuffleNet`.

    Returns:
        The module.

    Raises:
        ValueError: for another width.

    Example:
        >>> variables = jax.eval_shape(shufflenet_v2().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        2278604

    Reference:
        Ma et al. 2018, table 5.
    """
    if width not in WIDTHS:
        raise ValueError(f"shufflenet_v2 has the widths {', '.join(map(str, WIDTHS))}; got {width}")
    *widths, top_width = WIDTHS[width]
    own = {"top_width": top_width, **options}
    return ShuffleNet((4, 8, 4), tuple(widths), num_classes=num_classes, **own)


def tiny() -> tuple[ShuffleNet, dict[str, np.ndarray]]:
    """A network of one stage, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return ShuffleNet((2,), (16,), stem_width=8, top_width=16, num_classes=4), batch
