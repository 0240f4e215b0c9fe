"""Attention.

Axes: B batch, T positions that ask, S positions that are asked, D model, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn.linear import Dense


def attention_weights(q_BTHK: jax.Array, k_BSHK: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k / sqrt(K)) over the positions asked, in float32.

    Args:
        q_BTHK: queries.
        k_BSHK: keys.
        mask: [B or 1, H or 1, T or 1, S] booleans, True where a query may look. A query that may look nowhere
            gets weights of zero.

    Returns:
        [B, H, T, S] in float32.

    Example:
        >>> q, k = jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4))
        >>> attention_weights(q, k, jnp.tril(jnp.ones((1, 1, 2, 2), bool))).tolist()
        [[[[1.0, 0.0], [0.5, 0.5]]]]

    Reference:
        Vaswani et al., "Attention is all you need", 2017, equation 1.
    """
    q_BTHK = q_BTHK * float(1 / np.sqrt(q_BTHK.shape[-1]))
    logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    if mask is None:
        return jax.nn.softmax(logits_BHTS)
    mask = jnp.broadcast_to(mask, logits_BHTS.shape)
    weights = jax.nn.softmax(jnp.where(mask, logits_BHTS, jnp.finfo(jnp.float32).min))
    return jnp.where(mask, weights, 0.0)


class MultiHeadAttention(linen.Module):
    """Attention of several heads, each in a part of the model's dimensions.

    Submodules are ``query``, ``key`` and ``value``, with kernels [D, H * K], and ``out`` [H * K, D]; heads
    lie one after another.

    Attributes:
        num_heads: H.
        head_size: K; D / H when None.
        dropout: of the weights.
        use_bias: whether the four layers add a bias.
        dtype: of the computation; logits and softmax are float32.

    Raises:
        ValueError: if D is not a multiple of H and no head size is given, or the mask has another shape.

    Example:
        >>> x, memory = jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8))
        >>> layer = MultiHeadAttention(num_heads=2)
        >>> layer.init_with_output(jax.random.key(0), x)[0].shape
        (2, 5, 8)
        >>> layer.init_with_output(jax.random.key(0), x, memory)[0].shape
        (2, 5, 8)

    Reference:
        Vaswani et al. 2017, section 3.2.2.
    """

    num_heads: int
    head_size: int | None = None
    dropout: float = 0.0
    use_bias: bool = True
    dtype: Any = None

    @linen.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        memory_BSD: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The attention of x to a memory, or to itself.

        Args:
            x_BTD: what asks.
            memory_BSD: what is asked; x itself when None.
            mask: [B or 1, H or 1, T or 1, S] booleans, True where a position may look.
            train: drop weights.

        Returns:
            [B, T, D].
        """
        memory_BSD = x_BTD if memory_BSD is None else memory_BSD
        (B, T, D), S, H = x_BTD.shape, memory_BSD.shape[1], self.num_heads
        if self.head_size is None and D % H:
            raise ValueError(
                f"MultiHeadAttention needs a multiple of its {H} heads, or a head size; got {D} features"
            )
        K = self.head_size or D // H
        if mask is not None and (
            mask.ndim != 4
            or any(n not in (1, full) for n, full in zip(mask.shape, (B, H, T, S), strict=True))
        ):
            raise ValueError(
                f"a mask is [batch or 1, heads or 1, T or 1, S], here of {(B, H, T, S)}; got {mask.shape}"
            )

        def project(x: jax.Array, name: str) -> jax.Array:
            x = Dense(H * K, use_bias=self.use_bias, dtype=self.dtype, name=name)(x)
            return x.reshape(B, x.shape[1], H, K)

        q_BTHK, k_BSHK = project(x_BTD, "query"), project(memory_BSD, "key")
        v_BSHK = project(memory_BSD, "value")
        weights_BHTS = attention_weights(q_BTHK, k_BSHK, mask).astype(v_BSHK.dtype)
        weights_BHTS = linen.Dropout(self.dropout, deterministic=not train)(weights_BHTS)
        y_BTHK = jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)
        return Dense(D, use_bias=self.use_bias, dtype=self.dtype, name="out")(y_BTHK.reshape(B, T, H * K))
