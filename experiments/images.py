"""What the image classification experiments share: data, recipe, report.

Each experiment gives a model and the settings of its own; `classify` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from experiments import cli, running
from jdl import data, learners, tasks
from jdl.core import Array, Batch, Learner, Metrics, Task, Variables

DatasetName = Literal["digits", "mnist", "fashion_mnist", "cifar10"]


@dataclass(frozen=True)
class Config:
    """Settings of an image classifier's training."""

    dataset: DatasetName = "digits"
    """Images to learn: digits (ships with the package), mnist, fashion_mnist or cifar10 (downloaded)."""
    steps: int = 2000
    """Training steps, each on one batch."""
    batch_size: int = 64
    """Images in a batch."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with momentum 0.9."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    learning_rate: float = 2e-3
    """Peak of the learning rate."""
    schedule: Literal["cosine", "steps", "linear"] = "cosine"
    """How the rate falls after the warm-up: along a cosine, by 10 at half and at three quarters of the steps,
    or in a straight line; cosine and line end at 0."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises in a straight line from 0."""
    weight_decay: float = 1e-3
    """Weight decay: decoupled for adamw, part of the gradient for sgd."""
    decay_all: bool = False
    """Decay biases and normalisation too, as the recipes of the time did, not the kernels alone."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    shift: int = 2
    """Largest random shift of a training image, pixels each way; 0 for the images as they are."""
    flip: bool = False
    """Mirror half of the training images."""
    rand_augment: float = 0.0
    """Magnitude of RandAugment (two operations an image), such as 9; 0 for none."""
    cutout: int = 0
    """Side of a square set to zero in each training image, pixels; 0 for none."""
    erasing: float = 0.0
    """Probability of erasing a random rectangle of a training image."""
    mixup: float = 0.0
    """Alpha of Mixup; 0 for none. With CutMix too, each batch takes one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 for none."""
    label_smoothing: float = 0.0
    """Share of each label's probability spread over all classes."""
    averaging: float = 0.0
    """Decay of the moving average of the weights that is evaluated, such as 0.999; 0 evaluates the latest."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; parameters are float32."""
    evaluate_every: int = 0
    """Steps between two evaluations on the test set; a fortieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the images."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def augmentations(config: Config, num_classes: int) -> tuple[list[data.Transform], list[data.Transform]]:
    """The transforms of raw training images, and those of preprocessed ones, in which 0 is the mean."""
    raw, normalised = [], []
    if config.rand_augment:
        raw.append(data.rand_augment(magnitude=config.rand_augment))
    if config.shift:
        normalised.append(data.random_crop(config.shift))
    if config.flip:
        normalised.append(data.random_flip())
    if config.cutout:
        normalised.append(data.cutout(config.cutout))
    if config.erasing:
        normalised.append(data.random_erasing(config.erasing))
    mixes = [
        mix(alpha, num_classes)
        for mix, alpha in ((data.mixup, config.mixup), (data.cutmix, config.cutmix))
        if alpha
    ]
    if mixes:
        normalised.append(mixes[0] if len(mixes) == 1 else data.one_of(mixes))
    return raw, normalised


def classification_task(
    model: Any, preprocess: data.Preprocess, config: Config, num_classes: int = 10
) -> Task:
    """The task of an image model on raw images."""
    task = tasks.classification(model, label_smoothing=config.label_smoothing)
    if config.dtype == "bfloat16":
        task = tasks.mixed_precision(task, jnp.bfloat16)
    raw, normalised = augmentations(config, num_classes)
    if normalised:
        task = tasks.augmented(task, data.compose(*normalised))
    task = tasks.preprocessed(task, preprocess)
    return tasks.augmented(task, data.compose(*raw)) if raw else task


def predicting(
    task: Task, predict: Callable[[Variables, Array], Array], score: Callable[[Array, Batch], Metrics]
) -> Task:
    """The task that predicts otherwise than it learns, by a mean over views, say, and is scored by that."""

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        del key
        return score(predict(variables, batch["inputs"]), batch)

    return task._replace(predict=predict, evaluate=evaluate)


def learning_rate(config: Config) -> optax.Schedule:
    """The learning rate by step."""
    peak, steps = config.learning_rate, max(2, config.steps)
    warmup = max(1, round(config.warmup * steps)) if config.warmup else 0
    fall = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, max(1, steps - warmup)),
        "linear": lambda: optax.linear_schedule(peak, 0.0, max(1, steps - warmup)),
        "steps": lambda: optax.piecewise_constant_schedule(
            peak, {steps // 2 - warmup: 0.1, 3 * steps // 4 - warmup: 0.1}
        ),
    }[config.schedule]()
    return (
        optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup]) if warmup else fall
    )


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimiser that the configuration describes."""
    mask = None if config.decay_all else learners.decays
    if config.optimizer == "adamw":
        tx = optax.adamw(learning_rate(config), weight_decay=config.weight_decay, mask=mask)
    else:
        tx = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask),
            optax.sgd(learning_rate(config), momentum=0.9, nesterov=config.nesterov),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), tx) if config.clip else tx


def recipe(model: Any, preprocess: data.Preprocess, config: Config, num_classes: int = 10) -> Learner:
    """How the configuration trains a model: each part of the recipe has a field, and is off at its zero."""
    task = classification_task(model, preprocess, config, num_classes)
    learner = learners.gradient(task, optimizer(config), accumulate=config.accumulate)
    return learners.averaged(learner, config.averaging) if config.averaging else learner


def classify(
    experiment: str, model: Any, config: Config, *, size: tuple[int, int] | None = None
) -> running.Outcome:
    """Trains an image model and reports how well it does on the test set.

    The test set is looked at during training and decides nothing: the result is that of the last step.

    Args:
        experiment: the experiment's name, for its folder.
        model: a module from images to logits.
        config: settings.
        size: the model's own image size (smaller images are padded; the 8x8 digits are enlarged); None
            leaves images as they are.

    Returns:
        The outcome; the run's folder holds checkpoints, metrics, configuration and curves.
    """
    dataset = data.load(config.dataset)
    # Padding would leave an 8x8 digit a dot in the middle.
    how = "resize" if config.dataset == "digits" else "pad"
    preprocess = data.fit_preprocess(dataset.train["inputs"], size=size, how=how)
    shard = jax.process_index(), jax.process_count()
    outcome = running.run(
        experiment,
        config,
        running.folder_of(experiment, config),
        recipe(model, preprocess, config, len(dataset.class_names)),
        data.shuffled(dataset.train, config.batch_size, seed=config.seed, shard=shard),
        {"test": data.in_order(dataset.test, min(1000, len(dataset.test["labels"])), shard=shard)},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=dataset.fingerprint,
        about=f"{len(dataset.train['labels'])} training and {len(dataset.test['labels'])} test images of "
        f"{config.dataset}",
        extra={
            "preprocess": preprocess.to_json(),
            "class_names": dataset.class_names,
            "image_shape": dataset.train["inputs"].shape[1:],
        },
    )
    where = config.execution
    if shard[0] == 0 and not where.quiet:
        first, last = outcome.fitted.history.series("test", "accuracy")[1][0], outcome.test["accuracy"]
        found = f"test accuracy {100 * last:.2f} % (error {100 * (1 - last):.2f} %), from {100 * first:.1f} %"
        also = (
            "\nevaluate it, or classify pictures:        "
            f"python -m experiments.evaluate {outcome.folder} [PICTURE ...]"
        )
        flags = [flag for flag in cli.flags(where) if not flag.startswith(("--run", "--quiet"))]
        told = running.report(found, outcome, experiment, also=also, flags="".join(f" {f}" for f in flags))
        print(told)
    return outcome
