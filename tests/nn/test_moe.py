"""A mixture of experts equals a loop by hand, drops only what has no place, and never looks ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.core import LOSSES
from jdl.nn import Experts, MixtureOfExperts
from jdl.nn.moe import balance_loss, places, route, z_loss
from tests.compiling import jit

B, T, D, F, E = 2, 6, 4, 5, 3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer_and_variables(experts, **options):
    layer = MixtureOfExperts(experts, F, **options)
    variables = jit(layer.init)(jax.random.key(0), jnp.zeros((B, T, D)))
    # A router that is sure of itself, and spreads positions unevenly.
    router = 3 * normal(9, D, E)
    return layer, {"params": variables["params"] | {"router": {"kernel": router}}}


def by_hand(params, x, experts, capacity, activation, gated):
    """Position by position, choice by choice, in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    y = np.zeros(x.shape)
    for b in range(B):
        taken = np.zeros(E, int)
        for t in range(T):
            logits = x[b, t] @ params["router"]["kernel"]
            probabilities = np.exp(logits) / np.exp(logits).sum()
            chosen = np.argsort(-probabilities)[: experts.chosen]
            total = probabilities[chosen].sum() if experts.renormalize else 1
            for e in chosen:
                taken[e] += 1
                if capacity is not None and taken[e] > capacity:
                    continue
                h = x[b, t] @ params["expand"]["kernel"][e]
                h = activation(x[b, t] @ params["gate"]["kernel"][e]) * h if gated else activation(h)
                y[b, t] += probabilities[e] / total * (h @ params["project"]["kernel"][e])
    return y


@pytest.mark.parametrize(
    ("experts", "capacity", "gated"),
    [
        (Experts(E, 2), None, True),
        (Experts(E, 1, renormalize=False), None, False),
        (Experts(E, 2, capacity=0.75), 3, True),
        (Experts(E, 1, capacity=1.0, renormalize=False), 2, False),
        (Experts(E, 2, capacity=9.0), None, True),
    ],
)
def test_equals_a_loop(experts, capacity, gated):
    layer, variables = layer_and_variables(experts, activation=jnp.tanh, gated=gated)
    x = normal(1, B, T, D)
    actual = jit(lambda v, x: layer.apply(v, x, train=True))(variables, x)
    expected = by_hand(variables["params"], x, experts, capacity, np.tanh, gated)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    full = by_hand(variables["params"], x, experts, None, np.tanh, gated)
    assert (np.abs(full - expected).max() > 0.01) == (capacity is not None)
    if capacity is not None:
        # Outside training every position has a place.
        np.testing.assert_allclose(jit(layer.apply)(variables, x), full, rtol=0, atol=1e-5)


def test_a_position_does_not_depend_on_later_ones():
    layer, variables = layer_and_variables(Experts(E, 2, capacity=0.75))
    x, y = normal(1, B, T, D), normal(2, B, T, D)
    y[:, :3] = x[:, :3]
    run = jit(lambda x: layer.apply(variables, x, train=True))
    outputs = run(x), run(y)
    np.testing.assert_array_equal(outputs[0][:, :3], outputs[1][:, :3])
    assert np.any(outputs[0][:, 3:] != outputs[1][:, 3:])


def test_losses_by_hand():
    logits = normal(3, B, T, E)
    real = np.arange(T).reshape(1, T) < np.array([[4], [6]])
    experts, weights, probabilities = route(jnp.asarray(logits), 2)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    share, mean, squares = np.zeros(E), np.zeros(E), []
    for b, t in zip(*np.nonzero(real), strict=True):
        p = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
        share[np.argsort(-p)[:2]] += 0.5 / real.sum()
        mean += p / real.sum()
        squares.append(np.log(np.exp(logits[b, t]).sum()) ** 2)
    np.testing.assert_allclose(balance_loss(experts, probabilities, real), E * share @ mean, rtol=1e-5)
    np.testing.assert_allclose(z_loss(jnp.asarray(logits), real), np.mean(squares), rtol=1e-5)
    even = jnp.full((1, 3, 3), 1 / 3)
    np.testing.assert_allclose(balance_loss(jnp.array([[[0], [1], [2]]]), even), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        balance_loss(jnp.zeros((1, 3, 1), int), jnp.eye(3)[:1].repeat(3, 0)[None]), 3.0
    )


def test_training_sows_both_losses_and_they_spread_positions():
    settings = Experts(E, 1, balance=2.0, z=0.5)
    layer, variables = layer_and_variables(settings)
    x = normal(1, B, T, D)
    assert LOSSES not in layer.init(jax.random.key(0), x)
    _, changed = layer.apply(variables, x, train=True, mutable=[LOSSES])
    experts, _, probabilities = route(jnp.asarray(x @ variables["params"]["router"]["kernel"]), 1)
    np.testing.assert_allclose(
        changed[LOSSES]["balance"], 2 * balance_loss(experts, probabilities), rtol=1e-5
    )
    assert sorted(changed[LOSSES]) == ["balance", "z"]

    @jit
    @jax.value_and_grad
    def balance(params):
        return layer.apply({"params": params}, x, mutable=[LOSSES])[1][LOSSES]["balance"]

    params = variables["params"]
    before, _ = balance(params)
    for _ in range(100):
        value, gradient = balance(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
    assert value < before
    assert not any(np.any(g) for name in ("expand", "gate", "project") for g in gradient[name].values())


def test_places_count_each_row_apart():
    experts = np.random.default_rng(0).integers(0, E, (B, T, 2))
    expected = np.zeros_like(experts)
    for b in range(B):
        seen = [0] * E
        for t, k in np.ndindex(T, 2):
            expected[b, t, k] = seen[experts[b, t, k]]
            seen[experts[b, t, k]] += 1
    np.testing.assert_array_equal(places(jnp.asarray(experts), E), expected)


def test_computes_in_the_dtype_and_routes_in_float32():
    layer, variables = layer_and_variables(Experts(E, 2), dtype=jnp.bfloat16)
    exact, _ = layer_and_variables(Experts(E, 2))
    x = normal(1, B, T, D)
    low = jit(layer.apply)(variables, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), jit(exact.apply)(variables, x), rtol=0, atol=0.1)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="between 1 and all 3 experts; got 4"):
        Experts(3, 4)
    with pytest.raises(ValueError, match="capacity must be above 0, or None for places for all; got 0.0"):
        Experts(3, capacity=0.0)
