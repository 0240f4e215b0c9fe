"""Several processes train as one, from each other's checkpoints, and one that is lost ends the others in a
sentence.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jdl import train
from tests.train.training import start

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NET = {"width": 96}
"""Wide enough for its largest kernel to be split over processes."""
FSDP = "data:1,fsdp:2"
SECONDS_TO_LEAVE = 60
"""A process that is alone must have left by then. Without a sign of life the runtime takes 20."""

LAUNCHERS = ("SLURM_", "OMPI_", "JDL_HOSTS")


def free_port() -> int:
    """One of the ports that JAX derives from the number of a job."""
    while True:
        port = random.randrange(61440, 65536)
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
                return port
            except OSError:
                continue


def environment(launcher: str, port: int, index: int, count: int) -> dict[str, str]:
    """What a launcher tells the processes that it starts on one machine."""
    if launcher == "slurm":
        values = {
            "SLURM_JOB_ID": port - 61440,
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": count,
            "SLURM_PROCID": index,
            "SLURM_LOCALID": index,
            "SLURM_STEP_TASKS_PER_NODE": count,
        }
    elif launcher == "open mpi":
        values = {
            "OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:1",
            "OMPI_COMM_WORLD_SIZE": count,
            "OMPI_COMM_WORLD_RANK": index,
            "OMPI_COMM_WORLD_LOCAL_RANK": index,
        }
    else:
        values = {"JDL_HOSTS": ",".join([f"localhost:{port}"] * count)}
    # One device each. The proxy is nobody's business between processes of one machine.
    kept = {
        name: value
        for name, value in os.environ.items()
        if "proxy" not in name.lower() and name != "XLA_FLAGS" and not name.startswith(LAUNCHERS)
    }
    return {**kept, **{name: str(value) for name, value in values.items()}}


class Processes:
    """Processes with one device each."""

    def __init__(self, folder: Path, count: int = 2, launcher: str = "slurm", **options: Any) -> None:
        port = free_port()
        self.logs = [folder.with_name(f"{folder.name}-{time.time_ns()}-{i}.txt") for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            settings = {
                "folder": str(folder),
                "result": f"{folder}.json",
                "mesh": FSDP,
                "net": NET,
                **options,
            }
            if launcher == "hosts":
                settings["index"] = i
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.train.worker", json.dumps(settings)],
                        cwd=ROOT,
                        env=environment(launcher, port, i, count),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self, i: int) -> str:
        return self.logs[i].read_text()

    def all_said(self) -> str:
        return "".join(map(self.said, range(len(self.logs))))

    def wait_for_step(self, step: int) -> None:
        deadline = time.time() + 240
        while time.time() < deadline:
            done = [int(line) for line in re.findall(r"^(\d+)$", self.said(0), re.MULTILINE)]
            if done and done[-1] >= step:
                return
            assert all(process.poll() is None for process in self.processes), self.all_said()
            time.sleep(0.01)
        raise AssertionError(f"step {step} never came: {self.all_said()}")

    def wait(self, timeout: float = 240) -> list[int]:
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            self.end()

    def finish(self) -> None:
        assert set(self.wait()) == {0}, self.all_said()

    def leave_after(self, lost: int) -> None:
        """The others leave in time, each with a sentence, once one is gone."""
        try:
            self.processes[lost].wait(240)
            begin = time.time()
            for i, process in enumerate(self.processes):
                if i == lost:
                    continue
                left = begin + SECONDS_TO_LEAVE - time.time()
                assert process.wait(max(left, 0.1)) == train.hosts.LOST, self.said(i)
                said = self.said(i)
                assert said.count("another process is gone") == 1, said
                assert f"process {i} of {len(self.processes)}: another process is gone" in said
                assert "Traceback" not in said
        finally:
            self.end()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def result(folder: Path) -> dict[str, Any]:
    return json.loads(Path(f"{folder}.json").read_text())


def agree(history: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Two histories are the same but for rounding."""
    assert [(r["step"], r["split"]) for r in history] == [(r["step"], r["split"]) for r in other]
    for x, y in zip(history, other, strict=True):
        for name in x.keys() - {"split", "steps_per_second"}:
            np.testing.assert_allclose(x[name], y[name], rtol=2e-3, atol=2e-3, err_msg=f"{x}")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process comes to, at step 40 and at the end."""
    folder = tmp_path_factory.mktemp("one") / "run"
    start(folder, steps=40, net=NET)
    early = copied(folder, folder.with_name("early"))
    # The evaluation after the last step is none of a longer run.
    whole = start(folder.with_name("whole"), steps=160, net=NET)
    return {"early": early, "history": whole.history, "whole": folder.with_name("whole")}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    Processes(folder).finish()
    return folder


def test_two_processes_are_one(unbroken: Path, one: dict[str, Any]) -> None:
    agree(result(unbroken)["history"], [r for r in one["history"] if r["step"] <= 120])
    _, meta = train.checkpoint.load(unbroken / "checkpoints", "latest")
    assert meta["machine"]["processes"] == 2
    assert train.read_lines(unbroken / "metrics.jsonl")[-1]["step"] == 120
    # Both have written what is theirs.
    written = {path.name for path in (unbroken / "checkpoints/120/state").glob("ocdbt.process_*")}
    assert written == {"ocdbt.process_0", "ocdbt.process_1"}


def test_one_process_goes_on_from_two(unbroken: Path, one: dict[str, Any], tmp_path: Path) -> None:
    fitted = start(copied(unbroken, tmp_path / "run"), steps=160, net=NET, mesh="data:2")
    agree(fitted.history, one["history"])
    state, _ = train.checkpoint.load(one["whole"] / "checkpoints", "latest")
    params = fitted.variables["params"]
    for name, layer in state["params"].items():
        for kind, x in layer.items():
            np.testing.assert_allclose(params[name][kind], x, rtol=2e-3, atol=1e-3)


def test_whatever_ends_a_run_it_goes_on_bitwise(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Killed while training.
    pair = Processes(folder, pause=0.02)
    pair.wait_for_step(30)
    pair.processes[0].kill()
    pair.leave_after(lost=0)
    # While arrays are written: that step is not there.
    pair = Processes(folder, die={"index": 1, "step": 64, "moment": "write"})
    pair.leave_after(lost=1)
    assert pair.processes[1].returncode == -signal.SIGKILL
    assert "going on from step" in pair.said(0)
    # Between manifest and rename: that step is whole.
    pair = Processes(folder, launcher="hosts", die={"index": 0, "step": 88, "moment": "rename"})
    pair.leave_after(lost=0)
    assert pair.processes[0].returncode == -signal.SIGKILL
    assert "going on from step 60 of 120" in pair.said(0)
    # Told to stop: all save the same step.
    pair = Processes(folder, pause=0.05)
    pair.wait_for_step(95)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.wait() == [128 + signal.SIGTERM] * 2, pair.all_said()
    assert "going on from step 88 of 120" in pair.said(0)
    assert "SIGTERM: stopped after step" in pair.said(0)
    pair = Processes(folder)
    pair.finish()
    assert "going on from step" in pair.said(0)
    assert "going on" not in pair.said(1)
    assert result(folder) == result(unbroken)


def test_four_go_on_from_two_and_bitwise_after_one_is_lost(
    unbroken: Path, one: dict[str, Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"count": 4, "launcher": "open mpi", "mesh": "data:4", "steps": 160}
    straight, broken = (copied(unbroken, tmp_path / name) for name in ("straight", "broken"))
    four = Processes(straight, **settings)
    four.finish()
    assert "going on from step 120 of 160" in four.said(0)
    assert "processes 2 then, 4 now" in four.said(0)
    agree(result(straight)["history"], one["history"])
    four = Processes(broken, pause=0.05, **settings)
    four.wait_for_step(135)
    four.processes[2].kill()
    four.leave_after(lost=2)
    Processes(broken, **settings).finish()
    assert result(broken) == result(straight)


def test_a_process_lost_while_the_other_is_busy(tmp_path: Path) -> None:
    """No collective fails, and the coordination service would abort the process that is left."""
    pair = Processes(tmp_path / "run", pause=100)
    pair.wait_for_step(5)
    pair.processes[1].kill()
    pair.leave_after(lost=1)


def test_two_go_on_from_one_and_an_error_of_one_ends_both(one: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(one["early"], tmp_path / "run")
    pair = Processes(folder, fail={"index": 1, "step": 56})
    assert pair.wait() == [train.hosts.LOST, 1], pair.all_said()
    assert "ArithmeticError: of this process alone" in pair.said(1)
    assert "another process is gone" in pair.said(0)
    assert "going on from step 40 of 120" in pair.said(0)
    after = [r for r in train.read_lines(folder / "metrics.jsonl") if 40 < r["step"] <= 55]
    assert [r["step"] for r in after] == [45, 50, 55]
    agree(after, [r for r in one["history"] if 40 < r["step"] <= 55])


def test_a_process_that_waits_in_vain_says_so() -> None:
    script = f"""
from jdl import train
train.hosts.ARRIVAL_SECONDS = 2
train.connect("localhost:{free_port()}", 0, 2)
"""
    found = environment("none", 0, 0, 0)
    found.pop("JDL_HOSTS")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=found, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == train.hosts.LOST
    assert "not all processes came within 2 s" in done.stderr
