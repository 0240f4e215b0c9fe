"""The gradient learner equals a loop written by hand, however its batch is cut and wherever it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.core import FAULTS, summarize
from jdl.learners import gradient
from jdl.models import MLP
from jdl.tasks import classification, regression
from jdl.train import batch_sharding, distributed, make_mesh, state_shardings

KEY = jax.random.key(0)
MODEL = MLP((8, 3), activation=jnp.tanh)
TASK = classification(MODEL)


def batch(size=16, seed=0, **more):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(size, 5)).astype(np.float32)
    return {"inputs": inputs, "labels": rng.integers(0, 3, size).astype(np.int32), **more}


def uneven(size=16):
    """Weights, some of them zero, that differ in their sum over any part of the batch."""
    return np.random.default_rng(1).integers(0, 4, size).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-5):
    def compare(a, b):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, actual, expected)


def on_devices(learner, state, examples, mode, spec="data:8"):
    """State and metrics after one step on a mesh."""
    mesh = make_mesh(spec)
    step = jax.jit(distributed(learner.step, mesh, mode, state))
    state = jax.device_put(state, state_shardings(state, mesh))
    return step(state, jax.device_put(examples, batch_sharding(mesh)))


def test_equals_a_loop_written_by_hand():
    tx = optax.adamw(1e-2)
    learner = gradient(TASK, tx)
    state = learner.init(KEY, batch())
    params, opt_state = state.params, tx.init(state.params)

    @jax.jit
    def hand_written(params, opt_state, examples):
        def loss(params):
            logits = MODEL.apply({"params": params}, examples["inputs"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples["labels"])
            return jnp.average(losses, weights=examples["weights"])

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, optax.tree.norm(grads)

    step = jax.jit(learner.step)
    for i in range(5):
        examples = batch(seed=i, weights=uneven())
        state, metrics = step(state, examples)
        params, opt_state, value, norm = hand_written(params, opt_state, examples)
        assert float(metrics["loss"].value()) == pytest.approx(float(value), rel=1e-5)
        assert float(metrics["grad_norm"].value()) == pytest.approx(float(norm), rel=1e-4)
    assert_close(state.params, params, 1e-5)
    assert_close(state.opt_state, opt_state, 1e-5)
    assert int(state.step) == 5


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([2, 3, 4, 6, 12]), st.integers(0, 99))
def test_accumulation_equals_the_whole_batch_with_any_weights(parts, seed):
    weights = np.random.default_rng(seed).integers(0, 3, 12).astype(np.float32)
    examples = batch(12, seed, weights=weights)
    state = gradient(TASK, optax.sgd(1.0)).init(KEY, examples)
    assert_close(jitted_step(parts)(state, examples), jitted_step(1)(state, examples), 2e-5)


@functools.cache
def jitted_step(parts):
    return jax.jit(gradient(TASK, optax.sgd(1.0), accumulate=parts).step)


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_shards_of_uneven_weight_equal_the_whole_batch(mode, accumulate):
    examples = batch(weights=uneven())
    learner = gradient(TASK, optax.sgd(1.0), accumulate=accumulate)
    state = learner.init(KEY, examples)
    assert_close(on_devices(learner, state, examples, mode), jitted_step(1)(state, examples), 2e-5)


def test_a_batch_that_weighs_nothing_changes_nothing():
    examples = batch(weights=np.zeros(16, np.float32))
    learner = gradient(TASK, optax.sgd(1.0))
    state = learner.init(KEY, examples)
    after, metrics = jitted_step(1)(state, examples)
    assert_close(after.params, state.params, 0)
    assert not any(jax.tree.leaves(metrics[FAULTS]))


@pytest.mark.parametrize("accumulate", [0, 5])
def test_parts_that_cannot_be_are_refused(accumulate):
    message = "at least 1; got 0" if accumulate == 0 else "a batch of 16 cannot be divided into 5 equal parts"
    with pytest.raises(ValueError, match=message):
        learner = gradient(TASK, optax.sgd(1.0), accumulate=accumulate)
        jax.eval_shape(learner.step, jax.eval_shape(learner.init, KEY, batch()), batch())


def quadratic_batch():
    """A linear regression with one best answer, badly scaled."""
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(32, 4)) * [10, 3, 1, 0.3]).astype(np.float32)
    labels = (inputs @ rng.normal(size=(4, 1)) + 2).astype(np.float32)
    return {"inputs": inputs, "labels": labels}


def test_lbfgs_solves_a_quadratic_in_few_steps():
    learner = gradient(regression(MLP((1,))), optax.lbfgs())
    state, step = learner.init(KEY, quadratic_batch()), jax.jit(learner.step)
    for _ in range(15):
        state, metrics = step(state, quadratic_batch())
    assert float(metrics["loss"].value()) < 1e-6


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_lbfgs_searches_the_line_of_the_whole_batch_on_every_device(mode):
    """A line search differentiates the value function that it is given: over all shards, or they part."""
    learner = gradient(TASK, optax.lbfgs())
    examples = batch(weights=uneven())
    state = learner.init(KEY, examples)
    one, many = (state,), (state,)
    for _ in range(3):
        one, many = jax.jit(learner.step)(one[0], examples), on_devices(learner, many[0], examples, mode)
        many = jax.device_get(many)
    assert_close(many[0].params, one[0].params, 1e-3)


def test_reduce_on_plateau_sees_the_loss():
    tx = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    learner = gradient(TASK, tx)
    state, step = learner.init(KEY, batch()), jax.jit(learner.step)
    for _ in range(10):
        state, _ = step(state, batch())
    assert 0 < float(optax.tree.get(state.opt_state, "scale")) < 0.5


def test_schedule_free_comes_out_of_variables():
    learner = gradient(TASK, optax.contrib.schedule_free_adamw(0.1, warmup_steps=5))
    eval_params = optax.contrib.schedule_free_eval_params
    learner = learner._replace(variables=lambda state: {"params": eval_params(state.opt_state, state.params)})
    state, step = learner.init(KEY, batch()), jax.jit(learner.step)
    before = learner.evaluate(learner.variables(state), batch(), KEY)["loss"].value()
    for _ in range(30):
        state, _ = step(state, batch())
    assert learner.evaluate(learner.variables(state), batch(), KEY)["loss"].value() < before / 2


def test_learning_rate_is_reported_where_the_optimiser_keeps_it():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1.0, 0.0, 10))
    learner = gradient(TASK, tx)
    state = learner.init(KEY, batch())
    rates = []
    for _ in range(3):
        state, metrics = jax.jit(learner.step)(state, batch())
        rates.append(summarize(metrics)["learning_rate"])
    assert rates == pytest.approx([1.0, 0.9, 0.8])


def faults_after(examples, tx=None):
    learner = gradient(TASK, tx or optax.sgd(0.1))
    _, metrics = jax.jit(learner.step)(learner.init(KEY, batch()), examples)
    return {name for name, count in metrics[FAULTS].items() if count}


def test_faults_are_told_apart():
    loss, grads, params = "loss not finite", "gradient not finite", "new parameters not finite"
    assert faults_after(batch()) == set()
    assert faults_after({**batch(), "inputs": np.full((16, 5), np.nan, np.float32)}) == {loss, grads, params}
    assert faults_after(batch(), optax.chain(optax.sgd(3e38), optax.scale(1e3))) == {params}
    assert faults_after({**batch(), "labels": np.full(16, 3)}) == {"labels outside 0..2"}
    assert faults_after({**batch(), "labels": np.full(16, 3), "weights": np.zeros(16)}) == set()


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_a_fault_on_one_device_is_a_fault_of_all(mode):
    examples = batch()
    examples["inputs"][-1] = np.inf
    learner = gradient(TASK, optax.sgd(0.1))
    _, metrics = on_devices(learner, learner.init(KEY, examples), examples, mode)
    assert int(metrics[FAULTS]["gradient not finite"]) == 1


class Noisy(linen.Module):
    @linen.compact
    def __call__(self, inputs, train=False):
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(inputs))


def test_noise_differs_from_step_to_step_and_part_to_part():
    examples = jax.tree.map(lambda x: np.repeat(x[:1], 4, 0), batch())
    for accumulate in (1, 2):
        learner = gradient(classification(Noisy()), optax.sgd(0.0), accumulate=accumulate)
        state, step = learner.init(KEY, examples), jax.jit(learner.step)
        losses = []
        for _ in range(3):
            state, metrics = step(state, examples)
            losses.append(float(metrics["loss"].value()))
        assert len(set(losses)) == 3


def test_evaluation_adds_up_over_devices():
    examples = batch(weights=uneven())
    learner = gradient(TASK, optax.sgd(0.1))
    state = learner.init(KEY, examples)
    variables = learner.variables(state)
    expected = learner.evaluate(variables, examples, KEY)
    for mode in ("shard_map", "pmap"):
        evaluated = lambda variables, batch: (variables, learner.evaluate(variables, batch, KEY))
        mesh = make_mesh()
        step = jax.jit(distributed(evaluated, mesh, mode, variables))
        assert_close(step(variables, jax.device_put(examples, batch_sharding(mesh)))[1], expected)
