"""How fast jdl is beside plain Flax, told in the summary of every run: a report, which no speed can fail."""

import os
import subprocess
import sys

from experiments.benchmarks import beside_linen
from experiments.catalogue import ROOT


def test_speed_beside_plain_flax_is_reported(record_property):
    """In a process as a user has it: the tests' own optimises hardly and is not prepared."""
    environment = {name: x for name, x in os.environ.items() if name not in ("XLA_FLAGS", "JDL_PLAIN")}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.beside_linen"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(beside_linen.QUICK)
    for line in lines:
        record_property("report", line)
