"""A network for your own photographs: a folder with one sub-folder of pictures a class.

From published weights, of which the last layer is replaced, or from nothing:

    python -m experiments.photographs --train flowers/train --test flowers/test --weights resnet18.safetensors
    python -m experiments.photographs --train flowers/train --test flowers/test --steps 20000

Weights are a state_dict of torchvision (or timm's, whose ResNet has the same names), as .safetensors or .pth,
made for 224 pixels and ImageNet's mean and deviation. Pictures are decoded while the network learns, which
sees random crops of them, mirrored half of the time. ``python -m experiments.evaluate RUN PICTURE ...`` says
what other pictures show.

Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?", 2014; Kornblith,
Shlens and Le, "Do better ImageNet models transfer better?", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments import cli, running
from jdl import data, interop, learners, models, tasks
from jdl.core import Array, Batch, Learner, Task, Variables
from jdl.data.decode import Crop, decode
from jdl.interop import names

PUBLISHED = "none: the pictures are yours"

ModelName = Literal["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"]


class Published(NamedTuple):
    """A network of which there are weights.

    Attributes:
        make: the module, by its number of classes.
        names: the map of names of its weights.
    """

    make: Callable[[int], Any]
    names: Any


MODELS: dict[str, Published] = {
    "resnet18": Published(lambda n: models.resnet(18, n), names.RESNET_TORCHVISION),
    "resnet50": Published(lambda n: models.resnet(50, n), names.RESNET_TORCHVISION),
    "mobilenet_v2": Published(lambda n: models.mobilenet_v2(num_classes=n), names.MOBILENET_V2_TORCHVISION),
    "efficientnet_b0": Published(
        lambda n: models.efficientnet("b0", n, padding=None, epsilon=1e-5), names.EFFICIENTNET_TORCHVISION
    ),
    "convnext_tiny": Published(lambda n: models.convnext("tiny", n), names.CONVNEXT_TORCHVISION),
}


@dataclass(frozen=True)
class Config:
    """Settings of a classifier of photographs."""

    train: str = ""
    """Folder of the pictures to learn from, one sub-folder a class."""
    test: str = ""
    """Folder of those to test on, with the same sub-folders; the middle of its pictures is seen."""
    model: ModelName = "resnet18"
    """The network."""
    weights: str = ""
    """File of published weights to begin with; from nothing when empty."""
    size: int = 224
    """Side of what the network sees, pixels."""
    steps: int = 1000
    """Training steps, each on one batch."""
    batch_size: int = 32
    """Pictures in a batch."""
    learning_rate: float = 0.0
    """Peak of the learning rate of AdamW, which rises for a tenth of the steps and falls along a cosine; when
    0, it is 0.0001 from published weights and 0.001 from nothing."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of the kernels."""
    label_smoothing: float = 0.1
    """Share of each label's probability spread over all classes."""
    rand_augment: float = 0.0
    """Magnitude of RandAugment, such as 9; 0 for none."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a file that cannot be read: stop, or leave it out and tell how many there are."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the network computes in; parameters are float32."""
    evaluate_every: int = 0
    """Steps between two evaluations on the test pictures; a tenth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the pictures."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def begun(task: Task, tensors: Mapping[str, np.ndarray], rules: Any) -> Task:
    """The task that begins with published weights, and a last layer of its own.

    Raises:
        ValueError: from ``init``, naming what does not fit.
    """

    def init(key: Array, batch: Batch) -> Variables:
        own = task.init(key, batch)
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), own)
        found = interop.load_weights(blank, tensors, rules, fresh=["head"])
        return {**found, "params": {**found["params"], "head": own["params"]["head"]}}

    return task._replace(init=init)


def recipe(config: Config, preprocess: data.Preprocess, num_classes: int) -> Learner:
    """How the configuration trains its network, on raw pictures."""
    published = MODELS[config.model]
    task = tasks.classification(published.make(num_classes), label_smoothing=config.label_smoothing)
    if config.weights:
        task = begun(task, interop.read_tensors(config.weights), published.names)
    if config.dtype == "bfloat16":
        task = tasks.mixed_precision(task)
    task = tasks.augmented(task, data.random_flip())
    task = tasks.preprocessed(task, preprocess)
    if config.rand_augment:
        task = tasks.augmented(task, data.rand_augment(magnitude=config.rand_augment))
    peak, warmup = config.learning_rate or (1e-4 if config.weights else 1e-3), max(1, config.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, max(2, config.steps))
    tx = optax.adamw(rate, weight_decay=config.weight_decay, mask=learners.decays)
    return learners.gradient(task, tx)


def pictures(config: Config) -> tuple[data.FolderBatches, data.FolderBatches]:
    """Batches to train and to test on.

    Raises:
        ValueError: if a folder is not given, holds no pictures, or the second none of some class.
    """
    if not config.train or not config.test:
        raise ValueError("two folders are needed, with one sub-folder of pictures a class: --train, --test")
    shard = jax.process_index(), jax.process_count()
    learnt = data.image_folder(
        config.train,
        config.batch_size,
        config.seed,
        size=config.size,
        on_error=config.on_error,
        shard=shard,
    )
    test = tested(config, learnt.class_names)
    if absent := [name for i, name in enumerate(learnt.class_names) if i not in test.labels]:
        raise ValueError(f"{config.test} has no pictures of {', '.join(absent)}, which {config.train} has")
    return learnt, test


def tested(config: Config, class_names: tuple[str, ...]) -> data.FolderBatches:
    """Batches of the test pictures, in order."""
    return data.image_folder(
        config.test,
        config.batch_size,
        size=config.size,
        classes=class_names,
        on_error=config.on_error,
        shard=(jax.process_index(), jax.process_count()),
    )


def picture(path: str | Path, size: int) -> np.ndarray:
    """A picture as the test pictures are read: uint8 [size, size, 3]."""
    seen = Crop(size, round(size / 0.875), (1.0, 1.0), (1.0, 1.0))
    return decode(path, seen, np.random.default_rng())


def main(config: Config) -> running.Outcome:
    """Trains a classifier of photographs as the configuration says; the test pictures decide nothing."""
    learnt, test = pictures(config)
    folder = running.folder_of("photographs", config)
    preprocess = data.Preprocess(mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD, channels=3)
    outcome = running.run(
        "photographs",
        config,
        folder,
        recipe(config, preprocess, len(learnt.class_names)),
        learnt,
        {"test": test},
        steps=config.steps,
        evaluate_every=config.evaluate_every or max(1, config.steps // 10),
        fingerprint=f"{learnt.fingerprint} {test.fingerprint}",
        about=f"{len(learnt.files)} pictures of {len(learnt.class_names)} classes to learn from, "
        f"{len(test.files)} to test on",
        extra={
            "preprocess": preprocess.to_json(),
            "class_names": list(learnt.class_names),
            "image_shape": (config.size, config.size, 3),
        },
    )
    if jax.process_index() == 0 and not config.execution.quiet:
        found = f"test accuracy {100 * outcome.test['accuracy']:.2f} %"
        print(running.report(found, outcome, "photographs"))
        print(f"classify other pictures: python -m experiments.evaluate {folder} PICTURE ...")
    return outcome


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
