"""Where the time goes: for rates, progress, the size of a dispatch, and the account of a run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

PROGRESS_SECONDS = 0.2
"""Time between two progress records."""

HOST = "host"
"""What the time that is not spent on anything by name is spent on: Python, logging, pictures."""

ASIDE = ("compile", "evaluation", "checkpoint")
"""What is no part of training in rates."""


class Clock:
    """An account of the time since it was made.

    Attributes:
        spent: seconds by name, all of them together the time since.
    """

    def __init__(self) -> None:
        self.spent = {HOST: 0.0}
        self._on, self._since = HOST, time.perf_counter()
        self._last = self._log_time = self._progress_time = 0.0
        self._seconds_a_step, self._log_steps, self._at_once = math.inf, 0, 1

    def _turn_to(self, name: str) -> str:
        """Books the time so far, and says on what it was spent."""
        now, before = time.perf_counter(), self._on
        self.spent[before] = self.spent.get(before, 0.0) + now - self._since
        self._on, self._since = name, now
        return before

    @contextlib.contextmanager
    def spending(self, name: str) -> Iterator[None]:
        """Books the time inside under a name; what is booked in it under another is not counted twice."""
        before = self._turn_to(name)
        try:
            yield
        finally:
            self._turn_to(before)

    def account(self) -> dict[str, float]:
        """Seconds by name up to now."""
        self._turn_to(self._on)
        return dict(self.spent)

    def _training(self) -> float:
        """Seconds so far, evaluation and the like left out."""
        return sum(seconds for name, seconds in self.account().items() if name not in ASIDE)

    def tick(self, steps: int) -> None:
        """A dispatch of ``steps`` has ended."""
        now = self._training()
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
