"""Whether reading photographs from a folder keeps up with training on them."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import apart

IMAGES, BATCH = 256, 32
TITLE = "MobileNetV2 on JPEGs of 500x375 pixels, random crops to 224, batch 32, float32"


def write_photographs(folder: Path, count: int = IMAGES) -> None:
    """Writes smooth random pictures as JPEGs of about the size and weight of ImageNet's, in two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        target = folder / f"class{i % 2}"
        target.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / f"{i}.jpg", quality=90)


def measure() -> dict[str, list[float]]:
    """What `times` gives in a process of its own, which is prepared as experiments are.

    Raises:
        RuntimeError: if it fails.
    """
    return apart("experiments.benchmarks.feeding")


def times(steps: int = 8, few: int = 2, repeats: int = 3) -> dict[str, list[float]]:
    """Seconds of a batch read alone, of a step on images in memory, and of one that the folder feeds.

    The time of a step is that by which `fit` takes longer for many steps than for few, so that what it does
    once, before the first and after the last, does not count.
    """
    from jdl import train

    train.prepare()
    import optax

    from jdl import data, learners, models, tasks

    task = tasks.classification(models.mobilenet_v2(num_classes=2))
    learner = learners.gradient(
        tasks.preprocessed(task, lambda x: x / np.float32(127.5) - 1), optax.sgd(0.01, momentum=0.9)
    )

    def seconds(batches: Any, count: int) -> float:
        start = time.perf_counter()
        train.fit(learner, batches, count, loggers=[], mesh="data:1")
        return time.perf_counter() - start

    def of_a_step(batches: Any) -> list[float]:
        seconds(batches, 1)  # compiles
        return [(seconds(batches, steps) - seconds(batches, few)) / (steps - few) for _ in range(repeats)]

    with tempfile.TemporaryDirectory() as place:
        write_photographs(Path(place))
        folder = data.image_folder(place, BATCH, seed=0)
        folder(0)
        reading = []
        for i in range(1, 1 + steps):
            start = time.perf_counter()
            batch = folder(i)
            reading.append(time.perf_counter() - start)
        resident = data.shuffled(batch, BATCH, seed=0)
        return {
            "reading a batch, alone": reading,
            "a step, images in memory": of_a_step(resident),
            "a step of fit, images read meanwhile": of_a_step(folder),
        }


if __name__ == "__main__":
    print(json.dumps(times()))
