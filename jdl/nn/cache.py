"""The cache of a decoder: keys and values of what it has read, in arrays of fixed sizes.

Axes: B batch, T new positions, S room, L layers, G heads of keys and values, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import Array
from jdl.nn.multihead import KeyValues, Look
from jdl.nn.stack import block_names
from jdl.nn.transformer import BlockConfig


def empty_cache(
    config: BlockConfig, width: int, depth: int, batch_size: int, length: int, scan: bool, dtype: Any = None
) -> dict[str, KeyValues]:
    """Keys and values of `Blocks` that have read nothing.

    Args:
        config: what a block is.
        width: D.
        depth: L.
        batch_size: B.
        length: S.
        scan: whether the blocks are one in a loop.
        dtype: of the computation; float32 when None.

    Returns:
        Zeros [B, G, S, K] for ``block1``, ``block2``, ..., or [B, L, G, S, K] for ``block``.
    """
    G, layers = config.num_kv_heads or config.num_heads, (depth,) if scan else ()
    shape = (batch_size, *layers, G, length, config.size_of_head(width))
    # Each a buffer of its own, so that all can be donated.
    return {
        name: KeyValues(jnp.zeros(shape, dtype or jnp.float32), jnp.zeros(shape, dtype or jnp.float32))
        for name in (["block"] if scan else block_names(depth))
    }


class Extension(NamedTuple):
    """Where new positions go in a cache, and what they see of it.

    Attributes:
        steps: int32 [B, T] of the new positions and [1, S] of the cache's.
        real: [B, T] booleans, which of the new positions are real.
        lengths: int32 [B], how many positions each row has read after them.
        look: what attention is told.
    """

    steps: tuple[Array, Array]
    real: Array
    lengths: Array
    look: Look

    @classmethod
    def of(cls, cache: Mapping[str, Any], tokens_BT: Array, lengths_B: Array | None) -> Extension:
        """The extension of a cache {"lengths": [B], "blocks": ...} by tokens of which some are real.

        Raises:
            ValueError: if there are more tokens than the cache has room for, or another number of rows.
        """
        before_B = cache["lengths"]
        (B, T), S = tokens_BT.shape, jax.tree.leaves(cache["blocks"])[0].shape[-2]
        if before_B.shape != (B,):
            raise ValueError(f"a cache of {before_B.shape[0]} rows cannot be extended by {B}")
        if T > S:
            raise ValueError(f"a cache with room for {S} positions cannot be extended by {T}")
        new_T = jnp.arange(T, dtype=jnp.int32).reshape(1, T)
        steps_BT = before_B.reshape(B, 1) + new_T
        lengths_B = jnp.full((B,), T, jnp.int32) if lengths_B is None else lengths_B.astype(jnp.int32)
        real_BT = new_T < lengths_B.reshape(B, 1)
        steps = steps_BT, jnp.arange(S, dtype=jnp.int32).reshape(1, S)
        look = Look(steps=steps, slots=jnp.where(real_BT, steps_BT, S))
        return cls(steps, real_BT, before_B + lengths_B, look)

    def checked(self, logits_BTV: Array) -> Array:
        """The logits, NaN for real positions that the cache had no room for."""
        is_outside = self.real & (self.steps[0] >= self.steps[1].shape[1])
        return jnp.where(is_outside[..., None], jnp.nan, logits_BTV)
