"""What a task hands to a module and takes back from it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.core import CARRY
from jdl.tasks import functions


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
    outputs, changed = model.train(variables(), INPUTS, jax.random.key(1))
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
