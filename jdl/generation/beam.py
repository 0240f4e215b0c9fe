"""Beam search: a few texts carried along together, towards the most likely whole.

Axes: B rows, K beams, R = B * K, M candidates, S places of a row, N tokens to write, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdl.core import Array, Decoder, PyTree
from jdl.generation.samplers import chain
from jdl.generation.sequences import History, Sampler, Sequences, append, ends_with, pure, whole
from jdl.generation.session import LENGTH, NOTHING, check, last_tokens, read

Penalty = Callable[[Array], Array]
"""``lengths -> divisors``, of float32 lengths from 1 on, which only rise with the length or only fall."""


class Beams(NamedTuple):
    """The best texts found after each of B prompts, best first.

    Attributes:
        tokens_BKN: int32, the tokens, a stop sequence included, then padding.
        lengths_BK: int32, tokens written, a stop sequence included.
        log_probs_BK: float32, log-probability of the whole text that was written.
        scores_BK: float32, that over the length's penalty; minus infinity where nothing more was found.
        stopped_BK: int32, as `Generated.stopped_B`.
        ends_BK: int32, tokens before the stop sequence.
    """

    tokens_BKN: Array
    lengths_BK: Array
    log_probs_BK: Array
    scores_BK: Array
    stopped_BK: Array
    ends_BK: Array

    def rows(self) -> list[list[np.ndarray]]:
        """The texts of each row, best first, without their stop sequences."""
        tokens, ends, scores = jax.device_get((self.tokens_BKN, self.ends_BK, self.scores_BK))
        return [
            [tokens[b, k, : ends[b, k]] for k in range(len(ends[b])) if scores[b, k] > -np.inf]
            for b in range(len(ends))
        ]


class _Texts(NamedTuple):
    """Texts of each row, arrays [B, K, ...]: whole ones, or candidates to be one."""

    scores: Array
    log_probs: Array
    tokens: Array
    written: Array
    stopped: Array


def _gnmt(alpha: Any, lengths: Array) -> Array:
    return ((5 + lengths) / 6) ** alpha


def _per_token(alpha: Any, lengths: Array) -> Array:
    return lengths**alpha


def gnmt(alpha: float = 0.6) -> Penalty:
    """((5 + length) / 6)**alpha: what beam search divides log-probabilities by, so that long texts may win.

    Example:
        >>> gnmt(1.0)(jnp.array([1.0, 7.0])).tolist()
        [1.0, 2.0]

    Reference:
        Wu et al., "Google's neural machine translation system", 2016, equation 14.
    """
    return Partial(_gnmt, alpha)


def per_token(alpha: float = 1.0) -> Penalty:
    """length**alpha: with 1, the mean log-probability of a token.

    Example:
        >>> per_token()(jnp.array([1.0, 7.0])).tolist()
        [1.0, 7.0]
    """
    return Partial(_per_token, alpha)


def beam_search(
    decoder: Decoder,
    prompts: Any,
    *,
    num_beams: int,
    max_new_tokens: int,
    num_results: int = 1,
    penalty: Penalty = gnmt(0.6),  # noqa: B008
    early_stopping: bool = False,
    sampler: Sampler = chain(),  # noqa: B008
    lengths: Any = None,
    stop: Any = (),
    pad: int = 0,
    capacity: int | None = None,
) -> Beams:
    """Looks for the texts of the highest log-probability over ``penalty(length)``.

    At every step the K likeliest unfinished texts are kept, and of those that have just ended the ones among
    the K likeliest of all; what is unfinished after ``max_new_tokens`` counts as ended.

    Args:
        decoder: the model, whose cache's leaves have the row as first axis.
        prompts: integers [B, T], or a list of B sequences of uneven length.
        num_beams: K.
        max_new_tokens: N, the most to write.
        num_results: texts to give for each prompt, at most K.
        penalty: what a text's log-probability is divided by, as a function of its length (`gnmt`,
            `per_token`); ``gnmt(0.0)`` leaves it as it is.
        early_stopping: end a row as soon as K of its texts have ended; else only when none that is unfinished
            could still become one of the K best.
        sampler: changes logits before they are normalised, such as `banned` or `no_repeat_ngram`.
        lengths: int [B], real tokens of each prompt, the first ones; all T when None.
        stop: tokens, or sequences of tokens, that end a text.
        pad: what stands after a text's end.
        capacity: as in `generate`.

    Returns:
        The texts.

    Raises:
        ValueError: as `generate`, or if the numbers of beams or results are out of range.

    Example:
        >>> from jdl.core import Decoder
        >>> table = jnp.log(jnp.array([[0.0, 0.6, 0.4], [0.35, 0.35, 0.3], [0.9, 0.1, 0.0]]))
        >>> markov = Decoder(lambda batch_size, length: jnp.zeros(batch_size),
        ...                  lambda cache, tokens, lengths=None: (table[tokens], cache))
        >>> found = beam_search(markov, [[0]], num_beams=2, max_new_tokens=2, penalty=gnmt(0.0))
        >>> found.tokens_BKN.tolist(), round(float(jnp.exp(found.log_probs_BK[0, 0])), 4)
        ([[[2, 0]]], 0.36)

    Reference:
        Wu et al. 2016, section 7; Sutskever, Vinyals and Le, "Sequence to sequence learning with neural
        networks", 2014, section 3.2.
    """
    num_beams, num_results = whole("num_beams", num_beams), whole("num_results", num_results)
    pad = whole("pad", pad, -(2**31))
    if num_results > num_beams:
        raise ValueError(f"{num_beams} beams give 1 to {num_beams} results; got {num_results}")
    request = check(decoder, prompts, 0, sampler, max_new_tokens, lengths, stop, capacity)
    found = _search(
        request.decoder,
        request.sampler,
        pure(penalty),
        request.stop,
        request.tokens_BS,
        request.lengths_B,
        max_new_tokens,
        early_stopping,
        num_beams=num_beams,
        capacity=request.capacity,
    )
    return _beams(found, request.lengths_B, request.stop, pad, num_results, max_new_tokens)


def _largest(x_BN: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k`, which on a CPU sorts everything, of the k blocks that have the largest maxima."""
    B, N = x_BN.shape
    block = max(1, round((N / k) ** 0.5))
    if k * block >= N:
        values_Bk, at_Bk = jax.lax.top_k(x_BN, k)
        return values_Bk, at_Bk
    x_BJI = jnp.pad(x_BN, ((0, 0), (0, -N % block)), constant_values=-jnp.inf).reshape(B, -1, block)
    # In order of place, so that of equals the first comes first.
    chosen_Bk = jnp.sort(jax.lax.top_k(x_BJI.max(-1), k)[1], -1)
    some_BkI = jnp.take_along_axis(x_BJI, chosen_Bk[..., None], 1)
    values_Bk, at_Bk = jax.lax.top_k(some_BkI.reshape(B, -1), k)
    return values_Bk, jnp.take_along_axis(chosen_Bk, at_Bk // block, 1) * block + at_Bk % block


def _take(tree: PyTree, at_BK: Array) -> PyTree:
    """Of arrays [B, M, ...], those at [B, K] of the second axis."""
    return jax.tree.map(lambda x: x[jnp.arange(len(at_BK))[:, None], at_BK], tree)


@functools.partial(jax.jit, static_argnames=("num_beams", "capacity"))
def _search(
    decoder: Decoder,
    sampler: Sampler,
    penalty: Penalty,
    stop: Sequences,
    tokens_BS: Array,
    prompt_B: Array,
    limit: Any,
    early_stopping: Any,
    *,
    num_beams: int,
    capacity: int,
) -> _Texts:
    (B, S), K = tokens_BS.shape, num_beams
    prompt_R = jnp.repeat(prompt_B, K)
    cache = jax.tree.map(lambda x: jnp.repeat(x, K, 0), read(decoder, tokens_BS, prompt_B, capacity))
    divisor = lambda n: penalty(jnp.asarray(n, jnp.float32))

    def goes_on(carry: Any) -> Array:
        n, _, _, _, _, is_done_B = carry
        return (n < limit) & ~is_done_B.all()

    def step(carry: Any) -> Any:
        n, cache, tokens_BKS, log_probs_BK, best, is_done_B = carry
        history = History(tokens_BKS.reshape(-1, S), prompt_R + n, prompt_R)
        is_running_R = jnp.repeat(~is_done_B, K).astype(jnp.int32)
        before = cache
        logits_R1V, cache = decoder.extend(cache, last_tokens(history)[:, None], is_running_R)
        logits_RV = sampler(logits_R1V[:, 0].astype(jnp.float32), history)
        V = logits_RV.shape[-1]
        step_RV = jax.nn.log_softmax(logits_RV)
        # Not a number where the sampler left nothing.
        step_RV = jnp.where(jnp.isnan(step_RV), -jnp.inf, step_RV)
        totals_BKV = log_probs_BK[..., None] + step_RV.reshape(B, K, V)

        # At most one in each beam ends with each stop sequence: K candidates are left that go on.
        M = min((stop.tokens_NL.shape[0] + 1) * K, K * V)
        totals_BM, at_BM = _largest(totals_BKV.reshape(B, -1), M)
        parent_BM, token_BM = at_BM // V, at_BM % V
        tokens_QS = _take(tokens_BKS, parent_BM).reshape(-1, S)
        prompt_Q = jnp.repeat(prompt_B, M)
        tokens_QS = append(tokens_QS, prompt_Q + n, token_BM.reshape(-1), jnp.full(B * M, True))
        stopped_BM = jnp.full((B, M), LENGTH)
        is_end_BM = jnp.full((B, M), n + 1 >= limit)
        if stop.tokens_NL.shape[0]:
            hit_BMN = ends_with(tokens_QS, prompt_Q + n + 1, prompt_Q, stop).reshape(B, M, -1)
            stopped_BM = jnp.where(hit_BMN.any(-1), jnp.argmax(hit_BMN, -1), stopped_BM)
            is_end_BM |= hit_BMN.any(-1)
        is_possible_BM = totals_BM > -jnp.inf

        # Those that end, with the best that ended before; a row that is done takes no more.
        is_new_BM = is_end_BM & is_possible_BM & (jnp.arange(M) < K)[None] & ~is_done_B[:, None]
        scores_BM = jnp.where(is_new_BM, totals_BM / divisor(n + 1), -jnp.inf)
        new = _Texts(
            scores_BM,
            totals_BM,
            tokens_QS.reshape(B, M, S),
            jnp.full((B, M), n + 1),
            stopped_BM.astype(jnp.int32),
        )
        both = jax.tree.map(lambda *x: jnp.concatenate(x, 1), best, new)
        best = _take(both, jax.lax.top_k(both.scores, K)[1])

        # Those that go on.
        totals_BM = jnp.where(is_end_BM, -jnp.inf, totals_BM)
        log_probs_BK, next_BK = jax.lax.top_k(totals_BM, K)
        tokens_BKS = _take(new.tokens, next_BK)
        parent_R = (jnp.take_along_axis(parent_BM, next_BK, 1) + K * jnp.arange(B)[:, None]).reshape(-1)
        # What comes back as it was given, such as what is known of a source, all beams of a row have alike.
        cache = jax.tree.map(lambda was, x: x if x is was else x[parent_R], before, cache)

        # A log-probability only falls, so no text on the way can end better than with today's over the
        # largest divisor that lies ahead.
        hope_B = log_probs_BK[:, 0] / jnp.maximum(divisor(n + 2), divisor(limit))
        is_full_B = best.scores[:, -1] > -jnp.inf
        is_done_B |= is_full_B & (early_stopping | (hope_B <= best.scores[:, -1]))
        is_done_B |= log_probs_BK[:, 0] == -jnp.inf
        return n + 1, cache, tokens_BKS, log_probs_BK, best, is_done_B

    tokens_BKS = jnp.repeat(tokens_BS[:, None], K, 1)
    none_BK = jnp.full((B, K), -jnp.inf)
    best = _Texts(
        none_BK, none_BK, tokens_BKS, jnp.zeros((B, K), jnp.int32), jnp.full((B, K), NOTHING, jnp.int32)
    )
    # The beams are alike at first: one of them goes on.
    log_probs_BK = jnp.where((jnp.arange(K) == 0)[None], 0.0, none_BK)
    carry = (jnp.int32(0), cache, tokens_BKS, log_probs_BK, best, jnp.full(B, False))
    return jax.lax.while_loop(goes_on, step, carry)[4]


@functools.partial(jax.jit, static_argnames=("num_results", "max_new_tokens"))
def _beams(
    found: _Texts, prompt_B: Array, stop: Sequences, pad: Any, num_results: int, max_new_tokens: int
) -> Beams:
    found = jax.tree.map(lambda x: x[:, :num_results], found)
    at_BN = prompt_B[:, None] + jnp.arange(max_new_tokens)[None]
    tokens_BKN = jnp.take_along_axis(found.tokens, at_BN[:, None], 2)
    tokens_BKN = jnp.where(jnp.arange(max_new_tokens)[None, None] < found.written[..., None], tokens_BKN, pad)
    ends_BK = found.written
    if stop.tokens_NL.shape[0]:
        ends_BK = ends_BK - jnp.where(found.stopped >= 0, stop.lengths()[found.stopped], 0)
    return Beams(tokens_BKN, found.written, found.log_probs, found.scores, found.stopped, ends_BK)
