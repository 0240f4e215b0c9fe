"""The translation experiment on a language of its own: what it learns, scores, keeps and resumes."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from experiments import cli, translation
from jdl import data

WORDS = ["red", "blue", "dog", "cat", "runs", "sleeps"]


def language(rng, size):
    """Sentences of two to four words, and their mirror images in capitals: a language to be learnt."""
    source = [" ".join(rng.choice(WORDS, rng.integers(2, 5))) for _ in range(size)]
    return data.Pairs(tuple(source), tuple(" ".join(s.upper().split()[::-1]) for s in source))


@pytest.fixture
def parallel(monkeypatch):
    rng = np.random.default_rng(0)
    train, validation, test = (language(rng, size) for size in (200, 20, 12))
    made = data.Parallel("multi30k", ("en", "de"), train, validation, {"test2016": test}, "0" * 64, "made")
    monkeypatch.setattr(data, "load_parallel", lambda name: made)
    return made


def config(tmp_path, **changes):
    small = {"vocab_size": 290, "width": 16, "hidden": 32, "depth": 1, "num_heads": 2, "beams": 2}
    short = {"steps": 4, "warmup": 2, "batch_tokens": 128, "buckets": 1, "averaging": 0.5}
    execution = cli.Execution(run=str(tmp_path / "run"), mesh="data:1", quiet=True)
    return translation.Config(**{**small, **short, **changes}, execution=execution)


def test_runs_scores_and_goes_on(parallel, tmp_path):
    settings = config(tmp_path, evaluate_every=4)
    outcome = translation.main(settings)
    kept = json.loads((tmp_path / "run/scores.json").read_text())
    assert set(kept) == {"test2016_bleu", "test2016_bleu_lower", "test2016_chrf"}
    written = (tmp_path / "run/test2016.de").read_text().splitlines()
    of_written = translation.scores(written, parallel.tests["test2016"].target)
    assert {name.removeprefix("test2016_"): value for name, value in kept.items()} == of_written
    assert outcome.test["test2016_bleu"] == kept["test2016_bleu"]
    assert outcome.test["loss"] == outcome.fitted.history.last("validation")["loss"]
    assert len(written) == 12
    tokenizer = data.load_tokenizer(tmp_path / "run/tokenizer.json")
    assert list(tokenizer.specials) == ["<pad>", "<bos>", "<eos>"]
    assert translation.main(settings).test == outcome.test
    assert "BLEU" in translation.told(kept)


def test_what_scores_needs_is_missed_before_the_training(parallel, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(translation.running, "run", None)
    with pytest.raises(ImportError, match=r'sacrebleu: pip install -e ".\[text\]"'):
        translation.main(config(tmp_path))


def test_a_language_is_learnt(parallel, tmp_path):
    settings = config(tmp_path, width=32, hidden=64, dropout=0.0, label_smoothing=0.0, schedule="cosine",
                      learning_rate=0.01, steps=250, warmup=20, batch_tokens=256, averaging=0.0)  # fmt: skip
    assert translation.main(settings).test["test2016_bleu"] > 60


def test_batches_are_pairs_shifted_by_one(parallel, tmp_path):
    settings = config(tmp_path, buckets=2)
    _, tokenizer = translation.prepared(settings)
    encoded = translation.Encoded(parallel.train, tokenizer)
    made = translation.batches(encoded, settings, seed=0)
    seen = []
    for i in range(len(made)):
        batch = made(i)
        source, target = batch["inputs"]["source"], batch["inputs"]["target"]
        assert source["tokens"].shape == target["tokens"].shape == batch["labels"].shape
        assert source["tokens"].size <= 128 + 8 * source["tokens"].shape[1]
        for row, weight in enumerate(batch["weights"]):
            read, wrote = target["tokens"][row], batch["labels"][row]
            n = target["lengths"][row]
            np.testing.assert_array_equal(read[1:n], wrote[: n - 1])
            assert (read[0], wrote[n - 1]) == (tokenizer.specials["<bos>"], tokenizer.specials["<eos>"])
            text = tokenizer.decode(source["tokens"][row][: source["lengths"][row]])
            assert tokenizer.decode(wrote[:n]) == " ".join(text.upper().split()[::-1])
            seen += [text] * bool(weight)
    assert sorted(seen) == sorted(parallel.train.source)


def test_schedules():
    settings = translation.Config(steps=100, warmup=10, learning_rate=1.0)
    root = translation.learning_rate(settings)
    assert [float(root(step)) for step in (1, 5, 10, 40)] == pytest.approx([0.1, 0.5, 1.0, 0.5])
    cosine = translation.learning_rate(dataclasses.replace(settings, schedule="cosine"))
    assert [float(cosine(step)) for step in (0, 10, 100)] == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_lower_case(parallel, tmp_path):
    lowered, tokenizer = translation.prepared(config(tmp_path, lower=True))
    assert lowered.train.target[0] == parallel.train.target[0].lower()
    assert lowered.tests["test2016"].target[0].islower()
    assert tokenizer.fingerprint != translation.prepared(config(tmp_path))[1].fingerprint


def test_scores_are_those_of_sacrebleu_by_hand():
    found = translation.scores(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert found == pytest.approx({"bleu": 100.0, "bleu_lower": 100.0, "chrf": 100.0})
    found = translation.scores(["THE cat sat on the mat"], ["the cat sat on a mat"])
    # Of one, two and three words in a row; of four none, smoothed to half of one.
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 2 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)
    assert found["bleu_lower"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_translations_come_in_the_order_of_the_sentences(parallel, tmp_path):
    settings = config(tmp_path, model="lstm")
    _, tokenizer = translation.prepared(settings)
    model = translation.network(settings, tokenizer.vocab_size)
    encoded = translation.Encoded(parallel.train, tokenizer)
    inputs = translation.batches(encoded, settings, 0)(0)["inputs"]
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    sentences = parallel.train.source[:5]
    forwards = translation.translate(model, variables, sentences, tokenizer, settings)
    backwards = translation.translate(model, variables, sentences[::-1], tokenizer, settings)
    assert forwards == backwards[::-1]
