"""Where the time goes: booked once, kept over restarts, and traced."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from jdl import train
from jdl.train import profile
from jdl.train.clock import Clock
from tests.train.training import start


def test_every_second_is_booked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    now += 1
    with clock.spending("evaluation"):
        now += 2
        with clock.spending("checkpoint"):
            now += 4
        now += 8
    with pytest.raises(KeyError), clock.spending("data"):
        now += 16
        raise KeyError
    now += 32
    assert clock.account() == {"host": 33.0, "evaluation": 10.0, "checkpoint": 4.0, "data": 16.0}
    # A rate is of training alone: of 49 seconds, evaluation and saving left out.
    clock.tick(98)
    assert clock.rate_since_log() == 2.0
    assert clock.steps_in(2.0) == 2
    assert clock.steps_in(2.0) == 4


def line(attempt: int, start: int, step: int, **spent: float) -> str:
    return json.dumps({"attempt": attempt, "start": start, "step": step, "spent": spent}) + "\n"


def test_goodput_leaves_out_what_was_lost_and_what_was_no_computation(tmp_path: Path) -> None:
    (tmp_path / profile.TIMES).write_text(
        line(1, 0, 10, compute=1.0, compile=9.0)
        + line(1, 0, 40, compute=4.0, compile=9.0)
        # Killed at step 40, gone on with from 30; killed before its first record was whole.
        + line(2, 30, 30, compile=5.0)
        + '{"attempt": 2, "start": 30, "st\n'
        + line(3, 30, 60, compute=3.0, compile=1.0, data=2.0)
    )
    found = train.goodput(tmp_path)
    assert found.spent == {"compute": 7.0, "compile": 15.0, "data": 2.0}
    assert (found.restarts, found.lost_steps) == (2, 10)
    assert found.useful == pytest.approx(4.0 * 30 / 40 + 3.0)
    assert found.share == pytest.approx(6 / 24)
    assert "goodput          25.0 %  (2 restarts, 10 steps lost)" in str(found)
    with pytest.raises(ValueError, match="nothing is known of where the time went"):
        train.goodput(tmp_path / "elsewhere")


def test_steps_that_only_a_later_attempt_repeats_are_lost_too(tmp_path: Path) -> None:
    (tmp_path / profile.TIMES).write_text(
        line(1, 0, 40, compute=4.0) + line(2, 30, 30) + line(3, 20, 60, compute=4.0)
    )
    found = train.goodput(tmp_path)
    assert (found.restarts, found.lost_steps) == (2, 20)
    assert found.useful == pytest.approx(2.0 + 4.0)


def test_a_run_that_fell_over_counts_its_lost_steps(tmp_path: Path) -> None:
    def fall(record: dict[str, Any]) -> None:
        if record["split"] == "train" and record["step"] >= 35:
            raise OSError("the disk went away")

    began = time.perf_counter()
    with pytest.raises(OSError, match="the disk went away"):
        start(tmp_path / "run", loggers=[fall])
    done = start(tmp_path / "run")
    elapsed = time.perf_counter() - began
    found = train.goodput(tmp_path / "run")
    records = [json.loads(text) for text in (tmp_path / "run" / profile.TIMES).read_text().splitlines()]
    again = next(record for record in records if record["attempt"] == 2)["start"]
    last = max(record["step"] for record in records if record["attempt"] == 1)
    assert (found.restarts, found.lost_steps) == (1, last - again)
    assert again % 8 == 0 or again == 30
    assert 0 < found.useful < found.spent["compute"]
    assert sum(found.spent.values()) < elapsed
    assert {"compute", "compile", "evaluation", "checkpoint", "host", "data"} <= found.spent.keys()
    assert done.step == 120


def test_a_trace_of_a_few_steps_and_a_table_at_the_end(tmp_path: Path) -> None:
    told: list[str] = []

    def listen(record: dict[str, Any]) -> bool:
        if record["split"] == "message":
            told.append(record["text"])
        return True

    start(resident=False, profile=tmp_path / "trace", loggers=[listen], steps=30)
    (trace,) = (tmp_path / "trace").rglob("perfetto_trace.json.gz")
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    # Steps 4 to 8: three were left to warm up.
    steps = {e["args"]["step_num"] for e in events if e.get("name") == "train" and "args" in e}
    assert {int(step) for step in steps} == {3, 4, 5, 6, 7}
    assert "compute" in told[-1]
    assert "goodput" in told[-1]
    assert f"tensorboard --logdir {tmp_path / 'trace'}" in told[-1]

    start(resident=False, profile=tmp_path / "none", loggers=[listen], steps=2)
    assert "no trace: training ended within its first 3 dispatches" in told[-1]
