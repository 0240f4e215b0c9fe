"""Whole trainings to a target: both frameworks take the same recipe, stop at the target, and say when."""

import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import jobs


@pytest.fixture(autouse=True)
def _without_prepare(monkeypatch):
    monkeypatch.setenv("JDL_PLAIN", "1")


def test_the_rate_rises_and_falls():
    job = jobs.JOBS["gpt_job"]
    rates = [job.learning_rate(step) for step in range(job.steps + 1)]
    assert np.argmax(rates) == 100
    assert max(rates) == pytest.approx(job.rate)
    assert rates[0] == pytest.approx(job.rate / 101)
    assert rates[-1] == pytest.approx(0.1 * job.rate)
    assert rates[1250] == pytest.approx(job.rate * (0.1 + 0.45 * (1 + math.cos(math.pi / 2))), rel=1e-3)


def test_what_is_enough():
    accuracy, loss = jobs.JOBS["lenet_job"], jobs.JOBS["gpt_job"]
    assert accuracy.enough(0.99)
    assert not accuracy.enough(0.9899)
    assert loss.enough(1.9)
    assert not loss.enough(1.9001)


def images(folder):
    """Bright and dark images, which a few steps tell apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(256, dtype=np.int32) % 2
    pixels = (rng.integers(0, 60, (256, 32, 32, 1)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    some = {"train": pixels, "train_labels": labels, "test": pixels[:64], "test_labels": labels[:64]}
    np.savez(folder / "data.npz", mean=np.float32([0.4]), deviation=np.float32([0.3]), **some)


def text(folder):
    """A text of three letters in turn."""
    tokens = np.tile(np.arange(3, dtype=np.int32), 400)
    np.savez(folder / "data.npz", train=tokens, test=tokens[:197], size=3)


@pytest.mark.parity
@pytest.mark.parametrize("contender", ["jdl", "torch"])
@pytest.mark.parametrize("name", [pytest.param("lenet_job", marks=pytest.mark.slow), "gpt_job"])
def test_both_frameworks_reach_an_easy_target_and_stop(torch, tmp_path, name, contender, monkeypatch):
    (text if name == "gpt_job" else images)(tmp_path)
    monkeypatch.setattr(jobs, "CONTEXT", 8)
    monkeypatch.setattr(jobs, "WIDTH", 16)
    monkeypatch.setattr(jobs, "DEPTH", 1)
    target = 0.95 if name == "lenet_job" else 0.5
    job = jobs.JOBS[name]._replace(target=target, steps=60, every=20, batch_size=16, rate=1e-2)
    before = time.time()
    found = jobs.run(name, contender, 0, tmp_path, job)
    assert job.enough(found["quality"])
    assert before < found["reached"] < time.time()
    never = job._replace(target=2.0 if name == "lenet_job" else -1.0, steps=1)
    missed = jobs.run(name, contender, 0, tmp_path, never)
    assert missed["reached"] is None
    assert "after all 1 steps" in jobs.Done("x", missed["quality"], None).sentence(never)


def test_each_run_begins_with_an_empty_cache(monkeypatch):
    caches = []

    def run(arguments, env, **options):
        caches.append(Path(env["JDL_CACHE"]))
        assert not caches[-1].exists()
        assert "JAX_COMPILATION_CACHE_DIR" not in env
        return subprocess.CompletedProcess(
            arguments, 0, json.dumps({"label": "jdl", "quality": 1.0, "reached": None})
        )

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/kept")
    monkeypatch.setattr(jobs, "write", lambda name, folder: None)
    monkeypatch.setattr(subprocess, "run", run)
    for seed in (0, 1):
        assert jobs.start("lenet_job", "jdl", seed) == jobs.Done("jdl", 1.0, None)
    assert len(set(caches)) == 2


def test_the_peer_s_crops_are_windows_of_the_images(torch):
    pixels = np.arange(4 * 32 * 32 * 3, dtype=np.int64).reshape(4, 32, 32, 3) % 251
    arrays = {
        "train": pixels.astype(np.uint8), "train_labels": np.arange(4), "test": pixels[:1].astype(np.uint8),
        "test_labels": np.zeros(1, np.int64), "mean": np.zeros(3, np.float32),
        "deviation": np.ones(3, np.float32),
    }  # fmt: skip
    torch.manual_seed(0)
    job = jobs.JOBS["cifar_job"]._replace(batch_size=4)
    _, _, batch, _ = jobs._torch_images("cifar_job", job, arrays)
    crops, labels = batch()
    padded = np.pad(pixels / np.float32(255), ((0, 0), (4, 4), (4, 4), (0, 0))).transpose(0, 3, 1, 2)
    windows = lambda image: [
        np.array(image[:, i : i + 32, j : j + 32][..., ::turn])
        for i in range(9) for j in range(9) for turn in (1, -1)
    ]  # fmt: skip
    for crop, label in zip(crops.numpy(), labels.tolist(), strict=True):
        assert any(np.allclose(crop, window) for window in windows(padded[label]))
