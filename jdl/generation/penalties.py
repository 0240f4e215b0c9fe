"""Samplers that look at the text so far, or at single tokens: penalties, bans, lengths.

Axes: B rows, S places of a row, V vocabulary, N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdl.core import Array
from jdl.generation.samplers import check_number
from jdl.generation.sequences import History, Sampler, Sequences, ends_with, sequences, whole


def repetition_penalty(penalty: float, with_prompt: bool = True) -> Sampler:
    """Makes tokens that have come before less likely: a logit is divided by the penalty, or multiplied if
    negative.

    Args:
        penalty: positive; 1 changes nothing, below 1 rewards repetition.
        with_prompt: whether the prompt's tokens count.

    Raises:
        ValueError: if the penalty is not positive.

    Example:
        >>> history = History(jnp.array([[0, 1]]), jnp.array([2]), jnp.array([1]))
        >>> repetition_penalty(2.0)(jnp.array([[1.0, -1.0, 1.0]]), history).tolist()
        [[0.5, -2.0, 1.0]]

    Reference:
        Keskar et al., "CTRL: a conditional transformer language model for controllable generation", 2019,
        section 4.1.
    """
    check_number("repetition_penalty", penalty, 0, math.inf)
    return Partial(_repetition_penalty, penalty, with_prompt)


def presence_penalty(penalty: float, with_prompt: bool = False) -> Sampler:
    """Subtracts the penalty from the logits of tokens that have come before.

    Args:
        penalty: any number.
        with_prompt: whether the prompt's tokens count.

    Example:
        >>> history = History(jnp.array([[0, 1, 1]]), jnp.array([3]), jnp.array([1]))
        >>> presence_penalty(0.5)(jnp.zeros((1, 3)), history).tolist()
        [[0.0, -0.5, 0.0]]
    """
    check_number("presence_penalty", penalty, -math.inf, math.inf)
    return Partial(_presence_penalty, penalty, with_prompt)


def frequency_penalty(penalty: float, with_prompt: bool = False) -> Sampler:
    """Subtracts from each token's logit the penalty times the number of times that it has come before.

    Args:
        penalty: any number.
        with_prompt: whether the prompt's tokens count.

    Example:
        >>> history = History(jnp.array([[0, 1, 1]]), jnp.array([3]), jnp.array([1]))
        >>> frequency_penalty(0.5)(jnp.zeros((1, 3)), history).tolist()
        [[0.0, -1.0, 0.0]]
    """
    check_number("frequency_penalty", penalty, -math.inf, math.inf)
    return Partial(_frequency_penalty, penalty, with_prompt)


def logit_bias(biases: Mapping[int, float]) -> Sampler:
    """Adds to the logits of some tokens.

    Args:
        biases: from token to what is added.

    Raises:
        ValueError: if a key is no token, or a bias is not a number.

    Example:
        >>> logit_bias({2: 1.5})(jnp.zeros((1, 3)), None).tolist()
        [[0.0, 0.0, 1.5]]
    """
    tokens = sequences(list(biases), "logit_bias")
    if tokens.tokens_NL.shape[1] != 1:
        raise ValueError("logit_bias is given single tokens, not sequences")
    values = np.array(list(biases.values()), np.float32)
    if np.isnan(values).any():
        raise ValueError(f"logit_bias adds numbers to logits; got {dict(biases)}")
    return Partial(_logit_bias, tokens, values)


def banned(tokens: int | Sequence[int | Sequence[int]]) -> Sampler:
    """Keeps tokens and sequences of tokens from being written.

    Args:
        tokens: a token, or several, each a token or a sequence of tokens. Of a sequence the last token is
            forbidden where the text, the prompt included, ends with those before it.

    Raises:
        ValueError: if a sequence is empty, or holds what is no token.

    Example:
        >>> history = History(jnp.array([[2, 1]]), jnp.array([2]), jnp.array([1]))
        >>> banned([0, [1, 2], [2, 1]])(jnp.zeros((1, 3)), history).tolist()
        [[-inf, 0.0, -inf]]
    """
    return Partial(_banned, sequences(tokens, "banned"), 0)


def no_repeat_ngram(n: int) -> Sampler:
    """Lets no sequence of n tokens come twice in a text, the prompt included.

    Raises:
        ValueError: if n is no whole number, or less than 1.

    Example:
        >>> history = History(jnp.array([[1, 2, 0, 1]]), jnp.array([4]), jnp.array([1]))
        >>> no_repeat_ngram(2)(jnp.zeros((1, 3)), history).tolist()
        [[0.0, 0.0, -inf]]

    Reference:
        Paulus, Xiong and Socher, "A deep reinforced model for abstractive summarization", 2018.
    """
    return Partial(_no_repeat_ngram, whole("no_repeat_ngram", n))


def min_length(n: int, stop: int | Sequence[int | Sequence[int]]) -> Sampler:
    """Keeps what would end the text from being written before n other tokens are.

    Args:
        n: tokens after the prompt.
        stop: as in `banned`.

    Raises:
        ValueError: if n is no whole number or negative, or as `banned`.

    Example:
        >>> history = History(jnp.array([[1, 1]]), jnp.array([2]), jnp.array([1]))
        >>> min_length(2, stop=0)(jnp.zeros((1, 2)), history).tolist()
        [[-inf, 0.0]]
    """
    return Partial(_min_length, whole("min_length", n, 0), sequences(stop, "min_length"))


def max_length(n: int, token: int) -> Sampler:
    """Forces a token, such as the end of the text, to be the n-th after the prompt.

    Raises:
        ValueError: if n is no whole number, or less than 1; or if the token is none.

    Example:
        >>> history = History(jnp.array([[1, 1]]), jnp.array([2]), jnp.array([1]))
        >>> max_length(2, token=0)(jnp.zeros((1, 2)), history).tolist()
        [[0.0, -inf]]
    """
    return Partial(_max_length, whole("max_length", n), sequences([token], "max_length"))


def _counts(history: History, V: int, with_prompt: Any) -> Array:
    """How many times each token has come before, [B, V] in float32."""
    tokens_BS, lengths_B, prompt_B = history
    at_1S = jnp.arange(tokens_BS.shape[1])[None]
    first_B = jnp.where(with_prompt, 0, prompt_B)
    is_counted_BS = (at_1S >= first_B[:, None]) & (at_1S < lengths_B[:, None])
    rows_B1 = jnp.arange(len(tokens_BS))[:, None]
    return jnp.zeros((len(tokens_BS), V)).at[rows_B1, tokens_BS].add(is_counted_BS, mode="drop")


def _repetition_penalty(penalty: Any, with_prompt: Any, logits_BV: Array, history: History) -> Array:
    penalised_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(_counts(history, logits_BV.shape[-1], with_prompt) > 0, penalised_BV, logits_BV)


def _presence_penalty(penalty: Any, with_prompt: Any, logits_BV: Array, history: History) -> Array:
    return logits_BV - penalty * (_counts(history, logits_BV.shape[-1], with_prompt) > 0)


def _frequency_penalty(penalty: Any, with_prompt: Any, logits_BV: Array, history: History) -> Array:
    return logits_BV - penalty * _counts(history, logits_BV.shape[-1], with_prompt)


def _logit_bias(tokens: Sequences, biases_N: Array, logits_BV: Array, history: History) -> Array:
    return logits_BV.at[:, tokens.tokens_NL[:, 0]].add(biases_N[None], mode="drop")


def _banned(tokens: Sequences, starts_B: Any, logits_BV: Array, history: History) -> Array:
    """Without what would end a sequence that lies after ``starts_B``."""
    last_N = tokens.tokens_NL[:, -1]
    if tokens.tokens_NL.shape[1] == 1:
        return logits_BV.at[:, last_N].set(-jnp.inf, mode="drop")
    is_banned_BN = ends_with(history.tokens_BS, history.lengths_B, starts_B, tokens.without_last())
    return logits_BV.at[:, last_N].min(jnp.where(is_banned_BN, -jnp.inf, jnp.inf), mode="drop")


def _no_repeat_ngram(n: Any, logits_BV: Array, history: History) -> Array:
    tokens_BS, lengths_B, _ = history
    (B, S), V = tokens_BS.shape, logits_BV.shape[-1]
    at_1S = jnp.arange(S)[None]

    def compare(j: Any, is_same_BS: Array) -> Array:
        # Place i of a row is the last token of the n-gram that began j + 1 places before.
        earlier_BS = jnp.roll(tokens_BS, j + 1, 1)
        last_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(lengths_B[:, None] - 1 - j, 0), 1)
        return is_same_BS & (earlier_BS == last_B1)

    is_whole_BS = (at_1S >= n - 1) & (at_1S < lengths_B[:, None])
    is_last_BS = jax.lax.fori_loop(0, n - 1, compare, is_whole_BS)
    is_repeat_BV = jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], tokens_BS].max(is_last_BS, mode="drop")
    return jnp.where(is_repeat_BV, -jnp.inf, logits_BV)


def _min_length(n: Any, stop: Sequences, logits_BV: Array, history: History) -> Array:
    is_short_B = history.lengths_B - history.prompt_B < n
    # A text ends by what was written, whatever its prompt ends with.
    return jnp.where(is_short_B[:, None], _banned(stop, history.prompt_B, logits_BV, history), logits_BV)


def _max_length(n: Any, token: Sequences, logits_BV: Array, history: History) -> Array:
    is_last_B = history.lengths_B - history.prompt_B >= n - 1
    is_other_BV = jnp.arange(logits_BV.shape[-1])[None] != token.tokens_NL
    return jnp.where(is_last_B[:, None] & is_other_BV, -jnp.inf, logits_BV)
