"""A small BERT that learns to fill in hidden tokens.

Byte pair encoding is trained on the text; rows are random windows of it, without sentence pairs (Liu et al.
found that predicting the next sentence does not help). Of the tokens 15 % are chosen, and of those 80 % are
masked, 10 % replaced and 10 % left; each time a row is seen, other ones. No published figure has this text,
these tokens and this size: the loss is compared with that of a model that knows only how common each token
is, which is reported beside it.

Devlin, Chang, Lee and Toutanova, "BERT: pre-training of deep bidirectional transformers for language
understanding", 2019; Liu et al., "RoBERTa: a robustly optimized BERT pretraining approach", 2019; rotary
positions: Su et al., "RoFormer: enhanced Transformer with rotary position embedding", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, running
from jdl import data, learners, models, tasks
from jdl.core import Learner
from jdl.nn import Rotary

PUBLISHED = "none: the text, the tokens and the size are our own"

MASK = "[MASK]"


@dataclass(frozen=True)
class Config:
    """Settings of a masked language model."""

    dataset: Literal["tiny_shakespeare", "wikitext2"] = "tiny_shakespeare"
    """The text: tiny_shakespeare (ships with the package) or wikitext2 (downloaded)."""
    vocab_size: int = 1000
    """Tokens of the byte pair encoding, 256 bytes and the mask included."""
    steps: int = 3000
    """Training steps, each on one batch."""
    batch_size: int = 32
    """Rows in a batch."""
    context: int = 64
    """Tokens in a row."""
    depth: int = 4
    """Blocks."""
    width: int = 128
    """Features of a token."""
    num_heads: int = 4
    """Heads of attention."""
    dropout: float = 0.1
    """Share of values dropped, of embeddings, attention and what each block adds."""
    rate: float = 0.15
    """Share of tokens chosen."""
    learning_rate: float = 1e-3
    """Peak of the learning rate, which then falls in a straight line to 0."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay of kernels."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    chunk: int = 0
    """Positions of each row whose logits are held at a time, to save memory; all when 0."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory."""
    remat: Literal["none", "dots", "full"] = "none"
    """What blocks compute again for the gradient rather than keep: nothing, all but the results of matrix
    products, or all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; parameters are float32."""
    evaluate_every: int = 0
    """Steps between two evaluations; a fortieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the windows."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def model(config: Config, vocab_size: int) -> models.Transformer:
    """The network: BERT's, with rotary positions and without types of tokens.

    A hidden token says nothing but its place. With learned positions and BERT's small initial kernels, a
    network of this size looks at all places alike for thousands of steps, and learns how common tokens are.
    """
    return models.bert(
        vocab_size=vocab_size,
        types=0,
        positions=None,
        rotary=Rotary(),
        init_std=None,
        embed_std=config.width**-0.5,
        context=config.context,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        dropout=config.dropout,
        remat=None if config.remat == "none" else config.remat,
        dtype=jnp.bfloat16 if config.dtype == "bfloat16" else None,
    )


def recipe(config: Config, tokenizer: data.Tokenizer) -> Learner:
    """How the configuration trains it."""
    task = tasks.masked(
        model(config, tokenizer.vocab_size),
        tokenizer.vocab_size,
        tokenizer.specials[MASK],
        rate=config.rate,
        chunk=config.chunk or None,
    )
    warmup = max(1, round(config.warmup * config.steps))
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, warmup),
            optax.linear_schedule(config.learning_rate, 0.0, max(1, config.steps - warmup)),
        ],
        [warmup],
    )
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, 0.9, 0.98, eps=1e-6, weight_decay=config.weight_decay, mask=learners.decays),
    )
    return learners.gradient(task, tx, accumulate=config.accumulate)


def unigram(learnt: np.ndarray, read: np.ndarray, vocab_size: int) -> float:
    """The loss, nats a token, of a model that knows only how common each token is."""
    counts = np.bincount(learnt, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[read].mean())


def main(config: Config) -> running.Outcome:
    """Trains a masked language model as the configuration says; ``test`` is of the validation text.

    To its metrics comes "unigram", the loss of a model that knows only how common each token is.
    """
    text = data.load_text(config.dataset)
    tokenizer = data.train_bpe(text.train.splitlines(keepends=True), config.vocab_size, [MASK])
    learnt, read = (tokenizer.encode(part) for part in (text.train, text.validation))
    rows = read[: len(read) // config.context * config.context].reshape(-1, config.context)
    shard = jax.process_index(), jax.process_count()
    folder = running.folder_of("masked_language", config)
    outcome = running.run(
        "masked_language",
        config,
        folder,
        recipe(config, tokenizer),
        data.windows(learnt, config.context, config.batch_size, config.seed, shard=shard, anywhere=True),
        {"validation": data.in_order({"inputs": rows}, 4 * config.batch_size, shard=shard)},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=text.fingerprint,
        about=f"{len(learnt)} tokens to learn from and {rows.size} to validate, of {tokenizer.vocab_size}",
        extra={"tokenizer": tokenizer.to_json()},
    )
    test = {**outcome.test, "unigram": unigram(learnt, rows, tokenizer.vocab_size)}
    outcome = outcome._replace(test=test)
    if not config.execution.quiet and shard[0] == 0:
        print(running.report(described(test), outcome, "masked_language"))
    return outcome


def described(test: dict[str, Any]) -> str:
    """The figures in a sentence."""
    return (
        f"{test['loss']:.4f} nats a hidden token (perplexity {test['perplexity']:.1f}), "
        f"{100 * test['accuracy']:.1f} % filled in right; by how common tokens are {test['unigram']:.4f}"
    )


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
