"""Checkpoints survive what happens to files, disks and processes, and give back every bit."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.train.checkpoint import MANIFEST, CheckpointError, CheckpointMismatch, Checkpoints, load, read_meta

SAVING = Path(__file__).with_name("saving.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    def one(x: Any) -> tuple[str, tuple[int, ...], bytes]:
        name = str(x.dtype) if hasattr(x, "dtype") else type(x).__name__
        if name.startswith("key<"):
            x = jax.random.key_data(x)
        return name, np.shape(x), np.asarray(x).tobytes() if hasattr(x, "dtype") else repr(x).encode()

    return [one(x) for x in jax.tree.leaves(tree)]


def small(step: int) -> dict[str, jax.Array]:
    return {"w": jnp.arange(6.0).reshape(2, 3) * step, "b": jnp.full(3, step, jnp.bfloat16)}


def fill(folder: Path, steps: list[int], **options: Any) -> None:
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step), {"step": step}, wait=True)


def rich() -> dict[str, Any]:
    params = {
        "dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.array([-0.0, jnp.nan, 1.0, -jnp.inf])}
    }
    return {
        "params": params,
        "opt_state": optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(0.1))).init(params),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), (2, 3)),
        "no_keys": jax.random.split(jax.random.key(5), 3)[:0],
        "raw_key": jax.random.PRNGKey(1),
        "nothing": None,
        "empty": {},
        "list": [jnp.int8(3), (np.float32(0.1), np.float64(math.pi)), []],
        "python": {"int": 2**70, "float": 0.1, "nan": math.nan, "bool": True, "name": "adam"},
        "none_of": jnp.zeros((0, 3), jnp.bfloat16),
        "mask": jnp.array([True, False]),
        "wide": np.arange(5, dtype=np.int64) << 40,
        "complex": jnp.array(1 + 2j),
        "eight": jnp.arange(4).astype(jnp.float8_e4m3fn),
        "four": jnp.arange(4).astype(jnp.int4),
        "strange": {"a/b": jnp.ones(1), "a.b": jnp.zeros(2), "a": {"b": jnp.ones(3)}, "": jnp.ones(4)},
    }


def test_gives_back_every_bit(folder: Path) -> None:
    state = rich()
    meta = {"best": math.nan, "limit": -math.inf, "history": [{"loss": np.float32(0.5)}], "note": "ümlaut"}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state, meta)
        found = checkpoints.restore(state)
    assert found is not None
    assert found.step == 7
    assert repr(jax.tree.structure(found.state)) == repr(jax.tree.structure(state))
    assert bits(found.state) == bits(state)
    assert [type(x) for x in jax.tree.leaves(found.state)] == [type(x) for x in jax.tree.leaves(state)]
    assert math.isnan(found.meta["best"])
    assert {**found.meta, "best": 0} == {**meta, "best": 0, "history": [{"loss": 0.5}]}
    assert found.meta == read_meta(folder) or math.isnan(read_meta(folder)["best"])


def test_needs_no_template(folder: Path) -> None:
    state = rich()
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state, {"a": 1})
    found, meta = load(folder)
    assert meta == {"a": 1}
    assert found["nothing"] is None
    assert found["empty"] == {}
    assert found["python"]["int"] == 2**70
    assert bits(found["opt_state"]["1"]["0"]["mu"]) == bits(state["opt_state"][1][0].mu)
    assert bits([found[name] for name in ("key", "keys", "no_keys", "four")]) == bits(
        [state[name] for name in ("key", "keys", "no_keys", "four")]
    )
    assert isinstance(found["params"]["dense"]["kernel"], np.ndarray)
    assert bits(found["strange"]) == bits(state["strange"])
    assert isinstance(jax.random.normal(found["key"]), jax.Array)


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["bool", "uint8", "int16", "uint32", "float16", "bfloat16", "float32", "complex64"]
            ),
            st.lists(st.integers(0, 4), max_size=4).map(tuple),
        ),
        max_size=12,
    ),
    st.integers(0, 2**32 - 1),
)
def test_gives_back_any_bits(
    tmp_path_factory: Any, kinds: list[tuple[str, tuple[int, ...]]], seed: int
) -> None:
    random_bytes = np.random.default_rng(seed)
    arrays = [random_bytes.integers(0, 2, s).astype(bool) if d == "bool" else
              np.frombuffer(random_bytes.bytes(math.prod(s) * jnp.dtype(d).itemsize), jnp.dtype(d)).reshape(s)
              for d, s in kinds]  # fmt: skip
    state = [jnp.asarray(x) if i % 2 else x for i, x in enumerate(arrays)]
    with Checkpoints(tmp_path_factory.mktemp("any")) as checkpoints:
        checkpoints.save(0, state, {})
        found = checkpoints.restore(state)
    assert found is not None
    assert bits(found.state) == bits(state)


def test_copies_before_it_returns(folder: Path) -> None:
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state, host = {"w": jnp.zeros((500, 500))}, np.zeros(1000)
    with Checkpoints(folder, keep_latest=9) as checkpoints:
        for i in range(4):
            checkpoints.save(i, {**state, "host": host}, {})
            state = step(state)
            host += 1
            jax.block_until_ready(state)
        for i in range(4):
            found = checkpoints.restore({"w": jax.ShapeDtypeStruct((500, 500), jnp.float32), "host": host}, i)
            assert found is not None
            assert np.unique(found.state["w"]) == i
            assert np.unique(found.state["host"]) == i
            # What was read is the program's own memory, to be donated like any other.
            again = step({"w": found.state["w"]})
            assert np.unique(again["w"]) == i + 1


def test_keeps_the_latest_and_the_best(folder: Path) -> None:
    scores = [0.5, 0.9, math.nan, 0.9, None, 0.2, -math.inf, 0.1]
    with Checkpoints(folder, monitor="max accuracy") as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        assert checkpoints.restore() is None
        for step, score in enumerate(scores[:4]):
            checkpoints.save(step, small(step), {}, score=score, wait=True)
        assert checkpoints.steps() == [1, 2, 3]
    with Checkpoints(folder, monitor="max accuracy") as checkpoints:
        for step, score in enumerate(scores[4:], 4):
            checkpoints.save(step, small(step), {}, score=score)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([1, 6, 7], 7, 1)
    assert bits(load(folder, "best")[0]) == bits({"b": small(1)["b"], "w": small(1)["w"]})
    assert load(folder, "latest")[0]["w"][0, 1] == 7
    assert load(folder, 6)[0]["w"][0, 1] == 6
    with pytest.raises(CheckpointError, match=r"no step 4 in .*only \[1, 6, 7\]"):
        load(folder, 4)
    with Checkpoints(folder, monitor="min loss", keep_latest=1) as checkpoints:
        checkpoints.save(8, small(8), {}, score=math.inf, wait=True)
        assert checkpoints.steps() == [6, 8]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    where = random.Random(file.name).randrange(len(content) * 8)
    content[where // 8] ^= 1 << where % 8
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, truncate, os.remove])
def test_every_damage_to_every_file_is_found(
    folder: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    fill(folder, [10, 20])
    files = [file.relative_to(folder) for file in sorted((folder / "20").rglob("*")) if file.is_file()]
    assert len(files) > 5
    for i, file in enumerate(files):
        said: list[str] = []
        copy = tmp_path / str(i)
        shutil.copytree(folder, copy)
        harm(copy / file)
        with Checkpoints(copy, report=said.append) as checkpoints:
            found = checkpoints.restore(small(0))
            assert found is not None
            assert (found.step, bits(found.state)) == (10, bits(small(10)))
            assert checkpoints.steps() == [10]
        assert len(said) == 1
        assert "step 20 is damaged and was set aside as 20.damaged" in said[0]
        assert file.relative_to("20").as_posix() in said[0]
        assert (copy / "20.damaged").is_dir()


def test_says_when_none_is_good(folder: Path) -> None:
    fill(folder, [1, 2])
    os.remove(folder / "1" / MANIFEST)
    flip(folder / "2" / "meta.json")
    with pytest.raises(CheckpointError, match=r"step 2 .* is damaged: the content of its file meta\.json"):
        load(folder, "latest")
    with pytest.raises(CheckpointError, match=r"step 2 .* is damaged"):
        read_meta(folder)
    said: list[str] = []
    with Checkpoints(folder, report=said.append) as checkpoints:
        assert checkpoints.best() is None
        for _ in range(2):
            with pytest.raises(CheckpointError, match="all are damaged; to start anew"):
                checkpoints.restore(small(0))
        assert len(said) == 2
        checkpoints.save(3, small(3), {}, wait=True)
        assert checkpoints.restore(small(0)).step == 3  # type: ignore[union-attr]
        flip(folder / "3" / "meta.json")
        with pytest.raises(CheckpointError, match=r"step 3 in .* is damaged"):
            checkpoints.restore(small(0), 3)
        checkpoints.save(3, small(3), {}, wait=True)
        flip(folder / "3" / "meta.json")
        with pytest.raises(CheckpointError, match="all are damaged"):
            checkpoints.restore(small(0))
    assert {path.name for path in folder.iterdir()} == {"1.damaged", "2.damaged", "3.damaged", "3.damaged.2"}


def test_going_back_sets_the_abandoned_future_aside(folder: Path) -> None:
    said: list[str] = []
    fill(folder, [1, 2, 3], keep_latest=9)
    with Checkpoints(folder, keep_latest=9, report=said.append) as checkpoints:
        checkpoints.save(2, small(5), {"again": True}, wait=True)
        assert checkpoints.steps() == [1, 2]
        found = checkpoints.restore(small(0))
    assert found is not None
    assert found.meta == {"again": True}
    assert bits(found.state) == bits(small(5))
    assert said == ["Step 3 was set aside as 3.stale, because step 2 was saved after it."]
    assert (folder / "3.stale").is_dir()


def test_completes_what_was_complete_and_drops_the_rest(folder: Path) -> None:
    fill(folder, [1, 2, 3], keep_latest=9)
    (folder / "3").rename(folder / "3.partial")  # killed after the manifest
    (folder / "2").rename(folder / "2.trash")  # killed while deleting
    os.remove(folder / "1" / "meta.json")
    shutil.copytree(folder / "1", folder / "4.partial")  # killed while writing
    os.remove(folder / "4.partial" / MANIFEST)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 3]
        assert bits(checkpoints.restore(small(0)).state) == bits(small(3))  # type: ignore[union-attr]
        checkpoints.save(4, small(4), {}, wait=True)
    assert {path.name for path in folder.iterdir()} == {"3", "4"}


def test_another_model_is_refused_in_words(folder: Path) -> None:
    fill(folder, [1])
    other = {
        "w": jax.ShapeDtypeStruct((2, 4), jnp.float32),
        "b": jnp.zeros(3),
        "extra": {"scale": jnp.ones(())},
    }
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointMismatch) as refused:
            checkpoints.restore(other)
        assert "w: float32[2, 3] stored, float32[2, 4] asked" in str(refused.value)
        assert "b: bfloat16[3] stored, float32[3] asked" in str(refused.value)
        assert "extra/scale: nothing stored, float32[] asked" in str(refused.value)
        with pytest.raises(CheckpointMismatch, match=r"b: bfloat16\[3\] stored, nothing asked"):
            checkpoints.restore({"w": small(0)["w"]})
        many = {str(i): jnp.ones(()) for i in range(9)}
        with pytest.raises(CheckpointMismatch, match="and 6 more"):
            checkpoints.restore(many)
        checkpoints.save(2, {"key": jax.random.key(0)}, {}, wait=True)
        with pytest.raises(CheckpointMismatch, match=r"key: key<fry>\[\] stored, key<rbg>\[\] asked"):
            checkpoints.restore({"key": jax.random.key(0, impl="rbg")})
        assert checkpoints.steps() == [1, 2]


def test_what_cannot_be_saved_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="keep_latest"):
        Checkpoints(folder, keep_latest=0)
    with pytest.raises(ValueError, match="mounted"):
        Checkpoints("gs://bucket/run")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(TypeError, match=r"params/f is <function"):
            checkpoints.save(1, {"params": {"f": small}}, {})
        with pytest.raises(TypeError, match=r"params/names"):
            checkpoints.save(1, {"params": {"names": np.array(["a"])}}, {})
        with pytest.raises(TypeError, match="meta is made of JSON"):
            checkpoints.save(1, small(1), {"f": small})
        with pytest.raises(ValueError, match="0 or more"):
            checkpoints.save(-1, small(1), {})
        assert checkpoints.restore(small(0)) is None


def mesh(devices: list[jax.Device], shape: tuple[int, ...], names: tuple[str, ...]) -> jax.sharding.Mesh:
    devices = devices[: math.prod(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def test_restores_on_another_mesh(folder: Path, devices: list[jax.Device]) -> None:
    eight = mesh(devices, (8,), ("data",))
    state = {
        "w": jax.device_put(jnp.arange(64.0).reshape(16, 4), NamedSharding(eight, P("data"))),
        "b": jax.device_put(jnp.arange(3.0), NamedSharding(eight, P())),
        "key": jax.device_put(jax.random.key(0), NamedSharding(eight, P())),
        "keys": jax.device_put(jax.random.split(jax.random.key(1), 8), NamedSharding(eight, P("data"))),
    }
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, {})
        for shape, names, spec in [
            ((8,), ("data",), P("data")),
            ((4,), ("data",), P("data")),
            ((2, 4), ("data", "model"), P("data", "model")),
            ((1,), ("data",), P("data")),
        ]:
            over = mesh(devices, shape, names)
            place = {"w": spec, "b": P(), "key": P(), "keys": P(names[0])}
            like = {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(over, place[name]))
                for name, x in state.items()
            }
            found = checkpoints.restore(like)
            assert found is not None
            assert bits(found.state) == bits(state)
            for name, x in found.state.items():
                assert x.sharding.is_equivalent_to(like[name].sharding, x.ndim)
                assert isinstance(x, jax.Array)
        free = checkpoints.restore(jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, state)))
        assert free is not None
        # Free of any device, so that it may be used with arrays of all of them.
        assert (free.state["w"] + state["w"]).sharding.num_devices == 8


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"Cannot keep checkpoints in .*(exists|Not a directory)"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(CheckpointError, match="Not a directory"):
        Checkpoints(tmp_path / "file" / "below")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load(tmp_path / "nowhere")


def test_directory_that_goes_away(folder: Path) -> None:
    fill(folder, [1])
    with Checkpoints(folder) as checkpoints:
        folder.rename(folder.with_name("moved"))
        folder.write_text("in the way")
        with pytest.raises(CheckpointError, match=r"Step 2 was not saved in .*: .*Not a directory"):
            checkpoints.save(2, small(2), {}, wait=True)
    assert load(folder.with_name("moved"))[0]["w"][0, 1] == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can mount the small disk that this test fills")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Checkpoints(tiny_disk) as checkpoints:
        checkpoints.save(1, small(1), {}, wait=True)
        for step in (2, 3):
            checkpoints.save(step, {"big": np.random.default_rng(0).random(10**6)}, {})
            with pytest.raises(
                CheckpointError, match=rf"^Step {step} was not saved in .*: the disk is full\.$"
            ):
                checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(4, small(4), {}, wait=True)
        (tiny_disk / "filler").write_bytes(bytes(1000))
        with pytest.raises(OSError, match="No space"):
            (tiny_disk / "filler").write_bytes(bytes(2**22))
        with pytest.raises(CheckpointError, match="the disk is full"):
            checkpoints.save(6, small(6), {}, wait=True)
        found = checkpoints.restore(small(0))
    assert found is not None
    assert (found.step, bits(found.state)) == (4, bits(small(4)))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_error_of_the_body_comes_first(tiny_disk: Path) -> None:
    said: list[str] = []

    def body() -> None:
        with Checkpoints(tiny_disk, report=said.append) as checkpoints:
            checkpoints.save(1, {"big": np.random.default_rng(0).random(10**6)}, {})
            raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        body()
    assert said == [f"Step 1 was not saved in {tiny_disk}: the disk is full."]


def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
    return subprocess.Popen([sys.executable, *arguments], text=True, env=environment, **options)


@pytest.mark.slow
def test_killed_at_any_moment(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("saving", SAVING)
    assert spec is not None
    assert spec.loader is not None
    saving = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(saving)
    moments, before = random.Random(0), 0
    for _ in range(5):
        with run(str(SAVING), str(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(3):
                last = int(process.stdout.readline())
            time.sleep(moments.uniform(0, 0.4))
            process.kill()
            last = max([last, *map(int, process.stdout.read().split())])
        said: list[str] = []
        with Checkpoints(folder, report=said.append) as checkpoints:
            found = checkpoints.restore(saving.state(0))
        assert found is not None
        assert said == []
        # Of what it began to save, at most the one in flight and the one not yet announced are lost.
        assert before < last - 1 <= found.step <= last + 1
        assert bits(found.state) == bits(saving.state(found.step))
        assert found.meta == {"step": found.step}
        before = found.step


def test_is_silent(folder: Path) -> None:
    script = """if True:
        import sys, jax.numpy as jnp
        from jdl.train.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        for step in range(3):
            checkpoints.save(step, {"w": jnp.ones(3)}, {})
        checkpoints.restore({"w": jnp.ones(3)})
        checkpoints.save(3, {"w": jnp.ones(3)}, {})
        if sys.argv[2] == "close":
            checkpoints.close()
    """
    for way in ("close", "forget"):
        with run("-c", script, str(folder / way), way, stdout=-1, stderr=-1) as process:
            assert process.communicate(timeout=60) == ("", "")
            assert process.returncode == 0
    assert load(folder / "close", 3)[0]["w"].sum() == 3
    assert load(folder / "forget")[0]["w"].sum() == 3


TOGETHER = """if True:
    import os, sys
    rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax, jax.numpy as jnp, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jdl.train.checkpoint import Checkpoints
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def make(step):
        return {"w": jnp.arange(8.0) + step, "key": jax.random.key(step), "none": jnp.zeros((0, 2))}

    def place(step):
        return jax.jit(make, static_argnums=0, out_shardings={"w": split, "key": whole, "none": whole})(step)

    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), place(0))
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, place(step), {}, score=-step)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        jax.experimental.multihost_utils.sync_global_devices("counted")
        if rank == 0:
            os.remove(checkpoints.directory / "3" / "meta.json")
        found = checkpoints.restore(like)
        assert found.step == 2
        for shard in found.state["w"].addressable_shards:
            assert (np.asarray(shard.data) == np.arange(8.0)[shard.index] + 2).all()
        assert found.state["key"].sharding == whole
    print("together")
"""


@pytest.mark.slow
def test_several_processes_agree(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [run("-c", TOGETHER, str(rank), port, str(folder), stdout=-1, stderr=-1) for rank in (0, 1)]
    said = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all(out.endswith("together\n") for out, _ in said)
    assert "step 3 is damaged" in said[0][0]
    assert "damaged" not in said[1][0]
    # What two processes saved, one may go on from.
    state, _ = load(folder)
    assert state["w"].tolist() == [2.0 + i for i in range(8)]
    assert bits(state["key"]) == bits(jax.random.key(2))
