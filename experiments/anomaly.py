"""What a model has never seen: an autoencoder of nine digits, and how well it tells the tenth.

One digit is taken out of the training images. A variational autoencoder and principal components learn the
other nine, and every test image gets a score: minus its log-likelihood, the squared error of its
reconstruction, and that of as many principal components. The figure is the area under the ROC curve by which
a score tells the digit left out from the others, 0.5 for one that tells nothing.

An and Cho, "Variational autoencoder based anomaly detection using reconstruction probability", 2015, leave a
digit out in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import cli, running
from experiments.pictures import Pictures
from jdl import audit, data, learners, models, tasks
from jdl.core import Learner

PUBLISHED = "none verified: An and Cho 2015 give curves of a digit left out of MNIST"


@dataclass(frozen=True)
class Config:
    """Settings of an anomaly detector's training."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "mnist"
    """Images to learn: digits (ships with the package), mnist or fashion_mnist."""
    left_out: int = 4
    """The class that training never sees."""
    latent: int = 20
    """Numbers in a code, and principal components."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    steps: int = 8000
    """Training steps, each on one batch."""
    batch_size: int = 128
    """Images in a batch."""
    learning_rate: float = 1e-3
    """Peak of Adam's learning rate, which falls along a cosine."""
    evaluate_every: int = 0
    """Steps between two evaluations; a fortieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the images."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


PREPROCESS = data.Preprocess()


def model(config: Config, shape: tuple[int, ...]) -> models.VAE:
    """The network that the configuration describes."""
    return models.VAE(shape, config.latent, config.hidden)


def recipe(config: Config, shape: tuple[int, ...]) -> Learner:
    """How the configuration trains it: grey levels are taken as probabilities."""
    task = tasks.preprocessed(tasks.elbo(model(config, shape)), PREPROCESS)
    rate = optax.cosine_decay_schedule(config.learning_rate, max(1, config.steps))
    return learners.gradient(task, optax.adam(rate))


class Detector:
    """An evaluator: the areas under the ROC curves of the scores."""

    def __init__(self, config: Config, shape: tuple[int, ...]):
        self.left_out = config.left_out
        module = model(config, shape)

        @jax.jit
        def scores(variables: Any, images: Any) -> dict[str, jax.Array]:
            latent, x = tasks.latent_model(module, variables), PREPROCESS(images)
            found = audit.log_likelihood(
                latent.posterior, latent.log_joint, x, jax.random.key(0), 20, chunk=20
            )
            back = latent.decode(latent.posterior(x)[0])
            return {
                "log_likelihood": -found.estimate,
                "reconstruction": audit.reconstruction_errors(lambda _: back, x),
            }

        self.scores = scores

    def __call__(self, predict: Any, batches: Any) -> dict[str, float]:
        """The area of each score, over all batches."""
        (variables,) = predict.args
        parts, labels = [], []
        for i in range(len(batches)):
            batch = batches(i)
            real = np.asarray(batch["weights"]) > 0
            found = jax.device_get(self.scores(variables, batch["inputs"]))
            parts.append({name: x[real] for name, x in found.items()})
            labels.append(np.asarray(batch["labels"])[real])
        is_new = np.concatenate(labels) == self.left_out
        return {
            f"auroc_{name}": audit.auroc(np.concatenate([part[name] for part in parts]), is_new)
            for name in parts[0]
        }


def of_components(train: np.ndarray, test: dict[str, Any], components: int, left_out: int) -> float:
    """The area by the squared error of principal components."""
    found = audit.pca(PREPROCESS(train), components)
    errors = audit.reconstruction_errors(
        lambda x: found.inverse(found.transform(x)), PREPROCESS(test["inputs"])
    )
    return audit.auroc(errors, test["labels"] == left_out)


def main(config: Config) -> running.Outcome:
    """Trains a detector as the configuration says; neither the digit left out nor the test images decide."""
    dataset = data.load(config.dataset)
    if not 0 <= config.left_out < len(dataset.class_names):
        raise ValueError(f"{config.dataset} has the classes 0 to {len(dataset.class_names) - 1}")
    known = dataset.train["inputs"][dataset.train["labels"] != config.left_out]
    test, shape = dataset.test, known.shape[1:]
    folder = running.folder_of("anomaly", config)
    learner = recipe(config, shape)
    some = np.concatenate([test["inputs"][test["labels"] == c][:4] for c in range(len(dataset.class_names))])

    def draw(variables: Any) -> dict[str, Any]:
        made = np.asarray(learner.predict(variables, some))
        return {"reconstructions": audit.tile(audit.beside(np.asarray(PREPROCESS(some)), made), 8)}

    pictures = Pictures(folder, draw)
    outcome = running.run(
        "anomaly",
        config,
        folder,
        learner,
        data.shuffled({"inputs": known}, config.batch_size, seed=config.seed),
        {"test": data.in_order(test, min(1000, len(test["labels"])))},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=dataset.fingerprint,
        about=f"{len(known)} images of {config.dataset} without {dataset.class_names[config.left_out]}",
        evaluators=[Detector(config, shape), pictures],
        loggers=[pictures.log],
    )
    area = of_components(known, test, config.latent, config.left_out)
    outcome = outcome._replace(test={**outcome.test, "auroc_components": area})
    if not config.execution.quiet:
        each = ", ".join(f"{name[6:]} {x:.3f}" for name, x in outcome.test.items() if name[:6] == "auroc_")
        text = f"area under the ROC curve of {dataset.class_names[config.left_out]} as an anomaly: {each}"
        print(running.report(text, outcome, "anomaly"))
    return outcome


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
