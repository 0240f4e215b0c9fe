"""Experiments are compiled ahead of time for devices that are here, and for TPUs that are not."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl import compile as ahead
from jdl import data, learners, tasks, train
from jdl.models import MLP

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the tpu extra)"
)


SAVINGS = ahead.savings


@dataclass(frozen=True)
class Execution:
    run: str = ""
    mesh: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Config:
    width: int = 64
    """Features."""
    batch_size: int = 16
    """Examples in a batch."""
    accumulate: int = 1
    """Parts of a batch."""
    dtype: str = "float32"
    """Of the computation."""
    trains: bool = True
    """Whether there is anything to train."""
    execution: Execution = field(default_factory=Execution)
    """How it is run."""


def main(config: Config) -> None:
    if not config.trains:
        return
    rng = np.random.default_rng(0)
    examples = {
        "inputs": rng.normal(size=(256, 12)).astype(np.float32),
        "labels": rng.integers(0, 4, 256).astype(np.int32),
    }
    model = MLP((config.width, config.width, 4))
    task = tasks.classification(model)
    task = tasks.mixed_precision(task, jnp.bfloat16) if config.dtype == "bfloat16" else task
    Path(config.execution.run, "started").touch()
    train.fit(
        learners.gradient(task, optax.adam(1e-3), accumulate=config.accumulate),
        data.shuffled(examples, config.batch_size, resident=False),
        10,
        evaluation={"test": data.in_order(examples, config.batch_size, resident=False)},
        mesh=config.execution.mesh or "data:1",
    )
    raise AssertionError("a plan ends where training would start")


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an experiment: this file's."""
    module = ModuleType("stand_in")
    vars(module).update(Config=Config, main=main)
    monkeypatch.setitem(sys.modules, "stand_in", module)
    return "stand_in"


def test_local_devices_are_predicted_and_measured(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reports" / "report.json"
    assert ahead.main([experiment, "--json", str(file), "--measure", "2", "--width", "8"]) == 0
    report = json.loads(file.read_text())
    assert report["flags"] == ["--width", "8"]
    training, test = (report["programs"][name] for name in ("train", "test"))
    assert training["params"] == test["params"] == 12 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4
    assert test["flops"] == {"float32": 2 * 16 * (12 * 8 + 8 * 8 + 8 * 4)}
    assert sum(training["flops"].values()) == 3 * test["flops"]["float32"] - 2 * 16 * 12 * 8
    assert test["memory"]["optimizer"] == 0
    assert report["measured"]["seconds"] >= training["roofline"]["seconds"] > 0
    assert set(training["roofline"]["parts"]) == {"products", "memory", "collectives"}
    printed = capsys.readouterr().out
    assert "memory" not in report["measured"]
    report["measured"]["memory"] = 2**20
    assert "memory: 1.0 MiB at its peak; predicted: " in ahead.text(report)
    assert "measured: " in printed
    assert "--- test, compiled in" in printed


def test_settings_that_save_memory_are_tried_one_by_one_and_then_together(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enough = ahead.planned

    def planned(main: Any, config: Config, *rest: Any) -> train.Plan:
        if config.dtype == "float32" or config.accumulate < 4:
            raise train.DoesNotFit("too large", 2.0**31, 2.0**30)
        return enough(main, config, *rest)

    monkeypatch.setattr(ahead, "planned", planned)
    monkeypatch.setattr(ahead, "savings", lambda config, devices, parts: SAVINGS(config, 1))
    report = ahead.run(experiment, "local", ["--width", "8"])
    assert not report["fits"]
    tried = [attempt["flags"] for attempt in report["tried"]]
    alone = ["--dtype bfloat16", *(f"--accumulate {k}" for k in (2, 4, 8, 16))]
    assert tried == [*alone, "--dtype bfloat16 --accumulate 2", "--dtype bfloat16 --accumulate 4"]
    assert [attempt["fits"] for attempt in report["tried"]] == [False] * 6 + [True]
    assert "tried by compiling: --dtype bfloat16 --accumulate 4" in ahead.text(report)
    assert "it does not fit; trying --accumulate 2" in capsys.readouterr().err


def test_savings_are_the_settings_that_an_experiment_has_and_does_not_use() -> None:
    flags = [flag for flag, _ in ahead.savings(Config(batch_size=64), 8)]
    assert flags == ["--dtype bfloat16", "--mesh fsdp:8", *(f"--accumulate {k}" for k in (2, 4, 8))]
    used = Config(batch_size=16, dtype="bfloat16", execution=Execution(mesh="data:2,fsdp:4"))
    assert [flag for flag, _ in ahead.savings(used, 8)] == ["--accumulate 2"]
    assert [flag for flag, _ in ahead.savings(Config(batch_size=64), 1, 24)][1:] == [
        f"--accumulate {k}" for k in (16, 32, 64)
    ]
    for flag, change in ahead.savings(Config(batch_size=64), 8):
        assert change(Config(batch_size=64)) != Config(batch_size=64), flag

    @dataclass(frozen=True)
    class Other:
        remat: str = "none"

    ((flag, change),) = ahead.savings(Other(), 1)
    assert (flag, change(Other())) == ("--remat full", Other("full"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_thing"], "no experiment is called 'no_such_thing'"),
        (["cli"], "experiments.cli is no experiment: it needs a function main and a dataclass Config"),
        (["stand_in", "--no-trains"], "trained nothing with jdl.train.fit"),
        (
            ["stand_in", "--batch-size", "9", "--mesh", "data:2"],
            "a batch of 9 examples cannot be split evenly",
        ),
        pytest.param(
            ["stand_in", "--topology", "v5e:3x3"], "no topology is called 'v5e:3x3'", marks=needs_libtpu
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_is_wrong_is_said_in_a_sentence(
    experiment: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ahead.main(arguments) == 1
    printed = capsys.readouterr().err
    assert f"error: {said}" in printed or said in printed
    assert "Traceback" not in printed


@needs_libtpu
def test_compiles_for_tpus_that_are_not_here(experiment: str) -> None:
    report = ahead.run(experiment, "v5e:2x2", ["--mesh", "data:2,fsdp:2", "--width", "128"])
    training = report["programs"]["train"]
    params = 12 * 128 + 128 + 128 * 128 + 128 + 128 * 4 + 4
    assert training["params"] == params
    assert training["devices"] == 4
    assert training["chip"]["name"] == "TPU v5e"
    # Large arrays are halved, and small ones are not.
    assert 4 * params / 2 < training["memory"]["parameters"] < 4 * params * 0.6
    assert {"all-gather", "all-reduce"} <= set(training["collectives"])
    assert training["roofline"]["parts"]["collectives"] > 0
    assert "measured" not in report
    assert "nothing was run" in ahead.text(report)

    refused = ahead.run(experiment, "v5e:2x2", ["--mesh", "data:4", "--width", "200000"], search=False)
    assert not refused["fits"]
    assert refused["needed"] > 15.75 * 2**30
    assert "does not fit" in ahead.text(refused)


class Same:
    """One batch, at every step and as an evaluation set."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __call__(self, step: Any) -> Any:
        return self.batch

    def __len__(self) -> int:
        return 1


@pytest.mark.slow
@needs_libtpu
def test_every_architecture_compiles_for_a_tpu() -> None:
    from tests.test_contract import MODEL_SUBJECTS, PAIRED

    devices = train.topology("v5e:2x2")
    failed, compiled = {}, {}
    for name, make in (MODEL_SUBJECTS | PAIRED).items():
        subject = make()

        batches = Same(subject.batch)
        try:
            with train.planning(devices, evaluation=True) as plan:
                train.fit(
                    subject.learner(True), batches, 2, evaluation={"test": batches}, mesh="data:2,fsdp:2"
                )
            compiled |= {(name, program): cost for program, cost in plan.costs.items()}
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    assert not failed
    assert len(compiled) == 2 * len(MODEL_SUBJECTS | PAIRED)
    assert all(each.fits and sum(each.flops.values()) > 0 for each in compiled.values())
