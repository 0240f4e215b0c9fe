"""Samplers: pure functions that say which tokens may come next, and how likely.

A sampler is any function ``logits, history -> logits``, and the next token is drawn from the softmax of what
it gives; `greedy` leaves one token, `chain` applies several in order, and ``chain()`` changes nothing. What
the makers here give is a pytree whose numbers are leaves: another temperature compiles nothing anew. Those
that look at the text so far are in `jdl.generation.penalties`.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jdl.core import Array
from jdl.generation.sequences import History, Sampler, pure, whole


def greedy(logits_BV: Array, history: History) -> Array:
    """Leaves the most likely token; of equals, the first.

    Example:
        >>> greedy(jnp.array([[1.0, 3.0, 3.0]]), None).tolist()
        [[-inf, 3.0, -inf]]
    """
    del history
    V = logits_BV.shape[-1]
    at_1V = jnp.arange(V)[None]
    is_best_BV = logits_BV == logits_BV.max(-1, keepdims=True)
    # XLA:CPU takes several times as long for an argmax.
    first_B1 = jnp.where(is_best_BV, at_1V, V).min(-1, keepdims=True)
    return jnp.where(at_1V == first_B1, logits_BV, -jnp.inf)


def chain(*samplers: Sampler) -> Sampler:
    """Applies samplers in order; none at all draw from the model's own distribution.

    Example:
        >>> sampler = chain(temperature(0.5), top_k(2))
        >>> sampler(jnp.array([[1.0, 2.0, 3.0]]), None).tolist()
        [[-inf, 4.0, 6.0]]
    """
    return Partial(_chain, tuple(pure(sampler) for sampler in samplers))


def temperature(value: float) -> Sampler:
    """Divides the logits: below 1 the likely becomes likelier, above 1 all become more alike.

    Args:
        value: positive; for the most likely token alone there is `greedy`.

    Raises:
        ValueError: if it is not positive.

    Example:
        >>> temperature(2.0)(jnp.array([[1.0, 3.0]]), None).tolist()
        [[0.5, 1.5]]
    """
    check_number("temperature", value, 0, math.inf)
    return Partial(_temperature, value)


def top_k(k: int) -> Sampler:
    """Leaves the k most likely tokens; of equals, the first.

    Raises:
        ValueError: if k is no whole number, or less than 1.

    Example:
        >>> top_k(2)(jnp.array([[3.0, 1.0, 2.0, 2.0]]), None).tolist()
        [[3.0, -inf, 2.0, -inf]]

    Reference:
        Fan, Lewis and Dauphin, "Hierarchical neural story generation", 2018.
    """
    return Partial(_top_k, whole("top_k", k))


def top_p(p: float) -> Sampler:
    """Leaves the nucleus: the fewest most likely tokens whose probabilities sum to p; of equals, the first.

    Args:
        p: in (0, 1].

    Raises:
        ValueError: if p is not in (0, 1].

    Example:
        >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))
        >>> jnp.isfinite(top_p(0.7)(logits, None)).tolist()
        [[True, True, False, False]]

    Reference:
        Holtzman et al., "The curious case of neural text degeneration", 2020.
    """
    check_number("top_p", p, 0, 1)
    return Partial(_top_p, p)


def min_p(p: float) -> Sampler:
    """Leaves tokens at least p times as likely as the most likely one.

    Args:
        p: in (0, 1].

    Raises:
        ValueError: if p is not in (0, 1].

    Example:
        >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
        >>> jnp.isfinite(min_p(0.2)(logits, None)).tolist()
        [[True, True, True, False]]

    Reference:
        Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs", 2025.
    """
    check_number("min_p", p, 0, 1)
    return Partial(_min_p, p)


def typical(p: float) -> Sampler:
    """Leaves the fewest tokens, most typical first, whose probabilities sum to p.

    The most typical token is that whose surprise, minus its log-probability, is nearest to the entropy.

    Args:
        p: in (0, 1].

    Raises:
        ValueError: if p is not in (0, 1].

    Example:
        >>> logits = jnp.log(jnp.array([[0.6, 0.2, 0.1, 0.1]]))
        >>> jnp.isfinite(typical(0.15)(logits, None)).tolist()
        [[False, True, False, False]]

    Reference:
        Meister et al., "Locally typical sampling", 2023.
    """
    check_number("typical", p, 0, 1)
    return Partial(_typical, p)


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError for a number outside (low, high] or not finite; one that is traced is not known."""
    if isinstance(value, jax.core.Tracer):
        return
    if not low < value <= high or not math.isfinite(value):
        wanted = {math.inf: "above 0 and finite" if low == 0 else "a finite number"}.get(
            high, f"in ({low}, {high}]"
        )
        raise ValueError(f"{name} must be {wanted}; got {value}")


def _chain(samplers: tuple[Sampler, ...], logits_BV: Array, history: History) -> Array:
    for sampler in samplers:
        logits_BV = sampler(logits_BV, history)
    return logits_BV


def _temperature(value: Any, logits_BV: Array, history: History) -> Array:
    return logits_BV / value


def _top_k(k: Any, logits_BV: Array, history: History) -> Array:
    return jnp.where(_cheapest(-logits_BV, jnp.ones_like(logits_BV), k), logits_BV, -jnp.inf)


def _top_p(p: Any, logits_BV: Array, history: History) -> Array:
    return _up_to(p, -logits_BV, jax.nn.softmax(logits_BV), logits_BV)


def _min_p(p: Any, logits_BV: Array, history: History) -> Array:
    threshold_B1 = logits_BV.max(-1, keepdims=True) + jnp.log(p)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf)


def _typical(p: Any, logits_BV: Array, history: History) -> Array:
    log_probs_BV = jax.nn.log_softmax(logits_BV)
    probs_BV = jnp.exp(log_probs_BV)
    entropy_B1 = -jnp.where(probs_BV > 0, probs_BV * log_probs_BV, 0).sum(-1, keepdims=True)
    return _up_to(p, jnp.abs(log_probs_BV + entropy_B1), probs_BV, logits_BV)


def _up_to(p: Any, cost_BV: Array, probs_BV: Array, logits_BV: Array) -> Array:
    """The cheapest logits whose probabilities add up to p, and all of them for 1.

    In float32 a sum over a large vocabulary comes to 1 before its tail.
    """
    return jnp.where(_cheapest(cost_BV, probs_BV, p) | (jnp.asarray(p) >= 1), logits_BV, -jnp.inf)


def _cheapest(cost_BV: Array, mass_BV: Array, target: Any) -> Array:
    """Which entries, in order of cost and then of place, it takes for their mass to reach the target.

    The dearest of them is found by bisection over the 2**32 floats: XLA:CPU sorts 50,000 numbers ten times
    more slowly.
    """
    bits_BV = jax.lax.bitcast_convert_type(cost_BV.astype(jnp.float32), jnp.int32)
    # Integers in the order of the floats; those of negative floats run backwards.
    rank_BV = jnp.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 >> 1) + (high_B1 >> 1) + (low_B1 & high_B1 & 1)
        is_enough_B1 = jnp.where(rank_BV <= middle_B1, mass_BV, 0).sum(-1, keepdims=True) >= target
        return jnp.where(is_enough_B1, low_B1, middle_B1 + 1), jnp.where(is_enough_B1, middle_B1, high_B1)

    ends = (jnp.full_like(rank_BV[:, :1], limit) for limit in (-(2**31), 2**31 - 1))
    _, dearest_B1 = jax.lax.fori_loop(0, 32, halve, tuple(ends))
    is_below_BV, is_last_BV = rank_BV < dearest_B1, rank_BV == dearest_B1

    def all_equals(_: Any) -> Array:
        return is_below_BV | is_last_BV

    def first_equals(missing_B1: Array) -> Array:
        equal_BV = jnp.where(is_last_BV, mass_BV, 0)
        return is_below_BV | (is_last_BV & (jnp.cumsum(equal_BV, -1) - equal_BV < missing_B1))

    missing_B1 = target - jnp.where(is_below_BV, mass_BV, 0).sum(-1, keepdims=True)
    return jax.lax.cond((is_last_BV.sum(-1) > 1).any(), first_equals, all_equals, missing_B1)
