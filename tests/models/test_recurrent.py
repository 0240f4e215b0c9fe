"""Recurrent classifiers pool what is real; the language model is AWD-LSTM, with state and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl import models, tasks
from jdl.core import CARRY, LOSSES, summarize
from jdl.interop import export_weights, load_weights, names
from jdl.learners import gradient
from jdl.models.recurrent import pooled
from tests.compiling import jit

B, T, V = 3, 5, 11
LENGTHS = np.array([5, 2, 0], np.int32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("pool", ["last", "mean", "max", "none"])
def test_rubbish_in_the_padding_changes_nothing(pool):
    model = models.Recurrent(4, (3, 3), "lstm", bidirectional=True, pool=pool)
    x = normal(0, B, T, 2)
    spoilt = np.where((np.arange(T)[None] < LENGTHS[:, None])[..., None], x, np.nan)
    variables = jit(model.init)(jax.random.key(0), x)
    run = jit(lambda x: model.apply(variables, {"sequence": x, "lengths": LENGTHS}))
    clean, dirty = run(x), run(spoilt)
    assert clean.shape == ((B, T, 4) if pool == "none" else (B, 4))
    np.testing.assert_array_equal(clean, dirty)
    # A row that is cut where it ends gives the same.
    short = model.apply(variables, x[1:2, :2])
    np.testing.assert_allclose(clean[1:2, :2] if pool == "none" else clean[1:2], short, atol=1e-6)


def test_pools_by_hand():
    y = jnp.array([[[-1.0, 4], [-3, 2], [0, 0]], [[1, 2], [3, 4], [5, 9]], [[0, 0], [0, 0], [0, 0]]])
    lengths = jnp.array([2, 3, 0])
    np.testing.assert_allclose(pooled(y, lengths, "mean"), [[-2, 3], [3, 5], [0, 0]])
    beyond = jnp.array([2, 50, -1])  # as layers read them
    np.testing.assert_allclose(pooled(y, beyond, "mean"), [[-2, 3], [3, 5], [0, 0]])
    np.testing.assert_allclose(pooled(y, lengths, "max"), [[-1, 4], [5, 9], [0, 0]])
    np.testing.assert_allclose(pooled(y, None, "mean")[0], [-4 / 3, 2])
    np.testing.assert_allclose(pooled(y, None, "max")[0], [0, 4])


def test_tokens_are_looked_up_and_features_come_out():
    model = models.Recurrent(0, (6,), "rnn", vocab_size=V, width=4)
    tokens = np.arange(10).reshape(2, 5)
    variables = jit(model.init)(jax.random.key(0), tokens)
    assert model.apply(variables, tokens).shape == (2, 6)
    features = variables["params"]["tokens"]["embedding"][tokens]
    other = models.Recurrent(0, (6,), "rnn")
    layers = {"params": {"layers": variables["params"]["layers"]}}
    np.testing.assert_allclose(other.apply(layers, features), model.apply(variables, tokens), atol=1e-6)


LM = models.RecurrentLM(V, 4, (6, 4), init_bound=0.5, dropout=0.2)


@pytest.fixture(scope="module")
def lm():
    return jit(LM.init)(jax.random.key(0), jnp.zeros((2, 3), jnp.int32))


def test_language_model_equals_pytorch(torch, lm):
    """Embedding, two LSTMs of different sizes and a tied projection, loaded from PyTorch's names."""
    rnns = [torch.nn.LSTM(4, 6, batch_first=True), torch.nn.LSTM(6, 4, batch_first=True)]
    encoder = torch.nn.Embedding(V, 4)
    decoder = torch.nn.Linear(4, V)
    decoder.weight = encoder.weight
    whole = torch.nn.ModuleDict({"encoder": encoder, "rnns": torch.nn.ModuleList(rnns), "decoder": decoder})
    tensors = {n: x.detach().numpy() for n, x in whole.state_dict().items()}
    variables = load_weights(lm, tensors, names.AWD_LSTM_SALESFORCE, ignore=["decoder.weight"])
    tokens = np.random.default_rng(0).integers(0, V, (2, 5))
    with torch.no_grad():
        x = encoder(torch.tensor(tokens))
        for rnn in rnns:
            x, _ = rnn(x)
        expected = decoder(x).numpy()
    np.testing.assert_allclose(LM.apply(variables, tokens), expected, atol=1e-5)
    back = export_weights(variables, names.AWD_LSTM_SALESFORCE)
    assert all(np.array_equal(x, tensors[name]) for name, x in back.items())
    assert back.keys() == tensors.keys() - {"decoder.weight"}


def test_hidden_then_logits_and_any_steps_of_extend_are_the_whole(lm):
    tokens = np.random.default_rng(0).integers(0, V, (2, 6)).astype(np.int32)
    whole = LM.apply(lm, tokens)
    h = LM.apply(lm, tokens, method="hidden")
    np.testing.assert_allclose(LM.apply(lm, h, method="logits"), whole, atol=1e-6)
    extend = jit(lambda cache, tokens, lengths: LM.apply(lm, cache, tokens, lengths, method="extend"))
    # The first row reads 1, then 3 tokens, the second 3, then 2: what is beyond is not read.
    cache = LM.init_cache(2, 6)
    first, second = np.array([1, 3], np.int32), np.array([3, 2], np.int32)
    a, cache = extend(cache, tokens[:, :3], first)
    rest = np.stack([tokens[0, 1:4], tokens[1, 3:6]])
    b, cache = extend(cache, rest, second)
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a[0, :1], whole[0, :1], atol=1e-6)
    np.testing.assert_allclose(a[1], whole[1, :3], atol=1e-6)
    np.testing.assert_allclose(b[0], whole[0, 1:4], atol=1e-6)
    np.testing.assert_allclose(b[1, :2], whole[1, 3:5], atol=1e-6)


def test_a_stateful_model_goes_on_where_the_batch_before_ended(lm):
    """Logits, and losses in training, of two batches are those of rows twice as long."""
    model = LM.clone(stateful=True, dropout=0.0)
    tokens = np.random.default_rng(1).integers(0, V, (2, 6)).astype(np.int32)
    whole = jit(LM.apply)(lm, tokens)
    apply = jit(lambda v, x: model.apply(v, x, mutable=[CARRY]))
    first, carry = apply(lm, tokens[:, :3])
    second, _ = apply({**lm, **carry}, tokens[:, 3:])
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
    assert {x.shape for x in jax.tree.leaves(carry)} == {(2, 6), (2, 4)}
    # Without a collection to keep it in, there is no state.
    np.testing.assert_allclose(model.apply(lm, tokens[:, 3:]), LM.apply(lm, tokens[:, 3:]), atol=1e-6)

    task = tasks.next_token(model)
    learner = gradient(task, optax.sgd(0.0))
    batches = [{"inputs": tokens[:, i : i + 2], "labels": tokens[:, i + 1 : i + 3]} for i in (0, 2)]
    state = jit(learner.init)(jax.random.key(0), batches[0])._replace(params=lm["params"])
    step = jit(learner.step)
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(summarize(metrics)["loss"])
    expected = optax.softmax_cross_entropy_with_integer_labels(whole[:, :4], tokens[:, 1:5])
    np.testing.assert_allclose(losses, [expected[:, :2].mean(), expected[:, 2:].mean()], rtol=1e-5)
    assert set(learner.variables(state)) == {"params"}


def test_dropout_and_losses_are_those_of_awd_lstm(lm):
    model = LM.clone(dropout=0.5, activation_loss=2.0, change_loss=3.0)
    tokens = np.random.default_rng(2).integers(0, V, (2, 4)).astype(np.int32)
    inputs = {"tokens": tokens, "lengths": np.array([4, 2], np.int32)}
    dropped, sown = model.apply(
        lm, inputs, train=True, method="hidden", mutable=[LOSSES], rngs={"dropout": jax.random.key(0)}
    )
    h = LM.apply(lm, inputs, method="hidden")
    scale = np.asarray(dropped / h)[0]
    assert set(scale.round(4).ravel().tolist()) == {0.0, 2.0}
    assert (scale == scale[:1]).all()
    (activation,), (change,) = sown[LOSSES]["activation"], sown[LOSSES]["change"]
    real = [dropped[0], dropped[1, :2]]
    np.testing.assert_allclose(activation, 2 * np.mean(np.concatenate(real) ** 2), rtol=1e-5)
    changes = np.concatenate([h[0, 1:] - h[0, :-1], h[1, 1:2] - h[1, :1]])
    np.testing.assert_allclose(change, 3 * np.mean(changes**2), rtol=1e-5)
    *_, silent = model.apply(lm, inputs, mutable=[LOSSES])
    assert not silent


def test_whole_words_are_dropped_from_the_embedding(lm):
    model = models.RecurrentLM(V, 4, (4,), token_dropout=0.5)
    tokens = np.arange(V)[None].repeat(2, 0)
    variables = jit(model.init)(jax.random.key(0), tokens)
    run = functools.partial(model.apply, variables, train=True, capture_intermediates=True, mutable=True)
    _, found = run(tokens, rngs={"dropout": jax.random.key(3)})
    embedded = found["intermediates"]["tokens"]["__call__"][0]
    read = found["intermediates"]["input_drop"]["__call__"][0]
    factor = np.asarray(read / embedded)
    assert set(factor.round(4).ravel().tolist()) == {0.0, 2.0}
    assert (factor == factor[:1, :, :1]).all()  # a word in all rows, or in none


def test_untied_weights_have_a_head():
    model = models.RecurrentLM(V, 4, (6,), "gru", tied=False)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert params["head"]["kernel"].shape == (6, V)
    assert "head_bias" not in params


TOKENS = jnp.zeros((2, 3), jnp.int32)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (models.RecurrentLM(V, 4, (4,)), TOKENS),
        (models.RecurrentLM(V, 4, (4,), tied=False), TOKENS),
        (models.Recurrent(3, (4,), vocab_size=V), TOKENS),
        (models.Seq2Seq(V, V, 4, 4), {"source": TOKENS, "target": TOKENS}),
    ],
)
def test_logits_of_low_precision_are_float32(model, inputs):
    low = model.clone(dtype=jnp.bfloat16)
    logits, _ = jax.eval_shape(low.init_with_output, jax.random.key(0), inputs)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (models.Recurrent(2, pool="sum"), jnp.zeros((2, 3, 1)), "the pools \"last\", .*; got 'sum'"),
        (
            models.Recurrent(2, cell="gated"),
            jnp.zeros((2, 3, 1)),
            "the cells are rnn, lstm, gru; got 'gated'",
        ),
        (models.Recurrent(2), TOKENS, "Recurrent takes sequence that are floats .* got int32"),
        (models.Recurrent(2, vocab_size=3), jnp.zeros((2, 3, 1)), "integers .* got float32"),
        (LM, {"tokens": TOKENS, "segments": TOKENS}, "RecurrentLM knows no segments"),
        (models.RecurrentLM(5, 4, (6,)), TOKENS, "as wide as a token, 4; got 6"),
        (models.RecurrentLM(5, 4, (4,), token_dropout=1.5), TOKENS, "^token_dropout, a rate, .* got 1.5"),
        (models.RecurrentLM(5, 4, (4,), weight_drop=50), TOKENS, "^weight_drop, a rate, .* got 50"),
        (models.Recurrent(2, vocab_size=3, dropout=-0.5), TOKENS, "^dropout, a rate, .* got -0.5"),
    ],
)
def test_says_what_is_wrong(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), inputs)
