r"""A GPT that writes like Shakespeare, character by character, with the two settings of nanoGPT.

The defaults are the setting for a CPU: 4 blocks of width 128, 64 characters of context, 2,000 steps of 12
windows, two minutes. nanoGPT's README reports a validation loss of 1.88 nats a character for it, estimated
on 20 random batches; both that estimate and the loss over the whole validation text, every character but the
first predicted once, are measured here. The setting for a GPU, with a published best validation loss of
1.4697, is

    python -m experiments.shakespeare --depth 6 --num-heads 6 --width 384 --context 256 --batch-size 64 \
        --steps 5000 --dropout 0.2 --dtype bfloat16 --sampled 200

As there: AdamW (0.9, 0.99) whose weight decay of 0.1 spares vectors, a gradient clipped at norm 1, a rate
that rises for 100 steps to 0.001 and falls along a cosine to 0.0001, random windows of the first 90 % of the
text. Each evaluation writes a passage into ``samples.txt`` in the run's folder, where one process trains.

Karpathy, nanoGPT, README, 2022; Radford et al., "Language models are unsupervised multitask learners", 2019.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, running
from jdl import data, generation, learners, models, tasks
from jdl.core import Learner, PyTree

PUBLISHED = "1.88 nats a character on 20 random batches (CPU), 1.4697 (GPU, best on 200); nanoGPT's README"


SPLIT = "Tiny Shakespeare, the first 1,003,854 characters to learn from and the last 111,540 to validate"


@dataclass(frozen=True)
class Config:
    """Settings of a language model of characters."""

    dataset: Literal["tiny_shakespeare"] = "tiny_shakespeare"
    """The text, which ships with the package."""
    steps: int = 2000
    """Training steps, each on one batch; the rate reaches its end with the last."""
    batch_size: int = 12
    """Windows in a batch."""
    context: int = 64
    """Characters in a window."""
    depth: int = 4
    """Blocks."""
    width: int = 128
    """Features of a character."""
    num_heads: int = 4
    """Heads of attention."""
    dropout: float = 0.0
    """Share of values dropped, of embeddings, attention and what each block adds."""
    learning_rate: float = 1e-3
    """Peak of the learning rate, a tenth of which is left at the end."""
    warmup: int = 100
    """Steps in which the rate rises."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and embeddings."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    chunk: int = 0
    """Positions whose logits are held at a time, to save memory; all when 0."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory."""
    remat: Literal["none", "dots", "full"] = "none"
    """What blocks compute again for the gradient rather than keep: nothing, all but the results of matrix
    products, or all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; parameters are float32."""
    sampled: int = 20
    """Random batches on which the validation loss is estimated too."""
    evaluate_every: int = 250
    """Steps between two evaluations."""
    passage: int = 400
    """Characters written at each evaluation."""
    seed: int = 0
    """Seed of the initial weights, the noise and the windows."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


GPU = Config(
    steps=5000,
    batch_size=64,
    context=256,
    depth=6,
    width=384,
    num_heads=6,
    dropout=0.2,
    dtype="bfloat16",
    sampled=200,
)
"""The setting for a GPU."""


def model(config: Config, vocab_size: int) -> models.Transformer:
    """The network: pre-norm, no biases, embeddings shared with the output, GELU."""
    return models.gpt(
        vocab_size=vocab_size,
        context=config.context,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        use_bias=False,
        activation="gelu",
        dropout=config.dropout,
        remat=None if config.remat == "none" else config.remat,
        dtype=jnp.bfloat16 if config.dtype == "bfloat16" else None,
    )


def learning_rate(config: Config) -> optax.Schedule:
    """The learning rate by step."""
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        peak / (config.warmup + 1), peak, config.warmup, max(config.warmup + 1, config.steps), peak / 10
    )


def recipe(config: Config, vocab_size: int) -> Learner:
    """How the configuration trains it."""
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config), 0.9, 0.99, weight_decay=config.weight_decay, mask=matrices),
    )
    task = tasks.next_token(model(config, vocab_size), chunk=config.chunk or None)
    return learners.gradient(task, tx, accumulate=config.accumulate)


def matrices(params: PyTree) -> PyTree:
    """Which parameters decay: those of two axes, embeddings included."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


class Passages:
    """Writes a passage with the model of each evaluation: an evaluator, and the logger that keeps them."""

    def __init__(self, path: Path, model: Any, tokenizer: data.Tokenizer, config: Config):
        self.path, self.model, self.tokenizer = path, model, tokenizer
        self.length, self.context = config.passage, config.context
        self.sampler = generation.temperature(0.8)
        self.text = ""

    def __call__(self, predict: Any, batches: Any) -> None:
        """The evaluator, which writes once for all sets."""
        del batches
        if self.text or not self.length:
            return
        decoder, begin = generation.decoder(self.model, predict.args[0]), self.tokenizer.encode("\n")
        tokens = generation.endless(decoder, begin, 0, self.sampler, context=self.context)
        self.text = self.tokenizer.decode(list(itertools.islice(tokens, self.length)))

    def log(self, record: dict[str, Any]) -> None:
        """The logger."""
        if self.text and record["split"] not in ("train", "progress", "message"):
            with self.path.open("a") as file:
                file.write(f"----- after {record['step']} steps -----\n{self.text}\n\n")
            self.text = ""


def estimate(tokens: np.ndarray, config: Config, shard: tuple[int, int]) -> data.Batches:
    """Random batches of a text, the same at each evaluation: nanoGPT's way to estimate a loss."""
    rng = np.random.default_rng(config.seed)
    starts = rng.integers(0, len(tokens) - config.context, config.sampled * config.batch_size)
    windows = tokens[starts[:, None] + np.arange(config.context + 1)[None, :]]
    return data.in_order(
        {"inputs": windows[:, :-1], "labels": windows[:, 1:]}, config.batch_size, shard=shard
    )


def main(config: Config) -> running.Outcome:
    """Trains a GPT as the configuration says; ``test`` is of the whole validation text.

    To its "loss" come "sampled", the estimate on random batches, and the lowest that each was at an
    evaluation, "best" and "best_sampled".
    """
    text = data.load_text(config.dataset)
    tokenizer = data.character_tokenizer(text.train + text.validation)
    learnt, validation = (tokenizer.encode(part) for part in (text.train, text.validation))
    shard = jax.process_index(), jax.process_count()
    whole = data.windows_in_order(validation, config.context, 16 * config.batch_size, shard=shard)
    batches = data.windows(learnt, config.context, config.batch_size, config.seed, shard=shard, anywhere=True)
    folder = running.folder_of("shakespeare", config)
    passages = Passages(folder / "samples.txt", model(config, tokenizer.vocab_size), tokenizer, config)
    outcome = running.run(
        "shakespeare",
        config,
        folder,
        recipe(config, tokenizer.vocab_size),
        batches,
        {"validation": whole, "sampled": estimate(validation, config, shard)},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=text.fingerprint,
        about=f"{len(learnt)} characters to learn from and {len(validation)} to validate",
        extra={"tokenizer": tokenizer.to_json()},
        evaluators=[passages] if shard[1] == 1 else (),
        loggers=[passages.log],
    )
    history = outcome.fitted.history
    losses, sampled = (history.series(split, "loss")[1] for split in ("validation", "sampled"))
    more = {"sampled": sampled[-1], "best": min(losses), "best_sampled": min(sampled)}
    outcome = outcome._replace(test={**history.last("validation"), **more})
    if not config.execution.quiet and shard[0] == 0:
        print(running.report(described(outcome.test, config), outcome, "shakespeare"))
        if shard[1] == 1:
            print(f"passages written on the way: {folder / 'samples.txt'}")
    return outcome


def described(test: dict[str, Any], config: Config) -> str:
    """The figures in a sentence."""
    return (
        f"{test['loss']:.4f} nats a character on the whole validation text (perplexity "
        f"{test['perplexity']:.3f}), {test['sampled']:.4f} on {config.sampled} random batches; at best "
        f"{test['best']:.4f} and {test['best_sampled']:.4f}"
    )


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
