"""Predicting tokens: the next one, those of a translation, and a label for each.

Axes: B batch, T time, S time of the source, D model, V vocabulary.

What a sequence is says `jdl.tasks.sequences`. Padding counts in no loss, no metric and no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import FAULTS, Array, Batch, Metrics, Perplexity, Task, Variables, weighted
from jdl.nn.chunked import TokenScores, chunked_token_scores, token_scores
from jdl.tasks.module import functions, head, with_losses
from jdl.tasks.sequences import (
    ANY_TOKENS,
    check_inputs,
    check_sequence,
    labels_and_weights,
    position_weights,
    real_positions,
)
from jdl.tasks.supervised import classification


def next_token(
    module: Any, *, label_smoothing: float = 0.0, z_loss: float = 0.0, chunk: int | None = None
) -> Task:
    """Language modelling: the module's logits [B, T, V] at position t are of the token after it.

    The loss of a token is -log p(token | those before), nats; in training softened and with a loss of log Z
    where asked for (`jdl.nn.chunked.token_scores`). ``labels`` [B, T] are the tokens that follow. Where the
    batch has none they are the tokens themselves, one position on, and the last position of a row, of its
    ``lengths`` or of a segment counts nothing. ``weights`` [B] or [B, T] count rows or positions.

    Args:
        module: a module from inputs to logits [B, T, V], where a position may see those before it alone. A
            module that says by an attribute ``causal`` that it sees others is refused.
        label_smoothing: share of each label's probability spread over the vocabulary, in training.
        z_loss: weight of (log Z)^2, in training.
        chunk: positions of each row whose logits are held at a time: the module's methods ``hidden`` and
            ``logits`` are then called one after the other. None holds all B * T * V of them.

    Returns:
        A task with the metrics "loss" (nats a token), "accuracy" and "perplexity", monitored by "min loss".

    Raises:
        ValueError: for a share out of range, a chunk for a module without those methods, or a module that
            is not causal; and, from the task's ``check``, for tokens, labels, lengths or weights that do not
            fit, in words.

    Example:
        >>> from flax import linen
        >>> class Bigram(linen.Module):
        ...     @linen.compact
        ...     def __call__(self, tokens, train=False):
        ...         return linen.Embed(5, 5)(tokens)
        >>> task = next_token(Bigram())
        >>> batch = {"inputs": jnp.array([[0, 1, 2, 3]])}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> metrics = task.evaluate(variables, batch, jax.random.key(1))
        >>> sorted(metrics), float(metrics["loss"].weight)
        (['accuracy', 'faults', 'loss', 'perplexity'], 3.0)

    Reference:
        Bengio, Ducharme, Vincent and Jauvin, "A neural probabilistic language model", 2003, section 2.
    """
    if not getattr(module, "causal", True):
        raise ValueError(
            "next_token needs a causal model, in which no token is seen before its turn; this "
            f"{type(module).__name__} is not: give it BlockConfig(causal=True) (if it is recurrent, "
            "bidirectional=False), or use tasks.masked"
        )
    task = of_tokens(module, label_smoothing, z_loss, chunk)

    def check(batch: Batch) -> None:
        V = check_tokens(module, task, batch)
        check_sequence("inputs", batch["inputs"], {"tokens": V})

    return task._replace(check=check)


def seq2seq(
    module: Any, *, label_smoothing: float = 0.0, z_loss: float = 0.0, chunk: int | None = None
) -> Task:
    """`next_token` of a target sequence given a source: translation, summarising, answering.

    The inputs are {"source": a sequence [B, S], "target": a sequence [B, T]}, where the target is what the
    decoder reads: a start token, then the labels but for the last one. ``labels`` [B, T] are what it is to
    write, and where the batch has none, its target one position on.

    Args:
        module: an encoder-decoder from such inputs to logits [B, T, V].
        label_smoothing: as in `next_token`.
        z_loss: as in `next_token`.
        chunk: as in `next_token`.

    Returns:
        A task with the metrics of `next_token`, which count target tokens.

    Raises:
        ValueError: as `next_token`, and for inputs without "source" and "target".

    Example:
        >>> from jdl.models import transformer
        >>> task = seq2seq(transformer(vocab_size=9, width=8, depth=1, num_heads=2, hidden=16))
        >>> source, target = jnp.array([[3, 4, 5]]), jnp.array([[0, 5, 4, 3]])  # 0 begins what is written
        >>> batch = {"inputs": {"source": source, "target": target}}
        >>> variables = jax.jit(task.init)(jax.random.key(0), batch)
        >>> float(task.evaluate(variables, batch, jax.random.key(1))["loss"].weight)
        3.0

    Reference:
        Sutskever, Vinyals and Le, "Sequence to sequence learning with neural networks", 2014, section 2.
    """
    task = of_tokens(module, label_smoothing, z_loss, chunk)

    def check(batch: Batch) -> None:
        inputs = batch.get("inputs")
        if not isinstance(inputs, Mapping) or not {"source", "target"} <= set(inputs):
            found = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f'inputs must be a dictionary with "source" and "target"; got {found}')
        check_tokens(module, task, batch)

    return task._replace(check=check)


def token_classification(module: Any, *, label_smoothing: float = 0.0) -> Task:
    """`classification` of every token of a sequence (names, parts of speech): padding counts nothing.

    A module of one label a sequence is for `classification` itself.

    Args:
        module: a module from a sequence to logits [B, T, C].
        label_smoothing: as in `classification`.

    Returns:
        A task with the metrics "loss" and "accuracy", monitored by "max accuracy".

    Raises:
        ValueError: as `classification`.

    Example:
        >>> from jdl.models import Recurrent
        >>> task = token_classification(Recurrent(3, (4,), pool="none", vocab_size=9))
        >>> inputs = {"tokens": jnp.array([[1, 2, 3], [4, 5, 0]]), "lengths": jnp.array([3, 2])}
        >>> batch = {"inputs": inputs, "labels": jnp.zeros((2, 3), jnp.int32)}
        >>> variables = jax.jit(task.init)(jax.random.key(0), batch)
        >>> float(task.evaluate(variables, batch, jax.random.key(1))["accuracy"].weight)
        5.0
    """
    task = classification(module, label_smoothing=label_smoothing)

    def ready(batch: Batch) -> Batch:
        real = real_positions(batch["inputs"])
        if real is None or "labels" not in batch:
            return batch
        return {**batch, "weights": position_weights(batch, real.shape) * real}

    return task._replace(
        loss=lambda variables, batch, key: task.loss(variables, ready(batch), key),
        evaluate=lambda variables, batch, key: task.evaluate(variables, ready(batch), key),
        check=lambda batch: task.check(ready(batch) if "inputs" in batch else batch),
    )


def of_tokens(module: Any, label_smoothing: float, z_loss: float, chunk: int | None) -> Task:
    """The task of a module whose logits are of the batch's `labels_and_weights`."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1; got {label_smoothing}")
    if z_loss < 0:
        raise ValueError(f"z_loss, a weight, must not be negative; got {z_loss}")
    if chunk is not None and not (hasattr(module, "hidden") and hasattr(module, "logits")):
        raise ValueError(f"chunk needs a module with methods hidden and logits; {type(module).__name__} "
                         "has not both")  # fmt: skip
    whole = functions(module)
    model = whole if chunk is None else functions(module, "hidden")
    to_logits = head(module)
    softened = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def scores(variables: Variables, outputs: Array, labels: Array, **options: float) -> TokenScores:
        if chunk is None:
            return token_scores(outputs, labels, **options)
        return chunked_token_scores(lambda h: to_logits(variables, h), outputs, labels, chunk, **options)

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        labels, weights = labels_and_weights(batch)
        outputs, collections, losses = model.train(variables, batch["inputs"], key)
        _require_fit(outputs, labels)
        found = scores(variables, outputs, labels, **softened)
        total, weight = weighted(found.loss, weights)
        metrics = _metrics(found, weights, labels, _vocabulary(variables, outputs))
        del metrics["loss"]
        total, metrics = with_losses(total, weight, metrics, losses)
        return total, (weight, collections, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        del key
        labels, weights = labels_and_weights(batch)
        outputs = model.predict(variables, batch["inputs"])
        _require_fit(outputs, labels)
        found = scores(variables, outputs, labels)
        return _metrics(found, weights, labels, _vocabulary(variables, outputs))

    def _vocabulary(variables: Variables, outputs: Array) -> int:
        return (outputs if chunk is None else jax.eval_shape(to_logits, variables, outputs)).shape[-1]

    return Task(whole.init, loss, evaluate, whole.predict)


def _metrics(scores: TokenScores, weights: Array, labels: Array, V: int) -> Metrics:
    surprise = weighted(scores.surprise, weights)
    outside = ((labels < 0) | (labels >= V)) & (weights > 0)
    return {
        "loss": surprise,
        "accuracy": weighted(scores.correct, weights),
        "perplexity": Perplexity(*surprise),
        FAULTS: {f"labels outside 0..{V - 1}": outside.sum(dtype=jnp.int32)},
    }


def _require_fit(outputs: Any, labels: Any) -> None:
    if outputs.shape[:-1] != labels.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit outputs of shape {outputs.shape}: "
                         f"expected {outputs.shape[:-1]}")  # fmt: skip


def check_tokens(module: Any, task: Task, batch: Batch) -> int:
    """The size of the vocabulary of a module's logits, when its task can take a concrete batch of tokens.

    Raises:
        ValueError: saying what is wrong with the batch.
    """
    if "inputs" not in batch:
        raise ValueError(f'language modelling needs a batch with "inputs"; it has {sorted(batch)}')
    inputs = batch["inputs"]
    if not isinstance(inputs, Mapping) or "target" not in inputs:
        check_sequence("inputs", inputs, ANY_TOKENS)
    else:
        check_sequence("source", inputs["source"], {})
        check_sequence("target", inputs["target"], ANY_TOKENS)
    check_inputs(module, inputs)
    given = batch.get("labels")
    if given is not None and not np.issubdtype(np.asarray(given).dtype, np.integer):
        raise ValueError(f"labels must be integers [B, T]; got {np.asarray(given).dtype}")
    labels, weights = (np.asarray(x) for x in labels_and_weights(batch))
    logits = jax.eval_shape(
        lambda batch: task.predict(task.init(jax.random.key(0), batch), batch["inputs"]), dict(batch)
    )
    _require_fit(logits, labels)
    V = logits.shape[-1]
    outside = ((labels < 0) | (labels >= V)) & (weights > 0)
    if outside.any():
        what = "labels" if given is not None else "tokens"
        raise ValueError(f"{outside.sum()} {what} lie outside 0..{V - 1}, the model's vocabulary: for "
                         f"example {labels[outside][0]} (what is not to count has weight 0)")  # fmt: skip
    return V
