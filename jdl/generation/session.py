"""What every way of writing shares: requests checked on the host, prompts read, the state of the rows.

Axes: B rows, S places of a row, N tokens to write, T tokens read at once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import Array, Decoder, PyTree
from jdl.generation.decoder import warn_beyond_context
from jdl.generation.sequences import (
    History,
    Sampler,
    Sequences,
    append,
    check_tokens,
    ends_with,
    padded,
    pure,
    sequences,
    whole,
)

RUNNING, LENGTH, NOTHING = -3, -1, -2
CHUNK = 64
"""Tokens of each row that are read at once."""
AT_ONCE, WIDEST = 4096, 512
"""Of long prompts, at most so many of all rows together, and of one."""


class Request(NamedTuple):
    """A request that was found in order, ready for compiled programs."""

    decoder: Decoder
    tokens_BS: np.ndarray
    lengths_B: np.ndarray
    keys_B: Array
    sampler: Sampler
    stop: Sequences
    max_new_tokens: int
    capacity: int


class Rows(NamedTuple):
    """The rows while they are written.

    Attributes:
        history: the text so far; there is a place more than the cache has, for a token never read.
        log_probs_BS: of each written token, at the token's place.
        stopped_B: RUNNING, or why the row ended: the index of a stop sequence, LENGTH or NOTHING.
    """

    history: History
    log_probs_BS: Array
    stopped_B: Array


def check(
    decoder: Decoder,
    prompts: Any,
    key: Any,
    sampler: Sampler,
    max_new_tokens: int,
    lengths: Any,
    stop: Any,
    capacity: int | None,
    draft: Decoder | None = None,
) -> Request:
    """Checks a request and brings it into the form that compiled programs take.

    A draft is asked for no more positions than it has, either.

    Raises:
        ValueError: for anything in it that cannot be; the message says what and where.
    """
    decoder = ready(decoder)
    tokens_BT, lengths_B = padded(prompts, lengths)
    max_new_tokens = whole("max_new_tokens", max_new_tokens)
    capacity = None if capacity is None else whole("capacity", capacity)
    sampler, ends = pure(sampler), sequences(stop)
    B, longest = len(tokens_BT), int(lengths_B.max())
    V = vocabulary(decoder, B)
    check_tokens(tokens_BT, V, "prompts")
    check_tokens(ends.tokens_NL[ends.tokens_NL >= 0], V, "stop")
    for leaf in jax.tree.leaves(sampler, is_leaf=lambda x: isinstance(x, Sequences)):
        if isinstance(leaf, Sequences):
            check_tokens(leaf.tokens_NL[leaf.tokens_NL >= 0], V, "sampler")
    needed = longest + max_new_tokens - 1
    if draft is not None:
        # However short the text, both read two tokens at once.
        needed = max(needed, 2)
    if capacity is None:
        capacity = _capacity([decoder] if draft is None else [decoder, draft], B, needed)
    if needed > capacity:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} to write need a cache of {needed} positions; "
            f"capacity is {capacity}"
        )
    for each in [decoder] if draft is None else [decoder, draft]:
        warn_beyond_context(each, needed)
    chunk = min(CHUNK, capacity)
    places = -(-(capacity + 1) // chunk) * chunk
    tokens_BS = np.zeros((B, places), np.int32)
    tokens_BS[:, :longest] = tokens_BT[:, :longest]
    keys_B = row_keys(key, B)
    return Request(decoder, tokens_BS, lengths_B, keys_B, sampler, ends, max_new_tokens, capacity)


def ready(decoder: Decoder) -> Decoder:
    """The decoder as a pytree, if it was made of plain functions."""
    rewind = None if decoder.rewind is None else pure(decoder.rewind)
    return Decoder(pure(decoder.init_cache), pure(decoder.extend), rewind)


@functools.partial(jax.jit, static_argnums=1)
def _first_logits(decoder: Decoder, B: int) -> Array:
    return decoder.extend(decoder.init_cache(B, 1), jnp.zeros((B, 1), jnp.int32))[0]


def vocabulary(decoder: Decoder, B: int) -> int:
    """V of a decoder of B rows, by tracing it once."""
    return int(_first_logits.eval_shape(decoder, B).shape[-1])


def _capacity(decoders: list[Decoder], B: int, needed: int) -> int:
    """Positions, rounded up so that prompts of other lengths find the same programs, if models allow it."""
    rounded = max(CHUNK, 1 << (needed - 1).bit_length())
    try:
        jax.eval_shape(lambda: [decoder.init_cache(B, rounded) for decoder in decoders])
    except ValueError:
        return needed
    return rounded


def row_keys(key: Any, B: int) -> Array:
    """A key for each row: those given, or one folded with the row's number."""
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key must be jax.random.key(...), {B} such keys, or a seed; got {key!r}")
    if key.shape not in ((), (B,)):
        raise ValueError(f"key must be one, or {B}, one a row; got shape {key.shape}")
    return key if key.shape else _fold_rows(key, B)


@functools.partial(jax.jit, static_argnums=1)
def _fold_rows(key: Array, B: int) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))


def read(decoder: Decoder, tokens_BS: Array, lengths_B: Array, capacity: int) -> PyTree:
    """A cache that knows each row but for its last token, which the first step reads.

    Chunks are read in loops of as many turns as the longest row needs, wide ones while they are full, so one
    program serves prompts of all lengths; nobody looks at their logits, so XLA leaves the output layer out.
    """
    B = len(tokens_BS)
    chunk = min(CHUNK, capacity)
    known_B = lengths_B - 1

    def read_by(width: int, start: Any, stop: Any, cache: PyTree) -> PyTree:
        def extend(i: Array, cache: PyTree) -> PyTree:
            at = start + i * width
            tokens_BT = jax.lax.dynamic_slice_in_dim(tokens_BS, at, width, 1)
            return decoder.extend(cache, tokens_BT, jnp.clip(known_B - at, 0, width))[1]

        return jax.lax.fori_loop(0, -(-(stop - start) // width), extend, cache)

    cache, stop = decoder.init_cache(B, capacity), known_B.max()
    start: Any = 0
    wide = min(WIDEST, max(chunk, AT_ONCE // B // chunk * chunk))
    if chunk < wide < capacity:
        full = stop // wide * wide
        cache, start = read_by(wide, start, full, cache), full
    return read_by(chunk, start, stop, cache)


@functools.partial(jax.jit, static_argnames="capacity")
def begin(decoder: Decoder, tokens_BS: Array, lengths_B: Array, capacity: int) -> tuple[PyTree, Rows]:
    """The cache after the prompts, and rows of which nothing is written."""
    rows = Rows(
        History(tokens_BS, lengths_B, lengths_B),
        jnp.zeros(tokens_BS.shape, jnp.float32),
        jnp.full(lengths_B.shape, RUNNING, jnp.int32),
    )
    return read(decoder, tokens_BS, lengths_B, capacity), rows


def last_tokens(history: History) -> Array:
    """The last token of each row, [B]."""
    return jnp.take_along_axis(history.tokens_BS, history.lengths_B[:, None] - 1, 1)[:, 0]


def write(rows: Rows, token_B: Array, log_prob_B: Array, where_B: Array, stop: Sequences, limit: Any) -> Rows:
    """Appends a token to the rows that ``where_B`` says, and ends those that are complete."""
    history, log_probs_BS, stopped_B = rows
    tokens_BS = append(history.tokens_BS, history.lengths_B, token_B, where_B)
    log_probs_BS = append(log_probs_BS, history.lengths_B, log_prob_B, where_B)
    lengths_B = history.lengths_B + where_B
    history = History(tokens_BS, lengths_B, history.prompt_B)
    end_B = jnp.where(lengths_B - history.prompt_B >= limit, LENGTH, RUNNING)
    if stop.tokens_NL.shape[0]:
        hit_BN = ends_with(tokens_BS, lengths_B, history.prompt_B, stop)
        end_B = jnp.where(hit_BN.any(-1), jnp.argmax(hit_BN, -1).astype(jnp.int32), end_B)
    return Rows(history, log_probs_BS, jnp.where(where_B, end_B, stopped_B))


def draw(key_B: Array, weights_BV: Array) -> Array:
    """A token of each row, int32 [B], with probabilities proportional to the weights.

    The vocabulary is cut into blocks; one uniform number chooses the block by its weight and another the
    token in it: two numbers a row, where the Gumbel trick needs one for each token of the vocabulary.
    """
    B, V = weights_BV.shape
    block = max(1, round(V**0.5))
    weights_BJI = jnp.pad(weights_BV, ((0, 0), (0, -V % block))).reshape(B, -1, block)
    uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(key_B)

    def choose(weights_BI: Array, uniform_B: Array) -> Array:
        cumulative_BI = jnp.cumsum(weights_BI, -1)
        # Rounding may make a step of the cumulative sum where the weight is zero.
        is_past_BI = (cumulative_BI > uniform_B[:, None] * cumulative_BI[:, -1:]) & (weights_BI > 0)
        first_B = jnp.argmax(is_past_BI, -1)
        return jnp.where(is_past_BI.any(-1), first_B, jnp.argmax(weights_BI, -1)).astype(jnp.int32)

    block_B = choose(weights_BJI.sum(-1), uniform_B2[:, 0])
    inside_BI = jnp.take_along_axis(weights_BJI, block_B[:, None, None], 1)[:, 0]
    return block_B * block + choose(inside_BI, uniform_B2[:, 1])


def log_prob(logits_BV: Array, token_B: Array) -> Array:
    """log softmax at the tokens, [B]."""
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], -1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, -1)
