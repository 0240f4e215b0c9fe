"""Every way to lay a state and a batch on a mesh trains as one device does, and really splits them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl import models, tasks, train
from jdl.core import by_example
from jdl.learners import averaged, gradient
from jdl.models.resnet import tiny as tiny_resnet
from jdl.nn.moe import Experts
from jdl.train.checkpoint import Checkpoints
from jdl.train.mesh import check_batch, on_mesh
from jdl.train.sharding import (
    FSDP,
    SEQUENCE,
    TENSOR,
    batch_shardings,
    batch_specs,
    path_of,
    state_shardings,
    state_specs,
)

KEY = jax.random.key(0)
AXES = ("data", FSDP, TENSOR, SEQUENCE)
PAIRS, TRIPLES = (
    [",".join(f"{axis}:2" for axis in axes) for axes in itertools.combinations(AXES, n)] for n in (2, 3)
)


@pytest.fixture(autouse=True)
def _everything_is_sharded(monkeypatch):
    monkeypatch.setattr("jdl.train.sharding.SMALLEST_SHARDED", 16)


def gpt(**options):
    defaults = {"vocab_size": 8, "context": 8, "width": 16, "depth": 1, "num_heads": 4, "dropout": 0.1}
    return models.gpt(**{**defaults, **options})


def sentences(rows=8):
    tokens = np.random.default_rng(0).integers(0, 8, (rows, 9)).astype(np.int32)
    return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}


def pictures():
    return tiny_resnet()[1]


def of_gpt(accumulate=1, task=lambda task: task, **options):
    return gradient(task(tasks.next_token(gpt(**options))), optax.adamw(1e-2), accumulate=accumulate)


def of_resnet():
    return gradient(tasks.classification(tiny_resnet()[0]), optax.sgd(0.05, momentum=0.9))


def five_steps(learner, batch, spec, rules=(), start=None):
    """Losses of five steps, one at a time, the state after them, and the one before."""
    mesh = train.make_mesh(spec)
    start = jax.jit(learner.init)(KEY, batch) if start is None else start
    shardings = state_shardings(start, mesh, rules)
    state = jax.device_put(start, shardings)
    batch = jax.device_put(batch, batch_shardings(batch, mesh))
    step = jax.jit(
        train.distributed(learner.step, mesh, "jit", start),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        compiler_options={"xla_backend_optimization_level": 0},  # Compiles in a third of the time.
    )
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch)
        # Adam's steps, and so the losses, are the same for gradients of any scale.
        losses.append([float(metrics[name].value()) for name in ("loss", "grad_norm")])
    return losses, state, start


def assert_equals_alone(learner, batch, alone, *on, **tolerance):
    actual = five_steps(learner, batch, *on, start=alone[2])
    assert_same(actual, alone, **tolerance)
    return actual[1]


@pytest.fixture(scope="module")
def gpt_alone():
    return five_steps(of_gpt(), sentences(), "data:1")


@pytest.fixture(scope="module")
def resnet_alone():
    return five_steps(of_resnet(), pictures(), "data:1")


def assert_same(actual, expected, tolerance=1e-5):
    assert len({loss for loss, _ in expected[0]}) == 5  # It learns, or nothing is shown.
    np.testing.assert_allclose(actual[0], expected[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spec", [*PAIRS, *TRIPLES])
def test_a_gpt_on_every_mesh_is_one_device_with_dropout(devices, gpt_alone, spec):
    assert_equals_alone(of_gpt(), sentences(), gpt_alone, spec)


@pytest.mark.parametrize("spec", [*PAIRS, "data:2,fsdp:2,tensor:2"])
def test_a_resnet_on_every_mesh_is_one_device_with_statistics(devices, resnet_alone, spec):
    state = assert_equals_alone(of_resnet(), pictures(), resnet_alone, spec)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, state.collections, resnet_alone[1].collections)


def test_accumulation_and_remat_on_a_mesh(devices):
    learner = of_gpt(accumulate=2, remat="dots", scan=True, depth=2)
    alone = five_steps(learner, sentences(), "data:1")
    for spec in ("data:2,fsdp:2,tensor:2", "fsdp:2,tensor:2,sequence:2"):
        assert_equals_alone(learner, sentences(), alone, spec)


def test_bfloat16_on_a_mesh_keeps_float32_parameters(devices):
    learner = of_gpt(task=tasks.mixed_precision)
    alone = five_steps(learner, sentences(), "data:1")
    # Sums over devices are rounded in another order, to eight bits.
    for spec in ("data:2,fsdp:2,tensor:2", "fsdp:2,tensor:2,sequence:2"):
        state = assert_equals_alone(learner, sentences(), alone, spec, tolerance=0.02)
    assert {x.dtype for x in jax.tree.leaves((state.params, state.opt_state[0].mu))} == {jnp.dtype("float32")}


def bytes_on_one_device(tree):
    arrays = [x for x in jax.tree.leaves(tree) if x.ndim]
    return sum(x.addressable_shards[0].data.nbytes for x in arrays), sum(x.nbytes for x in arrays)


@pytest.mark.parametrize(
    ("spec", "share"), [("data:8", 1), ("fsdp:8", 8), ("data:2,tensor:4", 4), ("fsdp:2,tensor:4", 8)]
)
def test_states_are_really_split_and_go_from_mesh_to_mesh(devices, tmp_path, spec, share):
    """Parameters and both of Adam's moments, and checkpoints that come back on another mesh bit for bit."""
    shapes = jax.eval_shape(of_gpt(width=64, hidden=256, context=64).init, KEY, sentences())
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes._replace(key=shapes.step)
    )
    state = state._replace(key=KEY)
    mesh = train.make_mesh(spec)
    placed = jax.device_put(state, state_shardings(state, mesh))
    here, whole = bytes_on_one_device((placed.params, placed.opt_state))
    # Norms, positions and the biases of outputs are not split over tensor.
    assert whole / share <= here <= whole / share * (1.02 if spec in ("data:8", "fsdp:8") else 1.5)
    elsewhere = train.make_mesh("tensor:2,sequence:2")
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: state),
        state_shardings(state, elsewhere),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, placed, {}, wait=True)
        found = checkpoints.restore(like).state
    for x, y, wanted in zip(*(jax.tree.leaves(tree) for tree in (found, state, like)), strict=True):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs_of(model, batch, mesh, rules=()):
    learner = averaged(gradient(tasks.next_token(model), optax.adam(1e-3)), 0.99)
    state = jax.eval_shape(learner.init, KEY, batch)
    flat = jax.tree_util.tree_leaves_with_path(
        state_specs(state, mesh, rules), is_leaf=lambda x: isinstance(x, P)
    )
    return {path_of(path): spec for path, spec in flat}


def test_rules_split_layers_in_pairs_and_optimisers_follow(devices):
    mesh = train.make_mesh("fsdp:2,tensor:4")
    found = specs_of(gpt(hidden=64), sentences(), mesh)
    expected = {
        "blocks/block1/attention/query/kernel": P(FSDP, TENSOR),
        "blocks/block1/attention/query/bias": P(TENSOR),
        "blocks/block1/attention/out/kernel": P(TENSOR, FSDP),
        "blocks/block1/attention/out/bias": P(FSDP),
        "blocks/block1/mlp/expand/kernel": P(FSDP, TENSOR),
        "blocks/block1/mlp/project/kernel": P(TENSOR, FSDP),
        "blocks/block1/norm1/scale": P(FSDP),
        "positions/embedding": P(None, FSDP),
        "tokens/embedding": P(TENSOR, FSDP),
    }
    for name, spec in expected.items():
        # Parameters, Adam's moments, and the average.
        assert [value for path, value in found.items() if path.endswith(name)] == [spec] * 4, name
    scanned = specs_of(gpt(scan=True, depth=3), sentences(), mesh)
    assert found.keys() != scanned.keys()
    kernel = next(path for path in scanned if path.endswith("blocks/block/mlp/project/kernel"))
    assert scanned[kernel] == P(None, TENSOR, FSDP)


def test_experts_go_to_devices_or_are_split(devices):
    llama = lambda count: models.llama(
        vocab_size=8, context=8, width=16, depth=1, num_heads=4, num_kv_heads=4, hidden=32,
        experts=Experts(count),
    )  # fmt: skip
    mesh = train.make_mesh("data:2,tensor:4")
    for count, spec in ((4, P(TENSOR)), (3, P(None, None, TENSOR))):
        found = specs_of(llama(count), sentences(), mesh)
        assert [v for path, v in found.items() if path.endswith("moe/expand/kernel")] == [spec] * 4
        assert [v for path, v in found.items() if path.endswith("router/kernel")] == [P()] * 4


def test_experts_on_devices_are_one_device(devices):
    model = models.llama(
        vocab_size=8, context=8, width=16, depth=1, num_heads=4, num_kv_heads=4, hidden=32,
        experts=Experts(4, capacity=1.0),
    )  # fmt: skip
    learner = gradient(tasks.next_token(model), optax.adam(1e-2))
    alone = five_steps(learner, sentences(), "data:1")
    assert_equals_alone(learner, sentences(), alone, "data:2,tensor:4")


def test_what_no_rule_names_is_split_by_its_outputs(devices):
    state = {"conv": shape(3, 3, 8, 16), "odd": shape(3, 3, 8, 9), "vector": shape(64), "small": shape(2, 4)}
    assert state_specs(state, train.make_mesh("data:2,tensor:4")) == {
        "conv": P(None, None, None, TENSOR),
        "odd": P(),
        "vector": P(),
        "small": P(),
    }
    # Inputs and outputs of a convolution are never split over two axes, for which XLA's gradient is wrong.
    specs = state_specs(state, train.make_mesh("data:2,fsdp:2,tensor:2"))
    assert specs["conv"] == P(None, None, None, (FSDP, TENSOR))
    assert specs["odd"] == P()
    assert state_specs(state, train.make_mesh("data:2,fsdp:2"))["odd"] == P(None, None, FSDP)


def test_own_rules_go_first_and_say_all(devices):
    rules = [("query/kernel$", P(None, (FSDP, TENSOR))), ("expand", P()), ("norm1", P("stage"))]
    mesh = train.make_mesh("fsdp:2,tensor:2")
    state = {"query": {"kernel": shape(5, 32, 16)}, "expand": {"kernel": shape(32, 64)}}
    assert state_specs(state, mesh, rules) == {
        "query": {"kernel": P(None, None, (FSDP, TENSOR))},
        "expand": {"kernel": P()},
    }
    assert state_specs(state, train.make_mesh("data:2,fsdp:2"), rules)["query"] == {
        "kernel": P(None, None, FSDP)
    }
    with pytest.raises(ValueError, match=r"names 'stage'; axes are data, fsdp, tensor, sequence"):
        state_specs({"norm1": shape(8)}, mesh, rules)
    with pytest.raises(ValueError, match=r"more axes than query/kernel of shape \(8,\)"):
        state_specs({"query": {"kernel": shape(8)}}, mesh, rules)
    with pytest.raises(
        ValueError, match=r"cannot split query/kernel of shape \(8, 6\): 6 does not divide by 4"
    ):
        state_specs({"query": {"kernel": shape(8, 6)}}, mesh, rules)


def test_own_axes_and_rules_train_as_one_device(devices, gpt_alone):
    grid = np.asarray(jax.devices()).reshape(2, 4)
    mesh = train.make_mesh(Mesh(grid, ("data", "stage"), axis_types=(AxisType.Explicit,) * 2))
    assert set(mesh.axis_types) == {AxisType.Auto}
    rules = [("project/kernel$", P("stage", None))]
    state = assert_equals_alone(of_gpt(), sentences(), gpt_alone, mesh, rules)
    kernel = state.opt_state[0].mu["blocks"]["block1"]["mlp"]["project"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0] // 4, kernel.shape[1])


def test_batches_are_split_over_examples_and_time(devices):
    batch = {"inputs": shape(8, 6, 3), "labels": shape(8, 5), "weights": shape(8)}
    assert batch_specs(batch, train.make_mesh("data:2,fsdp:2,sequence:2")) == {
        "inputs": P(("data", FSDP), SEQUENCE),
        "labels": P(("data", FSDP)),
        "weights": P(("data", FSDP)),
    }
    assert batch_specs(batch, train.make_mesh("tensor:4,sequence:2"))["inputs"] == P(None, SEQUENCE)
    assert check_batch({"x": np.zeros((2, 6))}, train.make_mesh("data:2,tensor:2,sequence:2")) == 2
    with pytest.raises(ValueError, match=r"3 examples .* over 2 devices: .*\(mesh='data:1,tensor:4'\)"):
        check_batch({"x": np.zeros((3, 6))}, train.make_mesh("data:2,tensor:4"))
    with pytest.raises(
        ValueError, match=r"has sequence:4, and no array .* divides by it; got {'x': \(8, 6\)}"
    ):
        check_batch({"x": np.zeros((8, 6))}, train.make_mesh("data:2,sequence:4"))


def test_values_between_layers_are_said_to_lie_like_the_batch(devices):
    def constraints(spec, *sizes):
        traced = jax.make_jaxpr(on_mesh(by_example, train.make_mesh(spec)))(shape(*sizes))
        return [
            x.params["sharding"].spec[0] for x in traced.eqns if x.primitive.name == "sharding_constraint"
        ]

    assert constraints("data:2,fsdp:2,tensor:2", 8, 3) == [("data", FSDP)]
    # Nothing is said of one device, of a mesh without examples, and of a number that does not divide.
    assert constraints("data:1", 8, 3) == constraints("tensor:4", 8, 3) == constraints("data:4", 6, 3) == []
    x = jnp.ones((8, 2))
    assert by_example(x) is x
    split = jax.shard_map(
        by_example, mesh=train.make_mesh("data:8"), in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    assert "sharding_constraint" not in str(jax.make_jaxpr(split)(x))


def test_fit_takes_one_text_and_rules(devices, gpt_alone):
    batch = sentences()
    rules = [("positions", P(None, TENSOR))]
    fitted = train.fit(
        of_gpt(), lambda i: batch, 3, key=KEY, log_every=1, mesh="data:2,fsdp:2,tensor:2", rules=rules
    )
    losses = fitted.history.series("train", "loss")[1]
    np.testing.assert_allclose(losses, [loss for loss, _ in gpt_alone[0][:3]], rtol=1e-5, atol=1e-5)
    assert fitted.state.params["positions"]["embedding"].sharding.spec == P(None, TENSOR)
    assert fitted.state.params["tokens"]["embedding"].sharding.spec == P(TENSOR, FSDP)
