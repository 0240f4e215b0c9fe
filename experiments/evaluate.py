"""Evaluates an image classifier from its run's folder, or classifies pictures with it.

    python -m experiments.evaluate runs/lenet-digits-1
    python -m experiments.evaluate runs/lenet-digits-1 photo.png

Weights, preprocessing and class names come from the checkpoint; the data are needed only to evaluate.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import cli, images, photographs
from jdl import data, train
from jdl.core import Learner, add, summarize

CLASSIFIERS = ("lenet", "mlp", "photographs", "resnet", "two_conv", "vit")
"""The experiments whose runs are image classifiers."""


class Classifier(NamedTuple):
    """A trained classifier of raw images.

    Attributes:
        loaded: its weights, and what was saved beside them.
        learner: what it was trained by.
        config: the settings it was trained with.
    """

    loaded: train.Loaded
    learner: Learner
    config: images.Config | photographs.Config

    @property
    def class_names(self) -> list[str]:
        """One name a class."""
        return self.loaded.meta["extra"]["class_names"]


def load(folder: str | Path, step: int | str = "latest") -> Classifier:
    """The classifier of a run's folder.

    Raises:
        ValueError: if the folder holds no run of an image classifier.
        jdl.train.CheckpointError: if its checkpoint is missing or damaged.
    """
    checkpoints = Path(folder) / train.run.CHECKPOINTS
    meta = train.checkpoint.read_meta(checkpoints, step)
    experiment = meta["config"].get("experiment")
    if experiment not in CLASSIFIERS:
        raise ValueError(f"{folder} holds a run of {experiment!r}, which is none of {', '.join(CLASSIFIERS)}")
    module = importlib.import_module(f"experiments.{experiment}")
    config = cli.resumed(module.Config, ["--resume", str(folder)])
    preprocess = data.Preprocess.from_json(meta["extra"]["preprocess"])
    if isinstance(config, photographs.Config):
        trained = dataclasses.replace(config, weights="")  # what it began with is no longer needed
        learner = photographs.recipe(trained, preprocess, len(meta["extra"]["class_names"]))
    else:
        learner = images.recipe(module.model(config), preprocess, config)
    image = np.zeros((1, *meta["extra"]["image_shape"]), np.uint8)
    batch = {"inputs": image, "labels": np.zeros(1, np.int32)}
    return Classifier(train.load(folder, learner, batch, step), learner, config)


def test_metrics(classifier: Classifier) -> dict[str, Any]:
    """The metrics on the test set of the data that the classifier was trained on."""
    batches: data.FolderBatches | data.Batches
    if isinstance(classifier.config, photographs.Config):
        batches = photographs.tested(classifier.config, tuple(classifier.class_names))
    else:
        test = data.load(classifier.config.dataset).test
        batches = data.in_order(test, min(1000, len(test["labels"])))
    evaluate = jax.jit(classifier.learner.evaluate)
    key = jax.random.key(0)
    parts = (evaluate(classifier.loaded.variables, batches(i), key) for i in range(len(batches)))
    return summarize(functools.reduce(add, parts))


def classify_pictures(classifier: Classifier, paths: Sequence[str | Path]) -> list[tuple[str, float]]:
    """The most probable class of each picture file, and its probability.

    A picture of any size will do; it is brought to the training images' own size and channels first, as the
    test images of photographs are.

    Raises:
        ValueError: naming a file that is no picture.
    """
    shape = classifier.loaded.meta["extra"]["image_shape"]
    is_photograph = isinstance(classifier.config, photographs.Config)
    read = (lambda path: photographs.picture(path, shape[0])) if is_photograph else _reader(shape)
    pictures = np.stack([_named(path, read) for path in paths])
    probabilities = np.asarray(jax.nn.softmax(jax.jit(classifier.loaded.predict)(pictures)))
    return [(classifier.class_names[p.argmax()], float(p.max())) for p in probabilities]


def _reader(shape: Sequence[int]) -> Callable[[str | Path], np.ndarray]:
    """How a picture file becomes uint8 [H, W, C]."""
    height, width, channels = shape

    def read(path: str | Path) -> np.ndarray:
        from PIL import Image

        with Image.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
            picture = picture.resize((width, height), Image.Resampling.BOX)
            return np.asarray(picture).reshape(height, width, channels)

    return read


def _named(path: str | Path, read: Callable[[str | Path], np.ndarray]) -> np.ndarray:
    """A picture, or an error that names its file."""
    try:
        from PIL import UnidentifiedImageError
    except ImportError:
        raise ImportError('reading pictures needs pillow: pip install -e ".[experiments]"') from None
    try:
        return read(path)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def main(folder: str, pictures: Sequence[str] = (), step: int | str = "latest") -> None:
    """Prints the test metrics, or the class of each picture."""
    classifier = load(folder, step)
    if not pictures:
        for name, value in test_metrics(classifier).items():
            print(f"test {name} {value:.4f}")
        return
    for path, (name, probability) in zip(pictures, classify_pictures(classifier, pictures), strict=True):
        print(f"{path}: {name} ({100 * probability:.1f} %)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        "python -m experiments.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="folder of a run, finished or stopped")
    parser.add_argument("pictures", nargs="*", help="picture files to classify; without any, the test set is")
    parser.add_argument(
        "--step", default="latest", help="which checkpoint: latest (the default), best, or a step"
    )
    arguments = parser.parse_args()
    train.prepare()
    with cli.sentences():
        step = int(arguments.step) if arguments.step.isdecimal() else arguments.step
        main(arguments.folder, arguments.pictures, step)
