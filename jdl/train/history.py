"""What a run has measured so far: records, the metrics file, and the curve picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
"""One measurement: ``step``, ``split`` ("train" or the name of an evaluation set) and metrics by name."""


class History(list[Record]):
    """The records of a run, in order.

    Example:
        >>> history = History([{"step": 0, "split": "test", "accuracy": 0.1},
        ...                    {"step": 9, "split": "test", "accuracy": 0.9}])
        >>> history.series("test", "accuracy")
        ([0, 9], [0.1, 0.9])
        >>> history.last("test")["accuracy"]
        0.9
    """

    def series(self, split: str, metric: str) -> tuple[list[int], list[Any]]:
        """The steps at which a metric was measured on a split, and its values."""
        found = [(r["step"], r[metric]) for r in self if r["split"] == split and metric in r]
        return [step for step, _ in found], [value for _, value in found]

    def last(self, split: str) -> Record:
        """The newest record of a split.

        Raises:
            KeyError: if there is none.
        """
        for record in reversed(self):
            if record["split"] == split:
                return record
        raise KeyError(f"nothing was measured on {split!r}; the history has {sorted(self.splits())}")

    def splits(self) -> list[str]:
        """Names of the splits measured, in order of appearance."""
        return list(dict.fromkeys(record["split"] for record in self))

    def metrics(self) -> list[str]:
        """Names of the metrics measured, in order of appearance."""
        return list(dict.fromkeys(name for r in self for name in r if name not in ("step", "split")))


def to_json(value: Any) -> Any:
    """Numbers and arrays as JSON takes them."""
    if isinstance(value, dict):
        return {name: to_json(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(x) for x in value]
    if (
        isinstance(value, (np.ndarray, np.generic))
        or hasattr(value, "__jax_array__")
        or hasattr(value, "tolist")
    ):
        return np.asarray(value).tolist()
    return value


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Writes a metrics file: one JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def append_line(path: Path, record: Record) -> None:
    """Adds one record to a metrics file."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: str | Path) -> History:
    """Reads a metrics file.

    Raises:
        ValueError: naming the line that is not a record.
    """
    history = History()
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not a JSON record ({error})") from None
    return history
