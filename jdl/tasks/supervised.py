"""Classification and regression.

Axes: B batch, T any further positions (pixels, tokens), C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.core import FAULTS, Array, Batch, Mean, Metrics, Task, Variables, weighted
from jdl.tasks.module import functions, with_losses
from jdl.tasks.sequences import check_inputs, position_weights

Score = Callable[[Any, Batch], Metrics]


def supervised(module: Any, score: Score, *, train_score: Score | None = None, **fields: Any) -> Task:
    """The task of a module whose outputs are scored one example at a time.

    Args:
        module: a Linen module (or what quacks like one, see `jdl.tasks.module`).
        score: ``outputs, batch -> metrics``; its "loss" is a `Mean` and is what training lowers.
        train_score: the same for training, where that differs (label smoothing, say).
        **fields: ``monitor`` and ``check`` of the `Task`. Without a check of its own it checks inputs that
            are sequences (`jdl.tasks.sequences`).

    Returns:
        The task.

    Example:
        >>> from jdl.models import MLP
        >>> def score(outputs, batch):
        ...     errors = jnp.abs(outputs - batch["labels"]).max(-1)
        ...     return {"loss": weighted(errors, jnp.ones(len(errors)))}
        >>> task = supervised(MLP((8, 2)), score)
        >>> batch = {"inputs": jnp.ones((3, 5)), "labels": jnp.zeros((3, 2))}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> float(task.evaluate(variables, batch, jax.random.key(1))["loss"].weight)
        3.0
    """
    train_score = train_score or score
    model = functions(module)

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        outputs, collections, losses = model.train(variables, batch["inputs"], key)
        metrics = train_score(outputs, batch)
        total, weight = metrics.pop("loss")
        total, metrics = with_losses(total, weight, metrics, losses)
        return total, (weight, collections, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        del key
        return score(model.predict(variables, batch["inputs"]), batch)

    def check(batch: Batch) -> None:
        if "inputs" in batch:
            check_inputs(module, batch["inputs"])

    return Task(model.init, loss, evaluate, model.predict, **{"check": check, **fields})


def classification(module: Any, *, label_smoothing: float = 0.0, auxiliary: float = 0.3) -> Task:
    """Softmax classification: the module's outputs are logits [B, ..., C].

    The loss is cross-entropy, -sum_c q_c log softmax(logits)_c, with q the one-hot label, softened to
    (1 - s) q + s / C in training. ``labels`` are integers [B, ...] or probabilities [B, ..., C], as Mixup
    makes them; ``weights`` [B] or [B, ...] count examples or positions. A module with auxiliary classifiers
    gives in training a tuple, the logits and those of the auxiliary ones, whose losses are added.

    Args:
        module: a module from inputs to logits.
        label_smoothing: s above, 0 <= s < 1.
        auxiliary: weight of the losses of auxiliary classifiers.

    Returns:
        A task with the metrics "loss" (nats) and "accuracy", monitored by "max accuracy".

    Raises:
        ValueError: for ``label_smoothing`` out of range; and, from the task's ``check``, for labels of a
            wrong shape or type or out of range.

    Example:
        >>> from jdl.models import MLP
        >>> task = classification(MLP((8, 3)))
        >>> batch = {"inputs": jnp.ones((2, 5)), "labels": jnp.array([0, 2])}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> sorted(task.evaluate(variables, batch, jax.random.key(1)))
        ['accuracy', 'faults', 'loss']

    Reference:
        Label smoothing: Szegedy et al., "Rethinking the inception architecture", 2016, section 7. Auxiliary
        classifiers: Szegedy et al., "Going deeper with convolutions", 2015, section 5.
    """
    return _classifier(module, classification_score, label_smoothing, auxiliary)


def segmentation(module: Any, *, label_smoothing: float = 0.0, auxiliary: float = 0.3) -> Task:
    """`classification` of every pixel: logits [B, H, W, C], ``labels`` [B, H, W], and the overlap of regions.

    A pixel counts by its ``weights`` [B, H, W] (or by its image's, [B]), in the loss, whose total is a sum
    over pixels, and in all metrics.

    Args:
        module: a module from images to logits of each pixel.
        label_smoothing: as in `classification`.
        auxiliary: as in `classification`.

    Returns:
        A task with the metrics "loss", "accuracy" (of pixels), and for each class "iou" and "dice" [C],
        monitored by "max accuracy".

    Raises:
        ValueError: as `classification`.

    Example:
        >>> from jdl.core import summarize
        >>> from jdl.models import UNet
        >>> task = segmentation(UNet(2, width=4, depth=1))
        >>> batch = {"inputs": jnp.ones((1, 8, 8, 1)), "labels": jnp.zeros((1, 8, 8), jnp.int32)}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> summarize(task.evaluate(variables, batch, jax.random.key(1)))["iou"].shape
        (2,)
    """
    return _classifier(module, segmentation_score, label_smoothing, auxiliary)


def _classifier(module: Any, score: Callable[..., Metrics], label_smoothing: float, auxiliary: float) -> Task:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1; got {label_smoothing}")

    def train_score(outputs: Any, batch: Batch) -> Metrics:
        logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        metrics = score(logits, batch, label_smoothing=label_smoothing)
        total, weight = metrics["loss"]
        for other in others:
            extra = classification_score(other, batch, label_smoothing=label_smoothing)["loss"]
            total = total + auxiliary * extra.total
        return {**metrics, "loss": Mean(total, weight)}

    task = supervised(module, score, train_score=train_score, monitor="max accuracy")

    def check(batch: Batch) -> None:
        task.check(batch)
        _check_labels(task, batch)

    return task._replace(check=check)


def segmentation_score(logits: Array, batch: Batch, *, label_smoothing: float = 0.0) -> Metrics:
    """`classification_score`, and the overlap of the predicted with the labelled region of each class.

    With P and L the pixels predicted and labelled as a class, "iou" is |P and L| / |P or L| (Jaccard) and
    "dice" 2 |P and L| / (|P| + |L|), each a `Mean` of arrays [C], with pixels counted by their weights. They
    add up over batches, and are not a number for a class that is nowhere predicted nor labelled.
    """
    metrics = classification_score(logits, batch, label_smoothing=label_smoothing)
    C = logits.shape[-1]
    labels = jnp.asarray(batch["labels"])
    if jnp.issubdtype(labels.dtype, jnp.floating):
        labels = labels.argmax(-1)
    weights = position_weights(batch, logits.shape[:-1])[..., None]
    classes = jnp.arange(C).reshape((1,) * labels.ndim + (C,))
    predicted = logits.argmax(-1)[..., None] == classes
    labelled = labels.astype(jnp.int32)[..., None] == classes

    def count(region: Array) -> Array:
        return (region * weights).sum(tuple(range(labels.ndim)))

    both, together = count(predicted & labelled), count(predicted) + count(labelled)
    return {**metrics, "iou": Mean(both, together - both), "dice": Mean(2 * both, together)}


def classification_score(logits: Array, batch: Batch, *, label_smoothing: float = 0.0) -> Metrics:
    """Cross-entropy and accuracy of logits [B, ..., C] against the labels of ``batch``.

    Returns:
        "loss" and "accuracy", each a `Mean`, and a fault that counts labels outside 0..C-1.
    """
    logits = logits.astype(jnp.float32)
    labels, C = jnp.asarray(batch["labels"]), logits.shape[-1]
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    if not soft:
        labels = labels.astype(jnp.int32)  # the number of classes may not fit into bytes
    expected = logits.shape if soft else logits.shape[:-1]
    if labels.shape != expected:
        raise ValueError(
            f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}: "
            f"expected {expected}, or class probabilities of shape {logits.shape}"
        )
    weights = position_weights(batch, logits.shape[:-1])
    targets: Array | None
    if soft:
        targets, hard, outside = labels, labels.argmax(-1), jnp.zeros((), jnp.int32)
    else:
        wrong = (labels < 0) | (labels >= C)
        hard, outside = labels, (wrong & (weights > 0)).sum(dtype=jnp.int32)
        targets = jax.nn.one_hot(labels, C) if label_smoothing else None
    if targets is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.clip(hard, 0, C - 1))
    else:
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
    return {
        "loss": weighted(losses, weights),
        "accuracy": weighted(logits.argmax(-1) == hard, weights),
        FAULTS: {f"labels outside 0..{C - 1}": outside},
    }


def regression(module: Any, *, loss: Literal["squared", "absolute", "huber"] = "squared") -> Task:
    """Regression: the module's outputs and ``labels`` have one shape [B, ...].

    The loss of an example is the mean over its outputs of (y - f)^2, of |y - f|, or of Huber's function
    with delta 1 (squared below, linear above; optax.huber_loss).

    Args:
        module: a module from inputs to predictions.
        loss: "squared", "absolute" or "huber".

    Returns:
        A task with the metrics "loss", "mse" and "mae", monitored by "min loss".

    Raises:
        ValueError: for an unknown loss, and for outputs and labels whose shapes differ, which would
            otherwise broadcast in silence.

    Example:
        >>> from jdl.models import MLP
        >>> task = regression(MLP((8, 1)))
        >>> batch = {"inputs": jnp.ones((2, 5)), "labels": jnp.array([[0.5], [2.0]])}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> sorted(task.evaluate(variables, batch, jax.random.key(1)))
        ['loss', 'mae', 'mse']
    """
    losses = {
        "squared": lambda error: jnp.square(error),
        "absolute": jnp.abs,
        "huber": lambda error: optax.huber_loss(error, delta=1.0),
    }
    if loss not in losses:
        raise ValueError(f"loss must be one of {', '.join(losses)}; got {loss!r}")

    def score(outputs: Array, batch: Batch) -> Metrics:
        labels = jnp.asarray(batch["labels"])
        if outputs.shape != labels.shape:
            raise ValueError(
                f"outputs of shape {outputs.shape} and labels of shape {labels.shape} must agree"
            )
        error = outputs.astype(jnp.float32) - labels.astype(jnp.float32)
        weights = position_weights(batch, labels.shape[:1])

        def mean(values: Array) -> Mean:
            return weighted(values.reshape(values.shape[0], -1).mean(-1), weights)

        return {
            "loss": mean(losses[loss](error)),
            "mse": mean(jnp.square(error)),
            "mae": mean(jnp.abs(error)),
        }

    return supervised(module, score)


def _check_labels(task: Task, batch: Batch) -> None:
    """Raises ValueError, in words, for a concrete batch that `classification` cannot take."""
    for name in ("inputs", "labels"):
        if name not in batch:
            raise ValueError(
                f'classification needs a batch with "inputs" and "labels"; it has {sorted(batch)}'
            )
    labels = np.asarray(batch["labels"])
    if not np.issubdtype(labels.dtype, np.integer) and not np.issubdtype(labels.dtype, np.floating):
        raise ValueError(f"labels must be integers or probabilities; got {labels.dtype}")
    logits = jax.eval_shape(
        lambda batch: task.predict(task.init(jax.random.key(0), batch), batch["inputs"]), dict(batch)
    )
    C = logits.shape[-1]
    if np.issubdtype(labels.dtype, np.floating):
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels are {labels.dtype} of shape {labels.shape}: expected integers of shape "
                f"{logits.shape[:-1]}, or probabilities of shape {logits.shape}"
            )
        return
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}")
    outside = (labels < 0) | (labels >= C)
    if "weights" in batch:
        outside &= np.asarray(position_weights(batch, labels.shape)) > 0
    if outside.any():
        raise ValueError(
            f"{outside.sum()} labels lie outside 0..{C - 1}, the classes of the model's {C} outputs: "
            f"for example {labels[outside][0]}"
        )
