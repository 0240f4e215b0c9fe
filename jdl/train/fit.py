"""The only loop: it runs a learner on batches, and knows nothing of models.

Place the state on a mesh, compile the step, feed it, evaluate, log, checkpoint, resume, stop.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.core import Learner, PyTree, Variables, batch_axes
from jdl.train import planning
from jdl.train.cost import Cost, cost
from jdl.train.feed import place
from jdl.train.history import History
from jdl.train.hosts import check_part, peers
from jdl.train.loop import Evaluator, Logger, Loop, Plan
from jdl.train.mesh import Mode, check_batch, make_mesh
from jdl.train.profile import Profiler
from jdl.train.program import build, first_batch, in_words, is_device_side
from jdl.train.run import Run, machine, start
from jdl.train.sharding import Rule
from jdl.train.stopping import Fault, Interrupted, Signals, Watch, unmeasured


class Fitted(NamedTuple):
    """What training comes to.

    Attributes:
        state: the learner's state after the last step.
        variables: those to use: the best where ``patience`` was given, else those of the last step.
        predict: ``inputs -> outputs``, a pure function whose weights are leaves of a pytree.
        history: all that was measured.
        step: steps done.
        best: {"step": ..., "value": ...} of the monitored metric, empty where nothing was evaluated.
        reason: why training ended, in a sentence.
        cost: what one step was predicted to cost.
    """

    state: PyTree
    variables: Variables
    predict: jax.tree_util.Partial
    history: History
    step: int
    best: dict[str, Any]
    reason: str
    cost: Cost


def fit(
    learner: Learner,
    batches: Callable[[Any], Any],
    steps: int,
    *,
    key: jax.Array | int = 0,
    evaluation: Any = None,
    evaluators: Sequence[Evaluator] = (),
    evaluate_every: int | None = None,
    log_every: int | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    run: Run | None = None,
    loggers: Sequence[Logger] = (),
    mesh: str | Mesh | None = None,
    rules: Sequence[Rule] = (),
    mode: Mode = "jit",
    several_steps: bool | None = None,
    profile: str | Path | None = None,
) -> Fitted:
    """Trains a learner for a number of steps.

    Before the first step a message says what one costs: parameters, operations, memory and the least time.

    With a `Run` whose folder holds a checkpoint, it goes on from there; a run that is killed at any moment
    and started again ends bitwise equal to one that was not, on the same shape of machine.

    Args:
        learner: how to learn.
        batches: ``step -> batch``, a pure function. A pytree with the data as leaves (`jdl.data.shuffled`, or
            a `jax.tree_util.Partial`) is called on the device inside the compiled step; any other on the host
            ahead of time, on two threads. With several processes each gives its own rows of the batch.
        steps: steps to train in all, those done before included.
        key: the key, or a seed, that everything random follows from.
        evaluation: batches by index, with a length (`jdl.data.in_order`), or a dictionary of several such by
            name; the first one is monitored. Evaluated before the first step, every ``evaluate_every``
            steps, and after the last.
        evaluators: functions ``predict, batches -> {name: number}`` on the host for what does not add up
            (AUROC, ...) or to draw samples; their numbers may be monitored.
        evaluate_every: steps between evaluations; a tenth of all when None.
        log_every: steps between training records; a hundredth of all when None. Each is the mean over the
            steps since the one before.
        monitor: ``"min loss"``, ``"max accuracy"``, ... of the first evaluation set; the learner's own when
            None.
        patience: stop after this many evaluations without a better one, and use the best variables.
        run: the folder to keep the run in; nothing is written when None.
        loggers: functions of each record: a dictionary with ``step``, ``split`` and metrics. A record whose
            split is "progress" comes a few times a second, and one whose split is "message" has a ``text``
            for the user; neither is part of the history. Unless a logger returns True, stderr shows messages.
        mesh: the devices, as in `jdl.train.make_mesh`: "data:2,fsdp:2,tensor:2", or a mesh; all of them when
            None.
        rules: how arrays lie on it, before the library's own rules: pairs of a regular expression over the
            path of an array and a `jax.sharding.PartitionSpec`, as in `jdl.train.sharding.state_specs`.
        mode: "jit" (the compiler splits the work), "shard_map" or "pmap".
        several_steps: whether one dispatch may hold several steps; chosen by the backend when None.
        profile: a folder for a trace of a few steps, which TensorBoard (XProf) and Perfetto open; at the end
            a message says where the time went. `jdl.train.goodput` tells it of any run's folder.

    Returns:
        The trained state, variables to use, a ``predict`` function and the history.

    Raises:
        ValueError: for a batch that the learner or the mesh cannot take, before anything is compiled.
        jdl.train.DoesNotFit: if a step needs more memory than the devices have; says the nearest setting.
        jdl.train.ResumeError: if the run's folder holds a run with other settings or data.
        Fault: at the first step whose loss, gradient or parameters are not finite.
        Interrupted: after SIGINT or SIGTERM, when the state is saved; exit status 130 or 143.

    Example:
        >>> import optax
        >>> from jdl import data, learners, models, tasks
        >>> digits = data.load("digits")
        >>> preprocess = data.fit_preprocess(digits.train["inputs"], size=(8, 8))
        >>> task = tasks.preprocessed(tasks.classification(models.MLP((64, 10))), preprocess)
        >>> fitted = fit(learners.gradient(task, optax.adam(3e-3)), data.shuffled(digits.train, 64), 150,
        ...              evaluation=data.in_order(digits.test, 120), mesh="data:1")
        >>> fitted.history.last("evaluation")["accuracy"] > 0.9
        True
    """
    _check_numbers(steps=steps, evaluate_every=evaluate_every, log_every=log_every, patience=patience)
    sets = _named_sets(evaluation)
    watch = Watch(monitor or learner.monitor, patience)
    _check_patience(patience, sets, run)
    if evaluators and planning.processes() > 1:
        raise ValueError("evaluators need one process: of several, each sees its own rows of a set")
    plan = planning.current()
    mesh = make_mesh(mesh, plan.devices if plan else None)
    key = key if isinstance(key, jax.Array) else jax.random.key(key)

    first = _checked_first("training", batches, learner, mesh)
    firsts = {
        name: _checked_first(f"the evaluation set {name!r}", s, learner, mesh) for name, s in sets.items()
    }
    batches = _on_devices(batches, mesh)
    sets = {name: _on_devices(s, mesh) for name, s in sets.items()}
    both = {name: (sets[name], place(firsts[name], mesh)) for name in sets}
    program = build(learner, key, batches, place(first, mesh), both, mesh, mode, several_steps, rules)
    _check_monitor(watch.metric, program.measures, evaluators)
    if plan is not None:
        source = batches if is_device_side(batches) else place(first, mesh)
        plan.make(program, source, mesh, steps, _on_each(first, mesh))

    with contextlib.ExitStack() as stack:
        loop = Loop(
            program=program,
            batches=batches,
            sets=sets,
            evaluators=evaluators,
            mesh=mesh,
            plan=Plan(
                steps,
                evaluate_every or math.ceil(steps / 10),
                log_every or math.ceil(steps / 100),
                run.save_every if run else None,
            ),
            watch=watch,
            signals=stack.enter_context(Signals()),
            loggers=loggers,
            run=run,
            machine=machine(mesh, mode),
            start=start(key, first),
            profiler=Profiler(profile) if profile is not None else None,
        )
        if loop.profiler is not None:
            stack.callback(loop.profiler.stop, lambda: None)
        # The first dispatch finds the program compiled.
        with loop.clock.spending("compile"):
            predicted = cost(program.traces["train"][0](), program.state, mesh, _on_each(first, mesh))
        loop.tell(predicted.sentence(steps))
        stack.enter_context(peers())
        if run is not None:
            loop.checkpoints = stack.enter_context(run.checkpoints(watch.monitor, loop.tell))
        loop.go()
        variables = loop.variables()
        predict = jax.tree_util.Partial(learner.predict, variables)
        return Fitted(
            loop.state, variables, predict, loop.history, loop.step, watch.best, loop.reason(), predicted
        )


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


def _named_sets(evaluation: Any) -> dict[str, Any]:
    """Evaluation sets by name."""
    if evaluation is None:
        return {}
    sets = dict(evaluation) if isinstance(evaluation, Mapping) else {"evaluation": evaluation}
    for name, batches in sets.items():
        if name in ("train", "progress", "message"):
            raise ValueError(f"no evaluation set may be called {name!r}: records of training are")
        if not callable(batches) or not hasattr(batches, "__len__"):
            raise ValueError(
                f"the evaluation set {name!r} must be batches by index with a length, such as "
                f"jdl.data.in_order(...) gives; got {type(batches).__name__}"
            )
        if len(batches) == 0:
            raise ValueError(f"the evaluation set {name!r} is empty")
    return sets


def _check_patience(patience: int | None, sets: Mapping[str, Any], run: Run | None) -> None:
    if patience is None:
        return
    if not sets:
        raise ValueError("patience needs an evaluation set to watch")
    if run is not None and run.keep_best < 1:
        raise ValueError("patience needs the best checkpoint: keep_best must be at least 1")


def _checked_first(what: str, batches: Any, learner: Learner, mesh: Mesh) -> Any:
    """The first batch, on the host, once it is known that the mesh and the learner can take it.

    Raises:
        ValueError: in words, if they cannot.
    """
    if not callable(batches):
        raise ValueError(
            f"the batches of {what} must be a function of the step, such as jdl.data.shuffled(...) gives; "
            f"got {type(batches).__name__}"
        )
    check_part(what, batches, mesh)
    first = first_batch(batches)
    if not isinstance(first, Mapping):
        raise ValueError(f"a batch must be a dictionary of arrays; {what} has a {type(first).__name__}")
    check_batch(first, mesh, jax.process_count())
    with in_words(what, first):
        learner.check(first)
    return first


def _on_each(first: Any, mesh: Mesh) -> int:
    """How many examples of a batch, of which this process has ``first``, a device has."""
    rows = np.shape(jax.tree.leaves(dict(first))[0])[0] * jax.process_count()
    return int(rows // math.prod(mesh.shape[name] for name in batch_axes(mesh)))


def _on_devices(batches: Any, mesh: Mesh) -> Any:
    """Resident batches, copied to every device."""
    return planning.put(batches, NamedSharding(mesh, P())) if is_device_side(batches) else batches


def _check_monitor(metric: str, measures: Mapping[str, list[str]], evaluators: Sequence[Evaluator]) -> None:
    measured = next(iter(measures.values()), [metric])
    if metric not in measured and not evaluators:
        raise ValueError(unmeasured(metric, measured))


__all__ = ["Evaluator", "Fault", "Fitted", "Interrupted", "Logger", "fit"]
