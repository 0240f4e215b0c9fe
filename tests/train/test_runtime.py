"""What `prepare` does to a process, and that it can be undone."""

import os
import platform
import subprocess
import sys

import pytest

from jdl.train import runtime

SCRIPT = """
import os, jax
from jdl import train
train.prepare()
print(jax.config.jax_compilation_cache_dir)
print(os.environ.get("XLA_FLAGS", ""))
work = jax.jit(lambda x: jax.lax.fori_loop(0, 500, lambda i, y: y @ x, x))
x = jax.numpy.eye(300)
work(x).block_until_ready()
print(work(x).is_ready())
print(float(jax.jit(lambda x: x * 2)(21.0)))
"""


def prepared(tmp_path, **environment):
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "JDL"))
    }
    environment = {
        **inherited,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JDL_CACHE": str(tmp_path),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    cache, flags, is_ready, result = done.stdout.splitlines()
    assert float(result) == 42
    return cache, flags, is_ready == "True"


def test_cache_and_flags(tmp_path):
    cache, flags, waits = prepared(tmp_path)
    assert cache == str(tmp_path / "xla")
    assert waits
    known = [flag for flag in runtime.CPU_FLAGS if flag in flags]
    assert known == [flag for flag in runtime.CPU_FLAGS if runtime._is_known(flag)]


def test_flags_of_the_user_stay(tmp_path):
    name = runtime.CPU_FLAGS[0].partition("=")[0]
    _, flags, waits = prepared(tmp_path, XLA_FLAGS=f"{name}=", JAX_CPU_ENABLE_ASYNC_DISPATCH="1")
    assert flags == f"{name}="
    assert not waits


DEVICES = """
import jax, numpy as np, optax
from jdl import data, learners, models, tasks, train
train.prepare(devices=2, compilation_cache=False)
rng = np.random.default_rng(0)
arrays = {"inputs": rng.normal(size=(16, 3)).astype("float32"), "labels": rng.integers(0, 2, 16)}
learner = learners.gradient(tasks.classification(models.MLP((4, 2))), optax.sgd(0.1))
batches = data.shuffled(arrays, 8)
train.fit(learner, batches, steps=2, mesh="data:2", mode="shard_map")
print(len(jax.devices()))
try:
    train.prepare(devices=3, compilation_cache=False)
except RuntimeError:
    print("RuntimeError")
"""


def test_a_cpu_counts_as_several_devices():
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["2", "RuntimeError"], done.stderr


MEMORY = """
import re, jax
from jdl import train
train.prepare(compilation_cache=False)
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) >> 10
jax.numpy.zeros(3).block_until_ready()
used, last = bytearray(b"x") * 2**28, bytearray(2**20)
del used
freed = resident()
jax.jit(lambda x: x + 1)(1).block_until_ready()
print(freed - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_until_something_is_compiled():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JDL")}
    environment |= {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 200 < int(done.stdout) < 256 + 50


def test_plain_undoes_it(tmp_path):
    assert prepared(tmp_path, JDL_PLAIN="1") == ("None", "", False)


def test_an_accelerator_gets_the_cache_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    runtime.prepare(compilation_cache=False)
    assert "XLA_FLAGS" not in os.environ


def test_an_unknown_flag_is_never_used(tmp_path, monkeypatch):
    monkeypatch.setenv("JDL_CACHE", str(tmp_path))
    assert not runtime._is_known("--xla_no_such_flag_there_is=true")


@pytest.mark.parametrize("how", ["killed", "slow"])
def test_what_could_not_be_asked_is_asked_again(tmp_path, monkeypatch, how):
    def run(command, **options):
        if how == "slow":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, -9, b"", b"")

    monkeypatch.setenv("JDL_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(runtime.subprocess, "run", run)
        assert not runtime._is_known(runtime.CPU_FLAGS[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "not json", "[]"])
def test_a_spoilt_note_of_flags_does_no_harm(tmp_path, monkeypatch, text):
    monkeypatch.setenv("JDL_CACHE", str(tmp_path))
    (tmp_path / f"flags-{runtime.version('jaxlib')}.json").write_text(text)
    assert not runtime._is_known("--xla_no_such_flag_there_is=true")
