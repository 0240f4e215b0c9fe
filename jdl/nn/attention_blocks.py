"""Attention block by block, in memory linear in the length of the sequence.

Axes: as in `jdl.nn.attention_parts`; n blocks of Q queries, m blocks of C keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdl.core import Array
from jdl.nn.attention_parts import LOWEST, Drop, Sight, logits_by_head, weigh_by_head


class _Softmax(NamedTuple):
    """A softmax as far as it has come, over the keys seen up to now.

    Attributes:
        largest: [B, H, Q], the largest logit.
        total: [B, H, Q], the sum of exp(logit - largest).
        values: [B, H, Q, K], the sum of values with these weights.
    """

    largest: Array
    total: Array
    values: Array


def attention_in_blocks(
    q_BHTK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    sight: Sight,
    scale: float,
    drop: Drop | None,
    chunk: int,
    is_counted: bool,
) -> Array:
    """Attention with at most chunk x chunk logits of each head in memory at a time.

    For each block of queries it goes once over the blocks of keys, with the softmax of those seen so far. The
    gradient forms each block's logits again. Blocks that nobody can see are skipped.

    Args:
        q_BHTK: queries.
        k_BGSK: keys.
        v_BGSK: values.
        sight: who sees whom.
        scale: of the logits.
        drop: of the weights.
        chunk: Q and C, or all queries or keys where they are fewer.
        is_counted: queries and keys stand at 0, 1, 2, ..., so that the past of a block is known beforehand.

    Returns:
        [B, H, T, K] in the values' dtype.

    Reference:
        Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021, section 3.
    """
    (B, H, T, _), S = q_BHTK.shape, k_BGSK.shape[2]
    Q, C = min(chunk, T), min(chunk, S)
    n, m = -(-T // Q), -(-S // C)

    def blocks(x_BHTK: Array, size: int) -> Array:
        x = jnp.pad(x_BHTK, ((0, 0), (0, 0), (0, -x_BHTK.shape[2] % size), (0, 0)))
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, x.shape[3]), 2, 0)

    k_mBGCK, v_mBGCK = blocks(k_BGSK, C), blocks(v_BGSK, C)

    def can_see(i: Array, j: Array) -> Array:
        """Whether any query of block i may see any key of block j, as many of the one as of the other."""
        seen = jnp.array(True)
        if sight.causal:
            seen &= j <= i
        if sight.window is not None:
            seen &= (jnp.abs(i - j) - 1) * C + 1 < sight.window
        return seen

    @jax.checkpoint
    def rows(i: Array, q_BHQK: Array) -> Array:
        """What block i of the queries gets."""

        @jax.checkpoint
        def more(softmax: _Softmax, j: Array, k_BGCK: Array, v_BGCK: Array) -> _Softmax:
            columns = j * C + jnp.arange(C)
            here = sight.part(i * Q + jnp.arange(Q), columns)
            seen = (columns < S).reshape(1, 1, 1, C)
            mask = here.mask()
            seen = jnp.broadcast_to(seen if mask is None else seen & mask, (B, H, Q, C))
            logits = logits_by_head(q_BHQK, k_BGCK, scale, here.bias_or_none())
            logits = jnp.where(seen, logits, LOWEST)
            # The result does not depend on what is subtracted, and so its gradient does not either.
            largest = lax.stop_gradient(jnp.maximum(softmax.largest, logits.max(-1)))
            weights = jnp.where(seen, jnp.exp(logits - largest[..., None]), 0.0)
            shrink = jnp.exp(softmax.largest - largest)
            total = softmax.total * shrink + weights.sum(-1)
            dropped = weights if drop is None else drop(weights, i, j)
            values = weigh_by_head(dropped, v_BGCK).astype(jnp.float32)
            return _Softmax(largest, total, softmax.values * shrink[..., None] + values)

        def step(softmax: _Softmax, block: tuple[Array, Array, Array]) -> tuple[_Softmax, None]:
            if not is_counted or (not sight.causal and sight.window is None):
                return more(softmax, *block), None
            skip = lambda softmax, *_: softmax
            return lax.cond(can_see(i, block[0]), more, skip, softmax, *block), None

        nothing = jnp.zeros((B, H, Q), jnp.float32)
        start = _Softmax(nothing + LOWEST, nothing, jnp.zeros((B, H, Q, v_BGSK.shape[3]), jnp.float32))
        end, _ = lax.scan(step, start, (jnp.arange(m), k_mBGCK, v_mBGCK))
        total = jnp.where(end.total > 0, end.total, 1.0)[..., None]
        return (end.values / total).astype(v_BGSK.dtype)

    y_nBHQK = lax.map(lambda block: rows(*block), (jnp.arange(n), blocks(q_BHTK, Q)))
    return jnp.moveaxis(y_nBHQK, 0, 2).reshape(B, H, n * Q, -1)[:, :, :T]
