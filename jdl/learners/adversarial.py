"""Learning of two players against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdl.core import FAULTS, Array, Batch, Learner, Metrics, State, Variables, add
from jdl.learners.gradient import _interleaved, gradient
from jdl.tasks.adversarial import OPPONENT, Players


class Match(NamedTuple):
    """State of `gan`: that of each player, without the other's variables in it."""

    generator: State
    discriminator: State


def gan(
    players: Players,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    generator_steps: int = 1,
    discriminator_steps: int = 1,
) -> Learner:
    """Two players in turn, each by gradient steps against the other as it then is.

    A step takes one batch and makes all updates of a turn in one program: first those of the discriminator,
    each on an equal part of the batch, then those of the generator, each with new latents for such a part;
    with one update each, the generator learns from the examples that the discriminator has just judged,
    which are made once. So a critic that makes five updates for one of the generator takes batches of five
    times the size, and any ratio is a pair of numbers. `jdl.learners.averaged` around it averages the
    generator once a turn.

    Args:
        players: the tasks, as `jdl.tasks.gan` makes them.
        generator_tx: optimiser of the generator.
        discriminator_tx: optimiser of the discriminator.
        generator_steps: updates of the generator in a turn.
        discriminator_steps: updates of the discriminator in a turn; must divide the batch.

    Returns:
        A learner whose variables are the generator's alone, and which evaluates and predicts as its task
        does. Its metrics are those of both players, named "generator_loss", "discriminator_grad_norm" and so
        on, and what the discriminator measures.

    Raises:
        ValueError: if a number of updates is below 1, or the batch cannot be divided.

    Example:
        >>> from jdl import tasks
        >>> from jdl.models import MLP
        >>> players = tasks.gan(MLP((16, 2)), MLP((16, 1)), latents=3)
        >>> learner = gan(players, optax.adam(1e-3), optax.adam(1e-3), discriminator_steps=2)
        >>> batch = {"inputs": jax.random.normal(jax.random.key(0), (8, 2))}
        >>> state, metrics = learner.step(learner.init(jax.random.key(1), batch), batch)
        >>> int(state.discriminator.step), int(state.generator.step)
        (2, 1)
        >>> learner.predict(learner.variables(state), jnp.zeros((5, 3))).shape
        (5, 2)

    Reference:
        Goodfellow et al., "Generative adversarial nets", 2014, algorithm 1; the two rates: Heusel et al.,
        "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017.
    """
    if min(generator_steps, discriminator_steps) < 1:
        raise ValueError(
            "each player makes at least one update in a turn; got generator_steps "
            f"{generator_steps}, discriminator_steps {discriminator_steps}"
        )
    makes = gradient(players.generator, generator_tx)
    judges = gradient(players.discriminator, discriminator_tx)
    is_even = generator_steps == discriminator_steps == 1

    def init(key: Array, batch: Batch) -> Match:
        init_key, run_key = jax.random.split(key)
        made = dict(players.generator.init(init_key, batch))
        judged = dict(made.pop(OPPONENT))
        other_key = run_key if is_even else jax.random.fold_in(run_key, 1)
        return Match(_begin(made, run_key, generator_tx), _begin(judged, other_key, discriminator_tx))

    def step(state: Match, batch: Batch) -> tuple[Match, Metrics]:
        parts = _interleaved(dict(batch), discriminator_steps)

        def judge(player: State, part: Batch) -> tuple[State, Metrics]:
            if is_even:
                # Equal anyway. That they are the same lets the compiler see that both draw the same latents.
                player = player._replace(key=state.generator.key, step=state.generator.step)
            return _against(judges, player, makes.variables(state.generator), part)

        discriminator, judged = _in_turn(judge, state.discriminator, parts, discriminator_steps)

        def make(player: State, part: Batch) -> tuple[State, Metrics]:
            return _against(makes, player, judges.variables(discriminator), part)

        which = jnp.arange(generator_steps) % discriminator_steps
        parts = jax.tree.map(lambda x: x[which], parts)
        generator, made = _in_turn(make, state.generator, parts, generator_steps)
        return Match(generator, discriminator), _together(made, judged)

    def variables(state: Match) -> Variables:
        return makes.variables(state.generator)

    task = players.generator
    return Learner(init, step, variables, makes.evaluate, task.predict, task.monitor, task.check)


def _begin(variables: dict[str, Any], key: Array, tx: optax.GradientTransformation) -> State:
    params = variables.pop("params")
    return State(jnp.zeros((), jnp.int32), key, params, variables, tx.init(params))


def _against(learner: Learner, player: State, opponent: Variables, batch: Batch) -> tuple[State, Metrics]:
    """A player's step, the other's variables put among its own for the time."""
    collections = {**player.collections, OPPONENT: opponent}
    after, metrics = learner.step(player._replace(collections=collections), batch)
    collections = {name: tree for name, tree in after.collections.items() if name != OPPONENT}
    return after._replace(collections=collections), metrics


def _in_turn(
    step: Callable[[State, Batch], tuple[State, Metrics]], player: State, parts: Any, n: int
) -> tuple[State, Metrics]:
    """n steps, one on each row of ``parts``, and their metrics added up."""
    if n == 1:
        return step(player, jax.tree.map(lambda x: x[0], parts))

    def body(so_far: Any, part: Any) -> Any:
        player, sums = so_far
        player, metrics = step(player, part)
        return (player, add(sums, metrics)), None

    shapes = jax.eval_shape(step, player, jax.tree.map(lambda x: x[0], parts))[1]
    start = (player, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    # XLA:CPU runs a convolution inside a loop several times slower than outside.
    return jax.lax.platform_dependent(
        start,
        parts,
        cpu=lambda start, parts: jax.lax.scan(body, start, parts, unroll=n)[0],
        default=lambda start, parts: jax.lax.scan(body, start, parts)[0],
    )


def _together(made: Metrics, judged: Metrics) -> Metrics:
    """The players' metrics; those of a learner, and all that both have, by names that say whose they are."""
    whose = {"loss", "grad_norm", "learning_rate"} | (made.keys() & judged.keys())
    named = {
        f"{player}_{name}" if name in whose else name: metric
        for player, metrics in (("generator", made), ("discriminator", judged))
        for name, metric in metrics.items()
        if name != FAULTS
    }
    faults = {
        f"{fault} of the {player}": count
        for player, metrics in (("generator", made), ("discriminator", judged))
        for fault, count in metrics.get(FAULTS, {}).items()
    }
    return {**named, FAULTS: faults}
