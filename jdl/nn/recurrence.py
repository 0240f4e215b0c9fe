"""Recurrent layers of one direction: Elman's, the LSTM and the GRU.

The parameters are PyTorch's: a kernel and a bias of the inputs, a kernel and a bias of the state, gates in
its order, so that weights go both ways and gradient steps are the same. (But for the GRU's candidate the two
biases add up to one.) A carry is a tuple of arrays [B, H] in float32, the first of which is what the layer
gave out: ``(h,)``, of the LSTM ``(h, c)``.

Axes: B batch, T time, D input features, H features of the state, G gates times features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jdl.core import Array, PyTree
from jdl.nn.dropout import Dropout, require_rate
from jdl.nn.linear import Dense, as_float
from jdl.nn.recurrence_cells import ELMAN_TANH, GRU_CELL, LSTM_CELL, Carry, Cell
from jdl.nn.recurrence_scan import How, recur, recur_plain

Initializer = Callable[..., Array]


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """A kernel [H, G] whose gates are orthogonal matrices, each drawn for itself.

    Example:
        >>> w = orthogonal_gates(jax.random.key(0), (4, 12))[:, 4:8]
        >>> bool(jnp.allclose(w @ w.T, jnp.eye(4), atol=1e-5))
        True

    Reference:
        Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear
        neural networks", 2014.
    """
    H, G = shape
    draw = lambda key: linen.initializers.orthogonal()(key, (H, H), dtype)
    return jnp.concatenate([draw(key) for key in jax.random.split(key, G // H)], -1)


def open_forget_gate(key: Array, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
    """The bias of an LSTM that remembers before it has learnt to: 1 for its forget gate, 0 else.

    Example:
        >>> open_forget_gate(jax.random.key(0), (8,)).tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]

    Reference:
        Jozefowicz, Zaremba and Sutskever, "An empirical exploration of recurrent network architectures",
        2015.
    """
    del key
    H = shape[0] // 4
    return jnp.zeros(shape, dtype).at[H : 2 * H].set(1)


def uniform_within(bound: float) -> Initializer:
    """Uniform in [-bound, bound]; PyTorch's layers have 1 / sqrt(H) for all of their parameters.

    Example:
        >>> bool(jnp.abs(uniform_within(0.1)(jax.random.key(0), (3, 4))).max() <= 0.1)
        True
    """

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class Affine(linen.Module):
    """The parameters of a `jdl.nn.Dense` that a loop over time applies.

    Attributes:
        features: G.
        kernel_init: of the kernel.
        bias_init: of the bias; None for a bias of zeros that is no parameter.
    """

    features: int
    kernel_init: Initializer
    bias_init: Initializer | None

    @linen.compact
    def __call__(self, H: int) -> tuple[Array, Array]:
        """``kernel`` [H, G] and ``bias`` [G]."""
        kernel = self.param("kernel", self.kernel_init, (H, self.features))
        if self.bias_init is None:
            return kernel, jnp.zeros(self.features)
        return kernel, self.param("bias", self.bias_init, (self.features,))


class Recurrence(linen.Module):
    """One layer of a recurrent network in one direction; `RNN`, `LSTM` and `GRU` are its kinds.

    The gates of all steps get what the inputs give them in one matrix product, then a loop over time does the
    rest (`jdl.nn.recurrence_scan.recur`). Submodules are ``input``, kernel [D, G] and bias [G], and
    ``recurrent``, kernel [H, G] and bias [G].

    Attributes:
        features: H.
        cell: what a step computes.
        reverse: from the last real step of each row to the first.
        recurrent_dropout: probability of dropping a feature of the state, the same ones at all steps, on its
            way into the gates (variational dropout).
        weight_drop: probability of dropping an entry of the state's kernel, the same ones at all steps and in
            all rows (DropConnect).
        kernel_init: of the inputs' kernel.
        recurrent_init: of the state's kernel.
        bias_init: of the inputs' bias.
        recurrent_bias_init: of the state's bias.
        unroll: steps of time in one turn of the loop. More than 1 was no faster on a CPU.
        plain: leave the gradient to JAX: slower, but it differentiates forward too (`jax.jvp`, `jax.jacfwd`).
        dtype: of products and outputs; the state and what is computed elementwise are float32.

    Raises:
        ValueError: for inputs that are not [B, T, D], lengths or a carry that do not fit, or a rate out of
            range.

    Reference:
        Variational dropout: Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent
        neural networks", 2016. Weight drop: Merity, Keskar and Socher, "Regularizing and optimizing LSTM
        language models", 2018, section 2.
    """

    features: int
    cell: Cell = ELMAN_TANH
    reverse: bool = False
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    kernel_init: Initializer = linen.initializers.lecun_normal()
    recurrent_init: Initializer = orthogonal_gates
    bias_init: Initializer = linen.initializers.zeros
    recurrent_bias_init: Initializer = linen.initializers.zeros
    unroll: int = 1
    plain: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(
        self,
        x_BTD: Array,
        lengths: Array | None = None,
        carry: Carry | None = None,
        train: bool = False,
    ) -> tuple[Array, Carry]:
        """Runs over the sequences.

        Args:
            x_BTD: the inputs.
            lengths: int32 [B], how many steps of each row are real, the first ones. What comes after them,
                whatever it is, reaches neither outputs (which are zero there) nor carry nor gradients. None
                where all steps are real.
            carry: the state before the first step; zeros when None.
            train: drop what is to be dropped.

        Returns:
            Outputs [B, T, H], and the carry after each row's last real step.
        """
        require_rate("recurrent_dropout", self.recurrent_dropout)
        require_rate("weight_drop", self.weight_drop)
        x_BTD = as_float(x_BTD, self.dtype)
        require_sequences(x_BTD, lengths, type(self).__name__)
        B, T, _ = x_BTD.shape
        cell, H, G = self.cell, self.features, self.cell.gates * self.features
        carry = self.zero_carry(B) if carry is None else fitting_carry(carry, cell.name, cell.states, (B, H))
        real_TB = None if lengths is None else jnp.arange(T)[:, None] < lengths[None]
        x_TBD = x_BTD.swapaxes(0, 1)
        if real_TB is not None:
            # Not a number times the zero gradient of padding would not be zero.
            x_TBD = jnp.where(real_TB[..., None], x_TBD, 0)
        x_TBG = Dense(
            G, dtype=self.dtype, kernel_init=self.kernel_init, bias_init=self.bias_init, name="input"
        )(x_TBD)
        kernel_HG, bias_G = Affine(G, self.recurrent_init, self.recurrent_bias_init, name="recurrent")(H)
        kernel_HG = Dropout(self.weight_drop, deterministic=not train)(kernel_HG)
        drop_BH = None
        if train and self.recurrent_dropout:
            drop_BH = Dropout(self.recurrent_dropout, deterministic=False)(jnp.ones((B, H)))
        if not cell.bias_inside:
            x_TBG = x_TBG + bias_G.astype(x_TBG.dtype)[None, None]
        h_TBH, carry = (recur_plain if self.plain else recur)(
            cell,
            x_TBG,
            kernel_HG.astype(x_TBG.dtype),
            bias_G if cell.bias_inside else None,
            carry,
            real_TB,
            drop_BH,
            How(self.reverse, self.unroll),
        )
        return h_TBH.swapaxes(0, 1), carry

    def zero_carry(self, batch_size: int) -> Carry:
        """The carry of sequences that begin."""
        return (jnp.zeros((batch_size, self.features)),) * self.cell.states


class RNN(Recurrence):
    """Elman's network: h_t = tanh(x_t W + b + h_{t-1} U + b'). Attributes and parameters as in `Recurrence`.

    ``cell=jdl.nn.recurrence_cells.ELMAN_RELU`` has max(0, .) in place of tanh.

    Example:
        >>> x, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
        >>> (y, (h,)), variables = jax.jit(RNN(4).init_with_output)(jax.random.key(0), x, lengths)
        >>> y.shape, bool((y[1, 1] == h[1]).all()), float(y[1, 2:].sum())
        ((2, 5, 4), True, 0.0)

    Reference:
        Elman, "Finding structure in time", 1990.
    """


class LSTM(Recurrence):
    """Long short-term memory. Attributes and parameters as in `Recurrence`; the carry is (h, c).

    Example:
        >>> init = LSTM(4).init_with_output
        >>> (y, (h, c)), variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> y.shape, c.shape, variables["params"]["recurrent"]["kernel"].shape
        ((2, 5, 4), (2, 4), (4, 16))

    Reference:
        Hochreiter and Schmidhuber, "Long short-term memory", 1997; the forget gate: Gers, Schmidhuber and
        Cummins, "Learning to forget: continual prediction with LSTM", 2000.
    """

    cell: Cell = LSTM_CELL
    bias_init: Initializer = open_forget_gate


class GRU(Recurrence):
    """Gated recurrent unit, its reset gate after the product. Attributes and parameters as in `Recurrence`.

    Example:
        >>> init = GRU(4).init_with_output
        >>> (y, (h,)), variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> y.shape, variables["params"]["recurrent"]["kernel"].shape
        ((2, 5, 4), (4, 12))

    Reference:
        Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
        translation", 2014, equations 5 to 8, where the reset gate comes before the product.
    """

    cell: Cell = GRU_CELL


def require_sequences(x_BTD: Array, lengths: Array | None, model: str) -> None:
    """Refuses inputs that are not sequences [B, T, D], and lengths that are not integers [B].

    Raises:
        ValueError: if they are something else.

    Example:
        >>> require_sequences(jnp.zeros((4, 7)), None, "LSTM")
        Traceback (most recent call last):
        ValueError: LSTM takes sequences [batch, time, features]; got shape (4, 7)
    """
    if x_BTD.ndim != 3:
        raise ValueError(f"{model} takes sequences [batch, time, features]; got shape {tuple(x_BTD.shape)}")
    require_lengths(lengths, x_BTD)


def require_lengths(lengths: Array | None, x_BT: Array) -> None:
    """Refuses lengths that are not one integer for each row of x [B, T, ...].

    Raises:
        ValueError: if they are something else.
    """
    if lengths is None:
        return
    wanted = f"lengths are an array of one integer a row, {tuple(x_BT.shape[:1])} in all"
    if not hasattr(lengths, "dtype"):
        raise ValueError(f"{wanted}; got a {type(lengths).__name__}")
    if lengths.shape != x_BT.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"{wanted}; got {lengths.dtype} of shape {tuple(lengths.shape)}")


def fitting_carry(carry: PyTree, name: str, states: int, shape: tuple[int, ...]) -> Carry:
    """A carry in float32, which is a tuple of so many arrays of a shape.

    Args:
        carry: what was given for one.
        name: of the layer, for errors.
        states: how many arrays.
        shape: of each.

    Raises:
        ValueError: if it is something else.
    """
    shapes = [tuple(jnp.shape(x)) for x in jax.tree.leaves(carry)]
    if not isinstance(carry, tuple) or len(carry) != states or shapes != [shape] * states:
        raise ValueError(
            f"the carry of this {name} is a tuple of {states} of shape {shape}; "
            f"got {type(carry).__name__} of {shapes}"
        )
    return tuple(jnp.asarray(x, jnp.float32) for x in carry)
