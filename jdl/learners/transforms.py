"""From Learner to Learner: averages, ensembles and sweeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import FAULTS, Array, Batch, Learner, Mean, Metrics, PyTree, Variables, psum


class Averaged(NamedTuple):
    """State of `averaged`: the learner's own, the decayed sum of its variables, and of the weights."""

    learner: PyTree
    total: Variables
    weight: Array


def averaged(learner: Learner, decay: float = 0.999) -> Learner:
    """The learner, with the exponential moving average of its variables as those to use.

    After t steps the average is sum_i decay^(t-i) v_i / sum_i decay^(t-i), which weighs no initial value.
    Every floating variable is averaged (running statistics too); others are the latest.

    Args:
        learner: a learner.
        decay: share of the past kept at each step, 0 <= decay < 1; 0.999 remembers about 1,000 steps.

    Returns:
        A learner that trains as the given one does.

    Raises:
        ValueError: for ``decay`` out of range.

    Example:
        >>> import optax
        >>> from jdl.learners import gradient
        >>> from jdl.models import MLP
        >>> from jdl.tasks import regression
        >>> learner = averaged(gradient(regression(MLP((1,))), optax.sgd(0.1)), decay=0.9)
        >>> batch = {"inputs": jnp.ones((2, 3)), "labels": jnp.ones((2, 1))}
        >>> state, _ = learner.step(learner.init(jax.random.key(0), batch), batch)
        >>> averages, latest = learner.variables(state)["params"], state.learner.params
        >>> bool(jax.tree.all(jax.tree.map(jnp.allclose, averages, latest)))  # after one step
        True

    Reference:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the correction is
        that of Kingma and Ba, "Adam", 2015, section 3.
    """
    if not isinstance(decay, jax.core.Tracer) and not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1; got {decay}")

    def init(key: Array, batch: Batch) -> Averaged:
        state = learner.init(key, batch)
        zeros = jax.tree.map(jnp.zeros_like, learner.variables(state))
        return Averaged(state, zeros, jnp.zeros((), jnp.float32))

    def step(state: Averaged, batch: Batch) -> tuple[Averaged, Metrics]:
        inner, metrics = learner.step(state.learner, batch)
        total = jax.tree.map(
            lambda total, new: decay * total + (1 - decay) * new if _is_float(new) else new,
            state.total,
            learner.variables(inner),
        )
        return Averaged(inner, total, decay * state.weight + (1 - decay)), metrics

    def variables(state: Averaged) -> Variables:
        def average(total: Array, latest: Array) -> Array:
            if not _is_float(latest):
                return latest
            weight = jnp.where(state.weight > 0, state.weight, 1)
            return jnp.where(state.weight > 0, total / weight, latest).astype(latest.dtype)

        return jax.tree.map(average, state.total, learner.variables(state.learner))

    return learner._replace(init=init, step=step, variables=variables)


def mean_probabilities(logits: Array) -> Array:
    """Logits [N, B, C] of N classifiers to those of their mixture [B, C]: log mean_n softmax(logits_n).

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
        >>> print(jax.nn.softmax(mean_probabilities(logits)))
        [[0.7 0.3]]
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_probabilities, 0) - jnp.log(logits.shape[0])


def ensemble(
    learner: Learner,
    n: int,
    *,
    combine: Callable[[Any], Any] | None = None,
    score: Callable[[Any, Batch], Metrics] | None = None,
) -> Learner:
    """n learners that differ in their key (initial parameters and noise), trained at once by `vmap`.

    Args:
        learner: a learner.
        n: number of members.
        combine: function of the members' stacked outputs [n, B, ...] to the ensemble's; their mean when
            None. For classifiers `mean_probabilities`.
        score: ``outputs, batch -> metrics`` of the combined outputs, such as
            `jdl.tasks.classification_score`. Without it evaluation gives each member's metrics, [n].

    Returns:
        A learner whose state, variables and training metrics have a leading axis of n members.

    Raises:
        ValueError: if ``n`` is below 1.

    Example:
        >>> import optax
        >>> from jdl.learners import gradient
        >>> from jdl.models import MLP
        >>> from jdl.tasks import classification
        >>> one = gradient(classification(MLP((8, 3))), optax.adam(1e-3))
        >>> learner = ensemble(one, 5, combine=mean_probabilities)
        >>> batch = {"inputs": jnp.ones((2, 4)), "labels": jnp.array([0, 2])}
        >>> state = learner.init(jax.random.key(0), batch)
        >>> learner.predict(learner.variables(state), batch["inputs"]).shape
        (2, 3)

    Reference:
        Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles",
        2017.
    """
    if n < 1:
        raise ValueError(f"an ensemble needs at least one member; got {n}")
    combine = combine or (lambda outputs: jax.tree.map(lambda x: x.mean(0), outputs))

    def init(key: Array, batch: Batch) -> PyTree:
        return jax.vmap(learner.init, (0, None))(jax.random.split(key, n), batch)

    def step(state: PyTree, batch: Batch) -> tuple[PyTree, Metrics]:
        state, metrics = jax.vmap(learner.step, (0, None))(state, batch)
        return state, _with_total_faults(metrics)

    def predict(variables: Variables, inputs: Any) -> Any:
        return combine(jax.vmap(learner.predict, (0, None))(variables, inputs))

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        if score is None:
            metrics = jax.vmap(learner.evaluate, (0, None, None))(variables, batch, key)
            return _with_total_faults(metrics)
        return psum(score(predict(variables, batch["inputs"]), batch))

    return learner._replace(
        init=init, step=step, variables=jax.vmap(learner.variables), evaluate=evaluate, predict=predict
    )


class Sweep(NamedTuple):
    """State of `sweep`: one learner's state a point, the points, and when each diverged."""

    learners: PyTree
    points: dict[str, Array]
    step: Array
    diverged_at: Array


def grid(**values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Every combination of the values, one array [n] a name, the last name varying fastest.

    Example:
        >>> {name: x.tolist() for name, x in grid(rate=[0.1, 0.01], decay=[0.0, 1.0]).items()}
        {'rate': [0.1, 0.1, 0.01, 0.01], 'decay': [0.0, 1.0, 0.0, 1.0]}
    """
    columns = zip(*itertools.product(*values.values()), strict=True)
    return {name: np.asarray(column) for name, column in zip(values, columns, strict=True)}


def sweep(make: Callable[..., Learner], points: Mapping[str, Any]) -> Learner:
    """Trains every point of a grid of hyperparameters at once, in one compiled program, by `vmap`.

    All points see the same batches and start from the same key. A point whose step is at fault (its loss,
    gradient or parameters are no longer finite) keeps the state it had before that step, and its metrics
    count no more, while the others go on; training stops when none is left.

    Args:
        make: builds a learner from a point's values, which are traced scalars: those may stand wherever
            arithmetic is done with them (learning rate, weight decay), not where a shape depends on them.
        points: names to arrays of n values each, such as `grid` makes.

    Returns:
        A learner whose state, variables and metrics have a leading axis of n points. Its metrics have
        "diverged", the number of points that are frozen; the state's ``diverged_at`` [n] holds the step at
        which each was, or -1.

    Raises:
        ValueError: if ``points`` is empty or its arrays differ in length.

    Example:
        >>> import optax
        >>> from jdl.learners import gradient
        >>> from jdl.models import MLP
        >>> from jdl.tasks import classification
        >>> task = classification(MLP((2,)))
        >>> learner = sweep(lambda rate: gradient(task, optax.sgd(rate)), grid(rate=[0.1, 1.0]))
        >>> batch = {"inputs": jnp.eye(4), "labels": jnp.array([0, 1, 1, 0])}
        >>> state, metrics = learner.step(learner.init(jax.random.key(0), batch), batch)
        >>> metrics["loss"].value().shape
        (2,)
    """
    points = {name: jnp.asarray(values) for name, values in points.items()}
    sizes = {name: values.shape[0] if values.ndim else 0 for name, values in points.items()}
    if not sizes or len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"a sweep needs arrays of one equal length, at least 1, a hyperparameter; got {sizes}"
        )
    n = next(iter(sizes.values()))
    # The functions that take no hyperparameter are the same at every point.
    any_point = make(**{name: values[0] for name, values in points.items()})

    def each(function: str, *in_axes: int | None) -> Callable[..., Any]:
        """A learner's function by name, at every point: (points, arguments...) -> stacked results."""
        return jax.vmap(lambda point, *args: getattr(make(**point), function)(*args), (0, *in_axes))

    def init(key: Array, batch: Batch) -> Sweep:
        learners = each("init", None, None)(points, key, batch)
        return Sweep(learners, points, jnp.zeros((), jnp.int32), jnp.full(n, -1, jnp.int32))

    def step(state: Sweep, batch: Batch) -> tuple[Sweep, Metrics]:
        learners, metrics = each("step", 0, None)(state.points, state.learners, batch)
        faults = metrics.pop(FAULTS, {})
        at_fault = sum(faults.values(), jnp.zeros(n, jnp.int32)) > 0
        diverged_at = jnp.where(at_fault & (state.diverged_at < 0), state.step, state.diverged_at)
        alive = diverged_at < 0

        def freeze(new: Array, old: Array) -> Array:
            return jnp.where(alive.reshape(n, *[1] * (new.ndim - 1)), new, old)

        learners = jax.tree.map(freeze, learners, state.learners)
        metrics = jax.tree.map(lambda x: freeze(x, jnp.zeros_like(x)), metrics)
        metrics["diverged"] = Mean((~alive).sum(dtype=jnp.float32), jnp.ones((), jnp.float32))
        none_left = (~alive).all()
        each_fault = {name: jnp.where(none_left, count.sum(), 0) for name, count in faults.items()}
        metrics[FAULTS] = {"every point of the sweep diverged": none_left.astype(jnp.int32), **each_fault}
        return Sweep(learners, state.points, state.step + 1, diverged_at), metrics

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        return _with_total_faults(jax.vmap(any_point.evaluate, (0, None, None))(variables, batch, key))

    return Learner(
        init,
        step,
        lambda state: each("variables", 0)(state.points, state.learners),
        evaluate,
        jax.vmap(any_point.predict, (0, None)),
        any_point.monitor,
        any_point.check,
    )


def _with_total_faults(metrics: Metrics) -> Metrics:
    """Metrics of stacked learners, with the faults of all of them together."""
    faults = {name: count.sum() for name, count in metrics.get(FAULTS, {}).items()}
    return {**metrics, FAULTS: faults} if faults else metrics


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
