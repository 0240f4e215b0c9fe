"""`fit` comes to the same on any number of devices, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jdl import train
from tests.train.training import digest, start

STEPS = 30


def close(one: train.Fitted, other: train.Fitted) -> None:
    for x, y in zip(jax.tree.leaves(one.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4)
    for x, y in zip(one.history, other.history, strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {"split", "steps_per_second"}:
            np.testing.assert_allclose(x[name], y[name], rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def one_device() -> dict[float, train.Fitted]:
    return {dropout: start(steps=STEPS, net={"width": 64, "dropout": dropout}) for dropout in (0.0, 0.2)}


@pytest.mark.parametrize("mesh", ["data:8", "data:2,fsdp:4", None])
def test_jit_on_a_mesh_is_one_device(mesh: str | None, one_device: dict[float, train.Fitted]) -> None:
    """BatchNorm and dropout included: one mask is drawn for the whole batch."""
    fitted = start(steps=STEPS, net={"width": 64}, mesh=mesh)
    close(fitted, one_device[0.2])
    kernels = [x for x in jax.tree.leaves(fitted.state) if x.shape == (12, 64)]
    assert len(kernels) == 3  # parameters and Adam's two moments
    for kernel in kernels:
        assert len(kernel.sharding.device_set) == 8


def test_parameters_are_really_sharded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("jdl.train.sharding.SMALLEST_SHARDED", 256)
    options: dict[str, Any] = {"steps": STEPS, "net": {"width": 64}}
    sharded = start(tmp_path, mesh="data:2,fsdp:4", **options)
    for x in jax.tree.leaves(sharded.state):
        if x.shape in ((12, 64), (64, 4)):
            assert {shard.data.size for shard in x.addressable_shards} == {x.size // 4}
    close(sharded, start(mesh="data:1", **options))
    # A checkpoint of one mesh goes to another with every bit.
    elsewhere = start(tmp_path, mesh="data:8", **options)
    assert digest(elsewhere.state) == digest(sharded.state)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(elsewhere.state))


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_other_modes(mode: Any, one_device: dict[float, train.Fitted]) -> None:
    close(start(steps=STEPS, net={"width": 64, "dropout": 0.0}, mesh="data:8", mode=mode), one_device[0.0])


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_other_modes_with_dropout_learn(mode: Any) -> None:
    fitted = start(steps=STEPS, mesh="data:8", mode=mode)
    assert fitted.history.last("evaluation")["accuracy"] > 0.6


@pytest.mark.parametrize("options", [{"several_steps": False}, {"several_steps": True}, {"resident": False}])
def test_many_steps_on_fake_devices_do_not_deadlock(options: dict[str, Any]) -> None:
    fitted = start(steps=600, log_every=300, evaluate_every=300, mesh="data:8", **options)
    assert fitted.step == 600
