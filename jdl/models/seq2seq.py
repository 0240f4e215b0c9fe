"""Recurrent encoder and decoder with attention.

Axes: B batch, S steps of the source, T steps of the target, D features of a token, H features of a state, A
features of a score, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl import nn
from jdl.core import Array, PyTree
from jdl.models.recurrent import CELLS, embedded, layers_of, limits_of
from jdl.nn.linear import Dense, float32_dot_general
from jdl.nn.recurrence import open_forget_gate
from jdl.nn.recurrence_attention import AttentiveRecurrence, weights_of_scores
from jdl.nn.recurrence_stack import LockedDropout


class Seq2Seq(linen.Module):
    """A bidirectional encoder, a decoder that attends to it, h~ = tanh(W [h; context]), a projection of h~.

    With Bahdanau's attention, "additive", the decoder's first layer looks at the source before each step.
    With Luong's, "dot" (h . m) or "general" (h . W m), the decoder looks after its last layer, for all steps
    at once. Each decoder layer starts in the last states of the encoder's layer, both directions together.
    Submodules are ``source_tokens``, ``target_tokens``, ``encoder``, ``decoder`` (and ``attend``, the first
    layer of an additive one), ``key`` (general), ``readout`` and ``head``.

    The inputs are {"source": ..., "target": ...}, each tokens [B, T] or a dictionary of "tokens" and
    "lengths"; a source without a vocabulary is a "sequence" of features. The target is what the decoder
    reads.

    Attributes:
        vocab_size: V of the target.
        source_vocab_size: V of the source; None for features.
        width: D.
        features: H, even; each direction of the encoder has half.
        depth: layers of the encoder, and of the decoder.
        cell: "lstm" or "gru" (or "rnn").
        attention: "additive", "dot" or "general".
        dropout: of embeddings, between layers, and of h~.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: for inputs that are not a source and a target, an odd H or an unknown option.

    Example:
        >>> import jax
        >>> model = Seq2Seq(20, 30, width=4, features=6)
        >>> inputs = {"source": jnp.zeros((2, 7), jnp.int32), "target": jnp.zeros((2, 5), jnp.int32)}
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
        >>> sorted(variables["params"])
        ['attend', 'encoder', 'head', 'readout', 'source_tokens', 'target_tokens']
        >>> jax.eval_shape(model.apply, variables, inputs).shape
        (2, 5, 20)

    Reference:
        Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and translate",
        2015; Luong, Pham and Manning, "Effective approaches to attention-based neural machine translation",
        2015, section 3.1, without input feeding.
    """

    vocab_size: int
    source_vocab_size: int | None = None
    width: int = 256
    features: int = 256
    depth: int = 1
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    attention: Literal["additive", "dot", "general"] = "additive"
    dropout: float = 0.0
    dtype: Any = None

    @property
    def limits(self) -> dict[str, dict[str, int]]:
        """How many tokens there are, by which tasks check sequences."""
        return {"source": limits_of(self.source_vocab_size), "target": limits_of(self.vocab_size)}

    def setup(self) -> None:
        if self.features % 2:
            raise ValueError(f"each direction of the encoder has half of the features; got {self.features}")
        if self.attention not in ("additive", "dot", "general"):
            raise ValueError(
                f'Seq2Seq has the attentions "additive", "dot" and "general"; got {self.attention!r}'
            )
        H, L, dtype = self.features, self.depth, self.dtype
        if self.source_vocab_size is not None:
            self.source_tokens = linen.Embed(self.source_vocab_size, self.width, dtype=dtype)
        self.target_tokens = linen.Embed(self.vocab_size, self.width, dtype=dtype)
        self.encoder = nn.RecurrentStack(
            layers_of(self.cell, (H // 2,) * L, bidirectional=True, dtype=dtype), self.dropout
        )
        is_additive = self.attention == "additive"
        if is_additive:
            bias = open_forget_gate if self.cell == "lstm" else linen.initializers.zeros
            self.attend = AttentiveRecurrence(H, CELLS[self.cell].cell, bias_init=bias, dtype=dtype)
        elif self.attention == "general":
            self.key = Dense(H, use_bias=False, dtype=dtype)
        self.decoder = nn.RecurrentStack(
            layers_of(self.cell, (H,) * (L - is_additive), dtype=dtype), self.dropout
        )
        self.drop = LockedDropout(self.dropout, locked=False)
        self.readout = Dense(H, dtype=dtype)
        self.head = Dense(self.vocab_size, dtype=dtype, dot_general=float32_dot_general)

    def __call__(self, inputs: Any, train: bool = False) -> Array:
        """A source and a target to logits [B, T, V] of the tokens that follow in the target."""
        return self.logits(self.hidden(inputs, train))

    def hidden(self, inputs: Any, train: bool = False) -> Array:
        """A source and a target to what `logits` projects, [B, T, H]."""
        return self._decoded(inputs, train)[0]

    def alignment(self, inputs: Any) -> Array:
        """The weights of attention [B, T, S], float32, of each step of the target to the source."""
        return self._decoded(inputs, False)[1]

    def logits(self, h_BTH: Array) -> Array:
        """[..., H] to float32 logits [..., V]."""
        return self.head(h_BTH)

    def encode(self, source: Any, train: bool = False) -> PyTree:
        """What the decoder needs of a source.

        Returns:
            ``states`` [B, S, H]; ``keys`` [B, S, A], what of them is compared; ``real`` bool [B, S]; and
            ``carry``, the decoder's first.
        """
        embed = None if self.source_vocab_size is None else self.source_tokens
        x_BSD, lengths = embedded(source, embed, "the encoder of Seq2Seq", self.dtype)
        states_BSH, carries = self.encoder(self.drop(x_BSD, train), lengths, None, train)
        B, S, _ = states_BSH.shape
        real_BS = jnp.ones((B, S), bool) if lengths is None else jnp.arange(S)[None] < lengths[:, None]
        project = {"additive": lambda x: self.attend.keys(x), "general": lambda x: self.key(x)}
        carry = tuple(
            tuple(jnp.concatenate(both, -1) for both in zip(forward, backward, strict=True))
            for forward, backward in carries
        )
        return {
            "states": states_BSH,
            "keys": project.get(self.attention, lambda x: x)(states_BSH),
            "real": real_BS,
            "carry": carry,
        }

    def _decoded(self, inputs: Any, train: bool) -> tuple[Array, Array]:
        if not isinstance(inputs, Mapping) or set(inputs) != {"source", "target"}:
            found = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f'Seq2Seq takes {{"source": ..., "target": ...}}; got {found}')
        memory = self.encode(inputs["source"], train)
        y_BTD, lengths = embedded(inputs["target"], self.target_tokens, "the decoder of Seq2Seq", self.dtype)
        h_BTH, weights_BTS, _ = self._decode(memory, memory["carry"], y_BTD, lengths, train)
        return h_BTH, weights_BTS

    def _decode(
        self, memory: PyTree, carry: PyTree, y_BTD: Array, lengths: Array | None, train: bool
    ) -> tuple[Array, Array, PyTree]:
        """h~ [B, T, H], the weights of attention [B, T, S] and the carry after reading y."""
        states_BSH, keys_BSA, real_BS = memory["states"], memory["keys"], memory["real"]
        h_BTH = self.drop(y_BTD, train)
        if self.attention == "additive":
            h_BTH, context_BTH, weights_BTS, first = self.attend(
                h_BTH, keys_BSA, states_BSH, real_BS, carry[0], lengths
            )
            if self.depth > 1:
                h_BTH, carry = self.decoder(self.drop(h_BTH, train), lengths, carry[1:], train)
            carry = (first, *(carry if self.depth > 1 else ()))
        else:
            h_BTH, carry = self.decoder(h_BTH, lengths, carry, train)
            scores_BTS = jnp.einsum(
                "BTH,BSH->BTS", h_BTH, keys_BSA.astype(h_BTH.dtype), preferred_element_type=jnp.float32
            )
            weights_BTS = weights_of_scores(scores_BTS, real_BS)
            context_BTH = jnp.einsum(
                "BTS,BSH->BTH", weights_BTS.astype(h_BTH.dtype), states_BSH.astype(h_BTH.dtype)
            )
        h_BTH = jnp.tanh(self.readout(jnp.concatenate([h_BTH, context_BTH], -1)))
        return self.drop(h_BTH, train), weights_BTS, carry

    def init_cache(self, batch_size: int, length: int, memory: PyTree) -> PyTree:
        """The decoder before the first token: its ``carry``, and the ``memory`` it attends to.

        Raises:
            ValueError: if the memory has another number of rows.
        """
        del length
        rows = memory["real"].shape[0]
        if rows != batch_size:
            raise ValueError(
                f"{rows} sources were encoded, one for each row to write; asked for {batch_size}"
            )
        kept = {name: memory[name] for name in ("states", "keys", "real")}
        return {"carry": memory["carry"], "memory": kept}

    def extend(self, cache: PyTree, tokens_BT: Array, lengths_B: Array | None = None) -> tuple[Array, PyTree]:
        """Reads tokens after what the cache knows, of each row the first ``lengths_B``.

        Returns:
            Logits [B, T, V] in float32 of the token after each, and the cache.
        """
        y_BTD = self.target_tokens(tokens_BT)
        h_BTH, _, carry = self._decode(cache["memory"], cache["carry"], y_BTD, lengths_B, False)
        return self.logits(h_BTH), {**cache, "carry": carry}


def tiny() -> tuple[Seq2Seq, dict[str, Any]]:
    """GRUs with additive attention and dropout, and a batch of 8, sources and targets padded."""
    rng = np.random.default_rng(0)
    source = rng.integers(1, 7, (8, 4)).astype(np.int32)
    target = np.concatenate([np.zeros((8, 1), np.int32), source[:, :2]], 1)
    lengths = np.array([4, 2, 4, 4, 4, 3, 4, 4], np.int32)
    batch = {
        "inputs": {
            "source": {"tokens": source, "lengths": lengths},
            "target": {"tokens": target, "lengths": np.minimum(lengths, 3)},
        },
        "labels": source[:, :3],
    }
    return Seq2Seq(7, 7, 4, 6, 1, "gru", dropout=0.2), batch
