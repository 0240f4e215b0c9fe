"""Two processes train as one, and one that is lost ends the other in a sentence."""

from __future__ import annotations

import json
import os
import re
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

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Pair:
    """Two processes with one device each."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, port = folder, free_port()
        # One device each. The proxy is nobody's business between processes of one machine.
        environment = {
            name: value
            for name, value in os.environ.items()
            if "proxy" not in name.lower() and name != "XLA_FLAGS"
        }
        self.logs = [folder.with_name(f"{folder.name}-{time.time_ns()}-{i}.txt") for i in range(2)]
        self.processes = []
        for i, log in enumerate(self.logs):
            settings = {"folder": str(folder), "result": str(folder) + ".json", "mesh": "data:2", **options}
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "tests.train.worker",
                            f"localhost:{port}",
                            str(i),
                            json.dumps(settings),
                        ],
                        cwd=ROOT,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self, i: int) -> str:
        return self.logs[i].read_text()

    def wait_for_step(self, step: int) -> None:
        deadline = time.time() + 120
        while time.time() < deadline:
            done = [int(line) for line in re.findall(r"^(\d+)$", self.said(0), re.MULTILINE)]
            if done and done[-1] >= step:
                return
            assert all(process.poll() is None for process in self.processes), self.said(0) + self.said(1)
            time.sleep(0.01)
        raise AssertionError(f"step {step} never came: {self.said(0)}{self.said(1)}")

    def wait(self, timeout: float = 150) -> list[int]:
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            self.end()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes come to that nobody disturbs."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    pair = Pair(folder)
    assert pair.wait() == [0, 0], pair.said(0) + pair.said(1)
    return {**json.loads(Path(str(folder) + ".json").read_text()), "folder": folder}


def test_two_processes_are_one(unbroken: dict[str, Any]) -> None:
    one = start(mesh="data:1")
    assert [r["step"] for r in unbroken["history"]] == [r["step"] for r in one.history]
    for x, y in zip(unbroken["history"], one.history, strict=True):
        for name in x.keys() - {"split"}:
            np.testing.assert_allclose(x[name], y[name], rtol=2e-3, atol=2e-3)
    state, meta = train.checkpoint.load(unbroken["folder"] / "checkpoints", "latest")
    for name, layer in one.variables["params"].items():
        for kind, x in layer.items():
            np.testing.assert_allclose(state["params"][name][kind], x, rtol=2e-3, atol=1e-4)
    assert meta["machine"]["processes"] == 2
    assert train.read_lines(unbroken["folder"] / "metrics.jsonl")[-1]["step"] == 120


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_in_a_sentence(
    lost: int, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    pair = Pair(tmp_path / "run", pause=0.02)
    pair.wait_for_step(50)
    pair.processes[lost].kill()
    begin = time.time()
    other = pair.processes[1 - lost]
    try:
        assert other.wait(45) == train.hosts.LOST, pair.said(1 - lost)
    finally:
        pair.end()
    assert time.time() - begin < 30
    said = pair.said(1 - lost)
    assert said.count("another process is gone") == 1, said
    assert f"process {1 - lost} of 2: another process is gone" in said
    assert "Traceback" not in said
    # Both again, bitwise as if nothing had been.
    again = Pair(tmp_path / "run")
    assert again.wait() == [0, 0], again.said(0) + again.said(1)
    assert "going on from step" in again.said(0)
    result = json.loads((tmp_path / "run.json").read_text())
    assert result == {name: x for name, x in unbroken.items() if name != "folder"}


def test_a_process_lost_while_the_other_is_busy(tmp_path: Path) -> None:
    """No collective fails, and the coordination service would abort the process that is left."""
    pair = Pair(tmp_path / "run", pause=100)
    pair.wait_for_step(5)
    pair.processes[1].kill()
    begin = time.time()
    try:
        assert pair.processes[0].wait(60) == train.hosts.LOST, pair.said(0)
    finally:
        pair.end()
    assert time.time() - begin < 40
    assert pair.said(0).count("process 0 of 2: another process is gone") == 1, pair.said(0)


def test_an_error_of_one_process_ends_both(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "run", fail=1)
    assert pair.wait(60) == [train.hosts.LOST, 1], pair.said(0) + pair.said(1)
    assert "ArithmeticError: of this process alone" in pair.said(1)
    assert "another process is gone" in pair.said(0)


def test_a_stop_is_agreed_on(unbroken: dict[str, Any], tmp_path: Path) -> None:
    pair = Pair(tmp_path / "run", pause=0.02)
    pair.wait_for_step(40)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.wait(60) == [128 + signal.SIGTERM] * 2, pair.said(0) + pair.said(1)
    assert "SIGTERM: stopped after step" in pair.said(0)
    again = Pair(tmp_path / "run")
    assert again.wait() == [0, 0], again.said(0) + again.said(1)
    result = json.loads((tmp_path / "run.json").read_text())
    assert result == {name: x for name, x in unbroken.items() if name != "folder"}
