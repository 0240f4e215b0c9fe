"""The loop over time, with its gradient written out.

Axes: T time, B batch, H features of the state, G gates times features.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdl.core import Array
from jdl.nn.recurrence_cells import Carry, Cell


class How(NamedTuple):
    """How a loop runs; what it computes depends on ``reverse`` alone.

    Attributes:
        reverse: from the last step to the first.
        unroll: steps of time in one turn of the loop.
    """

    reverse: bool = False
    unroll: int = 1


def recur_plain(
    cell: Cell,
    x_TBG: Array,
    kernel_HG: Array,
    bias_G: Array | None,
    carry: Carry,
    real_TB: Array | None = None,
    drop_BH: Array | None = None,
    how: How = How(),  # noqa: B008
) -> tuple[Array, Carry]:
    """`recur` with the gradient that JAX derives: the same, slower, and differentiable in every way."""

    def step(before: Carry, given: Any) -> tuple[Carry, Array]:
        x_BG, real_B = given
        after, _, _ = _forward(cell, x_BG, kernel_HG, bias_G, before, real_B, drop_BH)
        h_BH = after[0].astype(x_TBG.dtype)
        return after, h_BH if real_B is None else jnp.where(real_B[:, None], h_BH, 0)

    carry, h_TBH = lax.scan(step, carry, (x_TBG, real_TB), reverse=how.reverse, unroll=how.unroll)
    return h_TBH, carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 7))
def recur(
    cell: Cell,
    x_TBG: Array,
    kernel_HG: Array,
    bias_G: Array | None,
    carry: Carry,
    real_TB: Array | None = None,
    drop_BH: Array | None = None,
    how: How = How(),  # noqa: B008
) -> tuple[Array, Carry]:
    """Runs a cell over time: carry_t = cell(x_t, (drop h_{t-1}) W + b, carry_{t-1}).

    The gradient is written out. It keeps the gates' activations, which JAX would partly compute again, and
    forms the gradient of W in one product after the loop, where JAX would add up a matrix of its size at
    every step. It is differentiable in reverse, as often as you like, but not forward (`jax.jvp`,
    `jax.jacfwd`); `recur_plain` is its twin without that limit, which a layer uses with ``plain=True``.

    Args:
        cell: what a step computes.
        x_TBG: what the inputs give to the gates; its type is that of the products and of the outputs.
        kernel_HG: W.
        bias_G: b, or None.
        carry: the state before the first step, each [B, H], float32.
        real_TB: booleans, of each row True for its first steps: after them it keeps its carry, gives out
            zero, and passes no gradient. None where all steps are real.
        drop_BH: factors of the state on its way into the product: a dropout mask that lasts all steps.
        how: direction, and unrolling.

    Returns:
        What the cell gave out, [T, B, H], and the last carry.

    Example:
        >>> from jdl.nn.recurrence_cells import ELMAN_TANH
        >>> x, zero = jnp.ones((3, 1, 1)), (jnp.zeros((1, 1)),)
        >>> h, _ = recur(ELMAN_TANH, x, jnp.zeros((1, 1)), None, zero)
        >>> h.shape, bool(jnp.allclose(h, jnp.tanh(1)))
        ((3, 1, 1), True)

    Reference:
        Werbos, "Backpropagation through time: what it does and how to do it", 1990.
    """
    h_TBH, carry, _ = _run(cell, x_TBG, kernel_HG, bias_G, carry, real_TB, drop_BH, how)
    return h_TBH, carry


def _forward(
    cell: Cell,
    x_BG: Array,
    kernel_HG: Array,
    bias_G: Array | None,
    before: Carry,
    real_B: Array | None,
    drop_BH: Array | None,
) -> tuple[Carry, Carry, Any]:
    """The carry after a step where it is real, the one that the cell computes, and what it saves."""
    h_BH = before[0].astype(x_BG.dtype)
    if drop_BH is not None:
        h_BH = h_BH * drop_BH.astype(h_BH.dtype)
    r_BG = jnp.dot(h_BH, kernel_HG, preferred_element_type=jnp.float32)
    if bias_G is not None:
        r_BG = r_BG + bias_G.astype(jnp.float32)[None]
    computed, saved = cell.forward(x_BG.astype(jnp.float32), r_BG, before)
    if real_B is None:
        return computed, computed, saved
    after = tuple(jnp.where(real_B[:, None], new, old) for new, old in zip(computed, before, strict=True))
    return after, computed, saved


def _run(
    cell: Cell,
    x_TBG: Array,
    kernel_HG: Array,
    bias_G: Array | None,
    carry: Carry,
    real_TB: Array | None,
    drop_BH: Array | None,
    how: How,
) -> Any:
    def step(before: Carry, given: Any) -> Any:
        x_BG, real_B = given
        after, computed, saved = _forward(cell, x_BG, kernel_HG, bias_G, before, real_B, drop_BH)
        h_BH = after[0] if real_B is None else jnp.where(real_B[:, None], after[0], 0)
        low = jax.tree.map(lambda x: x.astype(x_TBG.dtype), (h_BH, saved))
        return after, (*low, computed[1:])

    carry, (h_TBH, saved, others) = lax.scan(
        step, carry, (x_TBG, real_TB), reverse=how.reverse, unroll=how.unroll
    )
    return h_TBH, carry, (saved, others)


def _recur_forward(
    cell: Cell,
    x_TBG: Array,
    kernel_HG: Array,
    bias_G: Array | None,
    carry: Carry,
    real_TB: Array | None,
    drop_BH: Array | None,
    how: How,
) -> Any:
    h_TBH, last, (saved, others) = _run(cell, x_TBG, kernel_HG, bias_G, carry, real_TB, drop_BH, how)
    kept = (kernel_HG, bias_G, carry, real_TB, drop_BH, h_TBH, saved, others)
    return (h_TBH, last), kept


def _recur_backward(cell: Cell, how: How, kept: Any, gradients: Any) -> Any:
    kernel_HG, bias_G, first, real_TB, drop_BH, h_TBH, saved, others = kept
    d_h_TBH, d_last = gradients
    after = (h_TBH, *others)
    before = tuple(_before(x, x_0, real_TB, how.reverse) for x, x_0 in zip(after, first, strict=True))
    # On a CPU transposed once, not at every step.
    kernel_GH = lax.platform_dependent(
        kernel_HG, cpu=lambda kernel: lax.optimization_barrier(kernel.T), default=jnp.transpose
    )

    def step(d_after: Carry, given: Any) -> Any:
        d_h_BH, saved, before, after, real_B = given
        saved, before, after = jax.tree.map(lambda x: x.astype(jnp.float32), (saved, before, after))
        d_computed = (d_after[0] + d_h_BH.astype(jnp.float32), *d_after[1:])
        d_kept: Any = None
        if real_B is not None:
            d_kept = tuple(jnp.where(real_B[:, None], 0, d) for d in d_after)
            d_computed = tuple(jnp.where(real_B[:, None], d, 0) for d in d_computed)
        dx_BG, dr_BG, d_before = cell.backward(saved, before, after, d_computed)
        is_shared = dx_BG is dr_BG
        dx_BG, dr_BG = dx_BG.astype(d_h_TBH.dtype), dr_BG.astype(d_h_TBH.dtype)
        d_product = jnp.dot(dr_BG, kernel_GH, preferred_element_type=jnp.float32)
        d_used = d_product if drop_BH is None else d_product * drop_BH.astype(jnp.float32)
        d_before = (d_before[0] + d_used, *d_before[1:])
        if d_kept is not None:
            d_before = tuple(a + b for a, b in zip(d_before, d_kept, strict=True))
        return d_before, (dx_BG, None if is_shared else dr_BG)

    given = (d_h_TBH, saved, before, after, real_TB)
    d_first, (dx_TBG, dr_TBG) = lax.scan(step, d_last, given, reverse=not how.reverse, unroll=how.unroll)
    dr_TBG = dx_TBG if dr_TBG is None else dr_TBG
    dr_NG = dr_TBG.reshape(-1, dr_TBG.shape[-1])
    used_TBH = before[0].astype(dr_NG.dtype)
    d_drop = None
    if drop_BH is not None:
        d_product_TBH = jnp.dot(dr_NG, kernel_GH).reshape(used_TBH.shape)
        d_drop = (d_product_TBH * used_TBH).sum(0).astype(drop_BH.dtype)
        used_TBH = used_TBH * drop_BH.astype(used_TBH.dtype)[None]
    d_kernel = jnp.dot(
        used_TBH.reshape(-1, used_TBH.shape[-1]).T, dr_NG, preferred_element_type=jnp.float32
    ).astype(kernel_HG.dtype)
    d_bias = None if bias_G is None else dr_NG.sum(0, dtype=jnp.float32).astype(bias_G.dtype)
    return dx_TBG, d_kernel, d_bias, d_first, None, d_drop


recur.defvjp(_recur_forward, _recur_backward)


def _before(x_TBH: Array, first_BH: Array, real_TB: Array | None, reverse: bool) -> Array:
    """The state before each step, of the states after it, which are zero where a step is not real."""
    first_1BH = first_BH.astype(x_TBH.dtype)[None]
    if reverse:
        shifted = jnp.concatenate([x_TBH[1:], first_1BH])
    else:
        shifted = jnp.concatenate([first_1BH, x_TBH[:-1]])
    if real_TB is None:
        return shifted
    # Backwards, the first real step of a row follows steps that were not.
    if reverse:
        is_known = jnp.concatenate([real_TB[1:], jnp.ones_like(real_TB[:1])])
    else:
        is_known = jnp.concatenate([jnp.ones_like(real_TB[:1]), real_TB[:-1]])
    return jnp.where(is_known[..., None], shifted, first_1BH)
