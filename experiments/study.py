"""What experiments share that train several networks and compare them.

Each network is kept in the study's folder as soon as it is done: a study that was stopped goes on with
``--resume FOLDER`` and does nothing twice. What is worth a place in the ledger lies under ``ledger`` in the
folder; copied to ``experiments/results`` it is rendered with the rest by ``python -m experiments.ledger``.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import cli, ledger
from jdl import train
from jdl.train.history import to_json


def begin(experiment: str, config: Any) -> Path:
    """The study's folder, made if missing, with its settings in it.

    Args:
        experiment: the experiment's name.
        config: its settings, with a field ``execution``.

    Returns:
        The folder: ``execution.run``, or a new one under ``runs``.

    Raises:
        ValueError: if the folder holds a study with other settings, or several processes run this one.
        OSError: if it cannot be written.
    """
    if jax.process_count() > 1:
        raise ValueError("a study trains one network after another, in one process; it was started in "
                         f"{jax.process_count()}")  # fmt: skip
    where = config.execution.run
    folder = Path(where).expanduser() if where else cli.new_folder(experiment, config)
    settings = to_json(cli.settings(experiment, config))
    before = once(folder / train.run.CONFIG, lambda: settings)
    changed = [
        f"{name} was {before.get(name, 'not set')!r} and is now {settings.get(name, 'not set')!r}"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ValueError(f"{folder} holds a study with other settings: {'; '.join(changed)}. "
                         "Go on with the old ones, or choose another folder.")  # fmt: skip
    return folder


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` gives, kept in a JSON file: where the file is there already, nothing is measured.

    Raises:
        ValueError: if the file is not JSON.
    """
    if path.exists():
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); without it, it is measured again") from None
    found = to_json(measure())
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: half a file would be taken for the result.
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(draft, path)
    return found


def figure(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches.

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install -e ".[experiments]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns of text, the first to the left, the others to the right.

    Example:
        >>> print(table(["network", "error"], [["MLP", "2.10 %"], ["LeNet-5", "0.9 %"]]))
        network   error
        MLP      2.10 %
        LeNet-5   0.9 %
    """
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def seeds(config: Any) -> range:
    """The seeds of a study: ``config.seed`` and those after it, ``config.repeats`` in all.

    Raises:
        ValueError: if there are none.
    """
    if config.repeats < 1:
        raise ValueError(f"repeats, the number of seeds, must be at least 1; got {config.repeats}")
    return range(config.seed, config.seed + config.repeats)


def offer(folder: Path, experiment: str, config: Any, **fields: Any) -> ledger.Benchmark:
    """Writes an entry for the ledger into the study's folder.

    Args:
        folder: the study's.
        experiment: its name.
        config: its settings, from which the command follows.
        **fields: of `experiments.ledger.Benchmark`, without command, device and date.

    Returns:
        The entry.
    """
    entry = ledger.Benchmark(
        **fields,
        command=" ".join([f"python -m experiments.{experiment}", *cli.flags(config)]),
        device=ledger.device_description(),
        commit=ledger.commit(),
        date=datetime.date.today().isoformat(),
    )
    ledger.record(entry, folder / "ledger")
    return entry
