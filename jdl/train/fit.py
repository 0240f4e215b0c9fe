"""The only loop: it runs a learner on batches, and knows nothing of models.

Place the state on a mesh, compile the step, feed it, evaluate, log, checkpoint, resume, stop.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.core import FAULTS, Learner, Metrics, PyTree, Variables, objective, summarize
from jdl.train.checkpoint import Checkpoints, Restored
from jdl.train.clock import Clock
from jdl.train.feed import Feed, is_resident, place
from jdl.train.history import History, Record, to_json
from jdl.train.hosts import peers
from jdl.train.mesh import Mode, check_batch, make_mesh
from jdl.train.program import Found, Program, build
from jdl.train.run import Run

Logger = Callable[[Record], None]
Evaluator = Callable[[Callable[[Any], Any], Any], Mapping[str, float]]

DISPATCH_SECONDS = 0.1
"""Time that one dispatch of several steps should take: long beside the host's work, short beside a person's."""


class Fault(RuntimeError):
    """A step whose loss, gradient or parameters are not finite, or whose batch cannot be learnt from."""


class Interrupted(SystemExit):
    """Training was told to stop (SIGINT, SIGTERM), saved its state and left."""


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
    """

    state: PyTree
    variables: Variables
    predict: jax.tree_util.Partial
    history: History
    step: int
    best: dict[str, Any]
    reason: str


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
    mode: Mode = "jit",
    several_steps: bool | None = None,
) -> Fitted:
    """Trains a learner for a number of steps.

    With a `Run` whose folder holds a checkpoint, it goes on from there; a run that is killed at any moment
    and started again ends bitwise equal to one that was not, on the same shape of machine.

    Args:
        learner: how to learn.
        batches: ``step -> batch``, a pure function. A pytree with the data as leaves (`jdl.data.shuffled`, or
            a `jax.tree_util.Partial`) is called on the device inside the compiled step; any other on the host
            ahead of time. With several processes each gives its own rows of the batch.
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
        monitor: ``"min loss"``, ``"max accuracy"``, ... of the first evaluation set; the learner's own when None.
        patience: stop after this many evaluations without a better one, and use the best variables.
        run: the folder to keep the run in; nothing is written when None.
        loggers: functions of each record: a dictionary with ``step``, ``split`` and metrics. A record whose
            split is "progress" comes a few times a second and is not part of the history.
        mesh: the devices, as in `jdl.train.make_mesh`; all of them when None.
        mode: "jit" (the compiler splits the work), "shard_map" or "pmap".
        several_steps: whether one dispatch may hold several steps; chosen by the backend when None.

    Returns:
        The trained state, variables to use, a ``predict`` function and the history.

    Raises:
        ValueError: for a batch that the learner or the mesh cannot take, before anything is compiled.
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
    _check_arguments(steps, evaluate_every, log_every, patience)
    monitor = monitor or learner.monitor
    way, metric = objective(monitor)
    if evaluation is None:
        sets = {}
    else:
        sets = dict(evaluation) if isinstance(evaluation, Mapping) else {"evaluation": evaluation}
    if patience is not None and not sets:
        raise ValueError("patience needs an evaluation set to watch")
    mesh = make_mesh(mesh)
    key = jax.random.key(key) if isinstance(key, int) else key

    resident = is_resident(batches) and jax.process_count() == 1
    first = jax.device_get(jax.jit(_call)(batches, 0)) if is_resident(batches) else batches(0)
    check_batch(first, mesh, jax.process_count())
    learner.check(first)
    copied = NamedSharding(mesh, P())
    if resident:
        batches = jax.device_put(batches, copied)
    if jax.process_count() == 1:
        sets = {name: jax.device_put(s, copied) if is_resident(s) else s for name, s in sets.items()}
    program = build(learner, key, batches, place(first, mesh), mesh, mode, several_steps)
    loop = _Loop(
        learner=learner,
        program=program,
        batches=batches,
        resident=resident,
        mesh=mesh,
        steps=steps,
        sets=sets,
        evaluators=evaluators,
        evaluate_every=evaluate_every or math.ceil(steps / 10),
        log_every=log_every or math.ceil(steps / 100),
        metric=metric,
        better=np.greater if way == "max" else np.less,
        over_points=np.nanmax if way == "max" else np.nanmin,
        patience=patience,
        run=run,
        loggers=loggers,
        sums=program.zeros,
    )
    with contextlib.ExitStack() as stack:
        if run is not None:
            loop.checkpoints = stack.enter_context(run.checkpoints(monitor, loop.tell))
        stack.enter_context(loop.signals())
        stack.enter_context(peers())
        return loop.go()


def _call(batches: Any, step: Any) -> Any:
    return batches(step)


def _check_arguments(steps: int, evaluate_every: int | None, log_every: int | None, patience: int | None) -> None:
    for name, value in {
        "steps": steps, "evaluate_every": evaluate_every, "log_every": log_every, "patience": patience
    }.items():  # fmt: skip
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


@dataclass
class _Loop:
    """The loop's data between two dispatches. Step n is the n-th: `step` counts those dispatched."""

    learner: Learner
    program: Program
    batches: Any
    resident: bool
    mesh: Mesh
    steps: int
    sets: Mapping[str, Any]
    evaluators: Sequence[Evaluator]
    evaluate_every: int
    log_every: int
    metric: str
    better: Callable[[Any, Any], Any]
    over_points: Callable[[Any], Any]
    patience: int | None
    run: Run | None
    loggers: Sequence[Logger]
    sums: Metrics
    state: PyTree = None
    step: int = 0
    history: History = field(default_factory=History)
    best: dict[str, Any] = field(default_factory=dict)
    best_variables: Variables | None = None
    score: tuple[int, float] = (-1, math.nan)
    waited: int = 0
    checkpoints: Checkpoints | None = None
    signal: int = 0
    pending: _Pending | None = None
    clock: _Clock = field(default_factory=Clock)

    def go(self) -> Fitted:
        """All steps from where the run stands."""
        self._start()
        feed = None if self.resident else Feed(self.batches, self.mesh, self.step, self.steps)
        try:
            while self.step < self.steps and not self._out_of_patience():
                self._dispatch(self.batches if feed is None else feed.get(self.step))
                if self.step % self.evaluate_every == 0 or self.step == self.steps:
                    self._evaluate()
                elif self.run and self.run.save_every and self.step % self.run.save_every == 0:
                    self._save()
                if self.signal:
                    self._leave()
        finally:
            if feed is not None:
                feed.close()
        return self._finish()

    def _start(self) -> None:
        """Takes up the newest good checkpoint, or the initial state."""
        restored = self._restore()
        if restored is None:
            self.state = self.program.init()
        else:
            self._resume(restored)
        if self.run and jax.process_index() == 0:
            self.run.begin(self.history)
        if restored is None:
            self._evaluate(save=False)

    def _restore(self, step: int | None = None) -> Restored | None:
        if self.checkpoints is None:
            return None
        copied = NamedSharding(self.mesh, P())
        sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), self.program.zeros)
        return self.checkpoints.restore({"state": self.program.state, "sums": sums}, step)

    def _resume(self, restored: Restored) -> None:
        assert self.run is not None
        notice = self.run.check(restored.meta)
        self.state, self.sums = restored.state["state"], restored.state["sums"]
        self.step, self.history = restored.step, History(restored.meta["history"])
        self.best = restored.meta["progress"]["best"]
        self.waited = restored.meta["progress"]["waited"]
        self.tell("; ".join(filter(None, [f"going on from step {self.step} of {self.steps} in {self.run.folder}", notice])))

    def _dispatch(self, source: Any) -> None:
        """Sends the next steps to the devices, then looks at what those before came to."""
        stop = min(self.step + self._steps_at_once(), self._next_boundary())
        self.state, self.sums, found = self.program.advance(self.state, self.sums, source, self.step, stop)
        self._settle()
        log = stop % self.log_every == 0 or stop == self.steps
        self.pending = _Pending(stop, stop - self.step, found, self.sums, log)
        self.step = stop
        if log:
            self.sums = self.program.zeros

    def _steps_at_once(self) -> int:
        return self.clock.steps_in(DISPATCH_SECONDS) if self.program.steps_at_once else 1

    def _next_boundary(self) -> int:
        """The next step after which the host has something to do."""
        every = [self.evaluate_every, self.log_every]
        if self.run and self.run.save_every:
            every.append(self.run.save_every)
        return min(self.steps, *[(self.step // n + 1) * n for n in every])

    def _settle(self) -> None:
        """Waits for the dispatch before: raises if a step was at fault, and logs."""
        if self.pending is None:
            return
        done, self.pending = self.pending, None
        at_fault = int(done.found.step)
        if at_fault >= 0:
            raise Fault(self._describe(at_fault, jax.device_get(done.found.faults)))
        self.clock.tick(done.steps)
        if done.log:
            rate = {"steps_per_second": self.clock.rate_since_log()}
            self._record({"step": done.step, "split": "train", **summarize(done.sums), **rate})
        elif self.clock.progress_due():
            self._log({"step": done.step, "split": "progress", "steps": self.steps, **summarize(done.sums)})

    def _evaluate(self, save: bool = True) -> None:
        """Evaluates every set, and remembers whether this is the best so far."""
        self._settle()
        with self.clock.stopped():
            if self.sets:
                variables = self.program.variables(self.state)
                for name, batches in self.sets.items():
                    self._record(self._measure(name, batches, variables))
                self._compare(variables)
            if save:
                self._save()

    def _measure(self, name: str, batches: Any, variables: Variables) -> Record:
        metrics = self.program.evaluate(variables, batches)
        faults = {what: n for what, n in jax.device_get(metrics.get(FAULTS, {})).items() if n}
        if faults:
            raise Fault(f"evaluation of {name!r}: {_in_words(faults)}")
        record = {"step": self.step, "split": name, **summarize(metrics)}
        predict = jax.tree_util.Partial(self.program.predict, variables)
        for evaluator in self.evaluators:
            record.update(evaluator(predict, batches))
        return record

    def _compare(self, variables: Variables) -> None:
        record = self.history.last(next(iter(self.sets)))
        if self.metric not in record:
            raise ValueError(f"monitor names {self.metric!r}, and evaluation measures {', '.join(list(record)[2:])}")
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            value = float(self.over_points(np.asarray(record[self.metric], np.float64)))
        self.score = (self.step, value)
        if not math.isnan(value) and (not self.best or self.better(value, self.best["value"])):
            self.best, self.waited = {"step": self.step, "value": value}, 0
            if self.patience is not None and self.checkpoints is None:
                # A copy: the variables may be the state's own arrays, whose memory the next step takes.
                self.best_variables = jax.tree.map(jnp.copy, variables)
        else:
            self.waited += 1

    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def _save(self, wait: bool = False) -> None:
        """Commits the state to a checkpoint; every step up to it is known to be finite."""
        self._settle()
        if self.run is None or self.checkpoints is None:
            return
        meta = self.run.meta({"best": self.best, "waited": self.waited}, self.history)
        score = self.score[1] if self.score[0] == self.step else None
        with self.clock.stopped():
            state = {"state": self.state, "sums": self.sums}
            self.checkpoints.save(self.step, state, meta, score=score, wait=wait)

    def _leave(self) -> None:
        name = signal.Signals(self.signal).name
        self._save(wait=True)
        kept = f"its state is saved in {self.run.folder}" if self.run else "nothing was saved, for lack of a folder"
        self.tell(f"{name}: stopped after step {self.step} of {self.steps}; {kept}")
        raise Interrupted(128 + self.signal)

    def _finish(self) -> Fitted:
        self._settle()
        variables = self.program.variables(self.state)
        reason = f"all {self.steps} steps are done"
        if self.patience is not None and self.best:
            if self._out_of_patience():
                reason = f"no better {self.metric} in {self.patience} evaluations since step {self.best['step']}"
            if self.best["step"] != self.step:
                variables = self._best_variables()
        if self.checkpoints is not None:
            self.checkpoints.wait()
        predict = jax.tree_util.Partial(self.learner.predict, variables)
        return Fitted(self.state, variables, predict, self.history, self.step, self.best, reason)

    def _best_variables(self) -> Variables:
        if self.best_variables is not None:
            return self.best_variables
        restored = self._restore(self.best["step"])
        if restored is None:
            raise RuntimeError(f"the best checkpoint, of step {self.best['step']}, is no longer there")
        return self.program.variables(restored.state["state"])

    def _describe(self, at_fault: int, faults: Mapping[str, Any]) -> str:
        """A step at fault, in words."""
        batch = self.program.batch(self.batches, at_fault) if self.resident else self.batches(at_fault)
        notes = [f"step {at_fault + 1}: {_in_words(faults)}"]
        for tree, where in ((batch, "in the batch"), (self.learner.variables(self.state)["params"], "now")):
            names = _not_finite(tree)
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                notes.append(f"not finite {where}: {', '.join(names[:4])}{more}")
        saved = self.checkpoints.latest() if self.checkpoints else None
        if saved is not None and self.run:
            notes.append(f"the checkpoint of step {saved} in {self.run.folder} is good")
        notes.append("a lower learning rate, a clipped gradient or cleaner inputs are the usual cures")
        return ". ".join(note[0].upper() + note[1:] for note in notes) + "."

    def _record(self, record: Record) -> None:
        record = to_json(record)
        self.history.append(record)
        if self.run and jax.process_index() == 0:
            self.run.log(record)
        self._log(record)

    def _log(self, record: Record) -> None:
        if jax.process_index() == 0:
            for logger in self.loggers:
                logger(record)

    def tell(self, text: str) -> None:
        """A sentence for the user: to the loggers, or to stderr where there are none."""
        if self.loggers:
            self._log({"step": self.step, "split": "message", "text": text})
        elif jax.process_index() == 0:
            print(text, file=sys.stderr)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """While training, SIGINT and SIGTERM ask the loop to save and leave; a second one ends it at once."""
        # With several processes a save needs all of them, and only one may have been told.
        if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
            yield
            return
        old = {}

        def handle(number: int, frame: Any) -> None:
            del frame
            self.signal = number
            signal.signal(number, old[number] or signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler or signal.SIG_DFL)


class _Pending(NamedTuple):
    """A dispatch under way."""

    step: int
    steps: int
    found: Found
    sums: Metrics
    log: bool


def _in_words(faults: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({int(n)})" if n > 1 else name for name, n in faults.items() if n)


def _not_finite(tree: PyTree) -> list[str]:
    """Paths of the floating arrays that hold an infinity or NaN."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all()
    ]
