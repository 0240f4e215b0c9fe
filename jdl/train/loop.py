"""The loop itself: dispatch steps ahead of the host, and in between log, evaluate and save."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jdl.core import FAULTS, Metrics, PyTree, Variables, summarize
from jdl.train.checkpoint import CheckpointError, CheckpointMismatch, Checkpoints, Restored, read_meta
from jdl.train.clock import Clock
from jdl.train.feed import Feed
from jdl.train.history import History, Record, to_json
from jdl.train.profile import TIMES, Account, Profiler
from jdl.train.program import Found, Program, is_device_side, not_finite
from jdl.train.run import ResumeError, Run
from jdl.train.stopping import Fault, Interrupted, Signals, Watch

Logger = Callable[[Record], object]
"""Takes a record. It returns True if it has shown the user a message (a record whose split is "message")."""

Evaluator = Callable[[Callable[[Any], Any], Any], Mapping[str, Any] | None]
"""``predict, batches -> numbers by name``, on the host."""

DISPATCH_SECONDS = 0.1
"""Time that one dispatch of several steps should take: long for the host's work, short for a person."""


class Plan(NamedTuple):
    """How many steps to train, and after how many the host has something to do."""

    steps: int
    evaluate_every: int
    log_every: int
    save_every: int | None

    def boundary(self, step: int) -> int:
        """The first step after ``step`` at which the host has something to do."""
        every = [self.evaluate_every, self.log_every, self.save_every or self.steps]
        return min(self.steps, *[(step // n + 1) * n for n in every])


class Pending(NamedTuple):
    """A dispatch under way, up to step ``step``."""

    step: int
    steps: int
    found: Found
    sums: Metrics
    log: bool


@dataclass
class Loop:
    """What the loop knows between two dispatches. Step n is the n-th: ``step`` counts those dispatched."""

    program: Program
    batches: Any
    sets: Mapping[str, Any]
    evaluators: Sequence[Evaluator]
    mesh: Mesh
    plan: Plan
    watch: Watch
    signals: Signals
    loggers: Sequence[Logger]
    run: Run | None
    machine: Mapping[str, Any]
    start: Mapping[str, str]
    checkpoints: Checkpoints | None = None
    state: PyTree = None
    sums: Metrics = field(default_factory=dict)
    step: int = 0
    history: History = field(default_factory=History)
    best_variables: Variables | None = None
    pending: Pending | None = None
    clock: Clock = field(default_factory=Clock)
    account: Account | None = None
    profiler: Profiler | None = None

    def go(self) -> None:
        """All steps from where the run stands."""
        self._start()
        boundary = self.plan.boundary(self.step)
        with self._sources() as source:
            while self.step < self.plan.steps and not self.watch.out_of_patience:
                with self.clock.spending("data"):
                    batch = source(self.step)
                self._dispatch(batch, boundary)
                if self.step == boundary:
                    self._at_boundary()
                    boundary = self.plan.boundary(self.step)
                if self.signals.asked(self.step):
                    self._leave()
        self._settle()
        if self.profiler is not None:
            self.profiler.stop(self._wait)
        if self.checkpoints is not None:
            with self.clock.spending("checkpoint"):
                self.checkpoints.wait()
        self._book(self.step)
        if self.profiler is not None and self.account is not None:
            self.tell(f"{self.account.goodput()}\n{self.profiler.sentence()}")

    def _start(self) -> None:
        """Takes up the newest good checkpoint, or the initial state."""
        self.sums = self.program.zeros
        restored = self._restore()
        if restored is not None:
            self._resume(restored)
        if jax.process_index() == 0:
            self.account = Account(self.run.path(TIMES) if self.run else None, self.clock, self.step)
        if self.run and jax.process_index() == 0:
            self.run.begin(self.history)
        if restored is None:
            with self.clock.spending("compile"):
                self.state = self.program.init()
            # Nothing may turn out better than the start.
            self._evaluate(save=self.watch.patience is not None)

    def _restore(self, step: int | None = None) -> Restored | None:
        if self.run is None or self.checkpoints is None:
            return None
        try:
            return self.checkpoints.restore(self.program.state, step)
        except CheckpointMismatch:
            # Other settings are the likely cause, and say more.
            self.run.check(read_meta(self.checkpoints.directory), self.machine, self.start)
            raise

    def _resume(self, restored: Restored) -> None:
        assert self.run is not None
        notice = self.run.check(restored.meta, self.machine, self.start)
        if restored.step > self.plan.steps:
            done = f"{self.run.folder} holds a run of {restored.step} steps"
            raise ResumeError(f"{done}, more than the {self.plan.steps} asked for")
        try:
            self.watch.resume(restored.meta["progress"])
        except ValueError as error:
            raise ResumeError(f"{self.run.folder}: {error}") from None
        self.state = restored.state
        self.sums = self._sums_from(restored.meta["progress"]["sums"])
        self.step, self.history = restored.step, History(restored.meta["history"])
        where = f"going on from step {self.step} of {self.plan.steps} in {self.run.folder}"
        self.tell("; ".join(filter(None, [where, notice])))

    def _sums_from(self, kept: Mapping[str, Any]) -> Metrics:
        """The metrics since the last record, from a checkpoint's meta; a new metric starts at zero."""
        zeros = self.program.zeros
        found = [np.asarray(kept.get(path, x), x.dtype) for path, x in _by_path(zeros)]
        return jax.tree.map(
            lambda x, zero: jax.device_put(x, zero.sharding),
            jax.tree.unflatten(jax.tree.structure(zeros), found),
            zeros,
        )

    @contextmanager
    def _sources(self) -> Iterator[Callable[[int], Any]]:
        """``step -> what the program takes``: all batches where it calls them itself, else one."""
        if is_device_side(self.batches):
            yield lambda step: self.batches
        else:
            with Feed(self.batches, self.mesh, self.step, self.plan.steps) as feed:
                yield feed.get

    def _dispatch(self, source: Any, boundary: int) -> None:
        """Sends the next steps to the devices, then looks at what those before came to."""
        if self.program.in_turn:
            self._settle()
        start, stop = self.step, self.step + 1
        if self.program.steps_at_once:
            stop = min(start + self.clock.steps_in(DISPATCH_SECONDS), boundary)
        traced = self.profiler.step(start, self._wait) if self.profiler else nullcontext()
        with traced, self.clock.spending("compute"):
            self.state, self.sums, found = self.program.advance(self.state, self.sums, source, start, stop)
        self._settle()
        log = stop == boundary and (stop % self.plan.log_every == 0 or stop == self.plan.steps)
        self.pending = Pending(stop, stop - start, found, self.sums, log)
        self.step = stop
        if log:
            self.sums = self.program.zeros

    def _settle(self) -> None:
        """Waits for the dispatch before: raises if a step was at fault, and logs."""
        if self.pending is None:
            return
        done, self.pending = self.pending, None
        with self.clock.spending("compute"):
            first = int(done.found.step)
        if first >= 0:
            raise Fault(self._describe(done.found))
        self.clock.tick(done.steps)
        if done.log:
            rate = {"steps_per_second": self.clock.rate_since_log()}
            self._record({"step": done.step, "split": "train", **summarize(done.sums), **rate})
        elif self.loggers and self.clock.progress_due():
            progress = {"split": "progress", "steps": self.plan.steps}
            self._log({"step": done.step, **progress, **summarize(done.sums)})

    def _at_boundary(self) -> None:
        if self.step % self.plan.evaluate_every == 0 or self.step == self.plan.steps:
            self._evaluate()
        elif self.plan.save_every and self.step % self.plan.save_every == 0:
            self._save()

    def _evaluate(self, save: bool = True) -> None:
        """Evaluates every set, and remembers whether this is the best so far."""
        self._settle()
        with self.clock.spending("evaluation"):
            if self.sets:
                variables = self.program.variables(self.state)
                records = [self._measure(name, variables) for name in self.sets]
                for record in records:
                    self._record(record)
                is_best = self.watch.see(self.step, records[0])
                if is_best and self.watch.patience is not None and self.checkpoints is None:
                    self.best_variables = variables
            if save:
                self._save()

    def _measure(self, name: str, variables: Variables) -> Record:
        metrics = self.program.evaluate[name](variables)
        if faults := _in_words(metrics.get(FAULTS, {})):
            raise Fault(f"Evaluation of {name!r} at step {self.step}: {faults}.")
        record = {"step": self.step, "split": name, **summarize(metrics)}
        predict = jax.tree_util.Partial(self.program.predict, variables)
        for evaluator in self.evaluators:
            record.update(evaluator(predict, self.sets[name]) or {})
        return to_json(record)

    def _save(self, wait: bool = False) -> None:
        """Commits the state to a checkpoint; every step up to it is known to be finite."""
        self._settle()
        if self.run is None or self.checkpoints is None:
            return
        sums = {path: np.asarray(x).tolist() for path, x in _by_path(self.sums)}
        progress = {**self.watch.progress(), "sums": sums}
        meta = self.run.meta(progress, self.history, self.machine, self.start)
        with self.clock.spending("checkpoint"):
            self.checkpoints.save(self.step, self.state, meta, score=self.watch.score(self.step), wait=wait)
        self._book(self.step)

    def _leave(self) -> None:
        self._save(wait=True)
        kept = "nothing was saved, for lack of a run's folder"
        if self.run:
            kept = f"its state is saved in {self.run.folder}; start it again to go on from there"
        self.tell(f"{self.signals.name}: stopped after step {self.step} of {self.plan.steps}; {kept}")
        raise Interrupted(128 + self.signals.received)

    def variables(self) -> Variables:
        """Those to use: the best where that was asked for, else the last."""
        if self.watch.patience is None or self.watch.best.get("step", self.step) == self.step:
            return self.program.variables(self.state)
        if self.best_variables is not None:
            return self.best_variables
        restored = self._restore(self.watch.best["step"])
        assert restored is not None
        return self.program.variables(restored.state)

    def reason(self) -> str:
        """Why training ended."""
        watch = self.watch
        if self.step < self.plan.steps:
            since = watch.best.get("step", 0)
            return f"no better {watch.metric} in {watch.waited} evaluations since step {since}"
        return f"all {self.plan.steps} steps are done"

    def _describe(self, found: Found) -> str:
        """A step at fault, in words."""
        found = jax.device_get(found)
        step = int(found.step)
        notes = [f"step {step + 1}: {_in_words(found.faults)}"]
        after = [path for path, finite in zip(self.program.floats, found.finite, strict=True) if not finite]
        for names, where in ((not_finite(self.program.batch(step)), "in its batch"), (after, "after it")):
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                notes.append(f"not finite {where}: {', '.join(names[:4])}{more}")
        if self.checkpoints and self.run:
            with suppress(CheckpointError):
                self.checkpoints.wait()
            if (saved := self.checkpoints.latest()) is not None:
                notes.append(f"the checkpoint of step {saved} in {self.run.folder} is good")
        if any("not finite" in name and count for name, count in found.faults.items()):
            notes.append("a lower learning rate, a clipped gradient or cleaner inputs are the usual cures")
        return ". ".join(note[0].upper() + note[1:] for note in notes) + "."

    def _record(self, record: Record) -> None:
        record = to_json(record)
        self.history.append(record)
        if self.run and jax.process_index() == 0:
            self.run.log(record)
        self._book(record["step"])
        self._log(record)

    def _book(self, step: int) -> None:
        """Writes down where the time went."""
        if self.account is not None:
            self.account.book(step)

    def _wait(self) -> None:
        jax.block_until_ready(self.state)

    def _log(self, record: Record) -> list[object]:
        return [logger(record) for logger in self.loggers] if jax.process_index() == 0 else []

    def tell(self, text: str) -> None:
        """A sentence for the user: to stderr, unless a logger shows it."""
        shown = self._log({"step": self.step, "split": "message", "text": text})
        if jax.process_index() == 0 and not any(answer is True for answer in shown):
            print(text, file=sys.stderr)


def _by_path(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def _in_words(faults: Mapping[str, Any]) -> str:
    counts = {name: int(np.sum(n)) for name, n in jax.device_get(dict(faults)).items()}
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in counts.items() if n)
