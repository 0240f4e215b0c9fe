"""What is predicted of experiments' steps before the first, beside what they take.

Each is compiled and run by ``python -m jdl.compile EXPERIMENT --topology local``, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.catalogue import ROOT

TITLE = "Experiments' training steps: predicted before the first, and measured"
SUBJECTS = {
    "mlp": "MLP 300-100",
    "lenet": "LeNet-5",
    "two_conv": "two convolutions",
    "resnet": "ResNet-20",
    "vit": "ViT",
    "shakespeare": "GPT of 0.8 million parameters",
    "japanese_vowels": "bidirectional GRU",
    "vae": "VAE",
}
"""Experiments, and what tables call their steps."""
MEBIBYTE = 2**20


def measure(experiment: str, repeats: int = 3, steps: int = 20) -> tuple[list[float], dict[str, float]]:
    """A step of an experiment on one device.

    Args:
        experiment: its name, under ``experiments``.
        repeats: processes, each of which compiles and measures anew.
        steps: that each process runs.

    Returns:
        Milliseconds a step by process, and by what it is called what was predicted, by the first of them.

    Raises:
        RuntimeError: if it cannot be compiled or run.
    """
    reports = [_report(experiment, steps) for _ in range(repeats)]
    milliseconds = [1e3 * report["measured"]["seconds"] for report in reports]
    cost = reports[0]["programs"]["train"]
    roofline = cost["roofline"]
    return milliseconds, {
        "GFLOP": sum(cost["flops"].values()) / 1e9,
        "memory, MiB": cost["memory"]["total"] / MEBIBYTE,
        "at least, ms": 1e3 * roofline["seconds"],
        "without overlap, ms": 1e3 * roofline["without_overlap"],
        "share of the peak reached, %": 1e5 * roofline["parts"]["products"] / min(milliseconds),
    }


def _report(experiment: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = ["jdl.compile", f"experiments.{experiment}", "--topology", "local", "--json", str(file)]
        command += ["--measure", str(steps), "--mesh", "data:1"]
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if not file.is_file():
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
        report: dict[str, Any] = json.loads(file.read_text())
    return report
