"""Attention of a recurrent decoder to an encoded sequence, as before Transformers.

Axes: B batch, T steps of the decoder, S steps of what was encoded, M its features, A features of a score,
H features of the decoder's state, G gates times features.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen
from jax import lax

from jdl.core import Array
from jdl.nn.attention_parts import masked_softmax
from jdl.nn.linear import Dense
from jdl.nn.recurrence import Affine, Initializer, fitting_carry, orthogonal_gates, require_sequences
from jdl.nn.recurrence_cells import GRU_CELL, Carry, Cell


def weights_of_scores(scores_BTS: Array, real_BS: Array | None) -> Array:
    """softmax of the scores over the steps that are real, in float32; zeros where none is.

    Example:
        >>> weights_of_scores(jnp.zeros((1, 1, 3)), jnp.array([[True, True, False]])).tolist()
        [[[0.5, 0.5, 0.0]]]
    """
    return masked_softmax(scores_BTS.astype(jnp.float32), None if real_BS is None else real_BS[:, None])


def additive_scores(query_BTA: Array, key_BSA: Array, score_A: Array) -> Array:
    """v . tanh(q + k) for each pair of a query and a key, [B, T, S].

    Example:
        >>> additive_scores(jnp.ones((2, 3, 4)), jnp.ones((2, 5, 4)), jnp.ones(4)).shape
        (2, 3, 5)

    Reference:
        Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and translate",
        2015, appendix A.1.2.
    """
    return jnp.tanh(query_BTA[:, :, None] + key_BSA[:, None]) @ score_A


class AttentiveRecurrence(linen.Module):
    """A recurrent layer that looks at a memory before each step, with the state it is in.

    e_ts = v . tanh(W h_{t-1} + U m_s); c_t = sum_s softmax(e_t)_s m_s; h_t = cell(x_t, c_t, h_{t-1}). The
    keys U m_s come from `keys`, once for all steps. Submodules are ``input`` [D, G], ``context`` [M, G],
    ``recurrent`` [H, G], ``query`` [H, A] and ``key`` [M, A]; ``score`` [A] is v.

    Attributes:
        features: H, and A.
        cell: what a step computes.
        kernel_init: of all kernels but the state's.
        bias_init: of the inputs' bias.
        dtype: of products and outputs; the state and the weights of attention are float32.

    Raises:
        ValueError: for inputs, a memory with its keys, lengths or a carry that do not fit.

    Example:
        >>> import jax
        >>> layer = AttentiveRecurrence(4)
        >>> memory, x, carry = jnp.ones((2, 6, 3)), jnp.ones((2, 5, 8)), (jnp.zeros((2, 4)),)
        >>> run = lambda layer: layer(x, layer.keys(memory), memory, None, carry)
        >>> init = linen.init_with_output(run, layer)
        >>> (h, context, weights, carry), _ = jax.eval_shape(init, jax.random.key(0))
        >>> h.shape, context.shape, weights.shape
        ((2, 5, 4), (2, 5, 3), (2, 5, 6))

    Reference:
        Bahdanau, Cho and Bengio 2015, section 3.1 and appendix A.
    """

    features: int
    cell: Cell = GRU_CELL
    kernel_init: Initializer = linen.initializers.lecun_normal()
    bias_init: Initializer = linen.initializers.zeros
    dtype: Any = None

    def setup(self) -> None:
        G, init = self.cell.gates * self.features, self.kernel_init
        self.input = Dense(G, dtype=self.dtype, kernel_init=init, bias_init=self.bias_init)
        self.context = Affine(G, init, None)
        self.recurrent = Affine(G, orthogonal_gates, linen.initializers.zeros)
        self.query = Affine(self.features, init, None)
        self.key = Dense(self.features, dtype=self.dtype, kernel_init=init)
        self.score = self.param("score", linen.initializers.normal(self.features**-0.5), (self.features,))

    def keys(self, memory_BSM: Array) -> Array:
        """What the memory gives to the scores, [B, S, A]."""
        return self.key(memory_BSM)

    def __call__(
        self,
        x_BTD: Array,
        key_BSA: Array,
        memory_BSM: Array,
        real_BS: Array | None,
        carry: Carry,
        lengths: Array | None = None,
    ) -> tuple[Array, Array, Array, Carry]:
        """Runs over the sequences.

        Args:
            x_BTD: the inputs.
            key_BSA: of `keys`.
            memory_BSM: what is looked at.
            real_BS: booleans: which of its steps may be looked at; None for all.
            carry: the state before the first step.
            lengths: int32 [B], how many steps of each row are real, the first ones; None for all.

        Returns:
            Outputs [B, T, H]; the contexts [B, T, M]; the weights of attention [B, T, S], float32; and the
            carry after each row's last real step. Where a step is not real the first three mean nothing.
        """
        require_sequences(x_BTD, lengths, "AttentiveRecurrence")
        B, T, _ = x_BTD.shape
        H, S = self.features, memory_BSM.shape[1:2]
        if memory_BSM.ndim != 3 or memory_BSM.shape[0] != B or key_BSA.shape != (B, *S, H):
            raise ValueError(
                f"AttentiveRecurrence takes a memory [{B}, steps, features] and its own keys of it, "
                f"[{B}, steps, {H}]; got shapes {memory_BSM.shape} and {key_BSA.shape}"
            )
        if real_BS is not None and real_BS.shape != (B, *S):
            raise ValueError(f"what is real of a memory has shape {(B, *S)}; got {tuple(real_BS.shape)}")
        carry = fitting_carry(carry, self.cell.name, self.cell.states, (B, H))
        real_TB = None if lengths is None else jnp.arange(T)[:, None] < lengths[None]
        x_TBG = self.input(x_BTD.swapaxes(0, 1))
        dtype = x_TBG.dtype
        (U, b), (C, _), (W, _) = (
            self.recurrent(self.features),
            self.context(memory_BSM.shape[-1]),
            self.query(self.features),
        )
        U, C, W, score_A = (w.astype(dtype) for w in (U, C, W, self.score))
        memory_BSM, key_BSA = memory_BSM.astype(dtype), key_BSA.astype(dtype)

        def step(before: Carry, given: Any) -> tuple[Carry, tuple[Array, Array, Array]]:
            x_BG, real_B = given
            h_BH = before[0].astype(dtype)
            scores_B1S = additive_scores((h_BH @ W)[:, None], key_BSA, score_A)
            weights_BS = weights_of_scores(scores_B1S, real_BS)[:, 0]
            context_BM = jnp.einsum("BS,BSM->BM", weights_BS.astype(dtype), memory_BSM)
            r_BG = jnp.dot(h_BH, U, preferred_element_type=jnp.float32) + b.astype(jnp.float32)[None]
            x_BG = x_BG.astype(jnp.float32) + jnp.dot(context_BM, C, preferred_element_type=jnp.float32)
            after, _ = self.cell.forward(x_BG, r_BG, before)
            h_BH = after[0].astype(dtype)
            if real_B is not None:
                after = tuple(
                    jnp.where(real_B[:, None], new, old) for new, old in zip(after, before, strict=True)
                )
            return after, (h_BH, context_BM, weights_BS)

        carry, found = lax.scan(step, carry, (x_TBG, real_TB))
        h_BTH, context_BTM, weights_BTS = (x.swapaxes(0, 1) for x in found)
        return h_BTH, context_BTM, weights_BTS, carry
