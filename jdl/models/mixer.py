"""MLP-Mixer: an image as a table of patches, with layers along its rows and along its columns.

Axes: B batch, H height, W width, C channels, T tokens, D model.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import Conv, Dense, Stage, StochasticDepth, as_float
from jdl.nn.activations import gelu
from jdl.nn.blocks import depth_rates, require_images, require_patches, zero_head
from jdl.nn.normalization import LayerNorm
from jdl.nn.residual import residual


class MLPBlock(linen.Module):
    """Two layers with GELU between, to the size of the input.

    Submodules are ``expand`` and ``project``.

    Attributes:
        hidden: features between the layers.
        dtype: of the computation.
    """

    hidden: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., F] to the same shape."""
        h = Dense(self.hidden, dtype=self.dtype, name="expand")(x)
        h = gelu(h, approximate=False)
        return Dense(x.shape[-1], dtype=self.dtype, name="project")(h)


class MixerBlock(linen.Module):
    """x + tokens(norm(x)), across patches, then x + channels(norm(x)), across channels.

    Submodules are ``norm1``, ``tokens``, ``norm2`` and ``channels``.

    Attributes:
        token_hidden: features inside the layers across patches.
        channel_hidden: features inside the layers across channels.
        stochastic_depth: probability of dropping each branch in training.
        dtype: of the computation.

    Reference:
        Tolstikhin et al., "MLP-Mixer: an all-MLP architecture for vision", 2021, equation 1.
    """

    token_hidden: int
    channel_hidden: int
    stochastic_depth: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        """[B, T, D] to the same shape."""
        h_BDT = LayerNorm(dtype=self.dtype, name="norm1")(x_BTD).swapaxes(1, 2)
        h_BTD = MLPBlock(self.token_hidden, self.dtype, name="tokens")(h_BDT).swapaxes(1, 2)
        x_BTD = residual(x_BTD, StochasticDepth(self.stochastic_depth)(h_BTD, train))
        h_BTD = MLPBlock(self.channel_hidden, self.dtype, name="channels")(
            LayerNorm(dtype=self.dtype, name="norm2")(x_BTD)
        )  # fmt: skip
        return residual(x_BTD, StochasticDepth(self.stochastic_depth)(h_BTD, train))


class Mixer(linen.Module):
    """Patches, mixer blocks, the mean of the patches, a head.

    Made by `mixer`. Submodules are ``stem``, ``mixer`` (of ``block1``, ``block2``, ...), ``norm`` and
    ``head``. The images that the module is initialised with are the only size it takes.

    Attributes:
        patch: side of a patch, pixels.
        width: D.
        depth: number of blocks.
        token_hidden: features inside the layers across patches.
        channel_hidden: features inside the layers across channels.
        num_classes: number of logits; 0 gives the pooled features [B, D] instead.
        grid: rows and columns of patches, for images that are not square.
        stochastic_depth: probability of dropping the last block's branches; it grows from 0 along the depth.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] that patches tile, or of another size than the
            weights are for.
    """

    patch: int
    width: int
    depth: int
    token_hidden: int
    channel_hidden: int
    num_classes: int = 1000
    grid: tuple[int, int] | None = None
    stochastic_depth: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "Mixer", smallest=self.patch)
        B, H, W, _ = inputs.shape
        require_patches("Mixer", (H, W), self.patch, self.grid)
        size = (self.patch, self.patch)
        x = as_float(inputs, self.dtype)
        x = Conv(self.width, size, size, padding="VALID", dtype=self.dtype, name="stem")(x)
        x_BTD = x.reshape(B, -1, self.width)
        self._check_tokens(x_BTD.shape[1])
        rates = depth_rates(self.stochastic_depth, self.depth)
        blocks = [
            functools.partial(MixerBlock, self.token_hidden, self.channel_hidden, rate, self.dtype)
            for rate in rates
        ]
        x_BTD = Stage(blocks, name="mixer")(x_BTD, train)
        x = LayerNorm(dtype=self.dtype, name="norm")(x_BTD).mean(1)
        return zero_head(self.num_classes, self.dtype)(x) if self.num_classes else x

    def _check_tokens(self, T: int) -> None:
        if self.is_initializing():
            return
        kernel: jax.Array = self.get_variable("params", "mixer")["block1"]["tokens"]["expand"]["kernel"]
        if kernel.shape[0] != T:
            raise ValueError(f"the weights are for images of {kernel.shape[0]} patches; these have {T}")


SIZES = {"small": (512, 8, 256, 2048), "base": (768, 12, 384, 3072), "large": (1024, 24, 512, 4096)}


def mixer(size: str, patch: int = 16, num_classes: int = 1000, **options: Any) -> Mixer:
    """Mixer-S, B or L.

    Args:
        size: "small", "base" or "large".
        patch: side of a patch, pixels: 16 or 32, or what suits the images.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `Mixer`.

    Returns:
        The module.

    Raises:
        ValueError: for another size.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(mixer("base").init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        59880472

    Reference:
        Tolstikhin et al. 2021, table 1.
    """
    if size not in SIZES:
        raise ValueError(f"mixer has the sizes {', '.join(SIZES)}; got {size!r}")
    return Mixer(patch, *SIZES[size], num_classes=num_classes, **options)


def tiny() -> tuple[Mixer, dict[str, np.ndarray]]:
    """A network of two blocks with stochastic depth, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return Mixer(4, 8, 2, 8, 16, num_classes=4, stochastic_depth=0.5), batch
