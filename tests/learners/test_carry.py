"""A recurrent carry goes with its examples from step to step, in every device mode and in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jdl.core import CARRY
from jdl.learners import averaged, gradient
from jdl.tasks import regression
from jdl.train import batch_sharding, distributed, make_mesh, state_shardings

B, D = 16, 3


class Recurrence(linen.Module):
    """h_t = tanh(x_t + w h_{t-1}): one step of time a call, h kept as the carry."""

    @linen.compact
    def __call__(self, inputs, train=False):
        carry = self.variable(CARRY, "h", jnp.zeros, inputs.shape)
        w = self.param("w", linen.initializers.constant(0.5), (1, 1))
        h = jnp.tanh(inputs + w * carry.value)
        if not self.is_initializing():
            carry.value = jax.lax.stop_gradient(h)
        return h


def batches(steps=3):
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=(B, D)).astype(np.float32)
    return [{"inputs": draw(), "labels": draw()} for _ in range(steps)]


def by_hand(rate):
    """The parameter and the carry after each batch, in numpy."""
    w, h = 0.5, np.zeros((B, D))
    for batch in batches():
        new = np.tanh(batch["inputs"] + w * h)
        slope = 2 * (new - batch["labels"]) * (1 - new**2) * h
        w, h = w - rate * slope.mean(-1).sum() / B, new
    return w, h


def trained(learner, mode="jit", spec="data:1"):
    mesh = make_mesh(spec)
    state = learner.init(jax.random.key(0), batches()[0])
    step = jax.jit(distributed(learner.step, mesh, mode, state))
    state = jax.device_put(state, state_shardings(state, mesh))
    for batch in batches():
        # Fake devices that are dispatched far ahead can wait for one another for ever.
        state, _ = jax.block_until_ready(step(state, jax.device_put(batch, batch_sharding(mesh))))
    return state


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["jit data:1", "jit data:4,fsdp:2", "shard_map data:8", "pmap data:8"])
def test_equals_the_recurrence_by_hand(where, accumulate):
    mode, spec = where.split()
    state = trained(gradient(regression(Recurrence()), optax.sgd(0.5), accumulate=accumulate), mode, spec)
    w, h = by_hand(0.5)
    np.testing.assert_allclose(state.params["w"], [[w]], rtol=1e-5)
    np.testing.assert_allclose(state.collections[CARRY]["h"], h, rtol=1e-5, atol=1e-6)


def test_what_is_evaluated_has_no_carry_and_takes_any_number_of_examples():
    learner = averaged(gradient(regression(Recurrence()), optax.sgd(0.5)), 0.9)
    variables = learner.variables(trained(learner))
    assert set(variables) == {"params"}
    few = {name: x[:5] for name, x in batches()[0].items()}
    np.testing.assert_allclose(learner.predict(variables, few["inputs"]), np.tanh(few["inputs"]), rtol=1e-5)
    assert np.isfinite(learner.evaluate(variables, few, jax.random.key(0))["loss"].value())
