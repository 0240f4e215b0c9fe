"""The language model of words learns, its state is carried as published, and PyTorch's peer is the same."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from experiments import cli, torch_wikitext, wikitext
from jdl import data, interop
from jdl.interop import names
from jdl.models import RecurrentLM

WORDS = " the cat sat on the mat \n the dog sat on the cat \n a cat is no dog \n" * 20


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A text of nine words and settings to match."""
    text = data.Text("wikitext2", WORDS, WORDS[: len(WORDS) // 4], WORDS[: len(WORDS) // 2], "fake", "fake")
    monkeypatch.setattr(data, "load_text", lambda name: text)
    return dataclasses.replace(
        wikitext.SHORT, epochs=6, batch_size=4, context=5, width=8, hidden=(), learning_rate=0.1, clip=1.0,
        dropout=0.0, input_dropout=0.0, weight_drop=0.0,
        execution=cli.Execution(str(tmp_path / "run"), "data:1"),
    )  # fmt: skip


def test_defaults_are_the_published_network():
    model = wikitext.model(wikitext.Config(), 33_278)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 33_556_078


def test_learns_and_reports(small, capsys):
    outcome = wikitext.main(small)
    assert outcome.test["carried_perplexity"] < 6 < outcome.fitted.history.series("train", "perplexity")[1][0]
    assert f"perplexity {outcome.test['carried_perplexity']:.2f} on the test" in capsys.readouterr().out


def test_the_recipe_of_the_paper_averages_what_it_evaluates(small):
    config = dataclasses.replace(small, optimizer="sgd", learning_rate=1.0, averaging=0.5)
    learner = wikitext.recipe(config, 9, 10)
    batch = {"inputs": np.zeros((4, 5), np.int32), "labels": np.ones((4, 5), np.int32)}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    assert {"learner", "total", "weight"} == set(state._fields)


def test_a_carried_state_reads_a_text_as_one():
    module = RecurrentLM(9, 4, (4,), "rnn", stateful=True, init_bound=1.0)
    tokens = np.random.default_rng(0).integers(0, 9, 43)
    variables = jax.jit(module.init)(jax.random.key(0), tokens[None, :2])
    rows = data.continuing_rows(tokens, 4, 1, seed=None)

    def predict(variables, inputs):
        raise AssertionError("forgets its state")

    found = wikitext.carried(module)(jax.tree_util.Partial(predict, variables), rows)
    whole = module.apply({"params": variables["params"]}, tokens[None, :-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(whole, tokens[None, 1:]).mean()
    assert found["carried_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["carried_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_pytorch_has_the_same_network(torch, small):
    small = dataclasses.replace(small, hidden=(6,))
    model = torch_wikitext.network(small, 9).eval()
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    tensors["decoder.bias"] = tensors.pop("bias")
    module = wikitext.model(small, 9)
    tokens = np.random.default_rng(0).integers(0, 9, (2, 7))
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)
    variables = interop.load_weights({"params": shapes["params"]}, tensors, names.AWD_LSTM_SALESFORCE)
    with torch.no_grad():
        expected, *_ = model(torch.tensor(tokens), None)
    np.testing.assert_allclose(module.apply(variables, tokens), expected, atol=1e-5)


def test_pytorch_learns_the_same(torch, small):
    assert torch_wikitext.main(small)["test"] < 6
    with pytest.raises(ValueError, match="has LSTMs in float32 and adam"):
        torch_wikitext.main(wikitext.Config())
