"""Pictures of what the questions of this room find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdl.audit.signal import SignalReport


def plot_images(
    images: Any, *, columns: int = 8, titles: Sequence[str] | None = None, title: str = "", cmap: str = "gray"
) -> Any:
    """A grid of pictures: filters, activation maps, inputs, or images that were made.

    Args:
        images: arrays [h, w, C] of one or three channels, or of C others of which the mean is drawn; they
            may differ in size. Values in 0..1 are drawn as they are, others scaled picture by picture.
        columns: pictures in a row.
        titles: one a picture.
        title: above all.
        cmap: colours of pictures with one channel.

    Returns:
        A `matplotlib.figure.Figure` (``figure.savefig(path)``).

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
        ValueError: if there are no pictures, or some is not [h, w, C].
    """
    pictures = [np.asarray(image, np.float32) for image in images]
    if not pictures:
        raise ValueError("there is nothing to draw: no pictures")
    if wrong := [picture.shape for picture in pictures if picture.ndim != 3 or not picture.size]:
        raise ValueError(f"pictures are [height, width, channels] and not empty; got {wrong[0]}")
    if columns < 1 or (titles and len(titles) != len(pictures)):
        raise ValueError(f"{len(pictures)} pictures want a column or more, and as many titles or none; got "
                         f"{columns} columns and {len(titles or [])} titles")  # fmt: skip
    rows, columns = -(-len(pictures) // columns), min(columns, len(pictures))
    figure = _figure((max(3.0, 1.1 * columns), (1.3 if titles else 1.1) * rows + (0.3 if title else 0)))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for i, (axes, picture) in enumerate(zip(grid, pictures, strict=False)):
        if picture.min() < 0 or picture.max() > 1:
            picture = (picture - picture.min()) / max(picture.max() - picture.min(), 1e-12)
        shown = picture if picture.shape[-1] == 3 else picture.mean(-1)
        axes.imshow(shown, cmap=cmap, vmin=0, vmax=1)
        if titles:
            axes.set_title(titles[i], fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def plot_probes(accuracies: Mapping[str, float], *, title: str = "") -> Any:
    """Accuracy of a linear map on each layer, by depth: what `jdl.audit.probe_layers` finds.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
        ValueError: if there is nothing to draw.
    """
    if not accuracies:
        raise ValueError("there is nothing to draw: no layers")
    figure = _figure((max(4.0, 0.8 * len(accuracies)), 3.2))
    axes = figure.subplots()
    axes.plot(range(len(accuracies)), list(accuracies.values()), marker="o", ms=4, lw=1.4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set(ylabel="accuracy of a linear probe", title=title)
    _layers(axes, list(accuracies))
    return figure


def plot_signal(report: SignalReport, *, title: str = "") -> Any:
    """Signals and gradients by depth: what `jdl.audit.signal_report` finds.

    Returns:
        A `matplotlib.figure.Figure` of three panels: activations, gradients, and the shares of dead units and
        blocked values.

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
    """
    names = [layer.name for layer in report.layers]
    figure = _figure((max(9.0, 3 * (1 + 0.2 * len(names))), 3.2))
    activations, gradients, shares = figure.subplots(1, 3)
    for axes, fields in (
        (activations, {"rms": "root mean square", "std": "standard deviation"}),
        (gradients, {"output_gradient": "output", "parameter_gradient": "parameters"}),
        (shares, {"dead": "dead units", "blocked": "blocked values"}),
    ):
        for field, label in fields.items():
            values = np.asarray([getattr(layer, field) for layer in report.layers], float)
            known = np.isfinite(values)
            axes.plot(np.flatnonzero(known), values[known], marker="o", ms=3, lw=1.4, label=label)
        axes.legend(frameon=False, fontsize=8)
        _layers(axes, names)
    activations.set(ylabel="activations")
    gradients.set(ylabel="norm of the gradient")
    if any(layer.output_gradient > 0 for layer in report.layers):
        gradients.set_yscale("log")
    shares.set(ylabel="share", ylim=(-0.03, 1.03))
    if title:
        figure.suptitle(title)
    return figure


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install -e ".[experiments]"') from None
    return Figure(figsize=size, layout="constrained")


def _layers(axes: Any, names: Sequence[str]) -> None:
    """The layers along the horizontal axis."""
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
