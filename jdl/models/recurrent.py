"""Recurrent networks that classify sequences, or each of their elements.

Inputs are tokens int32 [B, T] or features [B, T, D], bare, or in a dictionary with "tokens" or "sequence"
and, where rows are padded, "lengths" int32 [B].

Axes: B batch, T time, D features of the input, H features of a layer, V vocabulary, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl import nn
from jdl.core import Array
from jdl.nn.linear import as_float, float32_dot_general
from jdl.nn.recurrence import Recurrence
from jdl.nn.recurrence_stack import LockedDropout
from jdl.nn.sequence import sequence

CellName = Literal["rnn", "lstm", "gru"]
CELLS: dict[str, type[Recurrence]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


_UNKNOWN = ("segments", "types", "positions")


def limits_of(vocab_size: int | None) -> dict[str, int]:
    """The ``limits`` of a module without positions (`jdl.tasks.sequences`): of tokens, if it takes any."""
    return {} if vocab_size is None else {"tokens": vocab_size}


def embedded(inputs: Any, embed: linen.Embed | None, model: str, dtype: Any) -> tuple[Array, Array | None]:
    """Inputs of a recurrent model as features [B, T, D], tokens by an embedding, and their lengths.

    Raises:
        ValueError: for inputs that are not tokens where there is an embedding, or features where there is
            none; for documents packed into one row, between which a state cannot be cut; and for types and
            positions.
    """
    given = sequence(inputs, model, floats=embed is None)
    if isinstance(inputs, Mapping) and any(inputs.get(part) is not None for part in _UNKNOWN):
        raise ValueError(f"{model} knows no {', '.join(_UNKNOWN)}: give each document a row of its own")
    x_BTD = embed(given.values) if embed else as_float(given.values, dtype)
    return x_BTD, given.lengths


def pooled(
    y_BTH: Array, lengths: Array | None, how: str, states: Callable[[], Sequence[Array]] | None = None
) -> Array:
    """What a sequence comes to, over its real steps.

    Args:
        y_BTH: outputs, zero where a step is not real.
        lengths: of the rows; a row of none gives zeros.
        how: "mean", "max", or "last" (of each direction the state at its end).
        states: gives the last states, each [B, H], for "last".

    Returns:
        [B, H].

    Example:
        >>> y = jnp.array([[[-1.0], [-3.0], [0.0]]])
        >>> [pooled(y, jnp.array([2]), how).item() for how in ("mean", "max")]
        [-2.0, -1.0]
    """
    if how == "last":
        return jnp.concatenate(list(states()) if states else [], -1).astype(y_BTH.dtype)
    T = y_BTH.shape[1]
    if how == "mean":
        if lengths is None:
            return y_BTH.mean(1)
        count = jnp.clip(lengths, 1, T).astype(jnp.float32)
        return (y_BTH.astype(jnp.float32).sum(1) / count[:, None]).astype(y_BTH.dtype)
    if lengths is None:
        return y_BTH.max(1)
    real_BT = jnp.arange(T)[None] < lengths[:, None]
    largest = jnp.where(real_BT[..., None], y_BTH, -jnp.inf).max(1)
    return jnp.where(lengths[:, None] > 0, largest, 0).astype(y_BTH.dtype)


def layers_of(
    cell: str, features: Sequence[int], bidirectional: bool = False, **options: Any
) -> list[Callable[..., Any]]:
    """Constructors of recurrent layers, for `jdl.nn.RecurrentStack`.

    Raises:
        ValueError: for an unknown cell.

    Example:
        >>> len(layers_of("gru", (8, 8), bidirectional=True))
        2
    """
    if cell not in CELLS:
        raise ValueError(f"the cells are {', '.join(CELLS)}; got {cell!r}")
    made = [functools.partial(CELLS[cell], H, **options) for H in features]
    return [functools.partial(nn.Bidirectional, layer) for layer in made] if bidirectional else [*made]


class Recurrent(linen.Module):
    """A classifier of sequences, or of each of their elements, by recurrent layers.

    Submodules are ``tokens`` (an embedding, for tokens), ``layers`` (a `jdl.nn.RecurrentStack`) and ``head``.

    Attributes:
        num_classes: C, number of logits; 0 gives the pooled features instead.
        features: H of each layer.
        cell: "rnn", "lstm" or "gru".
        bidirectional: a layer in each direction.
        pool: what of a sequence goes to the head: the "last" state of each direction, the "mean" or the "max"
            over its real steps, or "none": logits at every step.
        vocab_size: V; None for sequences of features.
        width: features of a token.
        dropout: of the layers' inputs, between layers, and before the head.
        locked: drop the same features at all steps of a sequence (variational dropout).
        recurrent_dropout: of the state, as in `jdl.nn.LSTM`.
        weight_drop: of the state's kernel, as in `jdl.nn.LSTM`.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the inputs are not sequences of the kind that the module is for, or an option is
            unknown.

    Example:
        >>> import jax
        >>> model = Recurrent(5, (8,), "gru", bidirectional=True, vocab_size=10, width=4)
        >>> inputs = {"tokens": jnp.zeros((2, 7), jnp.int32), "lengths": jnp.array([7, 3])}
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), inputs)[0]).shape
        (2, 5)

    Reference:
        Graves and Schmidhuber, "Framewise phoneme classification with bidirectional LSTM and other neural
        network architectures", 2005.
    """

    num_classes: int
    features: Sequence[int] = (128,)
    cell: CellName = "lstm"
    bidirectional: bool = False
    pool: Literal["last", "mean", "max", "none"] = "last"
    vocab_size: int | None = None
    width: int = 128
    dropout: float = 0.0
    locked: bool = False
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    dtype: Any = None

    @property
    def causal(self) -> bool:
        """Whether a step sees none after it."""
        return not self.bidirectional

    @property
    def limits(self) -> dict[str, int]:
        """How many tokens there are, by which tasks check sequences."""
        return limits_of(self.vocab_size)

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> Array:
        """Sequences to logits [B, C], or [B, T, C] without pooling."""
        if self.pool not in ("last", "mean", "max", "none"):
            raise ValueError(f'Recurrent has the pools "last", "mean", "max" and "none"; got {self.pool!r}')
        embed = None
        if self.vocab_size is not None:
            embed = linen.Embed(self.vocab_size, self.width, dtype=self.dtype, name="tokens")
        x_BTD, lengths = embedded(inputs, embed, "Recurrent", self.dtype)
        options = {
            "recurrent_dropout": self.recurrent_dropout,
            "weight_drop": self.weight_drop,
            "dtype": self.dtype,
        }
        layers = layers_of(self.cell, self.features, self.bidirectional, **options)
        drop = functools.partial(LockedDropout, self.dropout, self.locked)
        stack = nn.RecurrentStack(layers, self.dropout, self.locked, name="layers")
        y_BTH, carry = stack(drop()(x_BTD, train), lengths, None, train)
        if self.pool != "none":
            last = carry[-1] if self.bidirectional else (carry[-1],)
            y_BTH = pooled(y_BTH, lengths, self.pool, lambda: [direction[0] for direction in last])[:, None]
        y = drop()(y_BTH, train)
        if self.num_classes:
            dot = float32_dot_general
            y = nn.Dense(self.num_classes, dtype=self.dtype, dot_general=dot, name="head")(y)
        return y if self.pool == "none" else y[:, 0]


def tiny() -> tuple[Recurrent, dict[str, Any]]:
    """A bidirectional GRU with dropout, and a batch of 8 of which two rows are padded."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 2, 5, 5, 5, 3, 5, 5], np.int32)
    batch = {
        "inputs": {"sequence": rng.normal(size=(8, 5, 3)).astype(np.float32), "lengths": lengths},
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return Recurrent(4, (8,), "gru", bidirectional=True, dropout=0.2), batch
