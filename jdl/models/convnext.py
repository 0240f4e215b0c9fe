"""ConvNeXt: a residual network built as Transformers are, from 7x7 depthwise convolutions.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import Conv, Dense, StochasticDepth, as_float, global_mean
from jdl.nn.activations import gelu
from jdl.nn.blocks import depth_rates, require_images
from jdl.nn.normalization import LayerNorm

_truncated_normal = linen.initializers.truncated_normal(0.02)


class ConvNeXtBlock(linen.Module):
    """x + scale * F(x), where F is a 7x7 depthwise convolution and two layers at each pixel.

    Submodules are ``conv``, ``norm``, ``expand`` and ``project``; ``layer_scale`` [C] is a parameter.

    Attributes:
        layer_scale: its first value.
        stochastic_depth: probability of dropping F in training.
        dtype: of the computation.

    Reference:
        Liu, Mao, Wu, Feichtenhofer, Darrell and Xie, "A ConvNet for the 2020s", 2022, figure 4.
    """

    layer_scale: float = 1e-6
    stochastic_depth: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to the same shape."""
        C = x_BHWC.shape[-1]
        h = Conv(
            C,
            (7, 7),
            padding=((3, 3), (3, 3)),
            feature_group_count=C,
            kernel_init=_truncated_normal,
            dtype=self.dtype,
            name="conv",
        )(x_BHWC)
        h = LayerNorm(dtype=self.dtype, name="norm")(h)
        h = Dense(4 * C, kernel_init=_truncated_normal, dtype=self.dtype, name="expand")(h)
        h = gelu(h, approximate=False)
        h = Dense(C, kernel_init=_truncated_normal, dtype=self.dtype, name="project")(h)
        scale_C = self.param("layer_scale", linen.initializers.constant(self.layer_scale), (C,))
        h = h * scale_C.astype(h.dtype).reshape(1, 1, 1, C)
        return x_BHWC + StochasticDepth(self.stochastic_depth)(h, train)


class ConvNeXtStage(linen.Module):
    """Blocks ``block1``, ``block2``, ..., after ``norm`` and ``downsample`` that halve the image.

    Attributes:
        features: channels.
        rates: of stochastic depth, one a block.
        downsample: whether to halve the image first.
        layer_scale: as in `ConvNeXtBlock`.
        dtype: of the computation.
    """

    features: int
    rates: tuple[float, ...]
    downsample: bool = True
    layer_scale: float = 1e-6
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / 2, W / 2, features], or to [B, H, W, features]."""
        if self.downsample:
            x_BHWC = LayerNorm(dtype=self.dtype, name="norm")(x_BHWC)
            x_BHWC = Conv(
                self.features,
                (2, 2),
                2,
                padding="VALID",
                kernel_init=_truncated_normal,
                dtype=self.dtype,
                name="downsample",
            )(x_BHWC)
        for b, rate in enumerate(self.rates, 1):
            x_BHWC = ConvNeXtBlock(self.layer_scale, rate, self.dtype, name=f"block{b}")(x_BHWC, train)
        return x_BHWC


class ConvNeXt(linen.Module):
    """A stem of 4x4 patches, stages that halve the image, a head.

    Made by `convnext`. Submodules are ``stem``, ``stem_norm``, ``stage1``, ``stage2``, ..., ``norm`` and
    ``head``.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
        num_classes: number of logits; 0 gives the pooled, normalised features [B, C] instead.
        layer_scale: first value of each block's scale.
        stochastic_depth: probability of dropping the last block; it grows from 0 along the depth. The paper
            has 0.1 for T, 0.4 for S, 0.5 for B and L.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] large enough for every stage to halve, or depths
            and widths do not fit.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int = 1000
    layer_scale: float = 1e-6
    stochastic_depth: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"ConvNeXt needs as many widths as depths, got depths {self.depths}, widths {self.widths}"
            )
        require_images(inputs, "ConvNeXt", smallest=4 * 2 ** (len(self.depths) - 1))
        x = as_float(inputs, self.dtype)
        x = Conv(
            self.widths[0],
            (4, 4),
            4,
            padding="VALID",
            kernel_init=_truncated_normal,
            dtype=self.dtype,
            name="stem",
        )(x)
        x = LayerNorm(dtype=self.dtype, name="stem_norm")(x)
        rates = iter(depth_rates(self.stochastic_depth, sum(self.depths)))
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            own = tuple(next(rates) for _ in range(depth))
            x = ConvNeXtStage(width, own, s > 0, self.layer_scale, self.dtype, name=f"stage{s + 1}")(x, train)
        x = LayerNorm(dtype=self.dtype, name="norm")(global_mean(x))
        if not self.num_classes:
            return x
        return Dense(self.num_classes, kernel_init=_truncated_normal, dtype=self.dtype, name="head")(x)


SIZES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


def convnext(size: str, num_classes: int = 1000, **options: Any) -> ConvNeXt:
    """ConvNeXt-T, S, B or L.

    Args:
        size: "tiny", "small", "base" or "large".
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `ConvNeXt`, such as ``stochastic_depth=0.1``.

    Returns:
        The module.

    Raises:
        ValueError: for another size.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(convnext("tiny").init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        28589128

    Reference:
        Liu et al. 2022, section 3 and appendix A.
    """
    if size not in SIZES:
        raise ValueError(f"convnext has the sizes {', '.join(SIZES)}; got {size!r}")
    return ConvNeXt(*SIZES[size], num_classes=num_classes, **options)


def tiny() -> tuple[ConvNeXt, dict[str, np.ndarray]]:
    """A network of two stages with stochastic depth, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 16, 16, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    module = ConvNeXt((1, 1), (8, 16), num_classes=4, layer_scale=0.5, stochastic_depth=0.5)
    return module, batch
