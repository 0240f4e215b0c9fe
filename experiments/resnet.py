"""Residual networks on CIFAR-10, with the recipe of the paper that introduced them.

The defaults are ResNet-20 as published: batches of 128 for 64,000 steps, momentum 0.9, weight decay 0.0001,
a learning rate of 0.1 divided by 10 at half and at three quarters of the steps, images padded by 4 pixels,
cropped and mirrored. The paper reports 8.75 % test error for 20 layers, 6.97 % for 56. Here all 50,000
training images are used, and the mean and standard deviation of each channel are normalised.

``--shortcut none`` is the plain network, which 56 layers make worse, not better. The whole recipe takes
hours on a CPU; it may be stopped and gone on with. Today's recipe is in `experiments.modern`.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, section 4.2 and table 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments import cli, images, running
from jdl import models

PUBLISHED = "8.75 % test error of ResNet-20 on CIFAR-10 (He et al. 2016, table 6)"


@dataclass(frozen=True)
class Config(images.Config):
    """Settings of a residual network's training; the defaults are the paper's."""

    dataset: images.DatasetName = "cifar10"
    """Images to learn."""
    steps: int = 64_000
    """Training steps, each on one batch."""
    batch_size: int = 128
    """Images in a batch."""
    optimizer: Literal["adamw", "sgd"] = "sgd"
    """adamw, or sgd with momentum 0.9."""
    learning_rate: float = 0.1
    """Peak of the learning rate."""
    schedule: Literal["cosine", "steps", "linear"] = "steps"
    """How the rate falls: along a cosine, by 10 at half and at three quarters of the steps, or in a line."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises in a straight line from 0."""
    weight_decay: float = 1e-4
    """Weight decay: decoupled for adamw, part of the gradient for sgd."""
    decay_all: bool = True
    """Decay biases and normalisation too, as the recipes of the time did, not the kernels alone."""
    shift: int = 4
    """Largest random shift of a training image, pixels each way; 0 for the images as they are."""
    flip: bool = True
    """Mirror half of the training images."""
    depth: int = 20
    """Layers, 6n + 2: 20, 32, 44, 56, 110."""
    shortcut: Literal["projection", "padding", "none"] = "padding"
    """How a shortcut changes shape: padding with zeros (option A, the paper's) or a projection (option B);
    none is the plain network."""
    pre_activation: bool = False
    """Normalise and activate before each convolution, as in He et al. 2016b."""
    stochastic_depth: float = 0.0
    """Probability of dropping the last block in training; it grows from 0 along the depth."""
    remat: bool = False
    """Compute the inside of each block again for the gradient rather than keep it, to save memory."""


def model(config: Config) -> models.ResNet:
    """The network that the configuration describes."""
    return models.resnet_cifar(
        config.depth,
        shortcut=config.shortcut,
        pre_activation=config.pre_activation,
        stochastic_depth=config.stochastic_depth,
        remat=config.remat,
    )


def main(config: Config) -> running.Outcome:
    """Trains a residual network as the configuration says."""
    return images.classify("resnet", model(config), config)


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
