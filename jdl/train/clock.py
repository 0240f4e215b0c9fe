"""Time spent training, for rates, progress and the size of a dispatch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

PROGRESS_SECONDS = 0.2
"""Time between two progress records."""


class Clock:
    """Time spent training, evaluation and saving left out."""

    def __init__(self) -> None:
        self._last = self._log_time = self._progress_time = time.perf_counter()
        self._seconds_a_step, self._log_steps, self._at_once = math.inf, 0, 1

    def tick(self, steps: int) -> None:
        """A dispatch of ``steps`` has ended."""
        now = time.perf_counter()
        self._seconds_a_step = (now - self._last) / steps
        self._last, self._log_steps = now, self._log_steps + steps

    def steps_in(self, seconds: float) -> int:
        """How many steps a dispatch may hold, at most twice as many as the one before."""
        self._at_once = max(1, min(2 * self._at_once, int(seconds / max(self._seconds_a_step, 1e-9))))
        return self._at_once

    def rate_since_log(self) -> float:
        """Steps a second since it was last asked."""
        seconds = max(self._last - self._log_time, 1e-9)
        rate, self._log_time, self._log_steps = self._log_steps / seconds, self._last, 0
        return rate

    def progress_due(self) -> bool:
        """Whether it is time to show progress again."""
        due = self._last - self._progress_time > PROGRESS_SECONDS
        if due:
            self._progress_time = self._last
        return due

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves out the time inside."""
        start = time.perf_counter()
        yield
        lost = time.perf_counter() - start
        self._last, self._log_time = self._last + lost, self._log_time + lost
