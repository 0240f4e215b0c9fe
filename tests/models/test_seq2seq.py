"""Bahdanau's and Luong's attention computed by hand and by PyTorch, and decoding with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import generation, models
from jdl.interop import load_weights, names
from jdl.nn.recurrence_attention import AttentiveRecurrence
from jdl.nn.recurrence_cells import GRU_CELL, LSTM_CELL
from tests.compiling import jit

V, S, T = 7, 4, 5
SOURCE = np.random.default_rng(0).integers(0, V, (2, S)).astype(np.int32)
TARGET = np.random.default_rng(1).integers(0, V, (2, T)).astype(np.int32)
INPUTS = {"source": {"tokens": SOURCE, "lengths": np.array([4, 2], np.int32)}, "target": TARGET}


def model(attention, cell="gru", depth=1):
    return models.Seq2Seq(V, V, 3, 4, depth, cell, attention)


def drawn(module, inputs=INPUTS):
    """Variables in which no bias is zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32) * 0.5, shapes)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("cell", [GRU_CELL, LSTM_CELL])
def test_the_attentive_layer_by_hand(cell):
    """One row at a time, in numpy, as the paper's appendix has it."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    layer, x, memory = AttentiveRecurrence(3, cell), normal(2, T, 2), normal(2, S, 5)
    carry = tuple(normal(2, 3) for _ in range(cell.states))
    lengths, real = np.array([5, 3]), np.arange(S)[None] < np.array([[4], [2]])
    run = lambda layer: layer(x, layer.keys(memory), memory, real, carry, jnp.asarray(lengths))
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), method=lambda layer: run(layer)))
    params = jax.tree.map(lambda x: normal(*x.shape), shapes["params"])
    h, context, weights, last = jit(lambda p: layer.apply({"params": p}, method=lambda layer: run(layer)))(
        params
    )
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for b in range(2):
        state, c = carry[0][b], carry[-1][b]
        keys = memory[b, : real[b].sum()] @ params["key"]["kernel"] + params["key"]["bias"]
        for t in range(lengths[b]):
            alpha = softmax(np.tanh(state @ params["query"]["kernel"] + keys) @ params["score"])
            seen = alpha @ memory[b, : real[b].sum()]
            z = (
                x[b, t] @ params["input"]["kernel"]
                + params["input"]["bias"]
                + seen @ params["context"]["kernel"]
            )
            r = state @ params["recurrent"]["kernel"] + params["recurrent"]["bias"]
            if cell is GRU_CELL:
                reset, update, _ = np.split(sigmoid(z + r), 3)
                new = np.tanh(np.split(z, 3)[2] + reset * np.split(r, 3)[2])
                state = (1 - update) * new + update * state
            else:
                i, f, _, o = np.split(sigmoid(z + r), 4)
                c = f * c + i * np.tanh(np.split(z + r, 4)[2])
                state = o * np.tanh(c)
            np.testing.assert_allclose(h[b, t], state, atol=1e-5)
            np.testing.assert_allclose(context[b, t], seen, atol=1e-5)
            np.testing.assert_allclose(weights[b, t, : len(alpha)], alpha, atol=1e-5)
            assert not weights[b, t, len(alpha) :].any()
        np.testing.assert_allclose(last[0][b], state, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 2))}, r"takes sequences \[batch, time, features\]; got shape \(2, 2\)"),
        ({"lengths": [5, 3]}, "lengths are an array of one integer a row, .* got a list"),
        ({"carry": (np.zeros((2, 4)),)}, r"a tuple of 1 of shape \(2, 3\); got tuple of \[\(2, 4\)\]"),
        ({"carry": np.zeros((2, 3))}, "a tuple of 1 of shape"),
        ({"memory": np.zeros((2, S + 1, 5))}, r"a memory \[2, steps, .* got shapes \(2, 5, 5\) and \(2, 4,"),
        ({"keys": np.zeros((2, S, 4))}, r"its own keys of it, \[2, steps, 3\]; got .* and \(2, 4, 4\)"),
        ({"real": np.ones((2, S + 1), bool)}, r"real of a memory has shape \(2, 4\); got \(2, 5\)"),
    ],
)
def test_the_attentive_layer_says_what_is_wrong(change, message):
    given = {
        "x": np.zeros((2, T, 2)),
        "keys": np.zeros((2, S, 3)),
        "memory": np.zeros((2, S, 5)),
        "real": np.ones((2, S), bool),
        "carry": (np.zeros((2, 3)),),
        "lengths": None,
    }
    jax.eval_shape(lambda: AttentiveRecurrence(3).init(jax.random.key(0), *given.values()))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: AttentiveRecurrence(3).init(jax.random.key(0), *(given | change).values()))


@pytest.mark.parametrize("attention", ["dot", "general"])
def test_luong_equals_pytorch(torch, attention):
    """Two layers of LSTMs with PyTorch's layers, and attention written out with its products."""
    torch.manual_seed(0)
    nn, module = torch.nn, model(attention, "lstm", 2)
    parts = nn.ModuleDict(
        {
            "source_tokens": nn.Embedding(V, 3),
            "target_tokens": nn.Embedding(V, 3),
            "encoder": nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True),
            "decoder": nn.LSTM(3, 4, 2, batch_first=True),
            "readout": nn.Linear(8, 4),
            "head": nn.Linear(4, V),
        }
    )
    if attention == "general":
        parts["key"] = nn.Linear(4, 4, bias=False)
    rules = [(name, name) for name in parts if "coder" not in name]
    rules += names.recurrent_torch("encoder", "encoder") + names.recurrent_torch("decoder", "decoder")
    tensors = {name: x.detach().numpy() for name, x in parts.state_dict().items()}
    variables = load_weights(jax.eval_shape(module.init, jax.random.key(0), INPUTS), tensors, rules)

    lengths = INPUTS["source"]["lengths"]
    with torch.no_grad():
        packed = nn.utils.rnn.pack_padded_sequence(
            parts["source_tokens"](torch.tensor(SOURCE)), torch.tensor(lengths), True, False
        )
        states, last = parts["encoder"](packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        last = tuple(x.unflatten(0, (2, 2)).transpose(1, 2).flatten(2) for x in last)
        h, _ = parts["decoder"](parts["target_tokens"](torch.tensor(TARGET)), last)
        keys = parts["key"](states) if attention == "general" else states
        scores = h @ keys.transpose(1, 2)
        scores = scores.masked_fill(torch.arange(S) >= torch.tensor(lengths)[:, None, None], -torch.inf)
        weights = scores.softmax(-1)
        readout = torch.tanh(parts["readout"](torch.cat([h, weights @ states], -1)))
        expected = parts["head"](readout).numpy()
    np.testing.assert_allclose(module.apply(variables, INPUTS), expected, atol=1e-5)
    np.testing.assert_allclose(module.apply(variables, INPUTS, method="alignment"), weights, atol=1e-5)


@pytest.mark.parametrize(("attention", "depth"), [("additive", 2), ("general", 1)])
def test_decoding_with_a_cache_and_padded_rows(attention, depth):
    module = model(attention, "lstm", depth)
    variables = drawn(module)
    whole = jit(module.apply)(variables, INPUTS)
    h = module.apply(variables, INPUTS, method="hidden")
    np.testing.assert_allclose(module.apply(variables, h, method="logits"), whole, atol=1e-6)

    # What lies in the padding of source and target is read by nobody.
    spoilt = {
        "source": {
            "tokens": np.where(np.arange(S) < [[4], [2]], SOURCE, 6),
            "lengths": INPUTS["source"]["lengths"],
        },
        "target": {
            "tokens": np.where(np.arange(T) < [[5], [3]], TARGET, 6),
            "lengths": np.array([5, 3], np.int32),
        },
    }
    actual = jit(module.apply)(variables, spoilt)
    # Two programs, with lengths of targets and without, which may round in another way.
    np.testing.assert_allclose(actual[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(actual[1, :3], whole[1, :3], atol=1e-6)

    decoder = generation.decoder(module, variables, INPUTS["source"])
    assert decoder.rewind is None
    cache = decoder.init_cache(2, T)
    assert {x.shape[0] for x in jax.tree.leaves(cache)} == {2}
    extend = jit(decoder.extend)
    a, cache = extend(cache, TARGET[:, :3], np.array([1, 3], np.int32))
    b, cache = extend(cache, np.stack([TARGET[0, 1:4], TARGET[1, [3, 4, 0]]]), np.array([3, 2], np.int32))
    np.testing.assert_allclose(a[0, :1], whole[0, :1], atol=1e-5)
    np.testing.assert_allclose(a[1], whole[1, :3], atol=1e-5)
    np.testing.assert_allclose(b[0], whole[0, 1:4], atol=1e-5)
    np.testing.assert_allclose(b[1, :2], whole[1, 3:], atol=1e-5)
    with pytest.raises(ValueError, match="2 sources were encoded, .* asked for 3"):
        decoder.init_cache(3, T)


def test_a_source_may_be_features():
    module = models.Seq2Seq(V, None, 3, 4, attention="dot")
    inputs = {"source": {"sequence": jnp.ones((2, S, 6)), "lengths": jnp.array([4, 0])}, "target": TARGET}
    weights = module.apply(drawn(module, inputs), inputs, method="alignment")
    np.testing.assert_allclose(weights.sum(-1), [[1] * T, [0] * T], atol=1e-6)


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (models.Seq2Seq(V, V, features=5), INPUTS, "half of the features; got 5"),
        (model("multiplicative"), INPUTS, "got 'multiplicative'"),
        (
            model("dot"),
            SOURCE,
            'takes {"source": ..., "target": ...}; got ArrayImpl|got ndarray|got .*Tracer',
        ),
        (model("dot"), {"source": SOURCE}, "got \\['source'\\]"),
        (
            model("dot"),
            {"source": jnp.ones((2, 3, 4)), "target": TARGET},
            "the encoder of Seq2Seq takes tokens",
        ),
    ],
)
def test_says_what_is_wrong(module, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), inputs)
