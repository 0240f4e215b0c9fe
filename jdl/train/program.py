"""A learner's functions compiled for a mesh: what the loop of `fit` calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.core import FAULTS, Learner, Metrics, PyTree, add
from jdl.train.feed import is_resident, place
from jdl.train.mesh import Mode, batch_sharding, distributed, state_shardings


class Found(NamedTuple):
    """The first step at fault of a dispatch, -1 when none was, and what was wrong with it."""

    step: jax.Array
    faults: dict[str, jax.Array]


class Program(NamedTuple):
    """Compiled functions of one learner on one mesh.

    Attributes:
        state: shapes and shardings of the state.
        init: the state to start from.
        advance: ``state, sums, start, stop -> state, sums, found``: steps start..stop-1, their metrics added
            to the sums; the state's memory is reused. With batches from the host, one step.
        zeros: sums of no step.
        evaluate: ``variables, batches -> metrics`` of all of a set's batches.
        variables: ``state -> variables``.
        predict: ``variables, inputs -> outputs``.
        batch: ``batches, step -> batch`` on the host, of batches that live on the device.
        steps_at_once: whether ``advance`` may do several.
    """

    state: PyTree
    init: Callable[[], PyTree]
    advance: Callable[..., tuple[PyTree, Metrics, Found]]
    zeros: Metrics
    evaluate: Callable[[Any, Any], Metrics]
    variables: Callable[[PyTree], Any]
    predict: Callable[[Any, Any], Any]
    batch: Callable[[Any, int], Any]
    steps_at_once: bool


def build(
    learner: Learner, key: jax.Array, batches: Any, first: Any, mesh: Mesh, mode: Mode, loop: bool | None
) -> Program:
    """Compiles lazily: nothing is compiled before its first call, and shape errors are raised here.

    Args:
        learner: what to run.
        key: the key to start from.
        batches: batches by step: resident (placed on the mesh already), or called by the host.
        first: the batch of the first step, placed on the mesh.
        mesh: the mesh.
        mode: the device mode.
        loop: whether to do several steps a dispatch; None for where the backend gains from it.
    """
    shapes = jax.eval_shape(learner.init, key, first)
    shardings = state_shardings(shapes, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    copied = NamedSharding(mesh, P())
    step = distributed(learner.step, mesh, mode, shapes)
    metrics = jax.eval_shape(step, shapes, first)[1]
    zeros = jax.device_put(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics), copied)
    resident = is_resident(batches) and jax.process_count() == 1
    if loop is None:
        loop = resident and (mesh.devices.flat[0].platform != "cpu" or not _has_convolution(step, shapes, first))
    if loop and not resident:
        raise ValueError("several steps at once need batches that live on the device")

    def one(state: PyTree, sums: Metrics, found: Found, batch: Any, i: Any) -> tuple[PyTree, Metrics, Found]:
        state, metrics = step(state, batch)
        faults = metrics.get(FAULTS, {})
        is_first = (found.step < 0) & (sum(faults.values(), jnp.zeros((), jnp.int32)) > 0)
        found = Found(
            jnp.where(is_first, i, found.step),
            jax.tree.map(lambda new, old: jnp.where(is_first, new, old), faults, found.faults),
        )
        return state, add(sums, metrics), found

    none = Found(jnp.asarray(-1, jnp.int32), jax.tree.map(jnp.zeros_like, zeros.get(FAULTS, {})))

    def split(batch: Any) -> Any:
        return jax.lax.with_sharding_constraint(dict(batch), batch_sharding(mesh))

    def advance_in_loop(state: PyTree, sums: Metrics, batches: Any, start: Any, stop: Any) -> Any:
        def body(i: Any, so_far: Any) -> Any:
            return one(*so_far, split(batches(i)), i)

        return jax.lax.fori_loop(start, stop, body, (state, sums, none))

    def advance_once(state: PyTree, sums: Metrics, batches: Any, start: Any, stop: Any) -> Any:
        del stop
        return one(state, sums, none, split(batches(start)), start)

    def advance_given(state: PyTree, sums: Metrics, batch: Any, start: Any, stop: Any) -> Any:
        del stop
        return one(state, sums, none, batch, start)

    function = advance_given if not resident else advance_in_loop if loop else advance_once
    advance = jax.jit(function, donate_argnums=0, out_shardings=(shardings, copied, copied))

    @functools.partial(jax.jit, static_argnums=4)
    def evaluate_batch(sums: Metrics, variables: Any, source: Any, i: Any, resident: bool) -> Metrics:
        return add(sums, evaluated(variables, source, i, resident))

    def evaluated(variables: Any, source: Any, i: Any, resident: bool) -> Metrics:
        batch = split(source(i) if resident else source)
        return learner.evaluate(variables, batch, jax.random.fold_in(jax.random.key(0), i))

    # Programs dispatched far ahead wait for one another's devices, and on several CPU devices for ever.
    in_turn = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"

    def evaluate(variables: Any, batches: Any) -> Metrics:
        resident = is_resident(batches) and jax.process_count() == 1
        sums = None
        for i in range(len(batches)):
            source = batches if resident else place(batches(i), mesh)
            if sums is None:
                shapes = jax.eval_shape(lambda v, source: evaluated(v, source, 0, resident), variables, source)
                sums = jax.device_put(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), copied)
            sums = evaluate_batch(sums, variables, source, i, resident)
            if in_turn:
                jax.block_until_ready(sums)
        return sums or {}

    implementation = jax.random.key_impl(key)

    @functools.partial(jax.jit, out_shardings=shardings)
    def init_from_data(data: Any, first: Any) -> PyTree:
        return learner.init(jax.random.wrap_key_data(data, impl=implementation), first)

    # A key as host data belongs to no device, and so to every process's.
    def init() -> PyTree:
        return init_from_data(np.asarray(jax.random.key_data(key)), first)

    return Program(
        state=state,
        init=init,
        advance=advance,
        zeros=zeros,
        evaluate=evaluate,
        variables=jax.jit(learner.variables),
        predict=jax.jit(learner.predict),
        batch=jax.jit(lambda batches, i: batches(i)),
        steps_at_once=loop,
    )


def _has_convolution(function: Callable[..., Any], *args: Any) -> bool:
    """Whether a function traces to a convolution, which XLA:CPU runs several times slower inside a loop."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return any(equation.primitive.name == "conv_general_dilated" for equation in equations(jaxpr))


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of the functions it calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
