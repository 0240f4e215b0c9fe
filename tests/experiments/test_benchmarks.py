"""The harness at toy length: what it measures is the same model, and what it reports is what was measured."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from experiments import ledger
from experiments.benchmarks import harness, workloads
from experiments.benchmarks.__main__ import main, table

# As a user runs it: without the fake devices and the strictness of the tests.
PLAIN = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def commands(folder, *contenders, workload="overhead"):
    return [(workloads.command(workload, contender, folder), PLAIN) for contender in contenders]


@pytest.fixture
def given(tmp_path):
    workloads.write(workloads.WORKLOADS["overhead"], tmp_path)
    return tmp_path


def test_contenders_take_turns_and_compute_the_same(given):
    with harness.started(commands(given, "bare-several", "linen")) as workers:
        harness.check_equal(workers)
        assert workers[0].parameters == 64 * 32 + 32 + 32 * 10 + 10
        assert len(set(workers[0].losses)) == workloads.FIRST_STEPS
        seconds = harness.take_turns(workers, 0.1, tolerate=1.0, block=0.05)
        assert set(seconds) == {worker.label for worker in workers}
        assert all(0 < s < 0.1 for samples in seconds.values() for s in samples)
        assert all(2**20 < worker.memory < 2**34 for worker in workers)
    assert all(worker._process.poll() is not None for worker in workers)


def test_a_different_model_is_found_out(given, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    workloads.write(workloads.WORKLOADS["overhead"], other, seed=1)
    with harness.started([*commands(given, "linen"), *commands(other, "linen")]) as workers:
        with pytest.raises(ValueError, match="starts with the losses"):
            harness.check_equal(workers)
        workers[1].losses, workers[1].parameters = workers[0].losses, 7
        with pytest.raises(ValueError, match="7 parameters"):
            harness.check_equal(workers)


@pytest.mark.parity
@pytest.mark.parametrize("workload", ["mlp", "lenet", "gru", "gpt"])
def test_torch_computes_the_same(workload, tmp_path):
    workloads.write(workloads.WORKLOADS[workload], tmp_path)
    with harness.started(commands(tmp_path, "jdl-one", "torch", workload=workload)) as workers:
        harness.check_equal(workers)


def test_a_contender_that_fails_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="overhead linen ended with status 1"):
        harness.Worker(workloads.command("overhead", "linen", tmp_path), PLAIN)


def test_other_load_is_seen():
    load = harness.OtherLoad(os.getpid())
    end = time.perf_counter() + 0.5
    script = "import time\nwhile True: time.perf_counter()"
    with subprocess.Popen([sys.executable, "-c", script]) as other:
        while time.perf_counter() < end:
            time.sleep(0.05)
        share = load.share()
        other.kill()
    assert share > 0.02


def test_blocks_under_other_load_are_not_kept(monkeypatch):
    class Idle:
        label, pid = "idle", os.getpid()

        def run(self, steps):
            return steps * 0.01

    monkeypatch.setattr(harness.OtherLoad, "share", lambda self: 0.5)
    with pytest.raises(RuntimeError, match="more than 10% of the machine"):
        harness.take_turns([Idle()], 0.1, block=0.05)
    assert harness.take_turns([Idle()], 0.1, block=0.05, tolerate=0.6) == {"idle": [0.01, 0.01]}


def test_table_shows_medians_and_ratios():
    entry = ledger.Benchmark(
        name="x",
        title="A step",
        group="Speed",
        metric="time",
        goal="min",
        unit="ms",
        subject="jdl",
        rows=(ledger.Row("jdl", (1.0, 2.0, 3.0)), ledger.Row("peer", (4.0, 5.0, 6.0))),
        command="python -m experiments.benchmarks mlp",
        device={"processor": "a CPU", "jax": "1"},
        date="2026-01-31",
    )
    assert "peer" in table(entry)
    assert "2.50" in table(entry)
    assert table(dataclasses.replace(entry, subject=None)).count("2.50") == 0


@pytest.mark.parametrize("arguments", [["lent"], ["mlp", "--peers", "keras"]])
def test_unknown_names_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "there are" in capsys.readouterr().err
