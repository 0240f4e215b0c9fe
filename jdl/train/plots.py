"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jdl.train.history import History


def plot_history(history: History, metrics: list[str] | None = None, *, title: str = "") -> Any:
    """Curves of the metrics over the steps, a panel each and a line a split.

    Args:
        history: what was measured.
        metrics: which metrics; those measured on a set beside the training set when None ("loss" first).
        title: above the panels.

    Returns:
        A `matplotlib.figure.Figure` (``figure.savefig(path)``).

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
        ValueError: if nothing was measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install -e ".[experiments]"') from None
    if metrics is None:
        evaluated = History(record for record in history if record["split"] != "train")
        metrics = (evaluated or history).metrics()
    if not metrics:
        raise ValueError("there is nothing to draw: the history is empty")
    figure = Figure(figsize=(5.2 * len(metrics), 3.6), layout="constrained")
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        for split in history.splits():
            steps, values = history.series(split, metric)
            if not steps:
                continue
            few = len(steps) < 30
            axes.plot(
                steps, np.asarray(values, float), label=split, lw=1.4, marker="o" if few else None, ms=3
            )
        if metric == "accuracy":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        elif metric == "loss":
            axes.set_yscale("log")
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def save_history(history: History, path: str | Path, *, title: str = "") -> Path:
    """`plot_history` as a picture file; its type follows the path's ending.

    Returns:
        The path.
    """
    plot_history(history, title=title).savefig(path, dpi=120)
    return Path(path)
