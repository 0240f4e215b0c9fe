"""Separable against full convolutions: what they cost, and the comparison from end to end."""

import dataclasses
import time

import numpy as np
import pytest

from experiments import cli, ledger, separable
from jdl import data


def test_costs_are_those_of_the_formula():
    config, dataset = (
        separable.Config(dataset="digits", full_widths=(16,), separable_widths=(16,)),
        data.load("digits"),
    )
    full, light = (
        separable.cost(config, network, dataset) for network in separable.networks(config).values()
    )
    w, side, channels = 16, 4, 16
    common = 4 * 4 * 9 * w + 4 * w * 10
    sums = {"full": common, "separable": common}
    for times, stride in separable.LAYERS:
        side, before, channels = -(-side // stride), channels, times * w
        sums["full"] += side**2 * 9 * before * channels
        # Howard et al. 2017, equation 5.
        sums["separable"] += side**2 * (9 * before + before * channels)
    assert full["multiply_adds"] == sums["full"]
    assert light["multiply_adds"] == sums["separable"]
    assert (full["parameters"], light["parameters"]) == (109_658, 15_866)


def test_turns_are_timed_right():
    def wait(seconds):
        time.sleep(seconds)
        return np.zeros(1)

    found = separable.take_turns({"short": lambda: wait(2e-3), "long": lambda: wait(8e-3)}, 3, 0.04)
    assert [len(samples) for samples in found.values()] == [3, 3]
    assert min(found["short"]) >= 2
    assert 2 < np.median(found["long"]) / np.median(found["short"]) < 6
    with pytest.raises(ValueError, match="blocks must be at least 1; got 0"):
        separable.take_turns({}, 0, 0.1)


def test_the_comparison_is_kept_and_is_not_done_twice(tmp_path, monkeypatch, capsys):
    config = separable.Config(
        dataset="digits", steps=60, learning_rate=1e-2, batch_size=64, evaluate_every=60, full_widths=(4, 2),
        separable_widths=(8,), repeats=1, batch_sizes=(1, 4), blocks=2, block=0.005,
        execution=cli.Execution(str(tmp_path / "study"), "data:1"),
    )  # fmt: skip
    found = separable.main(config)
    assert list(found) == ["full-4", "full-2", "separable-8"]
    for each in found.values():
        assert each["errors"][0] < 80
        assert {size: len(samples) for size, samples in each["milliseconds"].items()} == {"1": 2, "4": 2}
    printed = capsys.readouterr().out
    assert "4 at once" in printed
    assert f"{found['separable-8']['multiply_adds']:,}" in printed

    entries = {entry.name: entry for entry in ledger.read(tmp_path / "study/ledger")}
    assert set(entries) == {"separable_digits", "separable_latency_1", "separable_latency_4"}
    assert entries["separable_latency_4"].rows[-1].label.startswith("separable 3x3")
    assert "--full-widths 4 2" in entries["separable_digits"].command

    monkeypatch.setattr(separable.images, "classify", None)
    monkeypatch.setattr(separable, "latencies", None)
    resumed = cli.resumed(separable.Config, ["--resume", str(tmp_path / "study")])
    assert separable.main(resumed) == found
    with pytest.raises(ValueError, match=r"full_widths was \[4, 2\] and is now \[5\]"):
        separable.main(dataclasses.replace(config, full_widths=(5,)))
    for widths in (0,), ():
        with pytest.raises(ValueError, match="each kind needs widths of at least 1"):
            separable.main(dataclasses.replace(config, full_widths=widths))


def test_what_a_full_network_as_accurate_would_cost():
    found = {
        name: {"kind": kind, "errors": [error, error], "multiply_adds": cost}
        for name, kind, error, cost in (
            ("a", "full", 10.0, 100),
            ("b", "full", 8.0, 10_000),
            ("c", "separable", 9.0, 50),
            ("d", "separable", 7.9, 50),
            ("e", "separable", 10.0, 50),
        )
    }
    costs = [separable.as_accurate(found, name, lambda each: each["multiply_adds"]) for name in "cde"]
    assert costs[0] == pytest.approx(1000)
    assert costs[1] is None
    assert costs[2] == pytest.approx(100)
