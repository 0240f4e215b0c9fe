"""Where a run's time went, over all its restarts, and a trace of a few of its steps."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jdl.train.clock import Clock
from jdl.train.history import append_line

TIMES = "times.jsonl"
"""File in a run's folder: one line a record of each attempt, with the seconds spent so far."""

MEANINGS = {
    "compute": "waiting for the devices, or handing them work",
    "data": "waiting for the next batch",
    "compile": "of the training step and the first state",
    "evaluation": "on the evaluation sets, compiling it included",
    "checkpoint": "until the state is copied for saving, and at the end until it is saved",
    "host": "everything else: logging, pictures, Python",
}
"""What time is booked as, as the host sees it."""


class Goodput(NamedTuple):
    """What the time of a run went to, all its attempts together.

    Attributes:
        spent: seconds by name, see `MEANINGS`; time between attempts is not known and not counted.
        useful: seconds of compute for steps that were not lost.
        restarts: attempts after the first.
        lost_steps: steps that an attempt had done and the next one had to do again.
    """

    spent: dict[str, float]
    useful: float
    restarts: int
    lost_steps: int

    @property
    def share(self) -> float:
        """Useful seconds of all."""
        return self.useful / max(sum(self.spent.values()), 1e-9)

    def __str__(self) -> str:
        """A table."""
        total = sum(self.spent.values())
        names = [*[name for name in MEANINGS if name in self.spent], *(self.spent.keys() - MEANINGS.keys())]
        lines = [
            f"{name:<11}{self.spent[name]:>10.2f} s {100 * self.spent[name] / max(total, 1e-9):>5.1f} %  "
            f"{MEANINGS.get(name, '')}".rstrip()
            for name in names
        ]
        again = f"{self.restarts} restart{'' if self.restarts == 1 else 's'}, {self.lost_steps} steps lost"
        return "\n".join(
            [*lines, f"{'total':<11}{total:>10.2f} s", f"goodput    {100 * self.share:>10.1f} %  ({again})"]
        )


def goodput(folder: str | Path) -> Goodput:
    """What the time of the run in a folder went to.

    Args:
        folder: the run's folder.

    Raises:
        ValueError: if nothing is known of it.
    """
    attempts = _attempts(Path(folder) / TIMES)
    if not attempts:
        raise ValueError(f"{folder} does not hold {TIMES}: nothing is known of where the time went")
    return _added(attempts)


def _attempts(path: Path) -> list[dict[str, Any]]:
    """The last line of each attempt; one that was cut off while being written is passed over."""
    found: dict[int, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError):
                record = json.loads(line)
                found[record["attempt"]] = record
    return list(found.values())


def _added(attempts: list[dict[str, Any]]) -> Goodput:
    spent: dict[str, float] = {}
    useful, lost_steps = 0.0, 0
    for i, attempt in enumerate(attempts):
        # What an attempt did beyond a step that a later one started from was done in vain.
        start = min((later["start"] for later in attempts[i + 1 :]), default=attempt["step"])
        done = attempt["step"] - attempt["start"]
        lost = min(max(attempt["step"] - start, 0), done)
        useful += attempt["spent"].get("compute", 0.0) * (done - lost) / max(done, 1)
        lost_steps += lost
        for name, seconds in attempt["spent"].items():
            spent[name] = spent.get(name, 0.0) + seconds
    return Goodput(spent, useful, len(attempts) - 1, lost_steps)


class Account:
    """The account of one attempt at a run, kept beside those of the attempts before."""

    def __init__(self, path: Path | None, clock: Clock, start: int) -> None:
        """Opens it at the step that the attempt starts from; without a path it is not kept."""
        self._path, self._clock = path, clock
        self._before = _attempts(path) if path else []
        number = 1 + max((attempt["attempt"] for attempt in self._before), default=0)
        self._now: dict[str, Any] = {"attempt": number, "start": start, "step": start, "spent": {}}

    def book(self, step: int) -> None:
        """Writes down the seconds spent so far, with the steps done."""
        self._now = {**self._now, "step": step, "spent": self._clock.account()}
        if self._path:
            append_line(self._path, self._now)

    def goodput(self) -> Goodput:
        """What the time went to, that of the attempts before included."""
        return _added([*self._before, self._now])


class Profiler:
    """Traces a few dispatches of training once the first ones are done.

    Attributes:
        folder: where the trace is written.
        done: whether there is one.
    """

    def __init__(self, folder: str | Path, warm_up: int = 3, dispatches: int = 5) -> None:
        """Traces ``dispatches`` after ``warm_up`` others."""
        self.folder, self.done = Path(folder), False
        self._first, self._last = warm_up, warm_up + dispatches
        self._count, self._running = 0, False

    @contextlib.contextmanager
    def step(self, number: int, wait: Callable[[], object]) -> Iterator[None]:
        """Around the dispatch of a step; ``wait`` waits for all that were dispatched."""
        if self._count == self._first and not self.done:
            wait()
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        self._count += 1
        if self._count == self._last:
            self.stop(wait)

    def stop(self, wait: Callable[[], object]) -> None:
        """Writes the trace, if one is being made."""
        if self._running:
            wait()
            jax.profiler.stop_trace()
            self._running, self.done = False, True

    def sentence(self) -> str:
        """Where the trace is."""
        if not self.done:
            return f"no trace: training ended within its first {self._first} dispatches"
        return (
            f"trace in {self.folder}: tensorboard --logdir {self.folder} (with xprof), or "
            "perfetto_trace.json.gz in it at ui.perfetto.dev"
        )
