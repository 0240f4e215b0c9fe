"""GANs on images: DCGAN, WGAN-GP and SNGAN, scored in the features of a classifier that jdl trains.

    python -m experiments.gan --dataset mnist --recipe dcgan
    python -m experiments.gan --dataset fashion_mnist --recipe wgan_gp
    python -m experiments.gan --dataset cifar10 --recipe sngan --architecture residual --width 64

The defaults are sized for a CPU. The Frechet and kernel distances are between samples and the test set, in
84 features of a LeNet-5 trained on the same data, which is kept in a folder of its own and shared by all runs
and by the peer in PyTorch (`experiments.torch_gan`). Published distances are in an Inception network's
features, on more samples: they are other numbers, and must not be compared with these. What to compare with
is printed beside: the distance from the training set to the test set, which perfect samples would have.

The run's folder holds a sheet of samples for each evaluation, always of the same latents, and an animation.

Radford, Metz and Chintala 2016; Gulrajani et al. 2017; Miyato et al. 2018. Conditional: Mirza and Osindero
2014, Miyato and Koyama 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments import cli, generated, images, running, study
from experiments.pictures import Pictures
from jdl import audit, data, learners, models, tasks
from jdl.core import Learner

PUBLISHED = "none in these features: distances are comparable only within one set of features"

FEWEST = 6
"""Samples without which there are no neighbourhoods to score."""

RecipeName = Literal["dcgan", "wgan_gp", "sngan"]


class Recipe(NamedTuple):
    """How the two players are trained.

    Attributes:
        loss: what they lower.
        normalization: of the discriminator.
        penalty: weight of the gradient penalty.
        discriminator_steps: updates of the discriminator for one of the generator.
        learning_rate: of both players.
        betas: of Adam.
    """

    loss: str
    normalization: Literal["batch", "spectral", "none"]
    penalty: float
    discriminator_steps: int
    learning_rate: float
    betas: tuple[float, float]


RECIPES: dict[RecipeName, Recipe] = {
    "dcgan": Recipe("non_saturating", "batch", 0.0, 1, 2e-4, (0.5, 0.999)),
    "wgan_gp": Recipe("wasserstein", "none", 10.0, 5, 1e-4, (0.0, 0.9)),
    "sngan": Recipe("hinge", "spectral", 0.0, 1, 2e-4, (0.5, 0.999)),
}


@dataclass(frozen=True)
class Config:
    """Settings of a GAN's training."""

    dataset: images.DatasetName = "mnist"
    """Images to learn."""
    recipe: RecipeName = "dcgan"
    """Loss, normalisation and optimiser: as published for dcgan and wgan_gp; sngan has the hinge loss."""
    architecture: Literal["convolutional", "residual"] = "convolutional"
    """DCGAN's networks, or the residual ones of Gulrajani et al. and Miyato et al."""
    conditional: bool = False
    """Give both players the labels: one-hot beside the latents and as one more channel (convolutional), or
    in the generator's normalisation and by projection (residual)."""
    width: int = 32
    """Features of the networks; 64 in DCGAN, 256 and 128 in the residual ones as published."""
    latents: int = 64
    """Latent variables, standard normal."""
    steps: int = 4000
    """Updates of the generator."""
    batch_size: int = 64
    """Images in an update of either player."""
    learning_rate: float = 0.0
    """Of both players; the recipe's when 0."""
    discriminator_steps: int = 0
    """Updates of the discriminator for one of the generator; the recipe's when 0."""
    r1: float = 0.0
    """Weight of the penalty on the discriminator's slope at real images; 0 for none."""
    augment: bool = False
    """Show the discriminator images changed in colour, place and by a hole: for few training images."""
    averaging: float = 0.0
    """Decay of the moving average of the generator that is evaluated, such as 0.999; 0 for the latest."""
    samples: int = 10_000
    """Samples that the final scores are of."""
    features: str = ""
    """Folder of the classifier whose features the scores are in, trained there if missing;
    runs/features-DATASET when empty."""
    judge_steps: int = generated.STEPS
    """Training steps of that classifier."""
    evaluate_every: int = 0
    """Steps between two sheets of samples and distances of 2,000; a twentieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the latents and the order of the images."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def networks(config: Config, shape: tuple[int, ...], num_classes: int) -> tuple[Any, Any]:
    """The generator and the discriminator of images of a shape."""
    size, channels = (shape[0], shape[1]), shape[2]
    classes, recipe = num_classes if config.conditional else 0, RECIPES[config.recipe]
    if config.architecture == "convolutional":
        judge = models.DCGANDiscriminator(config.width, recipe.normalization, classes)
        return models.DCGANGenerator(size, channels, config.width, classes), judge
    if recipe.normalization == "batch":
        raise ValueError("the residual discriminator is made for --recipe wgan_gp or sngan")
    critic = models.ResNetDiscriminator(config.width, recipe.normalization, classes)
    return models.ResNetGenerator(size, channels, config.width, classes), critic


def updates(config: Config) -> int:
    """The discriminator's updates for one of the generator."""
    return config.discriminator_steps or RECIPES[config.recipe].discriminator_steps


def learner(config: Config, shape: tuple[int, ...], num_classes: int = 10) -> Learner:
    """The two players as one learner on raw images."""
    recipe = RECIPES[config.recipe]
    players = tasks.gan(
        *networks(config, shape, num_classes),
        config.latents,
        loss=recipe.loss,
        gradient_penalty=recipe.penalty,
        r1=config.r1,
        conditional=config.conditional,
        preprocess=generated.to_unit,
        augment=data.differentiable(size=(shape[0], shape[1])) if config.augment else None,
    )

    def adam() -> optax.GradientTransformation:
        return optax.adam(config.learning_rate or recipe.learning_rate, *recipe.betas)

    both = learners.gan(players, adam(), adam(), discriminator_steps=updates(config))
    return learners.averaged(both, config.averaging) if config.averaging else both


def given(config: Config, count: int, seed: int, num_classes: int = 10) -> Any:
    """What ``count`` samples are made from: latents, and classes in turn where there are any."""
    z = np.asarray(jax.random.normal(jax.random.key(seed), (count, config.latents)), np.float32)
    return {"latents": z, "labels": np.arange(count) % num_classes} if config.conditional else z


def main(config: Config) -> running.Outcome:
    """Trains a GAN as the configuration says, and scores its samples.

    Returns:
        The outcome, its ``test`` with the scores of ``config.samples`` samples, which are also in
        ``scores.json``; "agreement" is the share that the classifier takes for the class asked for.
    """
    if config.samples < FEWEST:
        raise ValueError(f"scores are of {FEWEST} samples or more; got {config.samples}")
    dataset = data.load(config.dataset)
    folder = running.folder_of("gan", config)
    shape, K = dataset.train["inputs"].shape[1:], len(dataset.class_names)
    both = learner(config, shape, K)
    judge = generated.judge(dataset, config.features, steps=config.judge_steps, quiet=config.execution.quiet)
    sheet, few = given(config, 10 * K if config.conditional else 64, 1, K), given(config, 2000, 2, K)

    def draw(variables: Any) -> dict[str, Any]:
        made = generated.sample(jax.tree_util.Partial(both.predict, variables), sheet)
        return {"samples": audit.tile(made.astype(np.float32) / 255, K if config.conditional else 8)}

    pictures = Pictures(folder, draw)

    def distance(predict: Callable[[Any], Any], batches: Any) -> dict[str, float]:
        del batches
        return judge.distances(generated.sample(predict, few))

    outcome = running.run(
        "gan",
        config,
        folder,
        both,
        data.shuffled(dataset.train, config.batch_size * updates(config), seed=config.seed),
        {"test": data.in_order(dataset.test, min(1000, len(dataset.test["labels"])))},
        steps=config.steps,
        evaluate_every=config.evaluate_every or max(1, config.steps // 20),
        fingerprint=dataset.fingerprint,
        about=f"{config.recipe} on {config.dataset}",
        extra={"class_names": dataset.class_names, "image_shape": shape},
        evaluators=[
            pictures,
            distance,
            audit.collapse_alarm(
                given(config, 500, 3, K),
                preprocess=generated.to_unit,
                modes=lambda images: judge.classes(generated.to_bytes(images)),
            ),
        ],
        loggers=[pictures.log, audit.saturation_alarm()],
    )
    films = pictures.animate()
    made = given(config, config.samples, 4, K)
    asked = made["labels"] if config.conditional else None
    scores = study.once(
        folder / "scores.json", lambda: judge.scores(generated.sample(outcome.fitted.predict, made), asked)
    )
    outcome = outcome._replace(test={**outcome.test, **scores})
    if not config.execution.quiet:
        print(running.report(generated.told(scores), outcome, "gan"))
        print(f"samples        {pictures.folder}\nanimation      {', '.join(map(str, films))}")
    return outcome


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
