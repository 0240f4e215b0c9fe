"""Vision Transformer: an image as a sequence of patches.

Axes: B batch, H height, W width, C channels, T tokens, D model, F hidden.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import Conv, Dense, MultiHeadAttention, Stage, StochasticDepth, as_float
from jdl.nn.activations import gelu
from jdl.nn.blocks import depth_rates, require_images, require_patches, zero_head
from jdl.nn.dropout import Dropout
from jdl.nn.normalization import LayerNorm
from jdl.nn.residual import residual

_XAVIER = linen.initializers.xavier_uniform()


class EncoderBlock(linen.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Submodules are ``norm1``, ``attention``, ``norm2``, ``expand`` and ``project``.

    Attributes:
        num_heads: heads of attention.
        hidden: features between the two layers.
        dropout: after each layer.
        attention_dropout: of attention's weights.
        stochastic_depth: probability of dropping each of the two branches in training.
        epsilon: added to variances.
        dtype: of the computation.

    Reference:
        Dosovitskiy et al., "An image is worth 16x16 words", 2021, equations 2 and 3.
    """

    num_heads: int
    hidden: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    epsilon: float = 1e-6
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        """[B, T, D] to the same shape."""

        def drop(h: jax.Array) -> jax.Array:
            return Dropout(self.dropout, deterministic=not train)(h)

        h_BTD = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x_BTD)
        attention = MultiHeadAttention(
            self.num_heads,
            dropout=self.attention_dropout,
            dtype=self.dtype,
            kernel_init=_XAVIER,
            name="attention",
        )
        h_BTD = drop(attention(h_BTD, train=train))
        x_BTD = residual(x_BTD, StochasticDepth(self.stochastic_depth)(h_BTD, train))
        h_BTD = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm2")(x_BTD)
        h_BTF = Dense(self.hidden, kernel_init=_XAVIER, dtype=self.dtype, name="expand")(h_BTD)
        h_BTF = drop(gelu(h_BTF, approximate=False))
        h_BTD = drop(Dense(x_BTD.shape[-1], kernel_init=_XAVIER, dtype=self.dtype, name="project")(h_BTF))
        return residual(x_BTD, StochasticDepth(self.stochastic_depth)(h_BTD, train))


class ViT(linen.Module):
    """Patches, learned positions, encoder blocks, a head.

    Made by `vit`. Submodules are ``stem``, ``encoder`` (of ``block1``, ``block2``, ...), ``norm`` and
    ``head``; ``positions`` [1, T, D] and, for pooling by token, ``token`` [1, 1, D] are parameters. The
    images that the module is initialised with decide the number of positions; weights from other images are
    fitted by `jdl.interop.resize_positions`.

    Attributes:
        patch: side of a patch, pixels.
        width: D.
        depth: number of blocks.
        num_heads: heads of attention.
        hidden: features inside a block; 4 D when None.
        num_classes: number of logits; 0 gives the pooled features [B, D] instead.
        pool: "token" (a class token put before the patches) or "mean" (of the patches).
        grid: rows and columns of patches, for images that are not square: positions do not say which of
            them they are of.
        dropout: after the positions and inside the blocks.
        attention_dropout: of attention's weights.
        stochastic_depth: probability of dropping the last block's branches; it grows from 0 along the depth.
        epsilon: added to variances.
        dtype: of the computation; parameters stay float32.
        remat: computes the inside of each block again for the gradient rather than keep it, to save memory.

    Raises:
        ValueError: if the input is not images [B, H, W, C] that patches tile, or of another size than the
            positions are for, or the way to pool is unknown.

    Reference:
        Dosovitskiy et al., "An image is worth 16x16 words: Transformers for image recognition at scale",
        2021, section 3.1.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden: int | None = None
    num_classes: int = 1000
    pool: Literal["token", "mean"] = "token"
    grid: tuple[int, int] | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    epsilon: float = 1e-6
    dtype: Any = None
    remat: bool = False

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "ViT", smallest=self.patch)
        B, H, W, _ = inputs.shape
        require_patches("ViT", (H, W), self.patch, self.grid)
        if self.pool not in ("token", "mean"):
            raise ValueError(f'ViT has the pools "token" and "mean"; got {self.pool!r}')
        x = as_float(inputs, self.dtype)
        size = (self.patch, self.patch)
        x = Conv(self.width, size, size, padding="VALID", dtype=self.dtype, name="stem")(x)
        x_BTD = x.reshape(B, -1, self.width)
        if self.pool == "token":
            token = self.param("token", linen.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
            x_BTD = jnp.concatenate([jnp.broadcast_to(token, (B, 1, self.width)), x_BTD], 1)
        x_BTD = x_BTD + self._positions(x_BTD.shape[1], (H, W)).astype(x.dtype)
        x_BTD = Dropout(self.dropout, deterministic=not train)(x_BTD)
        block = linen.remat(EncoderBlock, static_argnums=(2,)) if self.remat else EncoderBlock
        blocks = [
            functools.partial(
                block,
                self.num_heads,
                self.hidden or 4 * self.width,
                self.dropout,
                self.attention_dropout,
                rate,
                self.epsilon,
                self.dtype,
            )
            for rate in depth_rates(self.stochastic_depth, self.depth)
        ]
        x_BTD = Stage(blocks, name="encoder")(x_BTD, train)
        x_BTD = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x_BTD)
        x = x_BTD[:, 0] if self.pool == "token" else x_BTD.mean(1)
        return zero_head(self.num_classes, self.dtype)(x) if self.num_classes else x

    def _positions(self, T: int, image: tuple[int, int]) -> jax.Array:
        """The embeddings [1, T, D] of the positions."""
        if self.has_variable("params", "positions"):
            known: int = self.get_variable("params", "positions").shape[1]
            if known != T:
                raise ValueError(
                    f"images of {image[0]}x{image[1]} pixels make {T} tokens, and the positions are of "
                    f"{known}: initialise for this size and load the weights with "
                    'adapt={"positions": resize_positions}'
                )
        return self.param("positions", linen.initializers.normal(0.02), (1, T, self.width))


SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def vit(size: str, patch: int = 16, num_classes: int = 1000, **options: Any) -> ViT:
    """ViT-Ti, S, B or L.

    Args:
        size: "tiny", "small", "base" or "large".
        patch: side of a patch, pixels: 16 or 32, or what suits the images.
        num_classes: number of logits; 0 gives pooled features.
        **options: further attributes of `ViT`.

    Returns:
        The module.

    Raises:
        ValueError: for another size.

    Example:
        >>> variables = jax.eval_shape(vit("base").init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        86567656

    Reference:
        Dosovitskiy et al. 2021, table 1; tiny and small: Touvron et al., "Training data-efficient image
        transformers and distillation through attention", 2021, table 1.
    """
    if size not in SIZES:
        raise ValueError(f"vit has the sizes {', '.join(SIZES)}; got {size!r}")
    return ViT(patch, *SIZES[size], num_classes=num_classes, **options)


def tiny() -> tuple[ViT, dict[str, np.ndarray]]:
    """A network of two blocks with dropout and stochastic depth, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return ViT(4, 8, 2, 2, 16, num_classes=4, dropout=0.1, stochastic_depth=0.5), batch
