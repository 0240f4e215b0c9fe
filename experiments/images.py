"""What the image classification experiments share: data, recipe, report.

Each experiment gives a model and the settings of its own; `classify` does the rest.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import cli
from jdl import data, learners, tasks, train
from jdl.core import Learner, Task

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
    learning_rate: float = 2e-3
    """Peak of the learning rate, reached after a twentieth of the steps and lowered along a cosine."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of the kernels (AdamW); biases have none."""
    shift: int = 2
    """Largest random shift of a training image, pixels each way; 0 for the images as they are."""
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


class Outcome(NamedTuple):
    """What an experiment comes to.

    Attributes:
        fitted: what `jdl.train.fit` gives.
        test: metrics on the test set after the last step.
        dataset: the data.
        folder: the run's folder.
        seconds: wall-clock time.
    """

    fitted: train.Fitted
    test: dict[str, Any]
    dataset: data.Dataset
    folder: Path
    seconds: float


def classification_task(model: Any, preprocess: data.Preprocess, config: Config) -> Task:
    """The task of an image model on raw images."""
    task = tasks.classification(model, label_smoothing=config.label_smoothing)
    if config.dtype == "bfloat16":
        task = tasks.mixed_precision(task, jnp.bfloat16)
    if config.shift:
        task = tasks.augmented(task, data.random_crop(config.shift))
    return tasks.preprocessed(task, preprocess)


def recipe(model: Any, preprocess: data.Preprocess, config: Config) -> Learner:
    """AdamW with a warm-up and a cosine, and averaged weights where asked for."""
    task = classification_task(model, preprocess, config)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), max(2, config.steps)
    )
    tx = optax.adamw(rate, weight_decay=config.weight_decay, mask=learners.decays)
    learner = learners.gradient(task, tx, accumulate=config.accumulate)
    return learners.averaged(learner, config.averaging) if config.averaging else learner


def classify(experiment: str, model: Any, config: Config, *, size: tuple[int, int] | None = None) -> Outcome:
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
    start = time.perf_counter()
    dataset = data.load(config.dataset)
    # Padding would leave an 8x8 digit a dot in the middle.
    how = "resize" if config.dataset == "digits" else "pad"
    preprocess = data.fit_preprocess(dataset.train["inputs"], size=size, how=how)
    learner = recipe(model, preprocess, config)
    where = config.execution
    folder = Path(where.run) if where.run else cli.new_folder(experiment, config)
    run = train.Run(
        folder,
        config=cli.settings(experiment, config),
        data=dataset.fingerprint,
        extra={
            "preprocess": preprocess.to_json(),
            "class_names": dataset.class_names,
            "image_shape": dataset.train["inputs"].shape[1:],
        },
    )
    shard = jax.process_index(), jax.process_count()
    is_told = not where.quiet and shard[0] == 0
    if is_told:
        print(f"{experiment} on {config.dataset}: {len(dataset.train['labels'])} training and "
              f"{len(dataset.test['labels'])} test images; run folder {folder}")  # fmt: skip
    evaluation_batch = min(1000, len(dataset.test["labels"]))
    loggers: list[train.Logger] = []
    with contextlib.ExitStack() as stack:
        if is_told:
            loggers.append(stack.enter_context(train.ProgressBar(config.steps)))
        if where.tensorboard and shard[0] == 0:
            loggers.append(stack.enter_context(train.TensorBoard(str(folder / "tensorboard"))))
        fitted = train.fit(
            learner,
            data.shuffled(dataset.train, config.batch_size, seed=config.seed, shard=shard),
            config.steps,
            key=config.seed,
            evaluation={"test": data.in_order(dataset.test, evaluation_batch, shard=shard)},
            evaluate_every=config.evaluate_every or math.ceil(config.steps / 40),
            run=run,
            loggers=loggers,
            mesh=where.mesh or None,
            mode=where.mode,
        )
    curves = folder / train.run.CURVES
    if shard[0] == 0:
        train.save_history(fitted.history, curves, title=f"{experiment} on {config.dataset}")
    outcome = Outcome(fitted, fitted.history.last("test"), dataset, folder, time.perf_counter() - start)
    if is_told:
        flags = [flag for flag in cli.flags(where) if not flag.startswith(("--run", "--quiet"))]
        print(report(experiment, outcome, curves, "".join(f" {flag}" for flag in flags)))
    return outcome


def report(experiment: str, outcome: Outcome, curves: Path, where: str = "") -> str:
    """What is printed at the end: the figure, where everything is, and what to do next."""
    first = outcome.fitted.history.series("test", "accuracy")[1][0]
    accuracy, folder = outcome.test["accuracy"], outcome.folder
    after = f"after {outcome.fitted.step} steps in {outcome.seconds:.0f} s"
    return f"""
test accuracy {100 * accuracy:.2f} % (error {100 * (1 - accuracy):.2f} %), from {100 * first:.1f} %, {after}

  curves         {curves}
  metrics        {folder / train.run.METRICS}
  checkpoints    {folder / train.run.CHECKPOINTS}
  configuration  {folder / train.run.CONFIG}

evaluate it, or classify pictures:        python -m experiments.evaluate {folder} [PICTURE ...]
go on, had it been stopped before its end: python -m experiments.{experiment} --resume {folder}{where}"""
