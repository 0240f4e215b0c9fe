"""What a recurrent layer computes at one step of time: Elman's cell, the LSTM, the GRU.

A cell is split where the products end. ``x_BG`` is what the inputs give to the gates (for all steps in one
product, before the loop) and ``r_BG`` what the state before gives, h W; the cell is everything elementwise
after them, with its derivative written out, so that the loop backward needs what was computed forward, not
to compute it again. All of it is in float32.

Axes: B batch, H features of the state, G gates times features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import Array

Carry = tuple[Array, ...]
"""State of a cell, each [B, H]; the first is what the cell gives out."""

Saved = tuple[Array, ...]


class Cell(NamedTuple):
    """One step of a recurrence, without its matrix products.

    Attributes:
        name: what it is called.
        gates: number of gates, each of as many features as the state.
        states: number of arrays in the carry.
        bias_inside: whether the bias of r matters apart from that of x.
        forward: ``x_BG, r_BG, before -> after, saved``, from the carry before the step to that after it, and
            what `backward` needs.
        backward: ``saved, before, after, d_after -> dx_BG, dr_BG, d_before``, the gradients of x, of r and of
            the carry before, but for the part of it that goes through r. It may give one array as dx and dr.
    """

    name: str
    gates: int
    states: int
    bias_inside: bool
    forward: Callable[[Array, Array, Carry], tuple[Carry, Saved]]
    backward: Callable[[Saved, Carry, Carry, Carry], tuple[Array, Array, Carry]]


def _elman(name: str, activation: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Cell:
    def forward(x: Array, r: Array, before: Carry) -> tuple[Carry, Saved]:
        del before
        return (activation(x + r),), ()

    def backward(saved: Saved, before: Carry, after: Carry, d_after: Carry) -> tuple[Array, Array, Carry]:
        del saved
        dz = d_after[0] * slope(after[0])
        return dz, dz, (jnp.zeros_like(before[0]),)

    return Cell(name, 1, 1, False, forward, backward)


ELMAN_TANH = _elman("Elman network", jnp.tanh, lambda h: 1 - h * h)
"""h' = tanh(x + r)."""

ELMAN_RELU = _elman("Elman network with ReLU", jax.nn.relu, lambda h: (h > 0).astype(h.dtype))
"""h' = max(0, x + r)."""


def _lstm_forward(x: Array, r: Array, before: Carry) -> tuple[Carry, Saved]:
    i, f, g, o = jnp.split(x + r, 4, -1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * before[1] + i * g
    t = jnp.tanh(c)
    return (o * t, c), (i, f, g, o, t)


def _lstm_backward(saved: Saved, before: Carry, after: Carry, d_after: Carry) -> tuple[Array, Array, Carry]:
    del after
    i, f, g, o, t = saved
    dh, dc = d_after
    dc = dc + dh * o * (1 - t * t)
    di, df, dg, do = dc * g, dc * before[1], dc * i, dh * t
    dz = jnp.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], -1)
    return dz, dz, (jnp.zeros_like(dh), dc * f)


LSTM_CELL = Cell("LSTM", 4, 2, False, _lstm_forward, _lstm_backward)
"""Gates i, f, g, o = x + r; c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')."""


def _gru_forward(x: Array, r: Array, before: Carry) -> tuple[Carry, Saved]:
    (x_r, x_z, x_n), (r_r, r_z, r_n) = jnp.split(x, 3, -1), jnp.split(r, 3, -1)
    reset, update = jax.nn.sigmoid(x_r + r_r), jax.nn.sigmoid(x_z + r_z)
    new = jnp.tanh(x_n + reset * r_n)
    return (new + update * (before[0] - new),), (reset, update, new, r_n)


def _gru_backward(saved: Saved, before: Carry, after: Carry, d_after: Carry) -> tuple[Array, Array, Carry]:
    del after
    reset, update, new, r_n = saved
    (dh,) = d_after
    dn = dh * (1 - update) * (1 - new * new)
    dr = dn * r_n * reset * (1 - reset)
    dz = dh * (before[0] - new) * update * (1 - update)
    return jnp.concatenate([dr, dz, dn], -1), jnp.concatenate([dr, dz, dn * reset], -1), (dh * update,)


GRU_CELL = Cell("GRU", 3, 1, True, _gru_forward, _gru_backward)
"""Gates r, z, n; n' = tanh(x_n + sigmoid(r) r_n), h' = (1 - sigmoid(z)) n' + sigmoid(z) h. The reset gate
comes after the product, as in cuDNN and PyTorch, so that the products of all gates are one."""
