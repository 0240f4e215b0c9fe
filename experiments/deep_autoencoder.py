"""A deep autoencoder against principal components: thirty numbers for a handwritten digit.

The network of Hinton and Salakhutdinov, 784-1000-500-250-30 and back, with cross-entropy on grey levels as
theirs; they trained one layer after another as restricted Boltzmann machines first, where rectifiers and Adam
do without. The figure is the squared error of a test digit, its 784 grey levels between 0 and 1. Principal
components are the best that thirty linear numbers can do.

Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313, 2006,
figure 2B: 3.00 for the autoencoder, 13.87 for principal components.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, running
from experiments.pictures import Pictures, save
from jdl import audit, data, learners, models, nn, tasks
from jdl.core import Learner

PUBLISHED = (
    "squared error 3.00 a test digit, principal components 13.87 (Hinton and Salakhutdinov 2006; recalled)"
)


@dataclass(frozen=True)
class Config:
    """Settings of a deep autoencoder's training."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "mnist"
    """Images to learn: digits (ships with the package), mnist or fashion_mnist."""
    features: tuple[int, ...] = (1000, 500, 250, 30)
    """Widths of the encoder's layers, the last of which is the code."""
    activation: Literal["relu", "sigmoid", "gelu"] = "relu"
    """Of hidden layers."""
    steps: int = 14_070
    """Training steps, each on one batch."""
    batch_size: int = 128
    """Images in a batch."""
    learning_rate: float = 1e-3
    """Peak of Adam's learning rate, which falls along a cosine."""
    noise: float = 0.0
    """Share of pixels hidden from the encoder in training: a denoising autoencoder."""
    evaluate_every: int = 0
    """Steps between two evaluations; a fortieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the images."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def model(config: Config, shape: tuple[int, ...]) -> models.Autoencoder:
    """The network that the configuration describes."""
    activation = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "gelu": jax.nn.gelu}[config.activation]
    return models.Autoencoder(shape, config.features, activation=activation)


def recipe(config: Config, shape: tuple[int, ...]) -> Learner:
    """How the configuration trains it."""
    corrupt = tasks.masking_noise(config.noise) if config.noise else None
    task = tasks.reconstruction(model(config, shape), nn.bernoulli(), corrupt=corrupt)
    rate = optax.cosine_decay_schedule(config.learning_rate, max(1, config.steps))
    return learners.gradient(tasks.preprocessed(task, data.Preprocess()), optax.adam(rate))


def linear(train: np.ndarray, test: np.ndarray, components: int) -> tuple[float, np.ndarray]:
    """The squared error of a test image by principal components, and the test images they give back."""
    preprocess = data.Preprocess()
    x = preprocess(test)
    found = audit.pca(preprocess(train), components)
    back = found.inverse(found.transform(x))
    return float(jnp.square(x - back).reshape(len(x), -1).sum(1).mean()), np.asarray(back)


def main(config: Config) -> running.Outcome:
    """Trains a deep autoencoder as the configuration says, and compares; the test images decide nothing."""
    dataset = data.load(config.dataset)
    shape, test = dataset.train["inputs"].shape[1:], dataset.test["inputs"]
    folder = running.folder_of("deep_autoencoder", config)
    learner = recipe(config, shape)
    some = np.concatenate([test[dataset.test["labels"] == c][:2] for c in range(10)])
    grey = np.asarray(data.Preprocess()(some))

    def draw(variables: Any) -> dict[str, Any]:
        made = np.asarray(learner.predict(variables, some))
        return {"reconstructions": audit.tile(audit.beside(grey, made), 10)}

    pictures = Pictures(folder, draw)
    outcome = running.run(
        "deep_autoencoder",
        config,
        folder,
        learner,
        data.shuffled({"inputs": dataset.train["inputs"]}, config.batch_size, seed=config.seed),
        {"test": data.in_order({"inputs": test}, min(1000, len(test)))},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=dataset.fingerprint,
        about=f"{config.features[-1]} numbers an image of {config.dataset}",
        evaluators=[pictures],
        loggers=[pictures.log],
    )
    pictures.animate()
    error = outcome.test["mse"] * int(np.prod(shape))
    of_pca, back = linear(dataset.train["inputs"], test, config.features[-1])
    first = np.concatenate([back[dataset.test["labels"] == c][:2] for c in range(10)])
    made = np.asarray(outcome.fitted.predict(some))
    rows = [np.concatenate([x[i::2] for x in (grey, made, first)]) for i in (0, 1)]
    save(audit.tile(np.concatenate(rows), 10), Path(folder) / "beside_pca.png")
    outcome = outcome._replace(test={**outcome.test, "squared_error": error, "squared_error_of_pca": of_pca})
    if not config.execution.quiet:
        text = f"squared error {error:.2f} a test image; principal components {of_pca:.2f}"
        print(running.report(text, outcome, "deep_autoencoder"))
    return outcome


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
