"""Averages, ensembles and sweeps equal what they stand for, done one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.core import FAULTS
from jdl.learners import averaged, ensemble, gradient, grid, mean_probabilities, sweep
from jdl.models import MLP
from jdl.nn import BatchNorm, Dense
from jdl.tasks import classification, classification_score

KEY = jax.random.key(0)


class Normalised(linen.Module):
    """With running statistics, and noise."""

    @linen.compact
    def __call__(self, inputs, train=False):
        h = jnp.tanh(BatchNorm()(Dense(6)(inputs), train=train))
        return Dense(3)(linen.Dropout(0.2, deterministic=not train)(h))


TASK = classification(Normalised())


def batch(i=0, size=8):
    rng = np.random.default_rng(i)
    inputs = rng.normal(size=(size, 4)).astype(np.float32)
    return {"inputs": inputs, "labels": rng.integers(0, 3, size).astype(np.int32)}


def sgd(rate=0.1, task=TASK):
    return gradient(task, optax.sgd(rate, momentum=0.9))


# The rate is an argument, so that one program serves all rates.
init_alone = jax.jit(sgd().init)
step_alone = jax.jit(lambda rate, state, batch: sgd(rate).step(state, batch)[0])


def leaves(tree):
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def assert_close(actual, expected, tolerance=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def run(learner, steps, key=KEY):
    state, step = jax.jit(learner.init)(key, batch()), jax.jit(learner.step)
    for i in range(steps):
        state, metrics = step(state, batch(i))
    return state, metrics


def plain_run(steps, key=KEY, rate=0.1):
    """Every state of the learner alone."""
    states = [init_alone(key, batch())]
    for i in range(steps):
        states.append(step_alone(rate, states[-1], batch(i)))
    return states


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_averaged_equals_numpy_with_its_correction(decay):
    learner = averaged(sgd(), decay)
    states = plain_run(4)
    assert_close(learner.variables(jax.jit(learner.init)(KEY, batch())), sgd().variables(states[0]))
    state, _ = run(learner, 4)
    weights = decay ** np.arange(3, -1, -1.0)
    history = [sgd().variables(s) for s in states[1:]]
    expected = jax.tree.map(
        lambda *xs: np.average([np.asarray(x, np.float64) for x in xs], axis=0, weights=weights), *history
    )
    assert_close(learner.variables(state), expected)
    assert_close(state.learner, states[-1])


def test_averaged_takes_the_latest_of_what_is_no_float():
    counting = sgd()._replace(variables=lambda state: {"params": state.params, "count": {"n": state.step}})
    learner = averaged(counting, 0.9)
    state, _ = run(learner, 3)
    assert int(learner.variables(state)["count"]["n"]) == 3


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay must be .* got {decay}"):
        averaged(sgd(), decay)


def test_members_equal_learners_trained_alone():
    together, metrics = run(ensemble(sgd(), 3), 3)
    for i, key in enumerate(jax.random.split(KEY, 3)):
        assert_close(at(together, i), plain_run(3, key)[-1])
    assert metrics["loss"].value().shape == (3,)
    assert np.ndim(metrics[FAULTS]["loss not finite"]) == 0


def test_an_ensemble_predicts_and_is_scored_as_one():
    learner = ensemble(sgd(), 3, combine=mean_probabilities, score=classification_score)
    variables = learner.variables(run(learner, 2)[0])
    x = batch()["inputs"]
    members = [jax.nn.softmax(TASK.predict(at(variables, i), x)) for i in range(3)]
    np.testing.assert_allclose(jnp.exp(learner.predict(variables, x)), np.mean(members, 0), rtol=1e-5)
    losses = -np.log(np.mean(members, 0)[np.arange(8), batch()["labels"]])
    metrics = learner.evaluate(variables, batch(), KEY)
    assert float(metrics["loss"].value()) == pytest.approx(losses.mean(), rel=1e-5)


def test_without_a_score_each_member_is_evaluated():
    learner = ensemble(sgd(), 2)
    variables = learner.variables(jax.jit(learner.init)(KEY, batch()))
    metrics = learner.evaluate(variables, batch(), KEY)
    alone = [TASK.evaluate(at(variables, i), batch(), KEY)["loss"].value() for i in range(2)]
    np.testing.assert_allclose(metrics["loss"].value(), alone, rtol=1e-5)
    outputs = [TASK.predict(at(variables, i), batch()["inputs"]) for i in range(2)]
    np.testing.assert_allclose(
        learner.predict(variables, batch()["inputs"]), np.mean(outputs, 0), rtol=1e-5, atol=1e-6
    )


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="at least one member; got 0"):
        ensemble(sgd(), 0)


def test_transformations_compose():
    decay = 0.5
    learner = ensemble(averaged(sgd(), decay), 2)
    state, _ = run(learner, 3)
    for i, key in enumerate(jax.random.split(KEY, 2)):
        alone = averaged(sgd(), decay)
        expected, _ = run(alone, 3, key)
        assert_close(at(learner.variables(state), i), alone.variables(expected))


RATES = [0.05, 0.1, 0.3]


def test_points_equal_the_same_runs_one_by_one():
    state, metrics = run(sweep(sgd, grid(rate=RATES)), 3)
    for i, rate in enumerate(RATES):
        assert_close(at(state.learners, i), plain_run(3, rate=rate)[-1], 2e-5)
    assert metrics["loss"].value().shape == (3,)
    assert float(metrics["diverged"].value()) == 0
    assert state.diverged_at.tolist() == [-1, -1, -1]


def faulty(rate, last_good):
    """A learner whose parameters explode after step ``last_good``."""
    learner = sgd(rate)

    def step(state, batch):
        explodes = state.step >= last_good
        new, metrics = learner.step(state, batch)
        loss = jnp.where(explodes, jnp.nan, metrics["loss"].total)
        params = jax.tree.map(lambda x: jnp.where(explodes, jnp.inf, x), new.params)
        faults = {**metrics[FAULTS], "loss not finite": explodes.astype(jnp.int32)}
        metrics = {**metrics, "loss": metrics["loss"]._replace(total=loss), FAULTS: faults}
        return new._replace(params=params), metrics

    return learner._replace(step=step)


def test_a_point_that_diverges_is_frozen_bitwise_and_reported():
    points = {"rate": np.array([0.1, 0.1, 0.3]), "last_good": np.array([2, 99, 3])}
    learner = sweep(faulty, points)
    state, step, states = jax.jit(learner.init)(KEY, batch()), jax.jit(learner.step), []
    for i in range(5):
        states.append(state)
        state, metrics = step(state, batch(i))
        assert not any(int(count) for count in metrics[FAULTS].values())
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics["loss"]))
    assert state.diverged_at.tolist() == [2, -1, 3]
    assert float(metrics["diverged"].total) == 2
    assert metrics["loss"].weight.tolist() == [0, 8, 0]
    for point, last_good in ((0, 2), (2, 3)):
        frozen, before = at(state.learners, point), at(states[last_good].learners, point)
        assert [x.tobytes() for x in leaves(frozen)] == [x.tobytes() for x in leaves(before)]
    assert_close(at(state.learners, 1), plain_run(5)[-1], 2e-5)


def test_a_point_with_an_absurd_rate_leaves_the_others_alone():
    task = classification(MLP((16, 3)))
    state, metrics = run(sweep(lambda rate: sgd(rate, task), grid(rate=[0.1, 1e38])), 4)
    assert state.diverged_at[0] == -1
    assert state.diverged_at[1] >= 0
    assert float(metrics["diverged"].total) == 1
    alone, _ = run(sgd(0.1, task), 4)
    assert_close(at(state.learners, 0), alone, 2e-5)


def test_training_is_at_fault_when_no_point_is_left():
    learner = sweep(faulty, {"rate": np.array([0.1, 0.2]), "last_good": np.array([0, 0])})
    _, metrics = run(learner, 1)
    assert int(metrics[FAULTS]["every point of the sweep diverged"]) == 1


def test_a_sweep_evaluates_and_predicts_at_every_point():
    learner = sweep(sgd, grid(rate=[0.1, 0.3]))
    variables = learner.variables(run(learner, 2)[0])
    x = batch()["inputs"]
    for i in range(2):
        np.testing.assert_allclose(
            learner.predict(variables, x)[i], TASK.predict(at(variables, i), x), rtol=1e-4, atol=1e-5
        )
        loss = TASK.evaluate(at(variables, i), batch(), KEY)["loss"].value()
        assert float(learner.evaluate(variables, batch(), KEY)["loss"].value()[i]) == pytest.approx(
            float(loss), rel=1e-5
        )


@pytest.mark.parametrize("points", [{}, {"rate": []}, {"rate": 0.1}, {"rate": [0.1, 0.2], "decay": [0.5]}])
def test_points_that_make_no_grid_are_refused(points):
    with pytest.raises(ValueError, match="arrays of one equal length, at least 1, a hyperparameter"):
        sweep(sgd, points)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1)
)
def test_a_grid_has_every_combination_once(values):
    made = grid(**values)
    rows = list(zip(*(made[name].tolist() for name in values), strict=True))
    assert len(rows) == np.prod([len(v) for v in values.values()])
    for row in rows:
        assert all(x in values[name] for name, x in zip(values, row, strict=True))
    unique = [sorted(set(v)) for v in values.values()]
    assert len(set(rows)) == np.prod([len(v) for v in unique])
