"""From the start of a process to its first training step, and the memory that a training takes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks.harness import most_resident, peak_memory
from experiments.catalogue import ROOT
from jdl.train.run import METRICS

POLL_SECONDS = 0.005


class Start(NamedTuple):
    """What a training's process took: seconds to the record of its first step, and peak memory in bytes."""

    seconds: float
    memory: int


def start(cache: Path, steps: int = 100) -> Start:
    """Trains LeNet-5 on the digits for a few steps in a new process.

    Args:
        cache: folder of compiled programs, empty for a cold start.
        steps: at most 100, so that every step makes a record.

    Raises:
        RuntimeError: if the training fails.
    """
    hidden = {"JAX_COMPILATION_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = ["-m", "experiments.lenet", "--steps", str(steps), "--quiet", "--run", str(run)]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env={**environment, "JDL_CACHE": str(cache)}
        )
        seconds, memory = None, 0
        while True:
            with contextlib.suppress(OSError):  # Without /proc, its usage tells in the end.
                memory = max(memory, peak_memory(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if seconds is None and _has_stepped(run / METRICS):
                seconds = time.perf_counter() - begin
            if pid:
                break
            time.sleep(POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or seconds is None:
            raise RuntimeError(f"the training ended with status {process.returncode}")
    return Start(seconds, memory or most_resident(usage))


def _has_stepped(metrics: Path) -> bool:
    try:
        return '"train"' in metrics.read_text()
    except OSError:
        return False
