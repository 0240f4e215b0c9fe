"""Masked autoencoder: a Vision Transformer that sees a few patches, and one that paints in the others.

Axes: B batch, H height, W width, C channels, T patches, N visible ones, D model, V values of a patch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.models.vit import EncoderBlock
from jdl.nn import Conv, Dense, Stage, as_float
from jdl.nn.blocks import require_images
from jdl.nn.normalization import LayerNorm


class MaskedAutoencoder(linen.Module):
    """An encoder of the visible patches, and a narrow decoder of all of them.

    The encoder's submodules ``stem``, ``encoder`` and ``norm`` and its ``positions`` are those of
    `jdl.models.ViT` with ``pool="mean"``, patch, width, depth and heads the same, which takes its trained
    parameters as they are. The decoder has ``embed``, ``mask`` [1, 1, D], ``decoder_positions``, ``decoder``,
    ``decoder_norm`` and ``head``. Positions are learned, where the paper's are fixed sinusoids, and there is
    no class token.

    Attributes:
        patch: side of a patch, pixels.
        width: D of the encoder.
        depth: blocks of the encoder.
        num_heads: heads of attention of the encoder.
        decoder_width: D of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: heads of attention of the decoder.
        visible: share of the patches that the encoder sees, the first ones of an order.
        epsilon: added to variances.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] that patches tile, or no or all patches are
            visible.

    Example:
        >>> model, images = MaskedAutoencoder(width=12, depth=1, decoder_depth=1), jnp.zeros((2, 8, 8, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(model.apply, variables, images).shape  # 4 patches of 4x4x3 values
        (2, 4, 48)

    Reference:
        He, Chen, Xie, Li, Dollar and Girshick, "Masked autoencoders are scalable vision learners", 2022,
        section 3.
    """

    patch: int = 4
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    decoder_width: int = 96
    decoder_depth: int = 4
    decoder_heads: int = 3
    visible: float = 0.25
    epsilon: float = 1e-6
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to the values of their patches [B, T, V].

        Args:
            inputs: images, of which all patches are seen; or {"data": images, "order": int [B, T]}, an order
                of each image's patches, of which the first are seen.
            train: not used.

        Returns:
            Every patch as the decoder paints it, seen or not.
        """
        images = inputs["data"] if isinstance(inputs, Mapping) else inputs
        order_BT = inputs.get("order") if isinstance(inputs, Mapping) else None
        require_images(images, "MaskedAutoencoder", smallest=self.patch)
        B, H, W, C = images.shape
        if H % self.patch or W % self.patch:
            raise ValueError(
                f"MaskedAutoencoder needs images whose sides are multiples of its patch, {self.patch} "
                f"pixels; got {H}x{W}"
            )
        T = (H // self.patch) * (W // self.patch)
        N = self.count_visible(T)
        size = (self.patch, self.patch)
        x = Conv(self.width, size, size, padding="VALID", dtype=self.dtype, name="stem")(
            as_float(images, self.dtype)
        )
        x_BTD = x.reshape(B, T, self.width)
        x_BTD = x_BTD + self._positions("positions", T, self.width).astype(x_BTD.dtype)
        x_BND = x_BTD if order_BT is None else _rows(x_BTD, order_BT[:, :N])
        x_BND = self._blocks(self.depth, self.num_heads, self.width, "encoder")(x_BND, train)
        x_BND = self._norm("norm")(x_BND)

        x_BND = Dense(self.decoder_width, dtype=self.dtype, name="embed")(x_BND)
        mask = self.param("mask", linen.initializers.normal(0.02), (1, 1, self.decoder_width))
        if order_BT is None:
            x_BTD = x_BND
        else:
            hidden = jnp.broadcast_to(mask.astype(x_BND.dtype), (B, T - N, self.decoder_width))
            x_BTD = _rows(jnp.concatenate([x_BND, hidden], 1), jnp.argsort(order_BT, 1))
        positions = self._positions("decoder_positions", T, self.decoder_width)
        x_BTD = x_BTD + positions.astype(x_BTD.dtype)
        blocks = self._blocks(self.decoder_depth, self.decoder_heads, self.decoder_width, "decoder")
        x_BTD = self._norm("decoder_norm")(blocks(x_BTD, train))
        return Dense(self.patch**2 * C, dtype=self.dtype, name="head")(x_BTD)

    def count_visible(self, T: int) -> int:
        """N of T patches."""
        N = round(self.visible * T)
        if not 0 < N < T:
            raise ValueError(f"visible={self.visible} of {T} patches must leave some seen and some hidden")
        return N

    def _positions(self, name: str, T: int, D: int) -> jax.Array:
        return self.param(name, linen.initializers.normal(0.02), (1, T, D))

    def _norm(self, name: str) -> linen.LayerNorm:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)

    def _blocks(self, depth: int, num_heads: int, D: int, name: str) -> Stage:
        block = functools.partial(
            EncoderBlock, num_heads=num_heads, hidden=4 * D, epsilon=self.epsilon, dtype=self.dtype
        )
        return Stage([block] * depth, name=name)


def _rows(x_BTD: jax.Array, order_BN: jax.Array) -> jax.Array:
    """Each example's rows in an order of its own."""
    return jnp.take_along_axis(x_BTD, order_BN[..., None], 1)


def tiny() -> tuple[MaskedAutoencoder, dict[str, np.ndarray]]:
    """A network of one block each way, and a batch of 8 images."""
    batch = {"inputs": np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)}
    return MaskedAutoencoder(2, 8, 1, 2, 4, 1, 2, visible=0.5), batch
