"""Meshes are read from texts, states are laid on them by shape, and every mode equals one device."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS, CARRY, State
from jdl.learners import gradient
from jdl.nn import BatchNorm, Conv, Dense
from jdl.tasks import classification
from jdl.train.mesh import check_batch, distributed, make_mesh
from jdl.train.sharding import FSDP, batch_sharding, batch_spec, state_shardings, state_specs

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (None, {"data": 8}),
        ("data:4", {"data": 4}),
        ("data:-1", {"data": 8}),
        ("data:4,fsdp:2", {"data": 4, "fsdp": 2}),
        ("data:2, fsdp:-1", {"data": 2, "fsdp": 4}),
        ("fsdp:8", {"fsdp": 8}),
    ],
)
def test_meshes_are_read_from_texts(devices, text, shape):
    mesh = make_mesh(text)
    assert dict(mesh.shape) == shape
    assert make_mesh(mesh) is mesh


@pytest.mark.parametrize(
    "text", ["4", "data", "data:", "data:0", "data:-2", "data:--1", "model:2", "data:2,data:4", "data:x", ","]
)
def test_texts_that_cannot_be_read_are_refused(text):
    with pytest.raises(
        ValueError, match=f'must read like "data:4" or "data:2,fsdp:2,tensor:2".* got {text!r}'
    ):
        make_mesh(text)


def test_more_devices_than_there_are_are_refused(devices):
    with pytest.raises(ValueError, match=r"mesh 'data:4,fsdp:4' needs 16 devices; 8 cpu devices are there"):
        make_mesh("data:4,fsdp:4")


@pytest.mark.parametrize("text", ["data:3,fsdp:-1", "data:-1,fsdp:-1"])
def test_devices_that_would_be_left_over_are_refused(devices, text):
    with pytest.raises(ValueError, match=f"mesh {text!r} leaves it open how the 8 cpu devices are split"):
        make_mesh(text)


def test_programs_of_several_cpu_devices_are_not_kept(devices):
    """Their collectives come back from the cache without their order, and wait for one another for ever."""

    def only_one_device(x):
        return x.sum()

    def eight_devices(x):
        return x.sum()

    kept = Path(jax.config.jax_compilation_cache_dir)
    x = jnp.arange(24.0)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
    one = make_mesh("data:1")
    jax.jit(only_one_device)(jax.device_put(x, batch_sharding(one)))
    assert list(kept.glob("*only_one_device*"))
    eight = make_mesh("data:8")
    assert jax.jit(eight_devices)(jax.device_put(x, batch_sharding(eight))) == x.sum()
    assert not list(kept.glob("*eight_devices*"))


def test_check_batch_counts_examples(devices):
    assert check_batch({"inputs": {"a": np.zeros((16, 2))}, "labels": np.zeros(16)}, make_mesh()) == 16
    assert check_batch({"inputs": np.zeros((4, 2))}, make_mesh(), processes=2) == 8


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"inputs": np.zeros((8, 2)), "labels": np.zeros(7)},
            r"must have one length; got {'inputs': 8, 'labels': 7}",
        ),
        (
            {"inputs": np.zeros((12, 2))},
            r"12 examples cannot be split evenly over 8 devices: .* \(mesh='data:4'\)",
        ),
        ({"inputs": np.zeros((0, 2))}, "a batch of 0 examples"),
        ({}, "must have one length; got {}"),
        ({"inputs": np.float32(1)}, "a batch of 0 examples"),
    ],
)
def test_check_batch_says_what_is_wrong(devices, batch, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch, make_mesh())


def test_specs_follow_paths_and_shapes(devices):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = {
        "wide": shape(64, 128),
        "tall": shape(129, 64),
        "odd": shape(1025, 3),
        "small": shape(8, 8),
        "no": shape(),
    }
    state = State(
        shape(), shape(), params, {CARRY: {"h": shape(16, 256)}, "batch_stats": shape(8)}, (params,)
    )
    expected = {"wide": P(None, FSDP), "tall": P(None, FSDP), "odd": P(), "small": P(), "no": P()}
    mesh = make_mesh("data:2,fsdp:4")
    specs = state_specs(state, mesh)
    assert specs.params == specs.opt_state[0] == expected
    assert specs.collections == {CARRY: {"h": P((AXIS, FSDP))}, "batch_stats": P()}
    assert batch_spec(mesh) == P((AXIS, FSDP))
    copied = state_specs(state, make_mesh("data:8"))
    assert set(jax.tree.leaves(copied.params, is_leaf=lambda x: isinstance(x, P))) == {P()}


@pytest.mark.parametrize(
    ("mode", "spec", "message"),
    [
        ("threads", "data:8", 'mode must be "jit", "shard_map" or "pmap"; got \'threads\''),
        ("shard_map", "data:4,fsdp:2", "mode 'shard_map' splits the batch alone: .* {'data': 4, 'fsdp': 2}"),
        ("pmap", "fsdp:8", "mode 'pmap' splits the batch alone: .* {'fsdp': 8}"),
    ],
)
def test_modes_that_cannot_be_are_refused(devices, mode, spec, message):
    with pytest.raises(ValueError, match=message):
        distributed(lambda state, batch: (state, batch), make_mesh(spec), mode, {})


class Net(linen.Module):
    """Convolution, statistics, and noise."""

    dropout: float = 0.5

    @linen.compact
    def __call__(self, inputs, train=False):
        x = jax.nn.relu(BatchNorm()(Conv(4, (3, 3))(inputs), train=train))
        x = linen.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        x = jnp.tanh(Dense(32)(x))
        return Dense(3)(x)


class OneDropout(linen.Module):
    """Where `Net` has its dropout, and nothing else."""

    @linen.compact
    def __call__(self, inputs):
        return linen.Dropout(0.5, deterministic=False)(inputs)


def batches(steps=3):
    rng = np.random.default_rng(0)
    return [
        {
            "inputs": rng.normal(size=(16, 6, 6, 2)).astype(np.float32),
            "labels": rng.integers(0, 3, 16).astype(np.int32),
            "weights": rng.integers(0, 3, 16).astype(np.float32),
        }
        for _ in range(steps)
    ]


def learner_of(dropout):
    return gradient(classification(Net(dropout)), optax.sgd(0.1, momentum=0.9))


def train(learner, mode="jit", spec="data:1"):
    """The losses of three steps, and the state after them."""
    mesh, state, losses = make_mesh(spec), jax.jit(learner.init)(KEY, batches()[0]), []
    shardings = state_shardings(state, mesh)
    step = jax.jit(distributed(learner.step, mesh, mode, state))
    state = jax.device_put(state, shardings)
    for batch in batches():
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(np.asarray(metrics["loss"].value()))
    return losses, state


@pytest.fixture(scope="module")
def alone():
    """What one device comes to, with and without noise."""
    return {dropout: train(learner_of(dropout)) for dropout in (0.0, 0.5)}


def assert_same(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    for name in ("params", "collections"):
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=10 * tolerance)
        jax.tree.map(compare, getattr(actual[1], name), getattr(expected[1], name))


@pytest.mark.parametrize("spec", ["data:8", "data:2,fsdp:4", "fsdp:8"])
def test_jit_on_a_mesh_equals_one_device_with_statistics_and_noise(devices, alone, spec):
    actual = train(learner_of(0.5), "jit", spec)
    assert_same(actual, alone[0.5])
    if FSDP in spec:
        kernel = actual[1].params["Dense_0"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // make_mesh(spec).shape[FSDP]


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_split_by_hand_equals_one_device_without_noise(devices, alone, mode):
    assert_same(train(learner_of(0.0), mode, "data:8"), alone[0.0])


def reference_with_masks_by_shard(shards=8):
    """One device, written by hand, with a dropout mask a shard from the step's key folded with its index."""
    tx = optax.sgd(0.1, momentum=0.9)
    start = jax.jit(learner_of(0.5).init)(KEY, batches()[0])
    params, statistics, opt_state = start.params, start.collections["batch_stats"], start.opt_state

    @jax.jit
    def step(params, statistics, opt_state, batch, key):
        def kept(shard):
            """What a shard multiplies its hidden units by; dropout's is the first stream of a key."""
            stream = jax.random.fold_in(jax.random.fold_in(key, shard), 0)
            return OneDropout().apply({}, jnp.ones((16 // shards, 6 * 6 * 4)), rngs={"dropout": stream})

        masks = jnp.concatenate([kept(shard) for shard in range(shards)])

        def loss(p):
            by_channel = lambda x: x.reshape(1, 1, 1, -1)
            axes = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            h = jax.lax.conv_general_dilated(batch["inputs"], p["Conv_0"]["kernel"], (1, 1), "SAME", **axes)
            h = h + by_channel(p["Conv_0"]["bias"])
            mean, var = h.mean((0, 1, 2)), h.var((0, 1, 2))
            h = (h - by_channel(mean)) / jnp.sqrt(by_channel(var) + 1e-5)
            h = h * by_channel(p["BatchNorm_0"]["scale"]) + by_channel(p["BatchNorm_0"]["bias"])
            h = jax.nn.relu(h).reshape(16, -1) * masks
            h = jnp.tanh(h @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"][None])
            logits = h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"][None]
            losses = -jax.nn.log_softmax(logits)[jnp.arange(16), batch["labels"]]
            return (losses * batch["weights"]).sum() / batch["weights"].sum(), (mean, var)

        (value, (mean, var)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        old = statistics["BatchNorm_0"]
        new = {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * var}
        return optax.apply_updates(params, updates), {"BatchNorm_0": new}, opt_state, value

    losses = []
    for i, batch in enumerate(batches()):
        key = jax.random.fold_in(start.key, i)
        params, statistics, opt_state, value = step(params, statistics, opt_state, batch, key)
        losses.append(value)
    return losses, start._replace(params=params, collections={"batch_stats": statistics})


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_split_by_hand_draws_each_shards_mask_from_its_folded_key(devices, alone, mode):
    actual = train(learner_of(0.5), mode, "data:8")
    assert_same(actual, reference_with_masks_by_shard())
    assert np.any(np.abs(np.subtract(actual[0], alone[0.5][0])) > 1e-3)
