"""Weights stay within their ball, and equal those of PyTorch's `renorm` after the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl.learners import max_norm


def test_steps_equal_those_of_torch_with_renorm(torch):
    rng = np.random.default_rng(0)
    kernel, gradients = rng.normal(size=(4, 3)), rng.normal(size=(5, 4, 3))
    params = {"head": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.full(3, 9.0)}}
    tx = optax.chain(optax.sgd(0.5), max_norm(1.5, "head/kernel$"))
    state, weight = tx.init(params), torch.tensor(kernel.T.copy())
    for gradient in gradients:
        grads = {"head": {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.zeros(3)}}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        weight = (weight - 0.5 * torch.tensor(gradient.T.copy())).renorm(2, 0, 1.5)
    np.testing.assert_allclose(params["head"]["kernel"], weight.numpy().T, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(params["head"]["kernel"], axis=0).max() <= 1.5 + 1e-5
    np.testing.assert_array_equal(params["head"]["bias"], 9.0)


def test_what_lies_within_moves_as_before_and_zeros_stay():
    params = {"kernel": jnp.zeros((2, 2, 3, 4))}
    tx = max_norm(1.0)
    updates = jax.tree.map(lambda x: x + 0.01, params)
    found, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_array_equal(found["kernel"], updates["kernel"])
    assert not np.any(tx.update(params, tx.init(params), params)[0]["kernel"])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="limit, .* must be positive; got 0"):
        max_norm(0)
    with pytest.raises(ValueError, match="no parameter's path has 'head'; there are kernel"):
        max_norm(1.0, "head").init({"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="max_norm needs the parameters"):
        max_norm(1.0).update({"kernel": jnp.ones((2, 2))}, optax.EmptyState())
