"""A learner's functions compiled for a mesh: what the loop of `fit` calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.core import FAULTS, Learner, Metrics, PyTree, Variables, add
from jdl.train.feed import Feed, is_resident
from jdl.train.jaxprs import equations
from jdl.train.mesh import Mode, distributed, on_mesh
from jdl.train.planning import processes, put
from jdl.train.sharding import Rule, batch_shardings, is_carry, state_shardings


class Found(NamedTuple):
    """The first step at fault of a dispatch.

    Attributes:
        step: its index, -1 when none was.
        faults: what was wrong with it.
        finite: which floating arrays of the state were finite after it, bool [n].
    """

    step: jax.Array
    faults: dict[str, jax.Array]
    finite: jax.Array


class Program(NamedTuple):
    """Compiled functions of one learner on one mesh.

    Attributes:
        state: shapes and shardings of the state.
        init: the state to start from.
        advance: ``state, sums, source, start, stop -> state, sums, found``: steps start..stop-1, their
            metrics added to the sums; the state's memory is reused. ``source`` are the batches, or where the
            host calls them one batch, and then it is one step.
        zeros: sums of no step.
        evaluate: by name of a set, ``variables -> metrics`` of all of it.
        measures: by name of a set, the metrics that ``evaluate`` gives.
        variables: ``state -> variables``, copied, since the next step takes the state's memory.
        predict: ``variables, inputs -> outputs``.
        traces: by program, "train" and the names of sets, how to trace it (nothing is computed), and the
            shapes and shardings of what it knows: the state, or variables.
        batch: ``step -> batch`` on the host.
        floats: paths of the state's floating arrays, in the order of `Found.finite`.
        steps_at_once: whether ``advance`` may do several.
        in_turn: whether a dispatch must wait for the one before.
    """

    state: PyTree
    init: Callable[[], PyTree]
    advance: Callable[..., tuple[PyTree, Metrics, Found]]
    zeros: Metrics
    evaluate: Mapping[str, Callable[[Variables], Metrics]]
    measures: Mapping[str, list[str]]
    variables: Callable[[PyTree], Variables]
    predict: Callable[[Variables, Any], Any]
    traces: Mapping[str, tuple[Callable[[], Any], PyTree]]
    batch: Callable[[int], Any]
    floats: list[str]
    steps_at_once: bool
    in_turn: bool


def build(
    learner: Learner,
    key: jax.Array,
    batches: Any,
    first: Any,
    sets: Mapping[str, tuple[Any, Any]],
    mesh: Mesh,
    mode: Mode,
    loop: bool | None,
    rules: Sequence[Rule] = (),
) -> Program:
    """Compiles lazily: nothing is compiled before its first call, and errors of shape are raised here.

    Args:
        learner: what to run.
        key: the key to start from.
        batches: batches by step: resident (placed on the mesh already), or called by the host.
        first: the batch of the first step, placed on the mesh.
        sets: by name, evaluation batches by index and the first of them, placed on the mesh.
        mesh: the mesh.
        mode: the device mode.
        loop: whether to do several steps a dispatch; None for where the backend gains from it.
        rules: as in `jdl.train.sharding.state_specs`.

    Raises:
        ValueError: if the learner cannot take a batch.
    """
    resident = is_device_side(batches)
    if loop and not resident:
        raise ValueError("several steps at once need batches that live on the device")
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    copied = NamedSharding(mesh, P())

    with in_words("training", first):
        shapes = jax.eval_shape(learner.init, key, first)
        _check_carry(shapes, first, mesh)
        shardings = state_shardings(shapes, mesh, rules)
        step = distributed(learner.step, mesh, mode, shapes)
        jaxpr, (_, metrics) = jax.make_jaxpr(step, return_shape=True)(shapes, first)
    if loop is None:
        loop = resident and not (on_cpu and _has_convolution(jaxpr.jaxpr))
    variables = jax.eval_shape(learner.variables, shapes)
    # Programs dispatched ahead wait for one another's devices, and on several CPU devices for ever.
    in_turn = on_cpu and mesh.size > 1
    state = _with_shardings(shapes, shardings)
    placed = _with_shardings(variables, state_shardings(variables, mesh, rules))
    zeros = _zeros(metrics, copied)
    advance = jax.jit(
        _advance(step, mesh, resident, loop), donate_argnums=0, out_shardings=(shardings, copied, copied)
    )
    source = batches if resident else first
    traces: dict[str, Any] = {"train": (lambda: advance.trace(state, zeros, source, 0, 1), state)}
    evaluate, measures = {}, {}
    for name, (batches_of_set, first_of_set) in sets.items():
        with in_words(f"the evaluation set {name!r}", first_of_set):
            sums = jax.eval_shape(learner.evaluate, variables, first_of_set, key)
        measures[name] = [metric for metric in sums if metric != FAULTS]
        none = _zeros(sums, copied)
        add_batch = _adder(learner, is_device_side(batches_of_set), mesh)
        example = batches_of_set if is_device_side(batches_of_set) else first_of_set
        traces[name] = functools.partial(add_batch.trace, none, placed, example, 0), placed
        evaluate[name] = _evaluator(add_batch, batches_of_set, none, mesh, in_turn)

    # A key as host data belongs to no device, and so to every process's.
    key_data, implementation = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)

    def init() -> PyTree:
        @functools.partial(jax.jit, out_shardings=shardings)
        def once(key_data: Any, batch: Any) -> PyTree:
            return learner.init(jax.random.wrap_key_data(key_data, impl=implementation), batch)

        state = once(key_data, first)
        once.clear_cache()  # type: ignore[attr-defined]  # a large program, not needed again
        return state

    return Program(
        state=state,
        init=init,
        advance=advance,
        zeros=zeros,
        evaluate=evaluate,
        measures=measures,
        variables=jax.jit(lambda state: jax.tree.map(jnp.copy, learner.variables(state))),
        predict=jax.jit(learner.predict),
        traces=traces,
        batch=lambda step: jax.device_get(_call(batches, step) if resident else batches(step)),
        floats=[path for path, _ in _floats(shapes)],
        steps_at_once=loop,
        in_turn=in_turn,
    )


def _check_carry(state: PyTree, batch: Any, mesh: Mesh) -> None:
    """Raises ValueError for carries that cannot be split like the batch, such as those of an ensemble."""
    size = jax.tree.leaves(batch)[0].shape[0]
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if mesh.size > 1 and is_carry(path) and x.shape[:1] != (size,):
            raise ValueError(
                f"the recurrent carry {jax.tree_util.keystr(path)} has shape {x.shape}, and the batch {size} "
                'examples: it cannot be split over devices; use one (mesh="data:1")'
            )


def is_device_side(batches: Any) -> bool:
    """Whether the compiled step calls the batches itself; with several processes the host always does."""
    return is_resident(batches) and processes() == 1


@jax.jit
def _call(batches: Any, i: Any) -> Any:
    return batches(i)


def first_batch(batches: Any) -> Any:
    """Batch 0 on the host."""
    return jax.device_get(_call(batches, 0) if is_resident(batches) else batches(0))


def _advance(step: Callable[..., Any], mesh: Mesh, resident: bool, loop: bool) -> Callable[..., Any]:
    """The function ``state, sums, source, start, stop -> state, sums, found``."""

    def split(batch: Any) -> Any:
        batch = dict(batch)
        return jax.lax.with_sharding_constraint(batch, batch_shardings(batch, mesh))

    def single(state: PyTree, sums: Metrics, source: Any, start: Any, stop: Any) -> Any:
        del stop
        state, metrics = step(state, split(source(start)) if resident else source)
        return state, add(sums, metrics), _found(start, metrics.get(FAULTS, {}), state)

    def several(state: PyTree, sums: Metrics, batches: Any, start: Any, stop: Any) -> Any:
        """Ends at the first step at fault, whatever comes after it."""

        def goes_on(so_far: Any) -> jax.Array:
            i, _, _, faults = so_far
            return (i < stop) & (_total(faults) == 0)

        def body(so_far: Any) -> Any:
            i, state, sums, _ = so_far
            state, metrics = step(state, split(batches(i)))
            return i + 1, state, add(sums, metrics), metrics.get(FAULTS, {})

        none = jax.tree.map(jnp.zeros_like, sums.get(FAULTS, {}))
        begin = (jnp.asarray(start, jnp.int32), state, sums, none)
        i, state, sums, faults = jax.lax.while_loop(goes_on, body, begin)
        return state, sums, _found(i - 1, faults, state)

    return several if loop else single


def _found(step: Any, faults: dict[str, jax.Array], state: PyTree) -> Found:
    at_fault = _total(faults) > 0

    def finite(state: PyTree) -> jax.Array:
        return jnp.stack([*[jnp.isfinite(x).all() for _, x in _floats(state)], jnp.asarray(True)])[:-1]

    # Under a condition, since it reads the whole state.
    every = jax.lax.cond(at_fault, finite, lambda state: jnp.ones(len(_floats(state)), bool), state)
    return Found(jnp.where(at_fault, step, -1).astype(jnp.int32), faults, every)


def _total(faults: dict[str, jax.Array]) -> jax.Array:
    return sum(faults.values(), jnp.zeros((), jnp.int32))


def _adder(learner: Learner, resident: bool, mesh: Mesh) -> Any:
    """The compiled function ``sums, variables, source, i -> sums`` with the metrics of batch i added."""

    evaluate = on_mesh(learner.evaluate, mesh)

    @jax.jit
    def add_batch(sums: Metrics, variables: Variables, source: Any, i: Any) -> Metrics:
        batch = dict(source(i) if resident else source)
        batch = jax.lax.with_sharding_constraint(batch, batch_shardings(batch, mesh))
        return add(sums, evaluate(variables, batch, jax.random.fold_in(jax.random.key(0), i)))

    return add_batch


def _evaluator(
    add_batch: Any, batches: Any, zeros: Metrics, mesh: Mesh, in_turn: bool
) -> Callable[[Variables], Metrics]:
    """The function ``variables -> metrics`` of all batches of a set."""
    resident = is_device_side(batches)

    def evaluate(variables: Variables) -> Metrics:
        sums = zeros
        with contextlib.ExitStack() as stack:
            feed = None if resident else stack.enter_context(Feed(batches, mesh, 0, len(batches)))
            for i in range(len(batches)):
                sums = add_batch(sums, variables, batches if feed is None else feed.get(i), i)
                if in_turn:
                    jax.block_until_ready(sums)
        return sums

    return evaluate


def _zeros(metrics: Metrics, sharding: NamedSharding) -> Metrics:
    # As host data, which belong to no device, and so to every process's.
    return jax.tree.map(lambda x: put(np.zeros(x.shape, x.dtype), sharding), metrics)


def _with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def _floats(tree: PyTree) -> list[tuple[str, Any]]:
    """The floating arrays of a tree, with their paths."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]


def not_finite(tree: PyTree) -> list[str]:
    """Paths of the floating arrays of a tree on the host that hold an infinity or NaN."""
    return [path for path, x in _floats(tree) if not np.isfinite(x).all()]


@contextlib.contextmanager
def in_words(what: str, batch: Any) -> Iterator[None]:
    """Says what was given where a learner fails on the shapes of a batch."""
    try:
        yield
    except Exception as error:
        given = ", ".join(
            f"{jax.tree_util.keystr(path, simple=True, separator='/')} {x.dtype}{list(x.shape)}"
            for path, x in jax.tree_util.tree_leaves_with_path(batch)
        )
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise ValueError(
            f"the learner cannot take the batches of {what} ({given}): {type(error).__name__}: {reason}"
        ) from error


def _has_convolution(jaxpr: Any) -> bool:
    """Whether a CPU's program has a convolution, which XLA:CPU runs several times slower inside a loop."""
    return any(equation.primitive.name == "conv_general_dilated" for equation in equations(jaxpr, "cpu"))
