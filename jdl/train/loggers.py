"""Where records go beside the metrics file: a progress bar, TensorBoard, live curves, plain lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import numpy as np

from jdl.train.history import History, Record
from jdl.train.plots import plot_history


def in_words(record: Record) -> str:
    """A record's metrics on one line; of a metric with several values, the range."""
    parts = []
    for name, value in record.items():
        if name in ("step", "split", "steps"):
            continue
        if isinstance(value, list | np.ndarray):
            values = np.asarray(value, np.float64)
            finite = values[np.isfinite(values)]
            text = f"{finite.min():.4g}..{finite.max():.4g}" if finite.size else "nan"
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{name} {text}")
    return "  ".join(parts)


def print_lines(record: Record) -> bool:
    """Prints records to stderr, one line each; progress between them is left out."""
    if record["split"] == "message":
        print(record["text"], file=sys.stderr)
    elif record["split"] != "progress":
        print(f"step {record['step']:>7}  {record['split']:<10}  {in_words(record)}", file=sys.stderr)
    return True


class ProgressBar:
    """A live bar with steps done, steps a second, time left, loss and the latest evaluation.

    In a terminal or a notebook, through tqdm; evaluations and messages are printed above it.

    Example:
        ``with ProgressBar(steps) as bar: fit(..., steps, loggers=[bar])``

    Raises:
        ImportError: naming the extra to install, if tqdm is missing.
    """

    def __init__(self, steps: int) -> None:
        """A bar for so many steps in all."""
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError('the progress bar needs tqdm: pip install -e ".[experiments]"') from None
        self._bar: Any = tqdm(total=steps, unit="step", dynamic_ncols=True, smoothing=0.1)
        self._shown: dict[str, str] = {}

    def __call__(self, record: Record) -> bool:
        """Shows a record."""
        step, split = record["step"], record["split"]
        if split == "message":
            self._bar.write(record["text"], file=sys.stderr)
            # After a resume the bar starts where the run does, so that the rate is this process's own.
            if self._bar.n == 0 and step:
                self._bar.initial = self._bar.n = step
            return True
        if split in ("train", "progress"):
            self._show(record, "")
        else:
            self._bar.write(f"step {step:>6}  {split}: {in_words(record)}", file=sys.stderr)
            self._show(record, f"{split} ")
        self._bar.update(step - self._bar.n)
        return True

    def _show(self, record: Record, prefix: str) -> None:
        for name in ("loss", "accuracy"):
            if name in record and not isinstance(record[name], list | np.ndarray):
                self._shown[prefix + name] = f"{record[name]:.4f}"
        self._bar.set_postfix(self._shown, refresh=False)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


class TensorBoard:
    """Writes every record as TensorBoard scalars, named "split/metric".

    Raises:
        ImportError: naming the extra to install, if tensorboardX is missing.
    """

    def __init__(self, folder: str) -> None:
        """Writes event files into ``folder``."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                'TensorBoard files need tensorboardX: pip install -e ".[experiments]"'
            ) from None
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, record: Record) -> None:
        """Writes a record."""
        if record["split"] in ("progress", "message"):
            return
        for name, value in record.items():
            if name in ("step", "split"):
                continue
            values = np.atleast_1d(np.asarray(value, np.float64))
            for i, x in enumerate(values.ravel()):
                suffix = f"/{i}" if values.size > 1 else ""
                self._writer.add_scalar(f"{record['split']}/{name}{suffix}", x, record["step"])

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flushes and closes the files."""
        self._writer.close()


class LiveCurves:
    """Draws the curves in a notebook while the run goes on.

    Args:
        metrics: the metrics to draw, as in `jdl.train.plot_history`.
        seconds: time between two drawings, at least.

    Raises:
        ImportError: naming the extra to install, if matplotlib or IPython is missing.
    """

    def __init__(self, metrics: list[str] | None = None, seconds: float = 1.0) -> None:
        try:
            from IPython.display import display
        except ImportError:
            raise ImportError("live curves are drawn in a notebook: this process has no IPython") from None
        self._display, self._handle = display, None
        self._metrics, self._seconds = metrics, seconds
        self._history, self._drawn = History(), 0.0

    def __call__(self, record: Record) -> None:
        """Takes in a record, and draws if it is time or the record is an evaluation."""
        if record["split"] == "message":
            print(record["text"])
        if record["split"] in ("progress", "message"):
            return
        self._history.append(record)
        if record["split"] != "train" or time.perf_counter() - self._drawn > self._seconds:
            self.draw()

    def draw(self) -> None:
        """Draws what has been measured so far."""
        self._drawn = time.perf_counter()
        figure = plot_history(self._history, self._metrics)
        if self._handle is None:
            self._handle = self._display(figure, display_id=True)
        else:
            self._handle.update(figure)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draws the last records too."""
        if self._history:
            self.draw()
