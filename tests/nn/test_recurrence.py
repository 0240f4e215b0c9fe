"""Recurrent layers compute what PyTorch's do, and padding reaches nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jdl import nn
from jdl.core import AXIS
from jdl.interop import export_weights, load_weights, names
from jdl.nn.recurrence import open_forget_gate, uniform_within
from jdl.nn.recurrence_cells import ELMAN_RELU, ELMAN_TANH, GRU_CELL, LSTM_CELL
from jdl.nn.recurrence_scan import How, recur, recur_plain
from jdl.nn.recurrence_stack import LockedDropout
from jdl.train.mesh import make_mesh
from tests.compiling import jit

B, T, D, H = 3, 5, 4, 3
CELLS = {"tanh": ELMAN_TANH, "relu": ELMAN_RELU, "lstm": LSTM_CELL, "gru": GRU_CELL}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weigh(tree):
    """A scalar to which every entry contributes its own share."""
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
    return sum((x * jnp.cos(jnp.arange(x.size) + i).reshape(x.shape)).sum() for i, x in enumerate(leaves))


def stack(kind, bidirectional, layers=2, **options):
    layer = {
        "tanh": nn.RNN,
        "relu": functools.partial(nn.RNN, cell=ELMAN_RELU),
        "lstm": nn.LSTM,
        "gru": nn.GRU,
    }[kind]
    layer = functools.partial(layer, H, **options)
    return nn.RecurrentStack(
        [functools.partial(nn.Bidirectional, layer) if bidirectional else layer] * layers
    )


@pytest.mark.parametrize(
    ("kind", "bidirectional", "packed"),
    [
        ("tanh", True, True),
        ("relu", False, False),
        ("lstm", True, True),
        ("lstm", False, False),
        ("gru", True, True),
        ("gru", False, False),
    ],
)
def test_equals_pytorch(torch, kind, bidirectional, packed):
    """Outputs, last states, and the gradients of weights, inputs and first states."""
    torch.manual_seed(0)
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(kind, torch.nn.RNN)
    options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    theirs = make(D, H, 2, batch_first=True, bidirectional=bidirectional, **options)
    x, lengths = normal(0, B, T, D), np.array([3, 5, 1]) if packed else np.array([T] * B)
    states = [normal(1 + i, 4 if bidirectional else 2, B, H) for i in range(2 if kind == "lstm" else 1)]

    x_t, states_t = torch.tensor(x, requires_grad=True), [torch.tensor(s, requires_grad=True) for s in states]
    first = tuple(states_t) if kind == "lstm" else states_t[0]
    if packed:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(
            x_t, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        y_t, last_t = theirs(sequence, first)
        y_t, _ = torch.nn.utils.rnn.pad_packed_sequence(y_t, batch_first=True)
    else:
        y_t, last_t = theirs(x_t, first)
    outputs_t = [y_t, *(last_t if kind == "lstm" else [last_t])]
    sum(
        (o * torch.cos(torch.arange(o.numel()).float() + i).reshape(o.shape)).sum()
        for i, o in enumerate(outputs_t)
    ).backward()

    ours = stack(kind, bidirectional)
    tensors = {name: w.detach().numpy() for name, w in theirs.state_dict().items()}
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x))
    variables = load_weights(shapes, tensors, names.RECURRENT_TORCH)
    back = export_weights(variables, names.RECURRENT_TORCH)
    assert all(np.array_equal(back[name], w) for name, w in tensors.items())
    assert back.keys() == tensors.keys()

    def run(variables, x, states):
        rows = [tuple(s[i] for s in states) for i in range(len(states[0]))]
        carry = tuple(zip(rows[::2], rows[1::2], strict=True)) if bidirectional else tuple(rows)
        y, carry = ours.apply(variables, x, jnp.asarray(lengths) if packed else None, carry)
        leaves = jax.tree.leaves(carry)
        outputs = [y, *(jnp.stack(leaves[i :: len(states)]) for i in range(len(states)))]
        return weigh(outputs), outputs

    gradient = jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))
    (_, outputs), (d_variables, d_x, d_states) = gradient(variables, x, states)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    for o, o_t in zip(outputs, outputs_t, strict=True):
        close(o, o_t.detach().numpy())
    close(d_x, x_t.grad.numpy())
    for d, s in zip(d_states, states_t, strict=True):
        close(d, s.grad.numpy())
    gradients = export_weights(d_variables, names.RECURRENT_TORCH)
    for name, w in theirs.named_parameters():
        close(gradients[name], w.grad.numpy(), err_msg=name)


def case(kind, dtype=jnp.float32):
    cell = CELLS[kind]
    G = cell.gates * H
    real = jnp.arange(T)[:, None] < jnp.array([3, 5, 0])[None]
    arrays = (normal(0, T, B, G), normal(1, H, G), normal(2, G))
    carry = tuple(normal(3 + i, B, H) for i in range(cell.states))
    drop = jnp.asarray(np.random.default_rng(0).integers(0, 2, (B, H)), jnp.float32) * 2
    return cell, *(jnp.asarray(x, dtype) for x in arrays), jax.tree.map(jnp.asarray, carry), real, drop


def pulled(function, cell, x, kernel, bias, carry, real, drop, how):
    def loss(x, kernel, bias, carry, drop):
        outputs = function(cell, x, kernel, bias, carry, real, drop, how)
        return weigh(outputs), outputs

    return jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True)(x, kernel, bias, carry, drop)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_the_fast_loop_equals_the_plain_one(kind, reverse):
    """With masks of padding and dropout; the fast one unrolled, too."""
    cell, *arrays = case(kind)
    fast = jit(lambda *a: pulled(recur, cell, *a, How(reverse, 2)))(*arrays)
    plain = jit(lambda *a: pulled(recur_plain, cell, *a, How(reverse)))(*arrays)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), fast, plain)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_plain_layer_differentiates_forward(kind):
    x, v = np.random.default_rng(0).normal(size=(2, 2, 5, 3)).astype(np.float32)
    layer, lengths = kind(4, plain=True), jnp.array([5, 2])
    variables = layer.init(jax.random.key(0), x)
    run = jit(lambda x: layer.apply(variables, x, lengths)[0])
    _, tangent = jax.jvp(run, (x,), (v,))
    step = 1e-2
    np.testing.assert_allclose(tangent, (run(x + step * v) - run(x - step * v)) / (2 * step), atol=1e-3)
    quick = kind(4).apply(variables, x, lengths)[0]
    np.testing.assert_allclose(run(x), quick, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_without_masks_and_bias_and_mapped_over_kernels(kind):
    cell, x, kernel, _, carry, _, _ = case(kind)
    kernels = jnp.stack([kernel, 2 * kernel])

    def loss(function, x, kernel, carry):
        return weigh(function(cell, x, kernel, None, carry))

    fast, plain = (
        jit(jax.vmap(jax.grad(functools.partial(loss, f), (0, 1, 2)), (None, 0, None)))(x, kernels, carry)
        for f in (recur, recur_plain)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), fast, plain)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_bfloat16_is_near_float32_and_keeps_its_types(kind):
    cell, *arrays = case(kind)
    low = [*(x.astype(jnp.bfloat16) for x in arrays[:3]), *arrays[3:]]
    (_, (h, carry)), grads = jit(lambda *a: pulled(recur, cell, *a, How()))(*low)
    assert [x.dtype for x in (h, *carry)] == [jnp.bfloat16] + [jnp.float32] * cell.states
    assert [x.dtype for x in grads[:3]] == [jnp.bfloat16] * 3
    (_, (exact, _)), exact_grads = jit(lambda *a: pulled(recur, cell, *a, How()))(*arrays)
    np.testing.assert_allclose(h.astype(jnp.float32), exact, atol=0.05)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(exact_grads), strict=True):
        error = np.linalg.norm(np.asarray(a, np.float32) - b)
        assert error < 0.05 * np.linalg.norm(b)


def lstm_by_hand(params, x_TD, h, c):
    """One row, in numpy."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    outputs = []
    for x in x_TD:
        z = x @ params["input"]["kernel"] + params["input"]["bias"]
        z = z + h @ params["recurrent"]["kernel"] + params["recurrent"]["bias"]
        i, f, g, o = np.split(np.asarray(z, np.float64), 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.reshape(outputs, (-1, H)), h, c


@pytest.fixture(scope="module")
def padded():
    """A layer for each direction, its variables, and a compiled function of values and gradients."""
    found = {}
    for reverse in (False, True):
        layer = nn.LSTM(H, reverse=reverse)
        variables = jit(layer.init)(jax.random.key(0), jnp.zeros((B, T, D)))

        def loss(variables, x, carry, lengths, layer=layer):
            outputs = layer.apply(variables, x, lengths, carry)
            return weigh(outputs), outputs

        found[reverse] = variables, jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    return found


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, T), min_size=B, max_size=B),
    rubbish=st.sampled_from([1e30, -5.0, np.inf, np.nan]),
    reverse=st.booleans(),
    seed=st.integers(0, 9),
)
def test_padding_reaches_nothing(padded, lengths, rubbish, reverse, seed):
    variables, run = padded[reverse]
    x, carry = normal(seed, B, T, D), (normal(seed + 1, B, H), normal(seed + 2, B, H))
    spoilt = x.copy()
    for row, length in zip(spoilt, lengths, strict=True):
        row[length:] = rubbish
    lengths = np.asarray(lengths, np.int32)
    clean, dirty = run(variables, x, carry, lengths), run(variables, spoilt, carry, lengths)
    assert all(map(np.array_equal, jax.tree.leaves(clean), jax.tree.leaves(dirty)))
    (_, d_x, _), (y, (h, c)) = dirty
    params = jax.device_get(variables["params"])
    for b, length in enumerate(lengths):
        way = slice(None, None, -1 if reverse else 1)
        expected, h_b, c_b = lstm_by_hand(params, x[b, :length][way], carry[0][b], carry[1][b])
        np.testing.assert_allclose(y[b, :length][way], expected, atol=1e-5)
        np.testing.assert_allclose(h[b], h_b, atol=1e-5)
        np.testing.assert_allclose(c[b], c_b, atol=1e-5)
        assert not y[b, length:].any()
        assert not d_x[b, length:].any()
        assert d_x[b, :length].all()


def test_a_carry_goes_on_where_it_ended():
    """Two halves, the second begun with the carry of the first, are the whole."""
    layers = stack("gru", False)
    x = normal(0, B, 6, D)
    variables = jit(layers.init)(jax.random.key(0), x)
    apply = jit(layers.apply)
    whole, last = apply(variables, x)
    first, carry = apply(variables, x[:, :3])
    second, end = apply(variables, x[:, 3:], carry=carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), end, last)


def test_shards_equal_the_whole():
    layers, x, lengths = stack("lstm", True, 1), normal(0, 8, T, D), jnp.array([5, 1, 0, 3, 2, 5, 4, 5])
    variables = jit(layers.init)(jax.random.key(0), x)

    def gradient(variables, x, lengths):
        # Rows are weighed alike, so that a shard need not know which it has.
        loss = lambda v: sum((leaf**2).sum() for leaf in jax.tree.leaves(layers.apply(v, x, lengths)))
        return jax.grad(loss)(variables)

    sharded = jax.shard_map(
        lambda *a: jax.lax.psum(gradient(*a), AXIS),
        mesh=make_mesh("data:4"),
        in_specs=(P(), P(AXIS), P(AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    actual, expected = jit(sharded)(variables, x, lengths), jit(gradient)(variables, x, lengths)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)


def test_dropout_of_the_state_lasts_a_sequence_and_differs_by_row():
    """A layer whose state is the sum of its inputs and of the state that was not dropped."""
    layer = nn.RNN(
        64,
        cell=ELMAN_RELU,
        recurrent_dropout=0.5,
        kernel_init=jax.nn.initializers.ones,
        recurrent_init=lambda key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype),
    )
    x = jnp.ones((2, 4, 1))
    variables = jit(layer.init)(jax.random.key(0), x)
    y, _ = layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    kept = y[:, -1] > 1
    # Doubled on its way, a state grows as 1, 3, 7, 15; dropped, it starts again at 1.
    expected = jnp.where(kept[:, None], jnp.array([1.0, 3, 7, 15])[None, :, None], 1.0)
    np.testing.assert_array_equal(y, expected)
    assert (kept[0] != kept[1]).any()
    assert 16 < kept[0].sum() < 48
    np.testing.assert_array_equal(layer.apply(variables, x)[0][0, :, 0], [1, 2, 3, 4])


def test_weight_drop_drops_entries_of_the_kernel_for_all_rows_and_steps():
    layer = nn.RNN(32, cell=ELMAN_RELU, weight_drop=0.25, recurrent_init=jax.nn.initializers.ones)
    zeros, carry = jnp.zeros((2, 2, 1)), (jnp.eye(2, 32),)
    variables = jit(layer.init)(jax.random.key(0), zeros)
    y, _ = layer.apply(variables, zeros, None, carry, True, rngs={"dropout": jax.random.key(1)})
    rows = np.asarray(y[:, 0])  # rows 0 and 1 of the dropped kernel
    assert set(np.unique(rows.round(4)).tolist()) == {0.0, np.float32(4 / 3).round(4)}
    assert 0.5 < (rows > 0).mean() < 0.95
    assert (rows[0] != rows[1]).any()
    y_2, _ = layer.apply(
        variables, zeros, None, (jnp.eye(2, 32)[::-1],), True, rngs={"dropout": jax.random.key(1)}
    )
    np.testing.assert_array_equal(y_2[::-1, 0], rows)
    assert (layer.apply(variables, zeros, None, carry)[0][:, 0] == 1).all()


def test_dropout_between_layers():
    x = jnp.ones((1, 3, 400))
    keys = {"dropout": jax.random.key(0)}
    free = LockedDropout(0.5, locked=False).apply({}, x, True, rngs=keys)
    assert (free[0, 0] != free[0, 1]).any()
    identity = functools.partial(
        nn.RNN,
        400,
        cell=ELMAN_RELU,
        kernel_init=lambda key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype),
        recurrent_init=jax.nn.initializers.zeros,
    )
    layers = nn.RecurrentStack([identity, identity], dropout=0.5, locked=True)
    y, _ = layers.apply(layers.init(jax.random.key(0), x), x, train=True, rngs=keys)
    # Once only, between the two, and the same at all steps.
    assert set(np.unique(y).tolist()) == {0.0, 2.0}
    assert (y == y[:, :1]).all()


def test_initial_values():
    shape = (4, 16)
    bound = uniform_within(0.5)(jax.random.key(0), shape)
    assert 0.4 < jnp.abs(bound).max() <= 0.5
    assert open_forget_gate(jax.random.key(0), (16,))[4:8].tolist() == [1.0] * 4
    params = jit(nn.LSTM(4).init)(jax.random.key(0), jnp.zeros((1, 1, 2)))["params"]
    assert params["input"]["bias"].tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8
    for gate in jnp.split(params["recurrent"]["kernel"], 4, -1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (nn.LSTM(H), (jnp.zeros((B, T)),), "LSTM takes sequences .*; got shape \\(3, 5\\)"),
        (
            nn.GRU(H),
            (jnp.zeros((B, T, D)), jnp.ones(2, jnp.int32)),
            "lengths are an array of one integer a row, \\(3,\\)",
        ),
        (nn.GRU(H), (jnp.zeros((B, T, D)), jnp.ones(B)), "got float32"),
        (
            nn.LSTM(H),
            (jnp.zeros((B, T, D)), None, (jnp.zeros((B, H)),)),
            "a tuple of 2 of shape \\(3, 3\\); got tuple of \\[\\(3, 3\\)\\]",
        ),
        (nn.RNN(H), (jnp.zeros((B, T, D)), None, jnp.zeros((B, H))), "a tuple of 1 of shape"),
        (stack("gru", False), (jnp.zeros((B, T, D)), None, ((),)), "stack of 2 layers .* got tuple of 1"),
        (stack("gru", False), (jnp.zeros((B, T, D)), None, 3), "an entry for each; got int"),
        (nn.GRU(H), (jnp.zeros((B, T, D)), [5, 5, 5]), "an array of one integer a row, \\(3,\\) .* a list"),
        (
            stack("lstm", True, 1),
            (jnp.zeros((B, T, D)), None, ((jnp.zeros((B, H)),) * 3,)),
            "in both directions is a pair, of each its own; got tuple of 3",
        ),
        (stack("lstm", True, 1), (jnp.zeros((B, T, D)), None, (jnp.zeros((B, H)),)), "pair, .* got Array"),
        (nn.LSTM(H, weight_drop=50), (jnp.zeros((B, T, D)),), "weight_drop, a rate, must .* got 50"),
        (nn.GRU(H, recurrent_dropout=-0.5), (jnp.zeros((B, T, D)),), "recurrent_dropout, .* got -0.5"),
        (nn.StochasticDepth(1.5), (jnp.zeros((B, T)),), "stochastic_depth, a rate, must .* got 1.5"),
    ],
)
def test_says_what_is_wrong(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), *arguments))
