"""Learning by gradient steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdl.core import (
    CARRY,
    FAULTS,
    Array,
    Batch,
    Learner,
    Mean,
    Metrics,
    PyTree,
    State,
    Task,
    Variables,
    add,
    local_key,
    pmean,
    psum,
)


def gradient(task: Task, tx: optax.GradientTransformation, *, accumulate: int = 1) -> Learner:
    """Minimises a task's loss, sum of totals / sum of weights over the whole batch, with an Optax optimiser.

    The optimiser is called with the loss, its gradient and a function of the parameters that recomputes
    the loss on the same batch and noise, so that `optax.lbfgs`, Polyak step sizes and
    `optax.contrib.reduce_on_plateau` work as they are.

    Args:
        task: what to learn.
        tx: an Optax gradient transformation.
        accumulate: compute the batch in this many equal parts one after another, adding up their totals,
            weights and gradients, to save memory. The result is that of the whole batch, but for noise and
            for layers whose statistics are those of the part (BatchNorm). Under ``jit`` on a mesh the
            compiler may sum the gradients of every part over the devices, under ``shard_map`` it sums those
            of the whole.

    Returns:
        A learner whose state is a `State` and whose metrics are the task's, "loss", "grad_norm" and, where
        the optimiser keeps it (`optax.inject_hyperparams`), "learning_rate".

    Raises:
        ValueError: if ``accumulate`` is below 1 or does not divide the batch.

    Example:
        >>> from jdl.models import MLP
        >>> from jdl.tasks import classification
        >>> learner = gradient(classification(MLP((16, 2))), optax.adam(1e-2))
        >>> batch = {"inputs": jnp.eye(4), "labels": jnp.array([0, 1, 1, 0])}
        >>> state = learner.init(jax.random.key(0), batch)
        >>> for _ in range(50):
        ...     state, metrics = jax.jit(learner.step)(state, batch)
        >>> float(metrics["accuracy"].value())
        1.0
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1; got {accumulate}")
    optimizer = optax.with_extra_args_support(tx)

    def init(key: Array, batch: Batch) -> State:
        init_key, run_key = jax.random.split(key)
        params, collections = _split(task.init(init_key, batch))
        return State(jnp.zeros((), jnp.int32), run_key, params, collections, optimizer.init(params))

    def value(params: PyTree, collections: Variables, batch: Batch, key: Array) -> Any:
        total, (weight, changed, _) = task.loss({"params": params, **collections}, batch, key)
        return (total, weight), changed

    def value_and_grad(params: PyTree, collections: Variables, batch: Batch, key: Array) -> Any:
        def loss(params: PyTree) -> Any:
            return task.loss({"params": params, **collections}, batch, key)

        (total, (weight, changed, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (total, weight, metrics, grads), changed

    if accumulate > 1:
        value, value_and_grad = _in_parts(value, accumulate), _in_parts(value_and_grad, accumulate)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = local_key(jax.random.fold_in(state.key, state.step))

        def whole(params: PyTree) -> Any:
            """Loss and gradient of the whole batch, and what came with them."""
            sums, changed = value_and_grad(params, state.collections, batch, key)
            total, weight, metrics, grads = psum(sums)
            grads = jax.tree.map(lambda g: g / _nonzero(weight).astype(g.dtype), grads)
            return total / _nonzero(weight), grads, (total, weight, metrics, changed)

        # Derived by JAX, the gradient of a sum over shards would be that of a shard, and a line search that
        # goes by it would take other steps on other devices, which then wait for one another for ever.
        @jax.custom_vjp
        def recompute(params: PyTree) -> Array:
            total, weight = psum(value(params, state.collections, batch, key)[0])
            return total / _nonzero(weight)

        recompute.defvjp(
            lambda params: whole(params)[:2],
            lambda grads, cotangent: (jax.tree.map(lambda g: g * cotangent.astype(g.dtype), grads),),
        )

        loss, grads, (total, weight, metrics, changed) = whole(state.params)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=loss, grad=grads, value_fn=recompute
        )
        params = optax.apply_updates(state.params, updates)

        grad_norm = optax.tree.norm(grads)
        faults = {
            "loss not finite": _bad(loss),
            "gradient not finite": _bad(grad_norm),
            "new parameters not finite": _bad(params),
        }
        metrics = {
            "loss": Mean(total, weight),
            **metrics,
            "grad_norm": _once(grad_norm),
            **{name: _once(rate) for name, rate in _learning_rate(opt_state).items()},
            FAULTS: {**metrics.get(FAULTS, {}), **faults},
        }
        # Statistics of a layer that does not synchronise its own would be those of one shard.
        lasting, carry = _without_carry(changed)
        lasting = jax.tree.map(lambda x: pmean(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, lasting)
        collections = {**state.collections, **lasting, **carry}
        return State(state.step + 1, state.key, params, collections, opt_state), metrics

    def variables(state: State) -> Variables:
        return {"params": state.params, **_without_carry(state.collections)[0]}

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        return psum(task.evaluate(variables, batch, local_key(key)))

    return Learner(init, step, variables, evaluate, task.predict, task.monitor, task.check)


def _split(variables: Variables) -> tuple[PyTree, Variables]:
    """A variables tree's parameters, and its other collections."""
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _nonzero(weight: Array) -> Array:
    """The weight to divide by: a batch that weighs nothing gives a zero gradient, not NaN."""
    return jnp.where(weight > 0, weight, 1)


def _bad(tree: PyTree) -> Array:
    """1 if anything in the tree is infinite or NaN."""
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return 1 - jnp.stack([*finite, jnp.asarray(True)]).all().astype(jnp.int32)


def _once(x: Any) -> Mean:
    """A number of this step, to be averaged over steps."""
    return Mean(jnp.asarray(x, jnp.float32), jnp.ones((), jnp.float32))


def _learning_rate(opt_state: PyTree) -> dict[str, Array]:
    found = optax.tree.get_all_with_path(opt_state, "learning_rate")
    return {"learning_rate": found[0][1]} if found else {}


def _in_parts(function: Callable[..., Any], n: int) -> Callable[..., Any]:
    """``function(params, collections, batch, key) -> sums, changed`` over n parts of the batch in turn.

    The sums are added up and collections pass from part to part, but for recurrent carries, each of whose
    rows goes with its example. Part j holds examples j, j + n, ..., so that on a mesh every device keeps its
    own.
    """

    def in_parts(params: PyTree, collections: Variables, batch: Batch, key: Array) -> Any:
        lasting, carry = _without_carry(collections)

        def one(lasting: Variables, part: Any) -> Any:
            carry, batch, key = part
            sums, changed = function(params, {**lasting, **carry}, batch, key)
            changed, carry = _without_carry(changed)
            return {**lasting, **changed}, carry, sums

        def body(so_far: Any, part: Any) -> Any:
            lasting, sums = so_far
            lasting, carry, more = one(lasting, part)
            return (lasting, add(sums, more)), carry

        parts = (_interleaved(carry, n), _interleaved(dict(batch), n), jax.random.split(key, n))
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, lasting, first)[2])
        # XLA:CPU runs a convolution inside a loop several times slower than outside.
        (lasting, sums), carries = jax.lax.platform_dependent(
            (lasting, zeros),
            parts,
            cpu=lambda start, parts: jax.lax.scan(body, start, parts, unroll=n),
            default=lambda start, parts: jax.lax.scan(body, start, parts),
        )
        return sums, {**lasting, **_joined(carries)}

    return in_parts


def _without_carry(collections: Variables) -> tuple[Variables, Variables]:
    """The collections that are of the model, and those that are of the examples."""
    of_model = {name: tree for name, tree in collections.items() if name != CARRY}
    return of_model, {name: tree for name, tree in collections.items() if name == CARRY}


def _interleaved(tree: PyTree, n: int) -> PyTree:
    """Arrays [B, ...] as [n, B / n, ...], whose row j holds examples j, j + n, ..."""

    def one(x: Array) -> Array:
        if x.shape[0] % n:
            raise ValueError(f"a batch of {x.shape[0]} cannot be divided into {n} equal parts")
        return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)

    return jax.tree.map(one, tree)


def _joined(tree: PyTree) -> PyTree:
    """The inverse of `_interleaved`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
