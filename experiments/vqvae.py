"""A VQ-VAE on CIFAR-10: images as 8x8 entries of a codebook, and new images from a prior over such maps.

First the autoencoder is trained, with grey levels as discretised logistics, so that its bound counts bits as
a lossless coder would: those of the pixels given the codes, and log2 of the codebook's size for each code.
Then a PixelCNN learns the maps of codes, which lowers what codes cost and writes new ones. The paper's 4.67
bits a dimension are of ten maps of 8x8 codes an image, where this has one map (640 codes against 64).

Van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", 2017, section 4.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import cli, running
from experiments.pictures import Pictures, save
from jdl import audit, data, learners, models, nn, tasks
from jdl.core import Learner
from jdl.generation import sample_map
from jdl.nn.quantization import perplexity

PUBLISHED = "4.67 bits a dimension with ten maps of codes (van den Oord et al. 2017, section 4; recalled)"


@dataclass(frozen=True)
class Config:
    """Settings of a VQ-VAE and of the prior over its codes."""

    dataset: Literal["cifar10", "mnist", "fashion_mnist", "digits"] = "cifar10"
    """Images to learn; their sides are multiples of 2 to the power of the halvings."""
    width: int = 128
    """Channels of the autoencoder."""
    depth: int = 2
    """Residual blocks on each side."""
    halvings: int = 2
    """How often a map of codes is halved against the image."""
    entries: int = 512
    """Of the codebook."""
    size: int = 64
    """Numbers in an entry."""
    decay: float = 0.99
    """Of the codebook's moving averages; 0 learns it by gradients."""
    restart: float = 1.0
    """Entries used less often in a batch than this start again; 0 for never."""
    commitment: float = 0.25
    """Weight of the distance between vectors and entries."""
    steps: int = 20_000
    """Training steps of the autoencoder, each on one batch."""
    prior_features: int = 64
    """Features of the PixelCNN."""
    prior_depth: int = 8
    """Layers of the PixelCNN."""
    prior_dropout: float = 0.1
    """Share of values dropped in the PixelCNN."""
    prior_steps: int = 10_000
    """Training steps of the prior; 0 for no prior."""
    batch_size: int = 128
    """Images in a batch."""
    learning_rate: float = 4e-4
    """Peak of Adam's learning rate, which falls along a cosine, for both."""
    evaluate_every: int = 0
    """Steps between two evaluations; a fortieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the images."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def model(config: Config, shape: tuple[int, ...]) -> models.VQVAE:
    """The autoencoder that the configuration describes."""
    return models.VQVAE(
        shape,
        config.width,
        config.depth,
        config.halvings,
        config.entries,
        config.size,
        decay=config.decay or None,
        restart=config.restart if config.decay else 0.0,
        parameters=LIKELIHOOD.parameters,
    )


LIKELIHOOD = nn.discretized_logistic(256)
PREPROCESS = data.Preprocess()


def recipe(config: Config, shape: tuple[int, ...]) -> Learner:
    """How the configuration trains the autoencoder."""
    task = tasks.vector_quantized(model(config, shape), LIKELIHOOD, commitment=config.commitment)
    rate = optax.cosine_decay_schedule(config.learning_rate, max(1, config.steps))
    return learners.gradient(tasks.preprocessed(task, PREPROCESS), optax.adam(rate))


def prior(config: Config) -> models.PixelCNN:
    """The distribution of maps of codes."""
    return models.PixelCNN(
        config.entries, config.prior_features, config.prior_depth, dropout=config.prior_dropout
    )


def prior_recipe(config: Config) -> Learner:
    """How the configuration trains the prior."""
    rate = optax.cosine_decay_schedule(config.learning_rate, max(1, config.prior_steps))
    return learners.gradient(tasks.classification(prior(config)), optax.adam(rate))


def codes_of(module: models.VQVAE, variables: Any, images: np.ndarray, batch: int = 500) -> np.ndarray:
    """The codes of all images, int32 [N, h, w]."""
    look = jax.jit(lambda variables, x: module.apply(variables, PREPROCESS(x), method="codes"))
    parts = [look(variables, images[i : i + batch]) for i in range(0, len(images), batch)]
    return np.concatenate([np.asarray(x) for x in parts])


def main(config: Config) -> running.Outcome:
    """Trains a VQ-VAE and its prior as the configuration says; the test images decide nothing."""
    dataset = data.load(config.dataset)
    shape, test = dataset.train["inputs"].shape[1:], dataset.test["inputs"]
    folder = running.folder_of("vqvae", config)
    learner, module = recipe(config, shape), model(config, shape)
    some = test[:24]

    def draw(variables: Any) -> dict[str, Any]:
        made = np.asarray(learner.predict(variables, some))
        return {"reconstructions": audit.tile(audit.beside(np.asarray(PREPROCESS(some)), made), 8)}

    pictures = Pictures(folder, draw)
    outcome = running.run(
        "vqvae",
        config,
        folder,
        learner,
        data.shuffled({"inputs": dataset.train["inputs"]}, config.batch_size, seed=config.seed),
        {"test": data.in_order({"inputs": test}, min(500, len(test)))},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=dataset.fingerprint,
        about=f"{config.entries} entries for {config.dataset}",
        evaluators=[pictures],
        loggers=[pictures.log],
    )
    pictures.animate()
    variables = outcome.fitted.variables
    codes = [codes_of(module, variables, x) for x in (dataset.train["inputs"], test)]
    places, D = int(np.prod(codes[0].shape[1:])), int(np.prod(shape))
    of_pixels = outcome.test["reconstruction"] / math.log(2)
    found = {
        **outcome.test,
        "bits_per_dimension": (of_pixels + places * math.log2(config.entries)) / D,
        "codebook_perplexity": float(perplexity(np.bincount(codes[1].ravel(), minlength=config.entries))),
    }
    text = (
        f"{found['bits_per_dimension']:.3f} bits a dimension with all codes alike; squared error a value "
        f"{found['mse']:.5f}; the codebook works like {found['codebook_perplexity']:.0f} entries"
    )
    if config.prior_steps:
        nats = train_prior(config, folder, codes, dataset.fingerprint, module, variables)
        found["prior_nats"] = nats
        found["bits_per_dimension_with_prior"] = (of_pixels + places * nats / math.log(2)) / D
        text += f"; {found['bits_per_dimension_with_prior']:.3f} with the prior, {nats:.3f} nats a code"
    outcome = outcome._replace(test=found)
    if not config.execution.quiet:
        print(running.report(text, outcome, "vqvae"))
    return outcome


def train_prior(
    config: Config, folder: Path, codes: Any, fingerprint: str, module: models.VQVAE, variables: Any
) -> float:
    """Trains the prior in the folder ``prior`` of the run, draws images, and gives its nats a test code."""
    train, test = ({"inputs": x, "labels": x} for x in codes)
    learner = prior_recipe(config)
    shape = (32, *codes[0].shape[1:])

    @jax.jit
    def drawn(prior_variables: Any, variables: Any) -> jax.Array:
        predict = lambda x: learner.predict(prior_variables, x)
        symbols = sample_map(predict, jax.random.key(config.seed), shape)
        outputs: Any = module.apply(variables, symbols, method="decode_codes")
        return LIKELIHOOD.mean(outputs)

    within = dataclasses.replace(
        config, execution=dataclasses.replace(config.execution, run=str(folder / "prior"))
    )
    pictures = Pictures(folder / "prior", lambda found: {"samples": audit.tile(drawn(found, variables), 8)})
    outcome = running.run(
        "vqvae",
        within,
        folder / "prior",
        learner,
        data.shuffled(train, config.batch_size, seed=config.seed),
        {"test": data.in_order(test, min(500, len(codes[1])))},
        steps=config.prior_steps,
        evaluate_every=math.ceil(config.prior_steps / 10),
        fingerprint=f"{fingerprint} {data.fingerprint({'codes': codes[0]})}",
        about="a prior over the maps of codes",
        evaluators=[pictures],
        loggers=[pictures.log],
    )
    save(audit.tile(drawn(outcome.fitted.variables, variables), 8), folder / "samples.png")
    return float(outcome.test["loss"])


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
