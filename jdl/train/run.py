"""A run's folder: its configuration, checkpoints, metrics file and pictures, and the rules for going on with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from jdl.train.checkpoint import Checkpoints, Restored
from jdl.train.history import History, Record, append_line, to_json, write_lines

CONFIG, METRICS, CURVES, CHECKPOINTS = "config.json", "metrics.jsonl", "curves.png", "checkpoints"


class ResumeError(ValueError):
    """A folder holds a run that this one cannot go on with."""


@dataclass(frozen=True)
class Run:
    """Where a run is kept, and what is kept with its weights.

    `jdl.train.fit` goes on with what the folder holds, if configuration and data are the same.

    Attributes:
        folder: made if it does not exist.
        config: the run's settings, as JSON takes them.
        data: fingerprint of the training data, such as `jdl.data.Dataset.fingerprint`.
        extra: whatever else is wanted beside the weights years later: preprocessing, class names, ...
        save_every: steps between checkpoints, beside those at each evaluation; None for those alone.
        keep_latest: how many of the newest checkpoints to keep.
        keep_best: how many of the best checkpoints to keep.

    Raises:
        ValueError: if the folder cannot be written, in a sentence that says why.
    """

    folder: str | Path
    config: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    save_every: int | None = None
    keep_latest: int = 2
    keep_best: int = 1

    def __post_init__(self) -> None:
        if self.save_every is not None and self.save_every < 1:
            raise ValueError(f"save_every must be at least 1, or None; got {self.save_every}")
        object.__setattr__(self, "folder", Path(self.folder).expanduser().resolve())
        try:
            self.path().mkdir(parents=True, exist_ok=True)
            probe = self.path() / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"the run's folder {self.folder} cannot be written: {error.strerror}") from None

    def path(self, name: str = "") -> Path:
        """The path of one of the folder's files."""
        return Path(self.folder) / name

    def checkpoints(self, monitor: str, report: Any) -> Checkpoints:
        """The run's checkpoints, for saving and restoring."""
        return Checkpoints(
            self.path(CHECKPOINTS),
            monitor=monitor,
            keep_latest=self.keep_latest,
            keep_best=self.keep_best,
            report=report,
        )

    def check(self, meta: Mapping[str, Any]) -> str:
        """Compares a checkpoint's meta with this run.

        Returns:
            A sentence to tell the user where the machine differs, or "".

        Raises:
            ResumeError: naming what differs in configuration or data.
        """
        old, new = meta["config"], to_json(dict(self.config))
        changed = [
            f"{name} was {old.get(name, 'not set')!r} and is now {new.get(name, 'not set')!r}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        if meta["data"] != self.data:
            changed.append(f"the data's fingerprint was {meta['data'][:12]!r} and is now {self.data[:12]!r}")
        if changed:
            raise ResumeError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed)}. "
                "Go on with the old ones, or choose another folder."
            )
        then, now = meta["machine"], machine()
        differs = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
        return f"another shape of machine ({', '.join(differs)}): the last bits may differ" if differs else ""

    def begin(self, history: History) -> None:
        """Writes the configuration, and the metrics file as it was at the step that training starts from."""
        self.path(CONFIG).write_text(json.dumps(to_json(dict(self.config)), indent=2) + "\n")
        write_lines(self.path(METRICS), history)

    def log(self, record: Record) -> None:
        """Adds a record to the metrics file."""
        append_line(self.path(METRICS), record)

    def meta(self, progress: Mapping[str, Any], history: History) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        return {
            "config": to_json(dict(self.config)),
            "data": self.data,
            "extra": to_json(dict(self.extra)),
            "machine": machine(),
            "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "progress": to_json(dict(progress)),
            "history": list(history),
        }


def machine() -> dict[str, Any]:
    """What a run's last bits depend on beside its configuration."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
    }


__all__ = ["CHECKPOINTS", "CONFIG", "CURVES", "METRICS", "Restored", "ResumeError", "Run", "machine"]
