"""The experiments on text measure what they say, keep what they write, and are recorded as what they are."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from experiments import cli, masked_language, reproduce, sentences, shakespeare, torch_gpt, torch_shakespeare
from jdl import data, interop, models

POEM = "the sea is wide and the sky is high\nand nobody knows the reason why\n"
TEXT = data.Text("tiny_shakespeare", 40 * POEM, 3 * POEM, None, "fingerprint", "made here")


@pytest.fixture
def text(monkeypatch):
    monkeypatch.setattr(data, "load_text", lambda name: TEXT)
    return TEXT


def quietly(path):
    return cli.Execution(run=str(path), mesh="data:1", quiet=True)


def count(module, inputs):
    variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_a_gpt_is_measured_on_every_character_and_writes_on_the_way(text, tmp_path):
    config = shakespeare.Config(
        steps=4, batch_size=2, context=8, depth=1, width=8, num_heads=2, warmup=1, sampled=3,
        evaluate_every=2, passage=13, execution=quietly(tmp_path / "run"),
    )  # fmt: skip
    outcome = shakespeare.main(config)
    tokenizer = data.character_tokenizer(text.train + text.validation)
    ids = tokenizer.encode(text.validation)
    windows = [(i, ids[i : i + 8], ids[i + 1 : i + 9]) for i in range(0, len(ids) - 1, 8)]
    losses = []
    for _, inputs, labels in windows:
        logits = outcome.fitted.predict(np.pad(inputs, (0, 8 - len(inputs)))[None])[0, : len(labels)]
        losses += list(-np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels])
    assert len(losses) == len(ids) - 1
    assert outcome.test["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert outcome.test["perplexity"] == pytest.approx(np.exp(outcome.test["loss"]), rel=1e-6)
    assert outcome.test["best"] == min(outcome.fitted.history.series("validation", "loss")[1])
    assert outcome.test["sampled"] == outcome.fitted.history.last("sampled")["loss"]
    assert f"{outcome.test['loss']:.4f} nats" in shakespeare.described(outcome.test, config)
    passages = (outcome.folder / "samples.txt").read_text().split("----- after ")[1:]
    assert [p.split(" ")[0] for p in passages] == ["0", "2", "4"]
    for passage in passages:
        assert len(passage.split("-----\n", 1)[1]) == 13 + 2
    assert set(passages[0].split("-----\n", 1)[1]) <= set(text.train)


def test_the_settings_are_those_published():
    """nanoGPT counts 0.80 M and 10.65 M parameters, without positions."""
    tokens = np.zeros((1, 8), np.int32)
    for config, published in ((shakespeare.Config(), 0.80), (shakespeare.GPU, 10.65)):
        found = count(shakespeare.model(config, 65), tokens)
        assert round((found - config.context * config.width) / 1e6, 2) == published


@pytest.mark.parametrize("experiment", [shakespeare, masked_language])
def test_memory_is_saved_where_asked_for(experiment):
    tokenizer = data.train_bpe([POEM], 300, [masked_language.MASK])
    config = experiment.Config(context=4, batch_size=4, width=8, num_heads=2, depth=1)
    assert experiment.model(config, tokenizer.vocab_size).remat is None
    config = dataclasses.replace(config, remat="dots", accumulate=3, dtype="bfloat16")
    model = experiment.model(config, tokenizer.vocab_size)
    assert (model.remat, model.dtype) == ("dots", jax.numpy.bfloat16)
    learner = experiment.recipe(config, tokenizer if experiment is masked_language else tokenizer.vocab_size)
    batch = {"inputs": np.zeros((4, 4), np.int32)}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    with pytest.raises(ValueError, match="a batch of 4 cannot be divided into 3 equal parts"):
        jax.eval_shape(learner.step, state, batch)


@pytest.mark.parametrize("config", [shakespeare.Config(), shakespeare.GPU])
def test_the_rate_is_that_of_the_peer(config):
    schedule = shakespeare.learning_rate(config)
    for step in (0, 1, 50, 99, 100, 101, 1000, config.steps - 1, config.steps):
        peer = config.learning_rate * torch_shakespeare.rate(step, config)
        assert float(schedule(step)) == pytest.approx(peer, rel=1e-5)


def test_the_peer_is_the_same_network(torch):
    config = shakespeare.Config(context=6, depth=2, width=8, num_heads=2)
    torch.manual_seed(0)
    ours, theirs = shakespeare.model(config, 11), torch_shakespeare.gpt(config, 11)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 6)).astype(np.int32)
    variables = ours.init(jax.random.key(0), tokens)
    drawn = {name: x.std() for name, x in theirs.state_dict().items() if x.dim() > 1}
    weights = interop.export_weights(variables, torch_gpt.NAMES)
    state = {name: torch.tensor(np.array(x)) for name, x in weights.items()}
    theirs.load_state_dict(state)
    expected = theirs.eval()(torch.tensor(tokens).long()).detach().numpy()
    np.testing.assert_allclose(ours.apply(variables, tokens), expected, rtol=1e-4, atol=1e-5)
    # Their initial weights have the spread of ours.
    for name, deviation in drawn.items():
        assert float(deviation) == pytest.approx(float(state[name].std()), rel=0.35)


def test_the_peer_is_measured_in_the_same_ways(text, torch):
    config = shakespeare.Config(
        steps=2, batch_size=2, context=8, depth=1, width=8, num_heads=2, warmup=1, sampled=3, evaluate_every=1
    )
    found = torch_shakespeare.main(config)
    assert set(found) == {"loss", "sampled", "best", "best_sampled"}
    assert found["best"] <= found["loss"]
    size = data.character_tokenizer(text.train).vocab_size
    assert found["loss"] == pytest.approx(np.log(size), rel=0.02)
    assert found["sampled"] == pytest.approx(np.log(size), rel=0.02)


def test_hidden_tokens_are_compared_with_how_common_they_are(text, tmp_path):
    config = masked_language.Config(
        vocab_size=262, steps=2, batch_size=2, context=8, depth=1, width=8, num_heads=2, evaluate_every=2,
        chunk=3, execution=quietly(tmp_path / "run"),
    )  # fmt: skip
    outcome = masked_language.main(config)
    # Embeddings of 8 features, which are the output's too, are large for a vocabulary of 262.
    assert outcome.test["loss"] == pytest.approx(np.log(262), rel=0.3)
    assert outcome.test["perplexity"] == pytest.approx(np.exp(outcome.test["loss"]), rel=1e-5)
    assert f"{outcome.test['loss']:.4f} nats a hidden token" in masked_language.described(outcome.test)
    # Of three tokens a comes twice and b once, each counted once more: 3, 2 and 1 of 6.
    found = masked_language.unigram(np.array([0, 0, 1]), np.array([[0, 2]]), 3)
    assert found == pytest.approx(-(np.log(3 / 6) + np.log(1 / 6)) / 2)


def labelled(n, seed):
    """Sentences that are good or bad, said in a word of theirs."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int32) % 2
    words = [["bad", "good"][label] for label in labels]
    return data.Labelled(
        tuple(f"a film as {'very ' * rng.integers(0, 4)}{w} as it gets" for w in words), labels
    )


def sentence_set(validation=None, test=None, n=60):
    return data.Sentences(
        "mr", labelled(n, 0), validation, test, ("negative", "positive"), "print", "made here"
    )


def test_folds_hold_each_sentence_once():
    found = sentence_set()
    cut = sentences.folds(sentences.Config(dataset="mr"), found)
    assert sorted(np.concatenate([fold.test for fold in cut])) == list(range(60))
    for fold in cut:
        assert sorted(np.concatenate(fold)) == list(range(60))
        assert len(fold.validation) == pytest.approx(5.4, abs=1)
    published = sentence_set(labelled(6, 1), labelled(8, 2))
    (fold,) = sentences.folds(sentences.Config(), published)
    assert [list(part) for part in fold] == [list(range(60)), list(range(60, 66)), list(range(66, 74))]
    (fold,) = sentences.folds(sentences.Config(dataset="trec"), sentence_set(None, labelled(8, 2)))
    assert [len(part) for part in fold] == [54, 6, 8]
    assert list(fold.test) == list(range(60, 68))
    with pytest.raises(ValueError, match="folds, of ten, must be 1 to 10; got 0"):
        sentences.folds(sentences.Config(folds=0), found)


def test_a_textcnn_learns_in_each_fold(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "load_sentences", lambda name: sentence_set())
    config = sentences.Config(
        dataset="mr", folds=2, passes=3, batch_size=9, buckets=1, execution=quietly(tmp_path / "run")
    )
    outcome = sentences.main(config)
    assert len(outcome.test["accuracies"]) == 2
    assert min(outcome.test["accuracies"]) > 0.8
    assert outcome.test["accuracy"] == np.mean(outcome.test["accuracies"])
    norms = np.linalg.norm(outcome.fitted.variables["params"]["head"]["kernel"], axis=0)
    assert norms.max() <= 3 + 1e-4
    assert sentences.main(config).test["accuracies"] == outcome.test["accuracies"]


@pytest.mark.parametrize("name", ["bilstm", "transformer"])
def test_other_models_give_logits_of_each_sentence(name):
    module = sentences.model(sentences.Config(model=name), 20, 6, 16)
    inputs = {"tokens": np.zeros((2, 9), np.int32), "lengths": np.array([9, 3], np.int32)}
    made = jax.eval_shape(functools.partial(module.init_with_output, jax.random.key(0)), inputs)
    assert made[0].shape == (2, 6)


def test_minilm_starts_from_the_weights_of_its_folder(tmp_path):
    module = models.bert(vocab_size=30, context=8, width=8, depth=1, num_heads=2)
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    variables = module.init(jax.random.key(0), tokens)
    interop.to_hugging_face(tmp_path, module, variables)
    config = sentences.Config(model="minilm", weights=str(tmp_path))
    learner = sentences.recipe(config, 30, 3, 8, 10)
    batch = {"inputs": {"tokens": tokens, "lengths": np.array([6, 4], np.int32)}, "labels": np.array([0, 2])}
    params = learner.init(jax.random.key(1), batch).params
    np.testing.assert_array_equal(params["tokens"]["embedding"], variables["params"]["tokens"]["embedding"])
    assert params["head"]["kernel"].shape == (8, 3)
    assert "pooler" not in params
    assert learner.predict({"params": params}, batch["inputs"]).shape == (2, 3)


def test_a_recipe_says_what_its_figure_is(monkeypatch, tmp_path):
    outcome = shakespeare.running.Outcome(None, {"loss": 1.9, "best": 1.8}, tmp_path, 1.0)
    recipe = dataclasses.replace(reproduce.RECIPES["shakespeare_gpu"], main=lambda config: outcome)
    recipe.main.__module__ = "experiments.shakespeare"
    monkeypatch.setitem(reproduce.RECIPES, "toy", recipe)
    recorded = []
    monkeypatch.setattr(reproduce.ledger, "record", recorded.append)
    for seed in (0, 1):
        (tmp_path / f"toy-{seed}").mkdir()
    reproduce.main(["toy"], [0, 1], tmp_path)
    (entry,) = recorded
    assert (entry.values, entry.metric, entry.unit) == ((1.8, 1.8), "best validation loss", "nats/character")
    assert (entry.group, entry.published.value) == ("Text", 1.4697)
    assert entry.fingerprint == data.load_text("tiny_shakespeare").fingerprint
    assert entry.command.startswith("python -m experiments.shakespeare --steps 5000")


def test_every_recipe_has_its_data_described():
    for name, recipe in reproduce.RECIPES.items():
        assert recipe.config.dataset in reproduce.SPLITS, name
    published = {(r.metric, r.unit, r.goal) for r in reproduce.RECIPES.values() if r.published}
    assert ("test error", "%", "min") in published
    for model, dataset in itertools.product(reproduce.SENTENCE_MODELS, reproduce.SENTENCE_SETS):
        assert reproduce.RECIPES[f"{model}_{dataset}"].goal == "max"
