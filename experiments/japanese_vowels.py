"""Nine speakers told apart by how they say two Japanese vowels, with a bidirectional recurrent network.

270 sequences of 7 to 29 frames to learn from, 370 to test; a frame is 12 cepstrum coefficients, here brought
to mean 0 and deviation 1 over the real frames of the training part. Kudo, Toyama and Shimbo report 94.1 % of
the test sequences classified rightly by their method, and 96.2 % by a hidden Markov model. Settings were
chosen on a third of the training sequences (``--held-out 0.33``), never on the test part.

Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions", 1999.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import cli, running
from jdl import data, learners, models, tasks

PUBLISHED = "94.1 % test accuracy (Kudo, Toyama and Shimbo 1999)"

SPLIT = "Japanese Vowels, 270 training and 370 test sequences of nine speakers"


@dataclass(frozen=True)
class Config:
    """Settings of a recurrent classifier of speakers."""

    dataset: Literal["japanese_vowels"] = "japanese_vowels"
    """The recordings."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Recurrent layer."""
    features: int = 64
    """Features of a layer, in each direction."""
    depth: int = 1
    """Layers."""
    pool: Literal["last", "mean", "max"] = "mean"
    """What of a sequence is classified: its last states, or the mean or maximum over its frames."""
    dropout: float = 0.5
    """Share of features dropped, the same ones at all frames of a sequence."""
    noise: float = 0.3
    """Deviation of the noise added to the frames in training."""
    steps: int = 1500
    """Training steps, each on one batch."""
    batch_size: int = 27
    """Sequences in a batch."""
    learning_rate: float = 5e-3
    """First learning rate of AdamW, which falls along a cosine to 0."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of kernels."""
    evaluate_every: int = 150
    """Steps between two evaluations."""
    held_out: float = 0.0
    """Share of the training sequences to test on in place of the test part, to choose settings by."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the sequences."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def model(config: Config) -> models.Recurrent:
    """The network that the configuration describes."""
    return models.Recurrent(
        9,
        (config.features,) * config.depth,
        config.cell,
        bidirectional=True,
        pool=config.pool,
        dropout=config.dropout,
        locked=True,
    )


def standardised(part: dict[str, Any], mean: np.ndarray, deviation: np.ndarray) -> dict[str, Any]:
    """A part of the data with frames of mean 0 and deviation 1, and zeros after the end."""
    sequence, lengths = part["inputs"]["sequence"], part["inputs"]["lengths"]
    real = np.arange(sequence.shape[1])[None] < lengths[:, None]
    frames = np.where(real[..., None], (sequence - mean) / deviation, 0).astype(np.float32)
    return {**part, "inputs": {"sequence": frames, "lengths": lengths}}


def parts(config: Config) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What to learn from, what to test on, and the fingerprint of the data.

    Raises:
        ValueError: for a share held out that leaves nothing.
    """
    dataset = data.load(config.dataset)
    train, test = dict(dataset.train), dict(dataset.test)
    if config.held_out:
        count = len(train["labels"])
        held = round(config.held_out * count)
        if not 0 < held < count:
            raise ValueError(f"held_out must leave some of the {count} sequences; got {config.held_out}")
        order = np.random.default_rng(config.seed).permutation(count)
        whole = train
        train, test = (jax.tree.map(lambda x, r=rows: x[r], whole) for rows in (order[held:], order[:held]))
    sequence, lengths = train["inputs"]["sequence"], train["inputs"]["lengths"]
    frames = sequence[np.arange(sequence.shape[1])[None] < lengths[:, None]]
    mean, deviation = frames.mean(0), frames.std(0)
    return standardised(train, mean, deviation), standardised(test, mean, deviation), dataset.fingerprint


def noisy(deviation: float) -> Callable[..., Any]:
    """Adds normal noise to the frames of a batch."""

    def transform(key: jax.Array, batch: Any) -> Any:
        x = batch["inputs"]["sequence"]
        sequence = x + deviation * jax.random.normal(key, x.shape, x.dtype)
        return {**batch, "inputs": {**batch["inputs"], "sequence": sequence}}

    return transform


def main(config: Config) -> running.Outcome:
    """Trains a classifier of speakers as the configuration says; ``test`` is of the last step."""
    train, test, fingerprint = parts(config)
    task = tasks.classification(model(config))
    if config.noise:
        task = tasks.augmented(task, noisy(config.noise))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, weight_decay=config.weight_decay, mask=learners.decays),
    )
    shard = jax.process_index(), jax.process_count()
    outcome = running.run(
        "japanese_vowels",
        config,
        running.folder_of("japanese_vowels", config),
        learners.gradient(task, tx),
        data.shuffled(train, config.batch_size, seed=config.seed, shard=shard),
        {"test": data.in_order(test, len(test["labels"]), shard=shard)},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=fingerprint,
        about=f"{len(train['labels'])} sequences to learn from and {len(test['labels'])} to test",
    )
    if not config.execution.quiet and shard[0] == 0:
        accuracy = 100 * outcome.test["accuracy"]
        print(
            running.report(
                f"{accuracy:.2f} % of the sequences classified rightly", outcome, "japanese_vowels"
            )
        )
    return outcome


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
