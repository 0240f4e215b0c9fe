"""One of several processes, started as by a launcher: ``python -m tests.train.worker '{...}'``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jdl import train
from jdl.train import checkpoint


def fail_in_batch(training: Any, step: int) -> None:
    """Batches of this process that cannot be made, from a step on."""
    whole = training.data.HostBatches.__call__

    def failing(self: object, i: int) -> object:
        if i == step:
            raise ArithmeticError("of this process alone")
        return whole(self, i)

    training.data.HostBatches.__call__ = failing


def die_in_save(step: int, moment: str) -> None:
    """Kills this process while it saves a step: as its arrays are written, or between manifest and rename."""
    if moment == "write":
        write = ocp.AsyncCheckpointer.save

        def dying(self: Any, path: Path, *arguments: Any, **named: Any) -> None:
            write(self, path, *arguments, **named)
            if path.parent.name == f"{step}.partial":
                os.kill(os.getpid(), signal.SIGKILL)

        ocp.AsyncCheckpointer.save = dying
    else:
        remove = checkpoint._remove

        def dying_first(path: Path) -> None:
            if path.name == str(step):
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path)

        checkpoint._remove = dying_first


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    train.connect(index=settings.pop("index", None))

    from tests.train import training

    lost = settings.pop("fail", None), settings.pop("die", None)
    if lost[0] and lost[0]["index"] == jax.process_index():
        fail_in_batch(training, lost[0]["step"])
    if lost[0]:
        settings["resident"] = False
    if lost[1] and lost[1].pop("index") == jax.process_index():
        die_in_save(**lost[1])
    training.main(**settings)
