"""Speculative decoding: a small model guesses a few tokens ahead, and a large one reads them all at once.

Axes: B rows, S places of a row, K guesses, J = K + 1 places that the target judges, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import Array, Decoder, PyTree
from jdl.generation.generate import Generated, result
from jdl.generation.sequences import History, Sampler, Sequences, append, pure, whole
from jdl.generation.session import (
    NOTHING,
    RUNNING,
    Rows,
    begin,
    check,
    draw,
    log_prob,
    read,
    ready,
    vocabulary,
    write,
)


class Speculated(NamedTuple):
    """What was written, and how good the guesses were.

    Attributes:
        generated: as from `generate`.
        guessed_B: int32, tokens that the draft proposed in each row.
        accepted_B: int32, how many of them the target accepted.
        rounds_B: int32, how many times the target read.
    """

    generated: Generated
    guessed_B: Array
    accepted_B: Array
    rounds_B: Array


class _State(NamedTuple):
    cache: PyTree
    draft_cache: PyTree
    draft_known_B: Array
    rows: Rows
    counts: tuple[Array, ...]


def speculative(
    target: Decoder,
    draft: Decoder,
    prompts: Any,
    key: Array | int,
    sampler: Sampler,
    *,
    max_new_tokens: int,
    guesses: int = 4,
    draft_sampler: Sampler | None = None,
    lengths: Any = None,
    stop: Any = (),
    pad: int = 0,
    capacity: int | None = None,
) -> Speculated:
    """Writes what the target would write, in fewer of its turns.

    The draft writes K tokens from its distribution q; the target, reading all of them at once, accepts each
    with probability min(1, p / q), and in place of the first that it refuses draws from max(p - q, 0),
    normalised. Every token then has exactly the distribution p = softmax(sampler(logits)) of the target: with
    `greedy`, the tokens are those of `generate`, as far as its logits are the same to the last bit when read
    several at a time.

    Args:
        target: the model to write with.
        draft: a cheaper model of the same vocabulary.
        prompts: integers [B, T], or a list of B sequences of uneven length.
        key: for the draws; one, or one for each row [B], or a seed.
        sampler: as in `generate`.
        max_new_tokens: the most to write in a row.
        guesses: K, tokens that the draft writes ahead.
        draft_sampler: the draft's; the same when None.
        lengths: int [B], real tokens of each prompt, the first ones; all T when None.
        stop: tokens, or sequences of tokens, that end a row.
        pad: what stands after a row's end.
        capacity: as in `generate`.

    Returns:
        What was written, and how many guesses were accepted.

    Raises:
        ValueError: as `generate`, or if a model cannot forget what it has read, the vocabularies differ or
            ``guesses`` is less than 1.

    Example:
        >>> def counting(step):  # after each token comes the next number, of eight
        ...     def extend(cache, tokens, lengths=None):
        ...         return 9.0 * jax.nn.one_hot((tokens + step) % 8, 8), cache
        ...     return Decoder(lambda rows, length: jnp.zeros(rows), extend, lambda cache, n: cache)
        >>> from jdl.generation import greedy
        >>> found = speculative(counting(1), counting(1), [[0]], 0, greedy, max_new_tokens=6, guesses=2)
        >>> found.generated.tokens_BN.tolist(), found.rounds_B.tolist()
        ([[1, 2, 3, 4, 5, 6]], [2])

    Reference:
        Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", 2023,
        algorithm 1; Chen et al., "Accelerating large language model decoding with speculative sampling",
        2023, algorithm 2.
    """
    for name, model in (("target", target), ("draft", draft)):
        if model.rewind is None:
            raise ValueError(
                f"the {name} cannot forget what it has read (its rewind is None), as speculative decoding "
                "asks of it; recurrent models cannot"
            )
    guesses, pad = whole("guesses", guesses), whole("pad", pad, -(2**31))
    draft = ready(draft)
    request = check(target, prompts, key, sampler, max_new_tokens, lengths, stop, capacity, draft)
    sizes = [vocabulary(model, len(request.lengths_B)) for model in (request.decoder, draft)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"target and draft need the same vocabulary; theirs have {sizes[0]} and {sizes[1]}")
    state = _begin(request.decoder, draft, request.tokens_BS, request.lengths_B, request.capacity)
    state = _write(
        request.decoder,
        draft,
        request.sampler,
        request.sampler if draft_sampler is None else pure(draft_sampler),
        request.stop,
        request.keys_B,
        max_new_tokens,
        state,
        # More would never be written, and might not fit into the cache.
        guesses=max(1, min(guesses, max_new_tokens - 1)),
    )
    return Speculated(result(state.rows, request.stop, pad, max_new_tokens), *state.counts)


def accept(
    p_BJV: Array, q_BKV: Array, guesses_BK: Array, limit_B: Array, uniform_BK: Array
) -> tuple[Array, Array]:
    """How many guesses the target accepts, and the distribution of the token after them.

    Args:
        p_BJV: the target's distributions at the K guesses and after them, J = K + 1.
        q_BKV: the draft's distributions, from which the guesses were drawn.
        guesses_BK: tokens.
        limit_B: how many of them count, at most K.
        uniform_BK: numbers in [0, 1).

    Returns:
        The number of accepted guesses [B], and the distribution [B, V] of the next token.

    Example:
        >>> p = jnp.array([[[0.5, 0.5], [0.1, 0.9]]])
        >>> q = jnp.array([[[1.0, 0.0]]])
        >>> n, after = accept(p, q, jnp.array([[0]]), jnp.array([1]), jnp.array([[0.6]]))
        >>> n.tolist(), after.tolist()  # a guess with p / q = 0.5 is refused
        ([0], [[0.0, 1.0]])

    Reference:
        Leviathan, Kalman and Matias 2023, algorithm 1.
    """
    K = guesses_BK.shape[1]
    p_BK, q_BK = (jnp.take_along_axis(x[:, :K], guesses_BK[..., None], -1)[..., 0] for x in (p_BJV, q_BKV))
    is_good_BK = (uniform_BK * q_BK < p_BK) & (jnp.arange(K)[None] < limit_B[:, None])
    accepted_B = jnp.cumprod(is_good_BK, 1).sum(1)
    at_B11 = accepted_B[:, None, None]
    p_BV = jnp.take_along_axis(p_BJV, at_B11, 1)[:, 0]
    q_BV = jnp.take_along_axis(q_BKV, jnp.minimum(at_B11, K - 1), 1)[:, 0]
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    total_B1 = rest_BV.sum(-1, keepdims=True)
    is_refused_B1 = (accepted_B < limit_B)[:, None] & (total_B1 > 0)
    return accepted_B, jnp.where(is_refused_B1, rest_BV / jnp.where(total_B1 > 0, total_B1, 1), p_BV)


@functools.partial(jax.jit, static_argnames="capacity")
def _begin(target: Decoder, draft: Decoder, tokens_BS: Array, lengths_B: Array, capacity: int) -> _State:
    cache, rows = begin(target, tokens_BS, lengths_B, capacity)
    zero_B = jnp.zeros_like(lengths_B)
    counts = zero_B, zero_B, zero_B
    return _State(cache, read(draft, tokens_BS, lengths_B, capacity), lengths_B - 1, rows, counts)


@functools.partial(jax.jit, static_argnames="guesses", donate_argnames="state")
def _write(
    target: Decoder,
    draft: Decoder,
    sampler: Sampler,
    draft_sampler: Sampler,
    stop: Sequences,
    keys_B: Array,
    limit: Any,
    state: _State,
    *,
    guesses: int,
) -> _State:
    rewind, draft_rewind, K = target.rewind, draft.rewind, guesses
    assert rewind is not None
    assert draft_rewind is not None

    def one(state: _State) -> _State:
        history, stopped_B = state.rows.history, state.rows.stopped_B
        is_running_B = stopped_B == RUNNING
        written_B = history.lengths_B - history.prompt_B
        keys_BI = jax.vmap(lambda key, n: jax.random.split(jax.random.fold_in(key, n), K + 2))(
            keys_B, written_B
        )
        # The last token that may be written is never guessed: the target draws one more than it accepts.
        count_B = jnp.where(is_running_B, jnp.minimum(K, limit - written_B - 1), 0)
        guesses_BK, q_BKV, ahead, draft_cache = _guess(draft, draft_sampler, state, keys_BI[:, :K], count_B)

        # The target reads its last token and the guesses.
        at_BJ = history.lengths_B[:, None] - 1 + jnp.arange(K + 1)[None]
        tokens_BJ = jnp.take_along_axis(ahead.tokens_BS, at_BJ, 1, mode="clip")
        logits_BJV, cache = target.extend(state.cache, tokens_BJ, jnp.where(is_running_B, count_B + 1, 0))
        logits_BJV = logits_BJV.astype(jnp.float32)

        def judge(logits_BV: Array, j: Array) -> Array:
            return sampler(logits_BV, History(ahead.tokens_BS, history.lengths_B + j, history.prompt_B))

        allowed_BJV = jax.vmap(judge, (1, 0), 1)(logits_BJV, jnp.arange(K + 1))
        p_BJV = jax.nn.softmax(allowed_BJV)
        uniform_BK = jax.vmap(lambda key: jax.random.uniform(key, (K,)))(keys_BI[:, K])
        accepted_B, after_BV = accept(p_BJV, q_BKV, guesses_BK, count_B, uniform_BK)
        next_B = draw(keys_BI[:, K + 1], after_BV)

        # They are written one by one, since each may end its row.
        is_possible_BJ = jnp.isfinite(allowed_BJV.max(-1))
        rows = state.rows
        for j in range(K + 1):
            token_B = jnp.where(j < accepted_B, guesses_BK[:, min(j, K - 1)], next_B)
            is_due_B = (rows.stopped_B == RUNNING) & (j <= accepted_B)
            rows = write(
                rows,
                token_B,
                log_prob(logits_BJV[:, j], token_B),
                is_due_B & is_possible_BJ[:, j],
                stop,
                limit,
            )
            rows = rows._replace(
                stopped_B=jnp.where(is_due_B & ~is_possible_BJ[:, j], NOTHING, rows.stopped_B)
            )
        known_B = rows.history.lengths_B - 1
        read_B = history.lengths_B - 1 + jnp.where(is_running_B, count_B + 1, 0)
        draft_read_B = jnp.where(count_B > 0, history.lengths_B - 1 + count_B, state.draft_known_B)
        draft_known_B = jnp.minimum(known_B, draft_read_B)
        new = count_B, accepted_B, is_running_B.astype(jnp.int32)
        return _State(
            rewind(cache, jnp.minimum(known_B, read_B)),
            draft_rewind(draft_cache, draft_known_B),
            draft_known_B,
            rows,
            tuple(a + b for a, b in zip(state.counts, new, strict=True)),
        )

    return jax.lax.while_loop(lambda state: (state.rows.stopped_B == RUNNING).any(), one, state)


def _guess(
    draft: Decoder, sampler: Sampler, state: _State, keys_BK: Array, count_B: Array
) -> tuple[Array, Array, History, PyTree]:
    """K guesses [B, K], their distributions [B, K, V], the text with them, and the draft's cache."""
    history, K = state.rows.history, keys_BK.shape[1]
    # The draft has not read the last token, nor the one before if that was its own last guess, accepted.
    missing_B = jnp.clip(history.lengths_B - state.draft_known_B, 1, 2)
    at_B2 = state.draft_known_B[:, None] + jnp.arange(2)[None]
    tokens_B2 = jnp.take_along_axis(history.tokens_BS, at_B2, 1, mode="clip")
    logits_B2V, cache = draft.extend(state.draft_cache, tokens_B2, jnp.where(count_B > 0, missing_B, 0))
    logits_BV = jnp.take_along_axis(logits_B2V, missing_B[:, None, None] - 1, 1)[:, 0]

    def choose(logits_BV: Array, history: History, key_B: Array, i: Any) -> tuple[Array, Array, History]:
        q_BV = jax.nn.softmax(sampler(logits_BV.astype(jnp.float32), history))
        token_B = draw(key_B, q_BV)
        is_real_B = i < count_B
        tokens_BS = append(history.tokens_BS, history.lengths_B, token_B, is_real_B)
        return token_B, q_BV, History(tokens_BS, history.lengths_B + is_real_B, history.prompt_B)

    def one(carry: Any, x: Any) -> Any:
        cache, token_B, history = carry
        i, key_B = x
        logits_BTV, cache = draft.extend(cache, token_B[:, None], (i < count_B).astype(jnp.int32))
        token_B, q_BV, history = choose(logits_BTV[:, 0], history, key_B, i)
        return (cache, token_B, history), (token_B, q_BV)

    token_B, q_BV, history = choose(logits_BV, history, keys_BK[:, 0], 0)
    later = (jnp.arange(1, K), keys_BK[:, 1:].swapaxes(0, 1))
    (cache, _, history), (tokens_KB, q_KBV) = jax.lax.scan(one, (cache, token_B, history), later)
    guesses_BK = jnp.concatenate([token_B[:, None], tokens_KB.swapaxes(0, 1)], 1)
    q_BKV = jnp.concatenate([q_BV[:, None], q_KBV.swapaxes(0, 1)], 1)
    return guesses_BK, q_BKV, history, cache
