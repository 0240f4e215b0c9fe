"""What a task hands to a module and takes back from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jdl.core import CARRY, LOSSES, summarize
from jdl.learners import gradient
from jdl.tasks import functions, regression


class Everything(linen.Module):
    """Noise of two streams, a statistic, a carry, and an intermediate that nobody should keep."""

    @linen.compact
    def __call__(self, inputs, train=False):
        calls = self.variable("batch_stats", "calls", jnp.zeros, ())
        carry = self.variable(CARRY, "sum", jnp.zeros, inputs.shape)
        self.sow("intermediates", "inputs", inputs)
        if train and not self.is_initializing():
            calls.value += 1
        if not self.is_initializing():
            carry.value += inputs
        noise = 0.0
        if train:
            noise = sum(
                jax.random.normal(self.make_rng(stream), inputs.shape) for stream in ("dropout", "sample")
            )
        return inputs * self.param("scale", linen.initializers.ones, (1, 1)) + noise + carry.value


model = functions(Everything())
INPUTS = jnp.ones((3, 1))


def variables():
    return model.init(jax.random.key(0), {"inputs": INPUTS})


def test_init_keeps_parameters_and_lasting_collections():
    assert set(variables()) == {"params", "batch_stats", CARRY}


def test_training_returns_what_changed_and_draws_from_the_key():
    outputs, changed, losses = model.train(variables(), INPUTS, jax.random.key(1))
    assert losses == {}
    assert set(changed) == {"batch_stats", CARRY}
    assert changed["batch_stats"]["calls"] == 1
    np.testing.assert_array_equal(changed[CARRY]["sum"], INPUTS)
    np.testing.assert_array_equal(outputs, model.train(variables(), INPUTS, jax.random.key(1))[0])
    assert np.any(outputs != model.train(variables(), INPUTS, jax.random.key(2))[0])


def test_prediction_has_no_noise_and_needs_no_carry():
    without = {name: tree for name, tree in variables().items() if name != CARRY}
    np.testing.assert_array_equal(model.predict(without, jnp.ones((5, 1))), jnp.full((5, 1), 2.0))


def test_a_module_without_parameters_has_none():
    class Nothing(linen.Module):
        @linen.compact
        def __call__(self, inputs, train=False):
            return inputs

    assert functions(Nothing()).init(jax.random.key(0), {"inputs": INPUTS}) == {"params": {}}


class Sowing(linen.Module):
    """Outputs of one, two losses of which one comes from two layers, and nothing else."""

    @linen.compact
    def __call__(self, inputs, train=False):
        scale = self.param("scale", linen.initializers.ones, (1, 1))
        for factor in (2.0, 3.0):
            self.sow(LOSSES, "balance", factor * scale.sum())
        self.sow(LOSSES, "router", jnp.array([0.25, 0.25]))  # as scanned layers stack theirs
        return inputs * scale


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_of_a_module_are_added_by_the_batchs_weight_and_shown(accumulate):
    task = regression(Sowing())
    batch = {"inputs": INPUTS, "labels": jnp.zeros((3, 1)), "weights": jnp.array([1.0, 2.0, 0.0])}
    variables = task.init(jax.random.key(0), batch)
    assert set(variables) == {"params"}
    total, (weight, collections, metrics) = task.loss(variables, batch, jax.random.key(1))
    assert collections == {}
    assert float(weight) == 3
    assert float(total) == pytest.approx(3 * (1 + 5 + 0.5))
    shown = summarize(metrics)
    assert (shown["balance_loss"], shown["router_loss"]) == (5, 0.5)
    assert task.evaluate(variables, batch, jax.random.key(1))["loss"].value() == 1
    twice = {name: jnp.repeat(x, 2, 0) for name, x in batch.items()}
    learner = gradient(task, optax.sgd(0.1), accumulate=accumulate)
    state, metrics = jax.jit(learner.step)(learner.init(jax.random.key(0), twice), twice)
    assert float(metrics["loss"].value()) == pytest.approx(6.5)
    # The derivative of scale^2 + 5 scale at 1.
    np.testing.assert_allclose(state.params["scale"], 1 - 0.1 * 7, rtol=1e-6)
