"""Texts: rows of tokens of uneven length, what a sampler sees of them, and sequences that may end them.

Axes: B rows, S places of a row, N sequences, L longest sequence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdl.core import Array

_ANY = -1


class History(NamedTuple):
    """The text so far, of which a sampler may make use.

    Attributes:
        tokens_BS: int32, the prompt and what was written after it; the places after ``lengths_B`` mean
            nothing.
        lengths_B: int32, tokens in each row.
        prompt_B: int32, how many of them, the first ones, are the prompt.
    """

    tokens_BS: Array
    lengths_B: Array
    prompt_B: Array


Sampler = Callable[[Array, History], Array]
"""``logits_BV, history -> logits_BV`` in float32; minus infinity for a token that must not come."""


def pure(function: Any) -> Partial:
    """The function as a pytree, for a compiled program to take as an argument.

    Raises:
        ValueError: if it is no function.
    """
    if not callable(function):
        raise ValueError(f"samplers and penalties are functions, as jdl.generation has; got {function!r}")
    return function if isinstance(function, Partial) else Partial(function)


def whole(name: str, value: Any, least: int = 1) -> Any:
    """A number of tokens as Python's integer; one that is traced is not known.

    Raises:
        ValueError: if it is no whole number, or less than ``least``.

    Example:
        >>> whole("top_k", np.int32(3))
        3
    """
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return number


class Sequences(NamedTuple):
    """Short sequences of tokens of uneven length: int32 [N, L], each at the right end of its row."""

    tokens_NL: Any

    def lengths(self) -> Any:
        """int32 [N]."""
        return (self.tokens_NL >= 0).sum(-1)

    def without_last(self) -> Sequences:
        """The sequences without their last tokens; one that is empty then ends every text."""
        return Sequences(jnp.pad(self.tokens_NL[:, :-1], ((0, 0), (1, 0)), constant_values=_ANY))


def sequences(given: int | Sequence[int | Sequence[int]] | np.ndarray, what: str = "stop") -> Sequences:
    """Sequences of tokens as one array.

    Args:
        given: a token, or several, each a token or a sequence of tokens.
        what: what they are called in errors.

    Returns:
        The sequences, in the order given.

    Raises:
        ValueError: if a sequence is empty, or holds what is no token.

    Example:
        >>> sequences([7, [1, 2]]).tokens_NL.tolist()
        [[-1, 7], [1, 2]]
    """
    if given is None:
        raise ValueError(f"{what} must be tokens or sequences of tokens, () for none; got None")
    is_single = isinstance(given, int | np.integer) or getattr(given, "ndim", 1) == 0
    listed: list[Any] = [given] if is_single else list(given)  # type: ignore[arg-type]
    rows = [np.atleast_1d(np.asarray(sequence)) for sequence in listed]
    for row in rows:
        if row.size == 0:
            raise ValueError(f"{what}: a sequence of tokens must not be empty")
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer) or row.min() < 0:
            raise ValueError(
                f"{what} must be tokens (integers from 0 on) or sequences of tokens; got {row.tolist()}"
            )
    tokens_NL = np.full((len(rows), max((row.size for row in rows), default=1)), _ANY, np.int32)
    for n, row in enumerate(rows):
        tokens_NL[n, -row.size :] = row
    return Sequences(tokens_NL)


def ends_with(tokens_BS: Array, lengths_B: Array, starts_B: Any, ends: Sequences) -> Array:
    """Which rows end with which sequences.

    Args:
        tokens_BS: rows of tokens.
        lengths_B: tokens in each row.
        starts_B: where the part of a row begins in which a sequence must lie.
        ends: N sequences.

    Returns:
        Booleans [B, N].

    Example:
        >>> ends_with(jnp.array([[5, 1, 2, 0]]), jnp.array([3]), 0, sequences([7, [1, 2]])).tolist()
        [[False, True]]
    """
    L = ends.tokens_NL.shape[1]
    at_BL = lengths_B[:, None] - L + jnp.arange(L)[None]
    last_BL = jnp.take_along_axis(tokens_BS, jnp.maximum(at_BL, 0), 1)
    is_inside_BL = at_BL >= jnp.broadcast_to(starts_B, lengths_B.shape)[:, None]
    is_equal_BNL = (last_BL[:, None] == ends.tokens_NL[None]) & is_inside_BL[:, None]
    return (is_equal_BNL | (ends.tokens_NL == _ANY)[None]).all(-1)


def append(tokens_BS: Array, lengths_B: Array, token_B: Array, where_B: Array) -> Array:
    """Writes a token after each row that ``where_B`` says; there must be a place for it."""
    at_B = jnp.where(where_B, lengths_B, tokens_BS.shape[1])
    return tokens_BS.at[jnp.arange(len(tokens_BS)), at_B].set(token_B, mode="drop")


def padded(prompts: Any, lengths: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as an array and the number of tokens in each.

    Args:
        prompts: integers [B, T], or a list of B sequences of uneven length.
        lengths: [B], real tokens of each row, the first ones; all when None. Only with an array.

    Returns:
        int32 [B, T] and int32 [B].

    Raises:
        ValueError: if there are no prompts, one is empty, they are not integers, or the lengths do not fit.

    Example:
        >>> tokens, lengths = padded([[5, 6, 7], [8]])
        >>> tokens.tolist(), lengths.tolist()
        ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """
    if isinstance(prompts, list | tuple):
        rows = [np.asarray(row) for row in prompts]
        if any(row.ndim != 1 for row in rows):
            raise ValueError("prompts must be [B, T], or a list of B sequences of tokens, one a row")
        if lengths is None:
            lengths = [row.size for row in rows]
            longest = max(lengths, default=0)
            prompts = [np.pad(row, (0, longest - row.size)) for row in rows if row.size]
            if len(prompts) < len(rows):
                raise ValueError(f"prompt {lengths.index(0)} is empty; a prompt has at least one token")
    tokens_BT = np.asarray(jax.device_get(prompts))
    if tokens_BT.size == 0:
        raise ValueError(f"prompts are empty, shape {tokens_BT.shape}; each has at least one token")
    if tokens_BT.ndim != 2:
        raise ValueError(f"prompts must be [B, T], or a list of B sequences; got shape {tokens_BT.shape}")
    if not np.issubdtype(tokens_BT.dtype, np.integer):
        raise ValueError(f"prompts must be integers, the tokens; got {tokens_BT.dtype}")
    B, T = tokens_BT.shape
    lengths_B = np.full(B, T) if lengths is None else np.asarray(jax.device_get(lengths))
    if lengths_B.shape != (B,) or not np.issubdtype(lengths_B.dtype, np.integer):
        raise ValueError(f"lengths must be {B} integers, one a prompt; got {lengths_B.tolist()}")
    wrong = np.flatnonzero((lengths_B < 1) | (lengths_B > T))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(f"length {row} must be 1 to {T}, the prompts' width; got {lengths_B[row]}")
    return np.where(np.arange(T) < lengths_B[:, None], tokens_BT, 0), lengths_B.astype(np.int32)


def check_tokens(tokens: Any, vocabulary: int, what: str) -> None:
    """Raises ValueError if a token is outside the vocabulary.

    Example:
        >>> check_tokens(np.array([3, 9]), 8, "prompts")
        Traceback (most recent call last):
        ...
        ValueError: prompts: token 9 is outside the vocabulary, 0..7
    """
    tokens = np.asarray(tokens)
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if outside.size:
        raise ValueError(f"{what}: token {outside[0]} is outside the vocabulary, 0..{vocabulary - 1}")
