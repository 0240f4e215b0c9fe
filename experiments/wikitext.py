"""AWD-LSTM on WikiText-2, words: an LSTM language model that is regularised wherever it can be.

The defaults are the recipe as published, 750 passes in batches of 80 rows, with three differences: every
batch has 70 steps of time, and each pass begins at a random phase, where the authors draw the length of each
batch; the state is carried from the end of a pass into the next, where theirs begins each pass with zeros;
and what is evaluated is the exponential moving average of the weights over about two passes, where theirs
(NT-ASGD) begins averaging when the validation loss no longer falls. The authors report a perplexity of
65.6 on the test text, before any finetuning or cache. The whole recipe takes days on a CPU;

    python -m experiments.wikitext short

is one for a CPU: a smaller network, Adam, one pass. `experiments.torch_wikitext` trains the very same in
PyTorch. Perplexities are those of a text cut into ten rows side by side, each with a state that is carried
from its first word to its last; every word counts, ``<unk>`` and ``<eos>`` included, as published.

Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", 2018, table 2.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, running
from jdl import data, learners, tasks
from jdl.core import CARRY, Learner
from jdl.models import RecurrentLM

PUBLISHED = "65.6 test perplexity of AWD-LSTM (README of the authors' code; the paper's table 2 has 65.8)"

SPLIT = "WikiText-2, 2,088,628 training, 217,646 validation and 245,569 test words, 33,278 distinct"


@dataclass(frozen=True)
class Config:
    """Settings of a recurrent language model of words; the defaults are the paper's."""

    dataset: Literal["wikitext2"] = "wikitext2"
    """The text."""
    epochs: float = 750
    """Passes over the training text."""
    batch_size: int = 80
    """Rows that the training text is cut into."""
    context: int = 70
    """Words of a row in a batch, through which the gradient goes."""
    width: int = 400
    """Features of a word, and of the last layer."""
    hidden: tuple[int, ...] = (1150, 1150)
    """Features of the layers before the last."""
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    """Recurrent layer."""
    dropout: float = 0.4
    """Share of the last layer's features dropped; like the next two, the same ones at all steps of a row."""
    input_dropout: float = 0.65
    """Share of the words' features dropped."""
    hidden_dropout: float = 0.2
    """Share of features dropped between layers."""
    token_dropout: float = 0.1
    """Share of the vocabulary dropped."""
    weight_drop: float = 0.5
    """Share of the entries dropped of the kernels from state to state."""
    activation_loss: float = 2.0
    """Weight of the mean square of the dropped outputs."""
    change_loss: float = 1.0
    """Weight of the mean square of the outputs' change from step to step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd at a constant rate, or adam, whose rate falls along a cosine to 0."""
    learning_rate: float = 30.0
    """Learning rate."""
    weight_decay: float = 1.2e-6
    """Weight decay, part of the gradient."""
    clip: float = 0.25
    """Largest norm of the whole gradient."""
    averaging: float = 0.9987
    """Decay of the moving average of the weights that is evaluated; 0 evaluates the latest."""
    chunk: int = 0
    """Steps of time whose logits are held at once, to save memory; all when 0."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; parameters are float32."""
    evaluations: int = 0
    """Evaluations in all; one a pass when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the phases."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


SHORT = Config(
    epochs=1,
    batch_size=32,
    context=35,
    width=160,
    hidden=(320, 320),
    dropout=0.1,
    input_dropout=0.1,
    hidden_dropout=0.1,
    token_dropout=0.0,
    weight_drop=0.2,
    optimizer="adam",
    learning_rate=4e-3,
    averaging=0.0,
)
"""The recipe for a CPU."""

PLAIN = dataclasses.replace(
    SHORT,
    dropout=0.0,
    input_dropout=0.0,
    hidden_dropout=0.0,
    weight_drop=0.0,
    activation_loss=0.0,
    change_loss=0.0,
)
"""That of an LSTM with nothing to regularise it but weight decay."""


def model(config: Config, vocab_size: int) -> RecurrentLM:
    """The network that the configuration describes."""
    return RecurrentLM(
        vocab_size,
        config.width,
        (*config.hidden, config.width),
        config.cell,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        hidden_dropout=config.hidden_dropout,
        token_dropout=config.token_dropout,
        weight_drop=config.weight_drop,
        activation_loss=config.activation_loss,
        change_loss=config.change_loss,
        stateful=True,
        dtype=jnp.bfloat16 if config.dtype == "bfloat16" else None,
    )


def recipe(config: Config, vocab_size: int, steps: int) -> Learner:
    """How the configuration trains it."""
    if config.optimizer == "sgd":
        rule = optax.sgd(config.learning_rate)
    else:
        rule = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip), optax.add_decayed_weights(config.weight_decay), rule
    )
    task = tasks.next_token(model(config, vocab_size), chunk=config.chunk or None)
    learner = learners.gradient(task, tx)
    return learners.averaged(learner, config.averaging) if config.averaging else learner


def carried(module: RecurrentLM) -> Callable[[Any, Any], dict[str, float]]:
    """An evaluator: the loss and perplexity of rows whose state is carried from batch to batch."""

    @jax.jit
    def step(variables: Any, batch: Any) -> Any:
        logits, changed = module.apply(variables, batch["inputs"], mutable=[CARRY])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["labels"])
        return changed, (losses * batch["weights"]).sum(), batch["weights"].sum()

    def evaluate(predict: Any, batches: Any) -> dict[str, float]:
        params = predict.args[0]["params"]
        carry: Any = {}
        total = weight = 0.0
        for i in range(len(batches)):
            carry, loss, count = step({"params": params, **carry}, batches(i))
            total, weight = total + float(loss), weight + float(count)
        return {"carried_loss": total / weight, "carried_perplexity": math.exp(total / weight)}

    return evaluate


def texts(config: Config) -> tuple[dict[str, np.ndarray], data.Tokenizer, str]:
    """The words of each part by number, what numbers them, and the fingerprint of the text."""
    text = data.load_text(config.dataset)
    parts = {"train": text.train, "validation": text.validation, "test": text.test or ""}
    tokenizer = data.word_tokenizer(text.train, specials=("<eos>", "<unk>"), newline="<eos>")
    return {name: tokenizer.encode(part) for name, part in parts.items()}, tokenizer, text.fingerprint


def main(config: Config) -> running.Outcome:
    """Trains a language model as the configuration says; ``test`` is of the last step.

    "carried_perplexity" is the figure to compare, of both texts; "perplexity" in the history is that of a
    state that forgets between batches.
    """
    words, tokenizer, fingerprint = texts(config)
    batches = data.continuing_rows(words["train"], config.context, config.batch_size, config.seed)
    steps = round(config.epochs * len(batches))
    measure = carried(model(config, tokenizer.vocab_size))
    sets = {
        name: data.continuing_rows(words[name], config.context, 10, seed=None)
        for name in ("validation", "test")
    }
    outcome = running.run(
        "wikitext",
        config,
        running.folder_of("wikitext", config),
        recipe(config, tokenizer.vocab_size, steps),
        batches,
        {"validation": sets["validation"]},
        steps=steps,
        evaluate_every=math.ceil(steps / (config.evaluations or math.ceil(config.epochs))),
        fingerprint=fingerprint,
        about=f"{len(words['train']):,} words to learn from, {tokenizer.vocab_size:,} of them distinct",
        extra={"tokenizer": tokenizer.to_json()},
        evaluators=[measure],
    )
    outcome = outcome._replace(test=measure(outcome.fitted.predict, sets["test"]))
    if not config.execution.quiet:
        validation = outcome.fitted.history.last("validation")["carried_perplexity"]
        test = outcome.test["carried_perplexity"]
        figure = f"perplexity {test:.2f} on the test text, {validation:.2f} on the validation text"
        print(running.report(figure, outcome, "wikitext"))
    return outcome


if __name__ == "__main__":
    is_short = sys.argv[1:2] == ["short"]
    if is_short:
        del sys.argv[1]
    cli.command(main, Config, __doc__, SHORT if is_short else None)
