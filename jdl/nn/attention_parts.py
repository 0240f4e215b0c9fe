"""What all ways to compute attention are made of.

Axes: B batch, T positions that ask, S positions that are asked, H heads, G heads of keys and values, K head
size. A size of 1 in place of B, H or T means the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdl.core import Array

LOWEST = float(np.finfo(np.float32).min)
Bias = Array | Callable[[Array, Array], Array]


class Sight(NamedTuple):
    """Who may see whom, and with what bias, for some queries and keys.

    Attributes:
        q_steps: [B or 1, T].
        k_steps: [B or 1, S].
        real: [B or 1, S] booleans, which keys there are.
        q_segments: [B, T].
        k_segments: [B, S].
        table: [B or 1, H or 1, T or 1, S] booleans.
        bias: as in `attention_by_head`.
        causal: as there.
        window: as there.
    """

    q_steps: Array
    k_steps: Array
    real: Array | None = None
    q_segments: Array | None = None
    k_segments: Array | None = None
    table: Array | None = None
    bias: Bias | None = None
    causal: bool = False
    window: int | None = None

    def mask(self) -> Array | None:
        """[B or 1, H or 1, T or 1, S] booleans; None where everything is seen."""
        parts = []
        q_steps, k_steps = self.q_steps[:, None, :, None], self.k_steps[:, None, None, :]
        if self.causal:
            parts.append(k_steps <= q_steps)
        if self.window is not None:
            parts.append(jnp.abs(q_steps - k_steps) < self.window)
        if self.real is not None:
            parts.append(self.real[:, None, None, :])
        if self.q_segments is not None and self.k_segments is not None:
            parts.append(self.q_segments[:, None, :, None] == self.k_segments[:, None, None, :])
        if self.table is not None:
            parts.append(self.table)
        return functools.reduce(jnp.logical_and, parts) if parts else None

    def bias_or_none(self) -> Array | None:
        """[B or 1, H or 1, T or 1, S]."""
        return self.bias(self.q_steps, self.k_steps) if callable(self.bias) else self.bias

    def part(self, rows: Array, columns: Array) -> Sight:
        """The same for the queries and keys with these indices, [t] and [s]; the last for those outside."""

        def cut(x: Any, axis: int, index: Array) -> Any:
            if x is None or x.shape[axis] == 1:
                return x
            return jnp.take(x, index, axis, mode="clip")

        def cut_both(x: Any) -> Any:
            return cut(cut(x, 2, rows), 3, columns)

        return self._replace(
            q_steps=cut(self.q_steps, 1, rows),
            k_steps=cut(self.k_steps, 1, columns),
            real=cut(self.real, 1, columns),
            q_segments=cut(self.q_segments, 1, rows),
            k_segments=cut(self.k_segments, 1, columns),
            table=cut_both(self.table),
            bias=self.bias if callable(self.bias) else cut_both(self.bias),
        )


class Drop(NamedTuple):
    """Dropout of weights: its rate and PRNG key."""

    rate: float
    key: Array

    def __call__(self, weights: Array, *block: Any) -> Array:
        """The weights with some dropped and the rest scaled up, different ones in each block."""
        key = functools.reduce(jax.random.fold_in, block, self.key)
        kept = jax.random.bernoulli(key, 1 - self.rate, weights.shape)
        return jnp.where(kept, weights / (1 - self.rate), 0.0)


def logits_by_head(q_BHTK: Array, k_BGSK: Array, scale: float, bias: Array | None = None) -> Array:
    """q k scale + bias in float32, [B, H, T, S]."""
    (B, H, T, K), (_, G, S, _) = q_BHTK.shape, k_BGSK.shape
    # The queries that ask one head are rows of one product.
    q = (q_BHTK * scale).reshape(B, G, H // G * T, K)
    logits = lax.dot_general(q, k_BGSK, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    logits = logits.reshape(B, H, T, S)
    return logits if bias is None else logits + bias.astype(jnp.float32)


def weigh_by_head(weights_BHTS: Array, v_BGSK: Array) -> Array:
    """The sums of values [B, H, T, K] with weights of float32, in their own dtype."""
    (B, H, T, S), (_, G, _, K) = weights_BHTS.shape, v_BGSK.shape
    weights = weights_BHTS.reshape(B, G, H // G * T, S).astype(v_BGSK.dtype)
    return lax.dot_general(weights, v_BGSK, (((3,), (2,)), ((0, 1), (0, 1)))).reshape(B, H, T, K)


def masked_softmax(logits_BHTS: Array, mask: Array | None, sees_something: bool = False) -> Array:
    """Softmax over the last axis where the mask is True; zeros for a row that sees nothing.

    Args:
        logits_BHTS: in float32.
        mask: booleans that broadcast against them.
        sees_something: every row does, for sure.
    """
    if mask is None:
        return jax.nn.softmax(logits_BHTS)
    weights = jax.nn.softmax(jnp.where(mask, logits_BHTS, LOWEST))
    return weights if sees_something else jnp.where(mask, weights, 0.0)
