"""Attention as a layer: projections of queries, keys and values, and a cache of keys and values.

Axes: B batch, T positions that ask, S positions that are asked, D model, H heads, G heads of keys and values,
K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from jdl.core import Array
from jdl.nn.attention import attention_by_head
from jdl.nn.linear import Dense


class KeyValues(NamedTuple):
    """Keys and values of a sequence, by head: what attention remembers of it.

    Attributes:
        key: [B, G, S, K].
        value: [B, G, S, K].
    """

    key: Array
    value: Array


class Look(NamedTuple):
    """What attention is told of the positions, beside their features.

    Attributes:
        steps: int32 [B or 1, T] of queries and [B or 1, S] of keys: their places in the sequence.
        lengths: int32 [B], how many keys of each row there are.
        segments: int32 [B, T] of queries and [B, S] of keys: attention stays within a segment.
        bias: of the logits, a function of the steps of queries and keys.
        rotation: of queries and keys, a function of [B, T, H, K].
        slots: int32 [B, T], where in a cache to put each position; those outside are put nowhere.
    """

    steps: tuple[Array, Array] | None = None
    lengths: Array | None = None
    segments: tuple[Array, Array] | None = None
    bias: Callable[[Array, Array], Array] | None = None
    rotation: Callable[[Array], Array] | None = None
    slots: Array | None = None


PLAIN = Look()


class MultiHeadAttention(linen.Module):
    """Attention of several heads, each in a part of the model's dimensions.

    Submodules are ``query`` [D, H * K], ``key`` and ``value`` [D, G * K], and ``out`` [H * K, D]; heads lie
    one after another.

    Attributes:
        num_heads: H.
        head_size: K; D / H when None.
        dropout: of the weights.
        use_bias: whether the layers add a bias.
        dtype: of the computation; logits and softmax are float32.
        out_bias: whether the last layer does; like the others when None.
        num_kv_heads: G; as many as heads when None. Heads share those of keys and values in order.
        causal: a position sees itself and those before.
        window: a position sees those fewer than so many steps away.
        scale: of the logits; 1 / sqrt(K) when None.
        chunk: computes in blocks of so many positions, in memory linear in T; None all at once.
        kernel_init: initialises the four kernels.
        query_init: initialises the query's kernel; like the others when None.
        out_init: initialises the last kernel; like the others when None.

    Raises:
        ValueError: if D is not a multiple of H and no head size is given, H is not a multiple of G, or the
            mask has another shape.

    Example:
        >>> x, memory = jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8))
        >>> layer = MultiHeadAttention(num_heads=2)
        >>> layer.init_with_output(jax.random.key(0), x)[0].shape
        (2, 5, 8)
        >>> layer.init_with_output(jax.random.key(0), x, memory)[0].shape
        (2, 5, 8)

    Reference:
        Vaswani et al., "Attention is all you need", 2017, section 3.2.2.
    """

    num_heads: int
    head_size: int | None = None
    dropout: float = 0.0
    use_bias: bool = True
    dtype: Any = None
    out_bias: bool | None = None
    num_kv_heads: int | None = None
    causal: bool = False
    window: int | None = None
    scale: float | None = None
    chunk: int | None = None
    kernel_init: Any = linen.initializers.lecun_normal()
    query_init: Any = None
    out_init: Any = None

    @linen.compact
    def __call__(
        self,
        x_BTD: Array | None,
        memory_BSD: Array | KeyValues | None = None,
        mask: Array | None = None,
        train: bool = False,
        look: Look = PLAIN,
        cache: KeyValues | None = None,
        layer: Array | int | None = None,
    ) -> Any:
        """The attention of x to a memory, or to itself.

        Args:
            x_BTD: what asks; None gives the keys and values of the memory alone.
            memory_BSD: what is asked, or its keys and values; x itself when None.
            mask: [B or 1, H or 1, T or 1, S] booleans, True where a position may look.
            train: drop weights.
            look: what else is known of the positions.
            cache: keys and values of earlier positions, [B, G, S, K]; those of x are put at ``look.slots``,
                and x sees what ``look.steps`` says.
            layer: where the cache is of several layers, [B, L, G, S, K], which one is this.

        Returns:
            [B, T, D]; with a cache, that and the cache with x in it; without x, `KeyValues`.
        """
        H = self.num_heads
        G = self.num_kv_heads or H
        D = next(x.shape[-1] for x in (x_BTD, memory_BSD) if x is not None and not isinstance(x, KeyValues))
        if self.head_size is None and D % H:
            raise ValueError(
                f"MultiHeadAttention needs a multiple of its {H} heads, or a head size; got {D} features"
            )
        K = self.head_size or D // H

        def project(x: Array, heads: int, name: str, init: Any = None) -> Array:
            x = Dense(
                heads * K,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=init or self.kernel_init,
                name=name,
            )(x)
            x = x.reshape(*x.shape[:2], heads, K)
            if look.rotation is not None and name != "value":
                x = look.rotation(x)
            return x.transpose(0, 2, 1, 3)

        if isinstance(memory_BSD, KeyValues):
            known = memory_BSD
        else:
            asked: Any = x_BTD if memory_BSD is None else memory_BSD
            known = KeyValues(project(asked, G, "key"), project(asked, G, "value"))
        if x_BTD is None:
            return known
        q_BHTK = project(x_BTD, H, "query", self.query_init)
        if cache is not None:
            assert look.slots is not None
            cache = KeyValues(*(_put(*pair, look.slots, layer) for pair in zip(cache, known, strict=True)))
            known = cache
        if layer is not None:
            known = KeyValues(*(jax.lax.dynamic_index_in_dim(x, layer, 1, keepdims=False) for x in known))
        if cache is not None:  # which may be of another type, where that of the computation was left open
            known = KeyValues(*(x.astype(q_BHTK.dtype) for x in known))
        y_BHTK = attention_by_head(
            q_BHTK,
            *known,
            mask=mask,
            bias=look.bias,
            scale=self.scale,
            causal=self.causal,
            window=self.window,
            steps=look.steps,
            lengths=look.lengths,
            segments=look.segments,
            dropout=self.dropout if train else 0.0,
            key=self.make_rng("dropout") if train and self.dropout else None,
            chunk=self.chunk,
        )
        y_BTD = Dense(
            D,
            use_bias=self.use_bias if self.out_bias is None else self.out_bias,
            dtype=self.dtype,
            kernel_init=self.out_init or self.kernel_init,
            name="out",
        )(y_BHTK.transpose(0, 2, 1, 3).reshape(*x_BTD.shape[:2], H * K))
        return y_BTD if cache is None else (y_BTD, cache)


def _put(cache: Array, x_BGTK: Array, slots_BT: Array, layer: Array | int | None) -> Array:
    """The cache with x at these slots of each row, in place where the cache is donated."""
    rows = jnp.arange(cache.shape[0]).reshape(-1, 1)
    x_BTGK = x_BGTK.transpose(0, 2, 1, 3).astype(cache.dtype)
    if layer is None:
        return cache.at[rows, :, slots_BT].set(x_BTGK, mode="drop")
    return cache.at[rows, jnp.full_like(slots_BT, layer), :, slots_BT].set(x_BTGK, mode="drop")
