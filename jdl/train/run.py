"""A run's folder: settings, checkpoints, metrics file and pictures, and the rules for going on with it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jdl.core import Batch, Learner, Variables
from jdl.train import checkpoint
from jdl.train.checkpoint import Checkpoints
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
        for name in ("config", "extra"):
            try:
                json.dumps(to_json(dict(getattr(self, name))))
            except TypeError as error:
                raise ValueError(f"{name} of a run must be what JSON can hold: {error}") from None
        try:
            self.path().mkdir(parents=True, exist_ok=True)
            probe = self.path() / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"the run's folder {self.folder} cannot be written: {error.strerror}") from None

    def _config(self) -> dict[str, Any]:
        """The settings as they come back from a file."""
        return json.loads(json.dumps(to_json(dict(self.config))))

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

    def check(self, meta: Mapping[str, Any], now: Mapping[str, Any], start: Mapping[str, str]) -> str:
        """Compares a checkpoint's meta with this run, with its `machine` now and its `start`.

        Returns:
            A sentence to tell the user where the machine differs, or "".

        Raises:
            ResumeError: naming what differs in configuration or data.
        """
        old, new = meta["config"], self._config()
        changed = [
            f"{name} was {old.get(name, 'not set')!r} and is now {new.get(name, 'not set')!r}"
            for name in sorted(old.keys() | new.keys())
            if json.dumps(old.get(name)) != json.dumps(new.get(name))
        ]
        before = meta["start"]
        changed += [
            f"{name} is another" for name in start.keys() & before.keys() if start[name] != before[name]
        ]
        if meta["data"] != self.data:
            changed.append(f"the data's fingerprint was {meta['data'][:12]!r} and is now {self.data[:12]!r}")
        if changed:
            raise ResumeError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed)}. "
                "Go on with the old ones, or choose another folder."
            )
        then = meta["machine"]
        differs = [
            f"{name} {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]
        ]
        return f"another shape of machine ({', '.join(differs)}): the last bits may differ" if differs else ""

    def begin(self, history: History) -> None:
        """Writes the configuration, and the metrics file as it was at the step that training starts from.

        Raises:
            OSError: in a sentence, if they cannot be written.
        """
        with _writing(self.path(CONFIG)) as path:
            # Whole or not at all: a run that is killed here must still say what it was.
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps(self._config(), indent=2) + "\n")
            os.replace(draft, path)
        with _writing(self.path(METRICS)) as path:
            write_lines(path, history)

    def log(self, record: Record) -> None:
        """Adds a record to the metrics file.

        Raises:
            OSError: in a sentence, if it cannot be written.
        """
        with _writing(self.path(METRICS)) as path:
            append_line(path, record)

    def meta(
        self,
        progress: Mapping[str, Any],
        history: History,
        machine: Mapping[str, Any],
        start: Mapping[str, str],
    ) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        return {
            "config": self._config(),
            "data": self.data,
            "extra": to_json(dict(self.extra)),
            "machine": dict(machine),
            "start": dict(start),
            "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "progress": to_json(dict(progress)),
            "history": list(history),
        }


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Says which file could not be written, and why."""
    try:
        yield path
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}; training stops") from error


def machine(mesh: Mesh, mode: str) -> dict[str, Any]:
    """What a run's last bits depend on beside its configuration."""
    return {
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "processor": _processor(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "mesh": ",".join(f"{name}:{size}" for name, size in mesh.shape.items()),
        "mode": mode,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def start(key: jax.Array, first: Batch) -> dict[str, str]:
    """What can be told, of a run whose configuration says nothing, about where it starts.

    Of the first batch only one process knows all rows.
    """
    found = {"the key": _digest(jax.random.key_data(key))}
    if jax.process_count() == 1:
        found["the first training batch"] = _digest(*(first[name] for name in sorted(first)))
    return found


def _digest(*trees: Any) -> str:
    digest = hashlib.sha256()
    for x in jax.tree.leaves(trees):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:12]


class Loaded(NamedTuple):
    """A trained model, taken from its run's folder.

    Attributes:
        variables: its variables.
        predict: ``inputs -> outputs``, a pure function whose weights are leaves of a pytree.
        meta: what was saved beside them: ``config``, ``extra``, ``history``, ...
    """

    variables: Variables
    predict: jax.tree_util.Partial
    meta: dict[str, Any]


def load(folder: str | Path, learner: Learner, batch: Batch, step: int | str = "latest") -> Loaded:
    """The variables of a run, for use; nothing on disk is changed.

    Args:
        folder: the run's folder.
        learner: the learner that the run trained.
        batch: any batch of the shape that it takes; only shapes count.
        step: a step that a checkpoint is kept of, "latest", or "best".

    Returns:
        What a checkpoint holds, ready for use.

    Raises:
        jdl.train.CheckpointError: if there is none, or it is damaged, or is another learner's.
    """
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    restored, meta = checkpoint.load(Path(folder) / CHECKPOINTS, step, state)
    variables = learner.variables(restored)
    return Loaded(variables, jax.tree_util.Partial(learner.predict, variables), meta)
