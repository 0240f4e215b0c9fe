"""Recurrent language models, and AWD-LSTM.

Axes: B batch, T time, D features of a token, H features of a layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl import nn
from jdl.core import CARRY, LOSSES, Array, PyTree, psum
from jdl.models.recurrent import CELLS, CellName, embedded, layers_of, limits_of
from jdl.nn.dropout import Dropout, require_rate
from jdl.nn.linear import float32_dot_general
from jdl.nn.recurrence import uniform_within
from jdl.nn.recurrence_stack import LockedDropout


class RecurrentLM(linen.Module):
    """A recurrent language model, regularised as AWD-LSTM: embedding, layers, projection.

    Submodules are ``tokens`` (embedding [V, D]), ``layers`` (a `jdl.nn.RecurrentStack`) and, with tied
    weights, the parameter ``head_bias`` [V], else ``head``. A stateful model begins each row where the row of
    the batch before ended (collection ``carry``), so that training is truncated backpropagation through time
    and the gradient stops between batches.

    Attributes:
        vocab_size: V.
        width: D, features of a token.
        features: H of each layer; with tied weights the last must be D.
        cell: "rnn", "lstm" or "gru".
        tied: the projection is the embedding.
        dropout: of the last layer's outputs, locked.
        input_dropout: of the first layer's inputs, locked.
        hidden_dropout: between layers, locked.
        token_dropout: of whole words of the vocabulary, in the embedding.
        weight_drop: of the states' kernels.
        recurrent_dropout: of the states.
        activation_loss: weight of the mean square of the dropped outputs, added to the loss in training.
        change_loss: weight of the mean square of the outputs' change from step to step.
        stateful: carry the state from batch to batch.
        init_bound: parameters of layers begin uniform in +- 1 / sqrt(features), embeddings in +- this bound.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: for inputs that are not tokens, tied weights of two sizes, a rate out of range, or packed
            documents, between which a state cannot be cut.

    Example:
        >>> model, tokens = RecurrentLM(50, width=8, features=(16, 8)), jnp.zeros((2, 7), jnp.int32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> logits, cache = model.apply(variables, model.init_cache(2, 7), tokens, method="extend")
        >>> logits.shape, [[x.shape for x in layer] for layer in cache]
        ((2, 7, 50), [[(2, 16), (2, 16)], [(2, 8), (2, 8)]])

    Reference:
        Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", 2018. Tied weights:
        Press and Wolf, "Using the output embedding to improve language models", 2017.
    """

    vocab_size: int
    width: int = 400
    features: Sequence[int] = (1150, 1150, 400)
    cell: CellName = "lstm"
    tied: bool = True
    dropout: float = 0.0
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    token_dropout: float = 0.0
    weight_drop: float = 0.0
    recurrent_dropout: float = 0.0
    activation_loss: float = 0.0
    change_loss: float = 0.0
    stateful: bool = False
    init_bound: float = 0.1
    dtype: Any = None

    @property
    def causal(self) -> bool:
        """No step sees one after it."""
        return True

    @property
    def limits(self) -> dict[str, int]:
        """How many tokens there are, by which tasks check sequences."""
        return limits_of(self.vocab_size)

    def setup(self) -> None:
        if self.tied and self.features[-1] != self.width:
            raise ValueError(
                f"tied weights need a last layer as wide as a token, {self.width}; got {self.features[-1]}"
            )
        require_rate("token_dropout", self.token_dropout)
        self.tokens = linen.Embed(
            self.vocab_size, self.width, dtype=self.dtype, embedding_init=uniform_within(self.init_bound)
        )
        layers = []
        for H in self.features:
            layers += layers_of(
                self.cell,
                (H,),
                weight_drop=self.weight_drop,
                recurrent_dropout=self.recurrent_dropout,
                kernel_init=uniform_within(H**-0.5),
                recurrent_init=uniform_within(H**-0.5),
                bias_init=uniform_within(H**-0.5),
                recurrent_bias_init=uniform_within(H**-0.5),
                dtype=self.dtype,
            )
        self.layers = nn.RecurrentStack(layers, self.hidden_dropout, locked=True)
        self.input_drop = LockedDropout(self.input_dropout)
        self.output_drop = LockedDropout(self.dropout)
        self.token_drop = Dropout(self.token_dropout)
        if self.tied:
            self.head_bias = self.param("head_bias", linen.initializers.zeros, (self.vocab_size,))
        else:
            self.head = nn.Dense(
                self.vocab_size,
                dtype=self.dtype,
                kernel_init=uniform_within(self.init_bound),
                dot_general=float32_dot_general,
            )

    def __call__(self, inputs: Any, train: bool = False) -> Array:
        """Tokens [B, T] to logits [B, T, V] of the tokens that follow."""
        return self.logits(self.hidden(inputs, train))

    @linen.compact
    def hidden(self, inputs: Any, train: bool = False) -> Array:
        """Tokens [B, T] to what `logits` projects, [B, T, H]."""
        x_BTD, lengths = embedded(inputs, self.tokens, "RecurrentLM", self.dtype)
        if train and self.token_dropout:
            kept_V1 = self.token_drop(jnp.ones((self.vocab_size, 1), x_BTD.dtype), deterministic=False)
            x_BTD = x_BTD * kept_V1[inputs["tokens"] if isinstance(inputs, Mapping) else inputs]
        x_BTD = self.input_drop(x_BTD, train)
        state = None
        if self.stateful and (self.is_mutable_collection(CARRY) or self.has_variable(CARRY, "state")):
            state = self.variable(CARRY, "state", self.init_cache, x_BTD.shape[0], 0)
        before = None if state is None else state.value
        y_BTH, carry = self.layers(x_BTD, lengths, before, train)
        if state is not None and self.is_mutable_collection(CARRY) and not self.is_initializing():
            state.value = jax.lax.stop_gradient(carry)
        dropped_BTH = self.output_drop(y_BTH, train)
        if train and self.activation_loss:
            self._sow("activation", self.activation_loss, dropped_BTH, lengths)
        if train and self.change_loss:
            following = None if lengths is None else jnp.maximum(lengths - 1, 0)
            self._sow("change", self.change_loss, y_BTH[:, 1:] - y_BTH[:, :-1], following)
        return dropped_BTH

    def _sow(self, name: str, weight: float, x_BTH: Array, lengths: Array | None) -> None:
        """Adds ``weight`` times the mean square of x over its real steps to the losses."""
        squares_BT = jnp.square(x_BTH.astype(jnp.float32)).mean(-1)
        real_BT = jnp.ones(squares_BT.shape, bool)
        if lengths is not None:
            real_BT = jnp.arange(squares_BT.shape[1])[None] < lengths[:, None]
        # Of the whole batch, whose rows may be of other lengths on other devices.
        total, count = psum((jnp.where(real_BT, squares_BT, 0).sum(), real_BT.sum()))
        self.sow(LOSSES, name, weight * total / jnp.maximum(count, 1))

    def logits(self, h_BTH: Array) -> Array:
        """[..., H] to float32 logits [..., V]."""
        if not self.tied:
            return self.head(h_BTH)
        table_VD = self.tokens.embedding.astype(h_BTH.dtype)
        logits = float32_dot_general(h_BTH, table_VD, (((h_BTH.ndim - 1,), (1,)), ((), ())))
        return logits + self.head_bias.reshape((1,) * (logits.ndim - 1) + (-1,))

    def init_cache(self, batch_size: int, length: int) -> PyTree:
        """The state before the first token: of each layer (h,), of an LSTM (h, c), each [B, H]."""
        del length
        states = CELLS[self.cell].cell.states
        return tuple((jnp.zeros((batch_size, H)),) * states for H in self.features)

    def extend(self, cache: PyTree, tokens_BT: Array, lengths_B: Array | None = None) -> tuple[Array, PyTree]:
        """Reads tokens after what the cache knows, of each row the first ``lengths_B``.

        Returns:
            Logits [B, T, V] in float32 of the token after each, and the cache.
        """
        y_BTH, cache = self.layers(self.tokens(tokens_BT), lengths_B, cache, False)
        return self.logits(y_BTH), cache


def awd_lstm(vocab_size: int, **options: Any) -> RecurrentLM:
    """AWD-LSTM as published for WikiText-2: three layers of 1150, 1150 and 400, with all their regularisers.

    Args:
        vocab_size: V.
        **options: other attributes of `RecurrentLM`.

    Returns:
        The module.

    Example:
        >>> variables = jax.eval_shape(awd_lstm(33_278).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        33556078

    Reference:
        Merity et al. 2018; the settings are those of its published code for WikiText-2.
    """
    published: dict[str, Any] = {
        "dropout": 0.4,
        "input_dropout": 0.65,
        "hidden_dropout": 0.2,
        "token_dropout": 0.1,
        "weight_drop": 0.5,
        "activation_loss": 2.0,
        "change_loss": 1.0,
        "stateful": True,
    }
    return RecurrentLM(vocab_size, **{**published, **options})


def tiny() -> tuple[RecurrentLM, dict[str, Any]]:
    """Two layers with tied weights and dropout, and a batch of 8 rows, two of them padded."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (8, 1)) + np.arange(6)
    lengths = np.array([5, 2, 5, 5, 5, 3, 5, 5], np.int32)
    batch = {
        "inputs": {"tokens": (tokens[:, :-1] % 7).astype(np.int32), "lengths": lengths},
        "labels": (tokens[:, 1:] % 7).astype(np.int32),
    }
    model = RecurrentLM(
        7, 4, (6, 4), dropout=0.2, activation_loss=0.2, change_loss=0.1, stateful=True, init_bound=0.5
    )
    return model, batch
