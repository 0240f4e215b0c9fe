"""Writing token after token: `generate` at once, `stream` as the tokens come, `endless` beyond the context.

Axes: B rows, S places of a row, N tokens to write, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import Array, Decoder, PyTree
from jdl.generation.sequences import Sampler, Sequences, whole
from jdl.generation.session import (
    LENGTH,
    NOTHING,
    RUNNING,
    Request,
    Rows,
    begin,
    check,
    draw,
    last_tokens,
    log_prob,
    row_keys,
    write,
)


class Generated(NamedTuple):
    """What was written after B prompts.

    Attributes:
        tokens_BN: int32, the tokens, a stop sequence included, then padding.
        lengths_B: int32, tokens written in each row, a stop sequence included.
        log_probs_BN: float32, of each token under the model itself, before any sampler; zero for padding.
        stopped_B: int32, why each row ended: the index of the stop sequence, -1 after ``max_new_tokens``,
            -2 where the sampler or the model left nothing to choose from.
        ends_B: int32, tokens before the stop sequence; ``lengths_B`` where there is none.
    """

    tokens_BN: Array
    lengths_B: Array
    log_probs_BN: Array
    stopped_B: Array
    ends_B: Array

    def rows(self) -> list[np.ndarray]:
        """The tokens of each row, without its stop sequence."""
        tokens, ends = jax.device_get((self.tokens_BN, self.ends_B))
        return [row[:end] for row, end in zip(tokens, ends, strict=True)]

    def reasons(self) -> list[str]:
        """Why each row ended: "stop", "length" or "nothing to choose"."""
        words = {LENGTH: "length", NOTHING: "nothing to choose"}
        return [words.get(int(stopped), "stop") for stopped in jax.device_get(self.stopped_B)]


def generate(
    decoder: Decoder,
    prompts: Any,
    key: Array | int,
    sampler: Sampler,
    *,
    max_new_tokens: int,
    lengths: Any = None,
    stop: Any = (),
    pad: int = 0,
    capacity: int | None = None,
) -> Generated:
    """Writes after prompts, one token after another, each drawn from softmax(sampler(logits)).

    One compiled program serves prompts of any length up to the capacity, any ``max_new_tokens`` and any
    numbers in the sampler. Token n of row b is drawn with key ``fold_in(fold_in(key, b), n)``: what else is
    in the batch does not change it.

    Args:
        decoder: the model (`jdl.generation.decoder`).
        prompts: integers [B, T], or a list of B sequences of uneven length.
        key: for the draws; one, or one for each row [B], or a seed.
        sampler: ``logits_BV, history -> logits_BV`` (`greedy`, `temperature`, `top_p`, `chain`, ...); a
            function defined once, since another function compiles another program.
        max_new_tokens: N, the most to write in a row.
        lengths: int [B], real tokens of each prompt, the first ones; all T when None.
        stop: tokens, or sequences of tokens, that end a row when it has written one whole; of several that
            end at once the first counts.
        pad: what stands after a row's end.
        capacity: positions in the cache, at least the longest prompt + N - 1. When None, as many as that
            needs, rounded up to a power of two where the model allows it.

    Returns:
        What was written.

    Raises:
        ValueError: if a prompt is empty, too long for the capacity, not of integers or outside the
            vocabulary, a stop sequence is empty, or an argument is out of range.

    Example:
        >>> from jdl.core import Decoder
        >>> from jdl.generation import greedy
        >>> def extend(cache, tokens, lengths=None):  # after each token comes the next number, of eight
        ...     return 9.0 * jax.nn.one_hot((tokens + 1) % 8, 8), cache
        >>> counting = Decoder(lambda batch_size, length: jnp.zeros(batch_size), extend)
        >>> found = generate(counting, [[0, 1], [4]], 0, greedy, max_new_tokens=4, stop=[[6, 7]])
        >>> found.tokens_BN.tolist(), found.reasons()
        ([[2, 3, 4, 5], [5, 6, 7, 0]], ['length', 'stop'])
        >>> [row.tolist() for row in found.rows()]
        [[2, 3, 4, 5], [5]]
    """
    pad = whole("pad", pad, -(2**31))
    request = check(decoder, prompts, key, sampler, max_new_tokens, lengths, stop, capacity)
    state = begin(request.decoder, request.tokens_BS, request.lengths_B, request.capacity)
    _, rows = _advance(*_arguments(request), max_new_tokens, state)
    return result(rows, request.stop, pad, max_new_tokens)


def stream(
    decoder: Decoder,
    prompts: Any,
    key: Array | int,
    sampler: Sampler,
    *,
    max_new_tokens: int,
    lengths: Any = None,
    stop: Any = (),
    capacity: int | None = None,
    every: int = 4,
) -> Iterator[np.ndarray]:
    """Writes as `generate` does, the same tokens, and yields them as they come.

    Args:
        decoder: as in `generate`, like all that is not named here.
        prompts: as there.
        key: as there.
        sampler: as there.
        max_new_tokens: as there.
        lengths: as there.
        stop: as there. The tokens of a stop sequence are yielded too.
        capacity: as there.
        every: tokens written in one dispatch, and then yielded one by one while the next are computed.

    Yields:
        int32 [B], the next token of each row; -1 in a row that has ended while others go on.

    Raises:
        ValueError: as `generate`, at the call.

    Example:
        >>> from jdl.core import Decoder
        >>> from jdl.generation import greedy
        >>> def extend(cache, tokens, lengths=None):
        ...     return 9.0 * jax.nn.one_hot((tokens + 1) % 8, 8), cache
        >>> counting = Decoder(lambda batch_size, length: jnp.zeros(batch_size), extend)
        >>> [int(token) for (token,) in stream(counting, [[3]], 0, greedy, max_new_tokens=9, stop=7)]
        [4, 5, 6, 7]
    """
    if every < 1:
        raise ValueError(f"every must be at least 1 token; got {every}")
    request = check(decoder, prompts, key, sampler, max_new_tokens, lengths, stop, capacity)
    return _streamed(request, every)


def _streamed(request: Request, every: int) -> Iterator[np.ndarray]:
    state = begin(request.decoder, request.tokens_BS, request.lengths_B, request.capacity)
    state = _advance(*_arguments(request), every, state)
    for start in range(0, request.max_new_tokens, every):
        # Copies, since the state itself is given away to the next dispatch.
        tokens_BS, lengths_B, stopped_B = jax.device_get(_visible(state[1]))
        is_over = (stopped_B != RUNNING).all()
        if not is_over:
            state = _advance(*_arguments(request), every, state)
        for n in range(start, min(start + every, int((lengths_B - request.lengths_B).max()))):
            at_B = request.lengths_B + n
            yield np.where(at_B < lengths_B, tokens_BS[np.arange(len(at_B)), at_B % tokens_BS.shape[1]], -1)
        if is_over:
            return


def endless(
    decoder: Decoder, prompt: Any, key: Array | int, sampler: Sampler, *, context: int
) -> Iterator[int]:
    """Writes after one prompt for as long as tokens are asked for; the model sees the last of them.

    The cache is filled to the last place, then the last half of what it holds is read into an empty one, and
    so on: reading costs less than one position for each token written, where a window that moves with every
    token would have to be read anew for each. Of a prompt that is longer than the context its end is read.

    Args:
        decoder: the model (`jdl.generation.decoder`).
        prompt: integers [T].
        key: for the draws, or a seed.
        sampler: as in `generate`. What it knows of the text is what the model sees of it; tokens that the
            model reads again count as part of the prompt.
        context: positions that the model sees, at least 2.

    Yields:
        The next token.

    Raises:
        ValueError: as `generate`, at the call.

    Example:
        >>> import itertools
        >>> from jdl.core import Decoder
        >>> from jdl.generation import greedy
        >>> def extend(cache, tokens, lengths=None):
        ...     return 9.0 * jax.nn.one_hot((tokens + 1) % 8, 8), cache
        >>> counting = Decoder(lambda batch_size, length: jnp.zeros(batch_size), extend)
        >>> list(itertools.islice(endless(counting, [3], 0, greedy, context=4), 12))
        [4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]
    """
    context = whole("context", context, 2)
    tokens = np.asarray(prompt)
    if tokens.ndim != 1:
        raise ValueError(f"endless writes after one prompt, integers [T]; got shape {tokens.shape}")
    (key,) = row_keys(key, 1)

    def part(i: int, tokens: np.ndarray) -> Iterator[np.ndarray]:
        return stream(
            decoder,
            tokens[None],
            jax.random.fold_in(key, i),
            sampler,
            max_new_tokens=context + 1 - len(tokens),
            capacity=context,
        )

    def written(tokens: np.ndarray, more: Iterator[np.ndarray]) -> Iterator[int]:
        for i in itertools.count(1):
            known = tokens.tolist()
            for (token,) in more:
                known.append(int(token))
                yield known[-1]
            if len(known) <= context:
                return  # nothing was left to choose
            tokens = np.asarray(known[-(context // 2) :], np.int32)
            more = part(i, tokens)

    if len(tokens) > context:
        tokens = tokens[-(context // 2) :]
    # The first part is begun here, so that a bad request is refused at the call.
    return written(tokens, part(0, tokens))


@jax.jit
def _visible(rows: Rows) -> tuple[Array, Array, Array]:
    return jnp.copy(rows.history.tokens_BS), jnp.copy(rows.history.lengths_B), jnp.copy(rows.stopped_B)


def _arguments(request: Request) -> tuple[Any, ...]:
    return request.decoder, request.sampler, request.stop, request.keys_B, request.max_new_tokens


@functools.partial(jax.jit, donate_argnames="state")
def _advance(
    decoder: Decoder,
    sampler: Sampler,
    stop: Sequences,
    keys_B: Array,
    limit: Any,
    steps: Any,
    state: tuple[PyTree, Rows],
) -> tuple[PyTree, Rows]:
    """Writes up to ``steps`` tokens more in each row, up to ``limit`` in all."""

    def goes_on(carry: tuple[Array, PyTree, Rows]) -> Array:
        step, _, rows = carry
        return (step < steps) & (rows.stopped_B == RUNNING).any()

    def one(carry: tuple[Array, PyTree, Rows]) -> tuple[Array, PyTree, Rows]:
        step, cache, rows = carry
        history, is_running_B = rows.history, rows.stopped_B == RUNNING
        logits_B1V, cache = decoder.extend(
            cache, last_tokens(history)[:, None], is_running_B.astype(jnp.int32)
        )
        logits_BV = logits_B1V[:, 0].astype(jnp.float32)
        allowed_BV = sampler(logits_BV, history)
        is_possible_B = jnp.isfinite(allowed_BV.max(-1))
        key_B = jax.vmap(jax.random.fold_in)(keys_B, history.lengths_B - history.prompt_B)
        token_B = draw(key_B, jax.nn.softmax(allowed_BV))
        rows = write(rows, token_B, log_prob(logits_BV, token_B), is_running_B & is_possible_B, stop, limit)
        stopped_B = jnp.where(is_running_B & ~is_possible_B, NOTHING, rows.stopped_B)
        return step + 1, cache, rows._replace(stopped_B=stopped_B)

    return jax.lax.while_loop(goes_on, one, (jnp.int32(0), *state))[1:]


@functools.partial(jax.jit, static_argnames="max_new_tokens")
def result(rows: Rows, stop: Sequences, pad: Any, max_new_tokens: int) -> Generated:
    """What was written, in the form that is given back."""
    history, log_probs_BS, stopped_B = rows
    written_B = history.lengths_B - history.prompt_B
    at_BN = history.prompt_B[:, None] + jnp.arange(max_new_tokens)[None]
    is_token_BN = at_BN < history.lengths_B[:, None]

    def cut(x_BS: Array, filling: Any) -> Array:
        return jnp.where(is_token_BN, jnp.take_along_axis(x_BS, at_BN, 1), jnp.asarray(filling, x_BS.dtype))

    ends_B = written_B
    if stop.tokens_NL.shape[0]:
        ends_B = written_B - jnp.where(stopped_B >= 0, stop.lengths()[stopped_B], 0)
    return Generated(cut(history.tokens_BS, pad), written_B, cut(log_probs_BS, 0), stopped_B, ends_B)
