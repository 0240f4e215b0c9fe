"""A run that is stopped in any way and started again ends bitwise equal to one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jdl import train
from tests.train.training import outcome, start, timeless

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Any]:
    """What the run comes to that nobody disturbs."""
    return json.loads(json.dumps(outcome(start())))


def launch(folder: Path, **options: Any) -> subprocess.Popen[str]:
    settings = json.dumps({"folder": str(folder), "result": str(folder) + ".json", **options})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.training", settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(folder: Path) -> dict[str, Any]:
    return json.loads(Path(str(folder) + ".json").read_text())


def wait_for_step(process: subprocess.Popen[str], step: int) -> int:
    """Reads what the process prints until it has done so many steps."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return int(line)
    raise AssertionError(process.communicate()[1])


def saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.partial"))


def test_killed_at_any_moment(unbroken: dict[str, Any], tmp_path: Path) -> None:
    folder, rng, done = tmp_path / "run", random.Random(0), 0
    for kill in range(5):
        process = launch(folder, pause=0.02)
        done = wait_for_step(process, min(done + rng.randrange(5, 30), 110))
        if kill % 2:
            # Into a save.
            deadline = time.time() + 5
            while not saving(folder) and time.time() < deadline and process.poll() is None:
                pass
        else:
            time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = launch(folder)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "going on from step" in said
    assert result(folder) == unbroken
    assert timeless(train.read_lines(folder / "metrics.jsonl")) == unbroken["history"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(number: signal.Signals, unbroken: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = launch(folder, pause=0.02)
    wait_for_step(process, 40)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert f"{number.name}: stopped after step" in said
    assert f"its state is saved in {folder}; start it again to go on from there" in said
    assert "Traceback" not in said
    process = launch(folder)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert result(folder) == unbroken


class Stop(Exception):
    pass


def stopped(folder: Path, step: int, **options: Any) -> None:
    """A run that ends in an error at a step."""

    def stop(record: dict[str, Any]) -> None:
        if record["split"] == "train" and record["step"] >= step:
            raise Stop

    with pytest.raises(Stop):
        start(folder, loggers=[stop], **options)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(checkpoint: Path) -> None:
    largest = max(files(checkpoint), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def delete(checkpoint: Path) -> None:
    next(path for path in files(checkpoint / "state")).unlink()


def flip(checkpoint: Path) -> None:
    largest = max(files(checkpoint / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, delete, flip])
def test_damaged_checkpoint(
    damage: Callable[[Path], None],
    unbroken: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped(tmp_path, 75)
    latest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal())
    damage(tmp_path / "checkpoints" / str(latest))
    fitted = start(tmp_path)
    said = capsys.readouterr().err
    assert f"Checkpoint of step {latest} is damaged" in said
    assert "going on from step 64" in said
    assert latest == 72
    assert json.loads(json.dumps(outcome(fitted))) == unbroken
    assert timeless(train.read_lines(tmp_path / "metrics.jsonl")) == unbroken["history"]


def test_several_or_single_steps_and_the_host_resume_too(tmp_path: Path) -> None:
    for name, options in {
        "single": {"several_steps": False},
        "host": {"resident": False},
        "eight": {"mesh": "data:8"},
        "sharded": {"mesh": "data:2,fsdp:4", "net": {"width": 64}},
        "early": {"patience": 2, "evaluate_every": 10, "rate": 0.05},
    }.items():
        whole = outcome(start(tmp_path / name / "whole", steps=60, **options))
        stopped(tmp_path / name / "broken", 35, steps=60, **options)
        assert outcome(start(tmp_path / name / "broken", steps=60, **options)) == whole, name


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    start(tmp_path, steps=10)
    before = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "config.json").read_text()
    with pytest.raises(train.ResumeError, match=r"rate was 0.01 and is now 0.02\. Go on with the old ones"):
        start(tmp_path, steps=10, rate=0.02)
    with pytest.raises(train.ResumeError, match=r"net was None and is now {'width': 64}"):
        start(tmp_path, steps=10, net={"width": 64})
    with pytest.raises(train.ResumeError, match="the data's fingerprint was .* and is now 'other'"):
        start(tmp_path, steps=10, run={"data": "other"})
    with pytest.raises(train.ResumeError, match="monitored by 'max accuracy' and is now by 'min loss'"):
        start(tmp_path, steps=10, monitor="min loss")
    with pytest.raises(train.ResumeError, match="holds a run of 10 steps, more than the 5 asked for"):
        start(tmp_path, steps=5)
    with pytest.raises(
        train.CheckpointMismatch, match=r"is the state of another model \(params/.*stored.*asked"
    ):
        start(tmp_path, steps=10, net={"width": 64}, run={"config": {"rate": 0.01, "net": None}})
    assert ((tmp_path / "metrics.jsonl").read_text(), (tmp_path / "config.json").read_text()) == before


def test_settings_that_json_changes_are_the_same(tmp_path: Path) -> None:
    config = {"widths": (3, 4), "by_number": {1: 0.1}, "limit": float("nan"), "rate": np.float32(0.1)}
    start(tmp_path, steps=10, run={"config": config})
    assert start(tmp_path, steps=12, run={"config": config}).step == 12


def test_another_shape_of_machine_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = start(net={"dropout": 0.0})
    stopped(tmp_path, 110, net={"dropout": 0.0})
    for mesh in ("data:8", "data:2,fsdp:4"):
        shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{mesh}"))
    for mesh in ("data:8", "data:2,fsdp:4"):
        folder = tmp_path.with_name(f"{tmp_path.name}-{mesh}")
        fitted = start(folder, net={"dropout": 0.0}, mesh=mesh)
        said = capsys.readouterr().err
        assert f"another shape of machine (mesh data:1 then, {mesh} now): the last bits may differ" in said
        for one, other in zip(
            jax.tree.leaves(whole.variables), jax.tree.leaves(fitted.variables), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    fitted = start(tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_text()

    def never(predict: Any, batches: Any) -> dict[str, float]:
        raise AssertionError("nothing is left to evaluate")

    again = start(tmp_path, evaluators=[never])
    assert outcome(again) == outcome(fitted)
    assert again.history == fitted.history
    assert (tmp_path / "metrics.jsonl").read_text() == metrics


def test_more_steps_go_on(tmp_path: Path) -> None:
    start(tmp_path, steps=30)
    assert outcome(start(tmp_path, steps=60)) == outcome(start(steps=60))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_evaluating(number: signal.Signals, tmp_path: Path) -> None:
    evaluated = []

    def evaluator(predict: Any, batches: Any) -> None:
        evaluated.append(0)
        if len(evaluated) == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(train.Interrupted) as caught:
        start(tmp_path, evaluators=[evaluator])
    assert caught.value.code == 128 + number
    assert outcome(start(tmp_path)) == outcome(start())


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def evaluator(predict: Any, batches: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, evaluators=[evaluator])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# Orbax leaves the writes beside one that failed unfinished, and asyncio complains when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount here")
def test_full_disk(tmp_path: Path) -> None:
    net = {"width": 1000}
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises((train.CheckpointError, OSError), match="full|No space left") as caught:
            start(disk / "run", net=net, run={"keep_latest": 9})
        assert "\n" not in str(caught.value)
        left = train.Checkpoints(disk / "run" / "checkpoints")
        left.close()
        assert left.steps()
        for step in left.steps():
            state, _ = train.checkpoint.load(disk / "run" / "checkpoints", step)
            assert int(state["step"]) == step
        # With room again it goes on.
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert outcome(start(disk / "run", net=net, run={"keep_latest": 9})) == outcome(start(net=net))


def test_full_disk_for_the_metrics_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train.Run(tmp_path / "run")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jdl.train.run.append_line", full)
    with pytest.raises(
        OSError, match=r"metrics.jsonl cannot be written: No space left on device; training stops"
    ):
        run.log({"step": 1})
