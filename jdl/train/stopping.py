"""Why training stops before its last step: a fault, a signal, or no better result for a while."""

from __future__ import annotations

import math
import signal
import threading
import warnings
from collections.abc import Iterable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jdl.core import objective
from jdl.train.history import Record


class Fault(RuntimeError):
    """A step whose loss, gradient or parameters are not finite, or whose batch cannot be learnt from."""


class Interrupted(SystemExit):
    """Training was told to stop (SIGINT, SIGTERM), saved its state and left."""


def unmeasured(metric: str, measured: Iterable[str]) -> str:
    """Says that a metric to watch is not one of those measured."""
    return f"monitor names {metric!r}, and evaluation measures {', '.join(measured) or 'nothing'}"


class Watch:
    """The best value so far of the metric that says how good a model is.

    Attributes:
        monitor: ``"min NAME"`` or ``"max NAME"``.
        metric: NAME.
        patience: after how many values in a row that are no better it is time to stop; None for never.
        best: {"step": ..., "value": ...}, empty before the first.
        waited: values since the best.

    Example:
        >>> watch = Watch("max accuracy", patience=2)
        >>> [watch.see(step, {"accuracy": value}) for step, value in enumerate([0.1, 0.5, 0.4, 0.3])]
        [True, True, False, False]
        >>> watch.best, watch.out_of_patience
        ({'step': 1, 'value': 0.5}, True)
    """

    def __init__(self, monitor: str, patience: int | None = None) -> None:
        """Nothing seen yet."""
        way, self.metric = objective(monitor)
        self.monitor, self.patience = monitor, patience
        self.best: dict[str, Any] = {}
        self.waited = 0
        self._sign = 1 if way == "max" else -1
        self._latest: tuple[int, float] = (-1, math.nan)

    def see(self, step: int, record: Record) -> bool:
        """Takes a record of the step; whether it is the best so far. Of several values the best one counts.

        Raises:
            ValueError: if the record does not have the metric.
        """
        if self.metric not in record:
            raise ValueError(
                unmeasured(self.metric, [name for name in record if name not in ("step", "split")])
            )
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            value = self._sign * float(np.nanmax(self._sign * np.asarray(record[self.metric], np.float64)))
        self._latest = (step, value)
        if math.isnan(value) or (self.best and self._sign * value <= self._sign * self.best["value"]):
            self.waited += 1
            return False
        self.best, self.waited = {"step": step, "value": value}, 0
        return True

    def score(self, step: int) -> float | None:
        """The value seen at a step, if it is the latest one."""
        return self._latest[1] if self._latest[0] == step else None

    @property
    def out_of_patience(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.waited >= self.patience

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"monitor": self.monitor, "best": self.best, "waited": self.waited}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept.

        Raises:
            ValueError: if that watched something else.
        """
        if progress["monitor"] != self.monitor:
            before = progress["monitor"]
            raise ValueError(f"the run was monitored by {before!r} and is now by {self.monitor!r}")
        self.best, self.waited = dict(progress["best"]), progress["waited"]


class Signals:
    """SIGINT and SIGTERM while training: the first asks to save and leave, a second one ends the process.

    Only the main thread can catch them. With several processes SIGTERM is JAX's to catch, which tells every
    process, so that all save at the same step; SIGINT is left as it is.

    Attributes:
        received: the signal, 0 when none was.
    """

    def __init__(self) -> None:
        """Nothing is caught yet."""
        self.received = 0
        self._old: dict[int, Any] = {}
        self._shared = jax.process_count() > 1

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.received).name

    def asked(self, step: int) -> bool:
        """Whether to leave after this step, the same on every process."""
        if self._shared and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received != 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._old[number] or signal.SIG_DFL)

    def __enter__(self) -> Self:
        """Catches them."""
        if threading.current_thread() is threading.main_thread() and not self._shared:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves them to whoever had them before."""
        for number in self._old:
            self._restore(number)
