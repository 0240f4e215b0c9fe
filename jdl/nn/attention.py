"""Attention as a pure function: of many heads or few, to all, to the past, to a window, in parts.

Axes: B batch, T positions that ask, S positions that are asked, H heads, G heads of keys and values, K head
size. A size of 1 in place of B, H or T means the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdl.core import Array
from jdl.nn.attention_blocks import attention_in_blocks
from jdl.nn.attention_parts import Bias, Drop, Sight, logits_by_head, masked_softmax, weigh_by_head


def attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, **options: Any) -> Array:
    """softmax(q k scale + bias) v over the positions that a query may see.

    Heads of queries share those of keys and values in order: with H = 4 and G = 2, the first two ask the
    first. G = H is multi-head attention, G = 1 multi-query, and between them grouped-query attention. Logits
    and softmax are in float32. A query that may see nothing gets zeros.

    Args:
        q_BTHK: queries.
        k_BSGK: keys; H is a multiple of G.
        v_BSGK: values.
        **options: as in `attention_by_head`.

    Returns:
        [B, T, H, K] in the values' dtype.

    Raises:
        ValueError: as `attention_by_head`.

    Example:
        >>> q, k = jnp.ones((1, 3, 4, 8)), jnp.ones((1, 3, 2, 8))
        >>> v = jnp.arange(3.0).reshape(1, 3, 1, 1) * jnp.ones((1, 1, 2, 8))
        >>> attention(q, k, v, causal=True)[0, :, 0, 0].tolist()
        [0.0, 0.5, 1.0]

    Reference:
        Vaswani et al., "Attention is all you need", 2017, equation 1; one head of keys: Shazeer, "Fast
        transformer decoding: One write-head is all you need", 2019; groups: Ainslie et al., "GQA: Training
        generalized multi-query transformer models from multi-head checkpoints", 2023.
    """
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BSGK, v_BSGK))
    return attention_by_head(q, k, v, **options).transpose(0, 2, 1, 3)


def attention_by_head(
    q_BHTK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    *,
    mask: Array | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    steps: tuple[Array, Array] | None = None,
    lengths: Array | None = None,
    segments: tuple[Array, Array] | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    chunk: int | None = None,
) -> Array:
    """`attention` with the heads before the positions, which is how its products are computed.

    On an NVIDIA GPU it is cuDNN's fused attention where that takes the shapes and dtypes. Elsewhere all
    logits are formed at once, or, with ``chunk``, block by block in memory linear in T and S.

    Args:
        q_BHTK: queries.
        k_BGSK: keys.
        v_BGSK: values.
        mask: [B or 1, H or 1, T or 1, S] booleans, True where a query may look.
        bias: added to the logits: [B or 1, H or 1, T or 1, S], or a function of the steps of queries
            [B or 1, t] and keys [B or 1, s] that gives it, called for each block where there are blocks.
        scale: of the logits; 1 / sqrt(K) when None.
        causal: a query sees its own step and those before.
        window: a query sees keys fewer than so many steps away from it.
        steps: int32 [B or 1, T] of queries and [B or 1, S] of keys: their places in the sequence, of which
            ``causal``, ``window`` and a bias that is a function speak. Both count from 0 when None.
        lengths: int32 [B], how many keys of each row there are, the first ones.
        segments: int32 [B, T] of queries and [B, S] of keys: a query sees its own segment.
        dropout: probability of dropping a weight.
        key: PRNG key of the dropout.
        chunk: positions in a block; None forms all logits at once.

    Returns:
        [B, H, T, K] in the values' dtype.

    Raises:
        ValueError: if shapes do not fit, H is not a multiple of G, a window or a chunk is below 1, or there
            are T queries and S keys, and no steps to tell what the past of each is; or dropout has no key.

    Reference:
        Blocks: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Rabe and Staats,
        "Self-attention does not need O(n^2) memory", 2021; Dao et al., "FlashAttention", 2022.
    """
    _check(q_BHTK, k_BGSK, v_BGSK, mask, causal or window is not None, window, steps, chunk)
    (B, _, T, K), S = q_BHTK.shape, k_BGSK.shape[2]
    scale = 1 / float(np.sqrt(K)) if scale is None else scale
    if dropout and key is None:
        raise ValueError("dropout needs a key")
    drop = Drop(dropout, key) if key is not None and dropout else None
    q_steps, k_steps = steps or (_count(T), _count(S))
    real = None if lengths is None else _count(S) < lengths.reshape(B, 1)
    parts = segments or (None, None)
    sees_itself = steps is None and lengths is None and mask is None and parts[0] is parts[1]
    sight = Sight(q_steps, k_steps, real, parts[0], parts[1], mask, bias, causal, window)

    def portable(q_BHTK: Array, k_BGSK: Array, v_BGSK: Array) -> Array:
        if chunk is None:
            return _whole(q_BHTK, k_BGSK, v_BGSK, sight, scale, drop, sees_itself)
        return attention_in_blocks(q_BHTK, k_BGSK, v_BGSK, sight, scale, drop, chunk, steps is None)

    if drop is None and bias is None and steps is None and q_BHTK.dtype in (jnp.bfloat16, jnp.float16):
        fused = functools.partial(_fused, sight=sight, scale=scale)
        if _is_supported(fused, q_BHTK, k_BGSK, v_BGSK):
            # What one formulation keeps for its gradient the other would have to carry: so this one keeps
            # nothing, on a machine where it is not the one that runs.
            other = jax.checkpoint(portable)
            return lax.platform_dependent(q_BHTK, k_BGSK, v_BGSK, cuda=fused, default=other)
    return portable(q_BHTK, k_BGSK, v_BGSK)


def attention_weights(q_BTHK: Array, k_BSHK: Array, mask: Array | None = None) -> Array:
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
    q_BHTK, k_BHSK = q_BTHK.transpose(0, 2, 1, 3), k_BSHK.transpose(0, 2, 1, 3)
    return masked_softmax(logits_by_head(q_BHTK, k_BHSK, 1 / float(np.sqrt(q_BTHK.shape[-1]))), mask)


def _whole(
    q_BHTK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    sight: Sight,
    scale: float,
    drop: Drop | None,
    sees_something: bool,
) -> Array:
    """All logits at once."""
    logits_BHTS = logits_by_head(q_BHTK, k_BGSK, scale, sight.bias_or_none())
    weights_BHTS = masked_softmax(logits_BHTS, sight.mask(), sees_something)
    return weigh_by_head(weights_BHTS if drop is None else drop(weights_BHTS), v_BGSK)


def _fused(q_BHTK: Array, k_BGSK: Array, v_BGSK: Array, sight: Sight, scale: float) -> Array:
    """cuDNN's, which forms no logits in memory."""
    table = sight._replace(causal=False, window=None).mask()
    if table is not None:
        table = jnp.broadcast_to(table, (*table.shape[:2], q_BHTK.shape[2], k_BGSK.shape[2]))
    window = None if sight.window is None else (sight.window - 1, 0 if sight.causal else sight.window - 1)
    y_BTHK = jax.nn.dot_product_attention(
        q_BHTK.transpose(0, 2, 1, 3),
        k_BGSK.transpose(0, 2, 1, 3),
        v_BGSK.transpose(0, 2, 1, 3),
        mask=table,
        scale=scale,
        is_causal=sight.causal,
        local_window_size=window,
        implementation="cudnn",
    )
    y_BHTK = y_BTHK.transpose(0, 2, 1, 3)
    if table is None:
        return y_BHTK
    seen = sight.mask()
    assert seen is not None
    return jnp.where(seen.any(-1, keepdims=True), y_BHTK, jnp.zeros((), y_BHTK.dtype))


def _is_supported(fused: Callable[..., Array], *arrays: Array) -> bool:
    """Whether there is cuDNN, and it takes these shapes: jax says so only by raising."""
    try:
        jax.eval_shape(jax.grad(lambda *x: fused(*x).astype(jnp.float32).sum()), *arrays)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def _count(n: int) -> Array:
    return jnp.arange(n, dtype=jnp.int32).reshape(1, n)


def _check(
    q_BHTK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    mask: Array | None,
    knows_past: bool,
    window: int | None,
    steps: Any,
    chunk: int | None,
) -> None:
    q, k, v = q_BHTK.shape, k_BGSK.shape, v_BGSK.shape
    if len(q) != 4 or len(k) != 4 or k[:3] != v[:3] or q[0] != k[0] or q[3] != k[3]:
        raise ValueError(
            "attention needs queries, keys and values of as many rows, and keys as large as queries; got (by "
            f"head) {q}, {k} and {v}"
        )
    if q[1] % k[1]:
        raise ValueError(f"{q[1]} heads of queries cannot share {k[1]} heads of keys equally")
    full = (q[0], q[1], q[2], k[2])
    if mask is not None and (
        mask.ndim != 4 or any(n not in (1, m) for n, m in zip(mask.shape, full, strict=True))
    ):
        raise ValueError(f"a mask is [batch or 1, heads or 1, T or 1, S], here of {full}; got {mask.shape}")
    if knows_past and steps is None and q[2] != k[2]:
        raise ValueError(
            f"{q[2]} queries and {k[2]} keys do not say which keys are past: give the steps of both"
        )
    for name, size in (("window", window), ("chunk", chunk)):
        if size is not None and size < 1:
            raise ValueError(f"a {name} has at least one position; got {size}")
