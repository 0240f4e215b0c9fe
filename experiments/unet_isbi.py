"""U-Net on the ISBI 2012 challenge: membranes of neurons in 30 electron micrographs.

Trains a narrow U-Net on random parts of 24 slices, mirrored, turned and elastically deformed, and reports
pixel error and intersection over union on the other 6, of what is said on average of the eight mirrored and
turned versions of a slice. The paper trains the full network (64 channels, no padding, whole slices, the
borders between touching cells weighted more, here ``--weighted``) on all 30, averages seven rotated versions,
and reports a pixel error of 0.0611 on the challenge's own test slices, whose labels are not public; the
figures here are of other slices.

Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from experiments import cli, images, running
from jdl import data, learners, models, tasks
from jdl.core import Array, Learner, Task, Variables

PUBLISHED = "0.0611 pixel error on the challenge's own test slices (Ronneberger et al. 2015, table 1)"


@dataclass(frozen=True)
class Config:
    """Settings of the U-Net's training."""

    dataset: Literal["isbi2012"] = "isbi2012"
    """Images to learn; they are put under $JDL_DATA/isbi2012_em by hand."""
    width: int = 16
    """Channels of the first stage; the paper's network has 64."""
    norm: bool = True
    """Batch normalisation, which the paper does not have."""
    dropout: float = 0.0
    """Share of values dropped at the end of the way down."""
    steps: int = 1500
    """Training steps, each on one batch."""
    batch_size: int = 8
    """Parts of slices in a batch."""
    crop: int = 128
    """Side of a part, pixels; a multiple of 16."""
    bend: float = 4.0
    """Standard deviation of the elastic displacement, pixels; 0 for none."""
    smoothness: float = 16.0
    """Deviation of the Gaussian that smooths the displacement, pixels."""
    learning_rate: float = 2e-3
    """Peak of the learning rate of AdamW, which falls along a cosine after a twentieth of the steps."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of the kernels."""
    weighted: bool = False
    """Train with the paper's weights of pixels: classes alike, and more for membranes between close cells."""
    symmetries: bool = True
    """Evaluate the mean of what is said of the eight mirrored and turned versions of a slice."""
    evaluate_every: int = 0
    """Steps between two evaluations on the test slices; a fifth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the slices."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def turned(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Upside down, and rows for columns, each for half of the images: with a mirror, all quarter turns.

    All entries of the batch are maps of pixels [B, H, W, ...], and turn alike.
    """
    B = len(batch["inputs"])
    upside, across = jax.random.bernoulli(key, 0.5, (2, B))

    def turn(x: jax.Array) -> jax.Array:
        shape = (B,) + (1,) * (x.ndim - 1)
        x = jnp.where(upside.reshape(shape), x[:, ::-1], x)
        return jnp.where(across.reshape(shape), x.swapaxes(1, 2), x)

    return {name: turn(x) for name, x in batch.items()}


def symmetric(task: Task) -> Task:
    """The task with the probabilities of a pixel averaged over the eight symmetries of a square image.

    All versions are predicted at once, in eight times the memory.

    Raises:
        ValueError: from ``predict``, for images that are not square.
    """

    def predict(variables: Variables, inputs: Array) -> Array:
        if inputs.shape[1] != inputs.shape[2]:
            size = "x".join(map(str, inputs.shape[1:3]))
            raise ValueError(f"only squares have eight symmetries, slices are {size}: --no-symmetries")
        mirrored = [inputs, inputs[:, :, ::-1]]
        versions = [jnp.rot90(x, quarters, (1, 2)) for quarters in range(4) for x in mirrored]
        logits = task.predict(variables, jnp.concatenate(versions))
        found = jnp.split(jax.nn.log_softmax(logits), len(versions))
        back = [jnp.rot90(y, -(i // 2), (1, 2)) for i, y in enumerate(found)]
        back = [y[:, :, ::-1] if i % 2 else y for i, y in enumerate(back)]
        return jax.nn.logsumexp(jnp.stack(back), axis=0) - math.log(len(back))

    return images.predicting(task, predict, tasks.segmentation_score)


def augmentation(config: Config, side: int) -> data.Transform:
    """A random part of each slice, mirrored, turned and bent, with its labels, and with weights if any."""
    share, also = (config.crop / side) ** 2, ("labels", "weights") if config.weighted else ("labels",)
    transforms = [
        data.random_resized_crop(config.crop, (share, share), (1.0, 1.0), also=also),
        data.random_flip(also=also),
        turned,
    ]
    if config.bend:
        # `data.elastic` says how strength and smoothness make a standard deviation.
        alpha = config.bend * config.smoothness * math.sqrt(12 * math.pi)
        transforms.append(data.elastic(alpha, config.smoothness, also=also))
    return data.compose(*transforms)


def recipe(config: Config, preprocess: data.Preprocess, side: int) -> Learner:
    """How the configuration trains a U-Net on slices of ``side`` x ``side`` pixels."""
    model = models.UNet(2, config.width, norm=config.norm, dropout=config.dropout)
    task = tasks.segmentation(model)
    task = tasks.preprocessed(symmetric(task) if config.symmetries else task, preprocess)
    task = tasks.augmented(task, augmentation(config, side))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), max(2, config.steps)
    )
    return learners.gradient(task, optax.adamw(rate, weight_decay=config.weight_decay, mask=learners.decays))


def main(config: Config) -> running.Outcome:
    """Trains a U-Net as the configuration says; the test slices decide nothing."""
    dataset = data.load(config.dataset)
    preprocess = data.fit_preprocess(dataset.train["inputs"], size=None)
    learnt = dict(dataset.train)
    if config.weighted:
        learnt["weights"] = data.border_weights(learnt["labels"])
    shard = jax.process_index(), jax.process_count()
    outcome = running.run(
        "unet_isbi",
        config,
        running.folder_of("unet_isbi", config),
        recipe(config, preprocess, dataset.train["inputs"].shape[1]),
        data.shuffled(learnt, config.batch_size, seed=config.seed, shard=shard),
        {"test": data.in_order(dataset.test, max(2, jax.device_count()), shard=shard)},
        steps=config.steps,
        evaluate_every=config.evaluate_every or math.ceil(config.steps / 5),
        fingerprint=dataset.fingerprint,
        about=f"{len(dataset.train['labels'])} slices to learn from, {len(dataset.test['labels'])} to test",
        extra={"preprocess": preprocess.to_json(), "class_names": dataset.class_names},
    )
    if shard[0] == 0 and not config.execution.quiet:
        print(running.report(described(outcome.test, dataset.class_names), outcome, "unet_isbi"))
    return outcome


def described(test: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The figures in words."""
    overlap = zip(class_names, test["iou"], strict=True)
    each = ", ".join(f"{name} {value:.3f}" for name, value in overlap)
    return f"pixel error {1 - test['accuracy']:.4f}, intersection over union {each}"


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
