"""Two players as one learner: what a turn is, what composes with it, and that it learns."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl import learners, tasks
from jdl.core import FAULTS, State, summarize
from jdl.models import MLP
from jdl.tasks.adversarial import OPPONENT
from tests.compiling import jit

RNG = np.random.default_rng(0)


def batch(i=0, size=8):
    rng = np.random.default_rng(i)
    return {
        "inputs": rng.normal(size=(size, 2)).astype(np.float32) + 2,
        "latents": rng.normal(size=(size, 3)).astype(np.float32),
    }


def given(key, batch):
    return batch["latents"]


def players(latents=given):
    return tasks.gan(MLP((6, 2), jnp.tanh), MLP((6, 1), jnp.tanh), latents, loss="hinge")


TX = optax.sgd(0.1, momentum=0.9)


@pytest.mark.parametrize(("makes", "judges"), [(1, 1), (1, 2), (2, 1)])
def test_a_turn_is_the_updates_of_each_player_one_after_another(makes, judges):
    pair, whole = players(), batch()
    learner = learners.gan(pair, TX, TX, generator_steps=makes, discriminator_steps=judges)
    state = learner.init(jax.random.key(0), whole)
    after, metrics = jit(learner.step)(state, whole)

    @jit
    def by_hand(state):
        params = {"generator": state.generator.params, "discriminator": state.discriminator.params}
        opt_state = {name: getattr(state, name).opt_state for name in params}
        loss = {}

        def update(who, task, other, i):
            part = {name: x[i::judges] for name, x in whole.items()}

            def mean(own):
                variables = {"params": own, OPPONENT: {"params": params[other]}}
                total, (weight, _, _) = task.loss(variables, part, jax.random.key(0))
                return total / weight

            value, gradient = jax.value_and_grad(mean)(params[who])
            updates, opt_state[who] = TX.update(gradient, opt_state[who])
            params[who] = optax.apply_updates(params[who], updates)
            loss.setdefault(who, []).append(value)

        for i in range(judges):
            update("discriminator", pair.discriminator, "generator", i)
        for i in range(makes):
            update("generator", pair.generator, "discriminator", i % judges)
        return params, {name: sum(values) / len(values) for name, values in loss.items()}

    params, loss = by_hand(state)
    for name in params:
        player: State = getattr(after, name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), player.params, params[name])
        np.testing.assert_allclose(summarize(metrics)[f"{name}_loss"], loss[name], rtol=1e-5)
    assert (after.generator.step, after.discriminator.step) == (makes, judges)
    assert OPPONENT not in after.generator.collections


def test_what_is_judged_is_made_once_where_each_player_makes_one_update():
    """Products [8, 17] of the generator: one forward for both players, one back through its second layer."""
    players = tasks.gan(MLP((17, 2)), MLP((16, 1)), latents=3)
    learner = learners.gan(players, optax.sgd(1e-2), optax.sgd(1e-2))
    batch = {"inputs": jnp.zeros((8, 2))}
    state = learner.init(jax.random.key(0), batch)
    program = jax.jit(learner.step).lower(state, batch).compile().as_text()
    assert len(re.findall(r"f32\[8,17\]\S* dot\(", program)) == 2


def test_metrics_say_whose_they_are():
    learner = learners.gan(players(3), TX, optax.inject_hyperparams(optax.sgd)(0.1))
    state = jax.eval_shape(learner.init, jax.random.key(0), batch())
    _, metrics = jax.eval_shape(learner.step, state, batch())
    assert set(metrics) == {
        "generator_loss", "generator_grad_norm", "discriminator_loss", "discriminator_grad_norm",
        "discriminator_learning_rate", "real_logit", "fake_logit", "real_above_fake", FAULTS,
    }  # fmt: skip
    assert "loss not finite of the generator" in metrics[FAULTS]


def test_a_fault_names_the_player():
    learner = learners.gan(players(), TX, TX)
    bad = {**batch(), "inputs": np.full((8, 2), np.nan, np.float32)}
    step = jit(learner.step)
    _, metrics = step(learner.init(jax.random.key(0), bad), bad)
    found = {name for name, count in metrics[FAULTS].items() if count}
    assert "loss not finite of the discriminator" in found


def test_the_average_is_of_the_generator_and_an_ensemble_is_of_whole_matches():
    learner = learners.averaged(learners.gan(players(3), TX, TX), 0.5)
    step, state = jit(learner.step), learner.init(jax.random.key(0), batch())
    seen = []
    for i in range(3):
        state, _ = step(state, batch(i))
        seen.append(state.learner.generator.params)
    expected = jax.tree.map(lambda a, b, c: (a + 2 * b + 4 * c) / 7, *seen)
    averaged = learner.variables(state)["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), averaged, expected)
    two = learners.ensemble(learners.gan(players(3), TX, TX), 2)
    shapes = jax.eval_shape(two.init, jax.random.key(0), batch())
    after, _ = jax.eval_shape(two.step, shapes, batch())
    assert after.generator.params["Dense_0"]["kernel"].shape == (2, 3, 6)


def test_learns_where_the_data_are():
    pair = tasks.gan(MLP((6, 2), jnp.tanh), MLP((6, 1), jnp.tanh), 3, r1=0.1)
    learner = learners.gan(pair, optax.adam(1e-2, 0.5), optax.adam(1e-2, 0.5))
    state, step = learner.init(jax.random.key(0), batch(size=64)), jit(learner.step)
    for i in range(400):
        state, _ = step(state, batch(i, 64))
    found = learner.predict(learner.variables(state), RNG.normal(size=(200, 3)).astype(np.float32))
    np.testing.assert_allclose(found.mean(0), [2, 2], atol=0.5)


def test_refuses_turns_without_updates_and_batches_that_cannot_be_divided():
    with pytest.raises(ValueError, match="at least one update in a turn; got generator_steps 0"):
        learners.gan(players(), TX, TX, generator_steps=0)
    learner = learners.gan(players(), TX, TX, discriminator_steps=3)
    state = learner.init(jax.random.key(0), batch())
    with pytest.raises(ValueError, match="a batch of 8 cannot be"):
        learner.step(state, batch())
