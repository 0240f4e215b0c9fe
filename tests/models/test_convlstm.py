"""ConvLSTM equals a loop of PyTorch's convolutions, values and gradients; its network forecasts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import models, nn
from tests.compiling import jit

B, T, H, W, C, F = 2, 3, 4, 5, 2, 3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("peephole", [False, True])
def test_equals_pytorch(torch, peephole):
    """Equation 3 of the paper, with rows of 3 and 2 real steps."""
    layer = nn.ConvLSTM(F, peephole=peephole)
    x, carry, lengths = (
        normal(0, B, T, H, W, C),
        (normal(1, B, H, W, F), normal(2, B, H, W, F)),
        np.array([3, 2]),
    )
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 3, shapes["params"])

    def loss(params, x):
        y, carry_ = layer.apply({"params": params}, x, jnp.asarray(lengths), carry)
        return sum((leaf**2).sum() for leaf in (y, *carry_)), (y, carry_)

    (_, (y, last)), (d_params, d_x) = jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    leaf = lambda a: torch.tensor(np.array(a), requires_grad=True)
    w = jax.tree.map(leaf, params)
    x_t = leaf(x)
    conv = lambda image, kernel: torch.nn.functional.conv2d(image, kernel.permute(3, 2, 0, 1), padding=1)
    total, seen = 0.0, w.get("peephole", torch.zeros(3, H, W, F)).permute(0, 3, 1, 2)
    for b in range(B):
        h, c = (torch.tensor(s[b : b + 1]).permute(0, 3, 1, 2) for s in carry)
        for t in range(lengths[b]):
            z = conv(x_t[b : b + 1, t].permute(0, 3, 1, 2), w["input"]["kernel"])
            z = z + w["input"]["bias"][:, None, None] + conv(h, w["kernel"])
            i, f, g, o = z.chunk(4, 1)
            c_new = torch.sigmoid(f + seen[1] * c) * c + torch.sigmoid(i + seen[0] * c) * torch.tanh(g)
            h, c = torch.sigmoid(o + seen[2] * c_new) * torch.tanh(c_new), c_new
            total = total + (h**2).sum()
            np.testing.assert_allclose(y[b, t], h[0].permute(1, 2, 0).detach(), atol=1e-5)
        total = total + (h**2).sum() + (c**2).sum()
        np.testing.assert_allclose(last[1][b], c[0].permute(1, 2, 0).detach(), atol=1e-5)
        assert not y[b, lengths[b] :].any()
    total.backward()
    np.testing.assert_allclose(d_x, x_t.grad, atol=1e-4)
    jax.tree.map(lambda d, w: np.testing.assert_allclose(d, w.grad, atol=1e-4), d_params, w)


def test_padding_reaches_nothing_and_accelerators_get_a_loop():
    layer = nn.ConvLSTM(F)
    x, lengths = normal(0, B, T, H, W, C), jnp.array([3, 1])
    variables = jit(layer.init)(jax.random.key(0), x)
    gradient = jit(jax.grad(lambda v, x: (layer.apply(v, x, lengths)[0] ** 2).sum(), (0, 1)))
    spoilt = x.copy()
    spoilt[1, 1:] = np.nan
    clean, dirty = gradient(variables, x), gradient(variables, spoilt)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    run = jax.jit(lambda v, x: layer.apply(v, x)[0])
    programs = [jax.export.export(run, platforms=[p])(variables, x).mlir_module() for p in ("cpu", "tpu")]
    assert ["stablehlo.while" in program for program in programs] == [False, True]


def test_backwards_is_forwards_of_each_row_turned_round():
    x, lengths = normal(0, B, T, H, W, C), np.array([3, 2])
    forward, backward = nn.ConvLSTM(F), nn.ConvLSTM(F, reverse=True)
    variables = jit(forward.init)(jax.random.key(0), x)
    turned = x.copy()
    for row, n in zip(turned, lengths, strict=True):
        row[:n] = row[:n][::-1]
    y, last = jit(backward.apply)(variables, x, jnp.asarray(lengths))
    z, end = jit(forward.apply)(variables, turned, jnp.asarray(lengths))
    for row, other, n in zip(y, z, lengths, strict=True):
        np.testing.assert_allclose(row[:n], other[:n][::-1], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, end)


def test_stacks_in_both_directions():
    layer = functools.partial(nn.Bidirectional, functools.partial(nn.ConvLSTM, F, recurrent_dropout=0.2))
    stack = nn.RecurrentStack([layer, layer], dropout=0.5)
    x, keys = normal(0, B, T, H, W, C), {"dropout": jax.random.key(1)}
    variables = jit(stack.init)(jax.random.key(0), x)
    run = jit(lambda v, x, carry: stack.apply(v, x, None, carry, True, rngs=keys))
    y, carry = run(variables, x, None)
    assert y.shape == (B, T, H, W, 2 * F)
    again, _ = run(variables, x, carry)
    assert np.any(again != y)


def test_dropout_of_the_state_lasts_a_sequence_and_differs_by_row():
    """The gates see the state through a kernel that gives each entry to its own output gate alone."""
    layer = nn.ConvLSTM(F, kernel=1, recurrent_dropout=0.5)
    x = jnp.ones((B, T, H, W, C))
    params = jax.tree.map(jnp.zeros_like, jit(layer.init)(jax.random.key(0), x)["params"])
    params["kernel"] = jnp.concatenate([jnp.zeros((F, 3 * F)), jnp.eye(F)], -1)[None, None]
    params["input"]["bias"] = params["input"]["bias"].at[2 * F : 3 * F].set(1.0)
    run = lambda train: layer.apply(
        {"params": params}, x, train=train, rngs={"dropout": jax.random.key(1)} if train else None
    )
    (y, (_, c)), (whole, _) = run(True), run(False)
    # What the cell holds does not depend on the state, and the output gate is 1/2 where it was dropped.
    gates = y[:, 1:] / jnp.tanh(jnp.stack([c / sum(0.5**i for i in range(T)) * s for s in (1.5, 1.75)], 1))
    dropped = jnp.abs(gates - 0.5) < 1e-5
    assert (dropped[:, 0] == dropped[:, 1]).all()
    assert 0.3 < dropped[:, 0].mean() < 0.7
    assert (dropped[0] != dropped[1]).any()
    assert (whole[:, 1:][dropped] > y[:, 1:][dropped]).all()
    assert (whole[:, 1] < y[:, 1])[~dropped[:, 0]].all()


def test_forecasts_and_says_something_of_each_frame():
    x = jnp.ones((B, T, H, W, C))
    shape = lambda model: jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x)[0]).shape
    assert shape(models.ConvLSTMNet(1, (F, F))) == (B, T, H, W, 1)
    assert shape(models.ConvLSTMNet(1, (F, F), horizon=5, peephole=True)) == (B, 5, H, W, 1)
    model = models.ConvLSTMNet(1, (F,), horizon=2)
    variables = jit(model.init)(jax.random.key(0), x)
    assert sorted(variables["params"]) == ["encoder1", "forecaster1", "head"]
    gradient = jit(jax.grad(lambda v: (model.apply(v, x) ** 2).sum()))(variables)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (nn.ConvLSTM(F), (jnp.zeros((B, T, H, W)),), "images \\[batch, time, height, width, channels\\]"),
        (nn.ConvLSTM(F, kernel=2), (jnp.zeros((B, T, H, W, C)),), "an odd kernel; got .* and 2"),
        (nn.ConvLSTM(F), (jnp.zeros((B, T, H, W, C)), None, (jnp.zeros((B, H)),) * 2), "a tuple of 2 of"),
        (nn.ConvLSTM(F), (jnp.zeros((B, T, H, W, C)), jnp.ones(B)), "one integer a row"),
        (nn.ConvLSTM(F, recurrent_dropout=1.5), (jnp.zeros((B, T, H, W, C)),), "recurrent_dropout, a rate,"),
        (models.ConvLSTMNet(1, dropout=50), (jnp.zeros((B, T, H, W, C)),), "dropout, a rate, .* got 50"),
        (models.ConvLSTMNet(1), (jnp.zeros((B, T, H)),), "ConvLSTMNet takes a .sequence. of images"),
    ],
)
def test_says_what_is_wrong(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
