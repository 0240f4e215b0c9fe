"""BatchNorm equals PyTorch's, leaves masked positions out, and has one batch's statistics on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS, psum
from jdl.nn import BatchNorm
from jdl.train.mesh import make_mesh

SHAPE = (8, 3, 4, 5)


@pytest.fixture
def x():
    return (3 * np.random.default_rng(0).normal(size=SHAPE) + 1).astype(np.float32)


@pytest.fixture
def variables():
    rng = np.random.default_rng(1)
    draw = lambda low=-1.0: jnp.asarray(rng.uniform(low, 2, SHAPE[-1]), jnp.float32)
    params = {"scale": draw(), "bias": draw()}
    return {"params": params, "batch_stats": {"mean": draw(), "var": draw(0.5)}}


def train(variables, x, mask=None, **fields):
    y, changed = BatchNorm(**fields).apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    return y, changed["batch_stats"]


def assert_close(actual, expected, tolerance=1e-5):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    jax.tree.map(compare, actual, expected)


def torch_twin(torch, variables):
    """The same layer in PyTorch; its momentum is the share of the new statistic."""
    layer = torch.nn.BatchNorm2d(SHAPE[-1], eps=1e-5, momentum=0.1)
    params, statistics = variables["params"], variables["batch_stats"]
    with torch.no_grad():
        for mine, theirs in (
            (params["scale"], layer.weight),
            (params["bias"], layer.bias),
            (statistics["mean"], layer.running_mean),
            (statistics["var"], layer.running_var),
        ):
            theirs.copy_(torch.tensor(np.asarray(mine)))
    return layer


def test_training_equals_torch(torch, x, variables):
    layer = torch_twin(torch, variables)
    torch_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = layer(torch_x)
    expected.sin().sum().backward()

    y, statistics = train(variables, x)
    assert_close(y, expected.permute(0, 2, 3, 1).detach().numpy())
    loss = lambda params, x: jnp.sin(train({**variables, "params": params}, x)[0]).sum()
    params, inputs = jax.grad(loss, (0, 1))(variables["params"], jnp.asarray(x))
    assert_close(params["scale"], layer.weight.grad.numpy(), 1e-4)
    assert_close(params["bias"], layer.bias.grad.numpy(), 1e-4)
    assert_close(inputs, torch_x.grad.permute(0, 2, 3, 1).numpy(), 1e-4)

    assert_close(statistics["mean"], layer.running_mean.numpy())
    # PyTorch remembers n / (n - 1) times the variance that it normalises with.
    n = x.size // SHAPE[-1]
    old = 0.9 * variables["batch_stats"]["var"]
    assert_close(old + (statistics["var"] - old) * n / (n - 1), layer.running_var.numpy())


def test_evaluation_equals_torch(torch, x, variables):
    layer = torch_twin(torch, variables).eval()
    expected = layer(torch.tensor(x.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)
    assert_close(BatchNorm().apply(variables, x), expected.detach().numpy())


def test_masked_positions_do_not_count(x, variables):
    padded = np.concatenate([x, np.full_like(x, 1e3)])
    mask = np.repeat([1.0, 0.0], len(x)).reshape(-1, 1, 1)
    y, statistics = train(variables, padded, mask)
    expected, expected_statistics = train(variables, x)
    assert_close(y[: len(x)], expected)
    assert_close(statistics, expected_statistics)


def test_a_mask_may_differ_by_position(x, variables):
    mask = np.random.default_rng(2).integers(0, 2, SHAPE[:-1])
    _, statistics = train(variables, x, mask)
    seen = x[mask.astype(bool)]
    old = variables["batch_stats"]
    assert_close(statistics["mean"], 0.9 * old["mean"] + 0.1 * seen.mean(0))
    assert_close(statistics["var"], 0.9 * old["var"] + 0.1 * seen.var(0))


def test_a_batch_that_is_all_masked_leaves_the_statistics(x, variables):
    y, statistics = train(variables, x, np.zeros(SHAPE[:-1]))
    assert_close(statistics, variables["batch_stats"])
    assert np.isfinite(y).all()


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
@pytest.mark.parametrize("masked", [False, True])
def test_shards_share_the_statistics_of_the_whole_batch(devices, x, variables, mode, masked):
    # A mask that leaves some shards with nothing.
    mask = (np.arange(8) % 3 > 0 if masked else np.ones(8)).astype(np.float32).reshape(8, 1, 1)

    def gradients(variables, x, mask):
        def loss(params, x):
            y, statistics = train({**variables, "params": params}, x, mask)
            return (jnp.sin(y) * mask[..., None]).sum(), (y, statistics)

        (params, inputs), (y, statistics) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return (y, inputs), (psum(params), statistics)

    if mode == "pmap":
        parted = jax.pmap(gradients, AXIS, in_axes=(None, 0, 0), out_axes=(0, None), devices=devices)
        by_row, whole = parted(variables, x[:, None], mask[:, None])
        by_row = jax.tree.map(lambda a: a[:, 0], by_row)
    else:
        rows = P(AXIS)
        specs = {"in_specs": (P(), rows, rows), "out_specs": (rows, P())}
        parted = jax.shard_map(gradients, mesh=make_mesh(), check_vma=False, **specs)
        by_row, whole = jax.jit(parted)(variables, x, mask)
    assert_close((by_row, whole), gradients(variables, jnp.asarray(x), mask), 1e-4)


def test_bfloat16_is_computed_in_float32_and_rounded_once(x, variables):
    low = jnp.asarray(x, jnp.bfloat16)
    y, statistics = train(variables, low)
    exact, exact_statistics = train(variables, low.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype(jnp.float32)}
    assert_close(statistics, exact_statistics)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    assert train(variables, x, dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16


def test_scale_and_bias_may_be_left_out(x):
    y, variables = BatchNorm(use_bias=False, use_scale=False).init_with_output(
        jax.random.key(0), x, train=True
    )
    assert "params" not in variables
    assert_close(y.mean((0, 1, 2)), np.zeros(SHAPE[-1]))


def test_initialisation_remembers_no_batch(x):
    statistics = BatchNorm().init(jax.random.key(0), x, train=True)["batch_stats"]
    assert_close(statistics, {"mean": np.zeros(SHAPE[-1]), "var": np.ones(SHAPE[-1])})
