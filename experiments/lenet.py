"""LeNet-5, the convolutional network that read handwritten digits in 1998.

Trains it on the 8x8 digits that ship with the package (enlarged to LeNet's 32x32), or on MNIST (padded to
32x32, as in the paper), Fashion-MNIST or CIFAR-10. The paper reports 0.95 % test error on MNIST without
distortions of the training images, with its own layout, a second-order method and 20 passes; the default
here is the layout and the optimiser of today, and ``--layout 1998`` is the paper's network.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proceedings of
the IEEE 86(11), 1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments import cli, images, running
from jdl import models

PUBLISHED = "0.95 % test error on MNIST without distortions (LeCun et al. 1998, as the MNIST page has it)"


@dataclass(frozen=True)
class Config(images.Config):
    """Settings of LeNet-5's training."""

    layout: Literal["modern", "1998"] = "modern"
    """modern: ReLU, max-pooling, full connections; 1998: the paper's network of 60,000 parameters."""


def model(config: Config) -> models.LeNet5:
    """The network that the configuration describes."""
    return models.LeNet5(layout=config.layout)


def main(config: Config) -> running.Outcome:
    """Trains LeNet-5 as the configuration says."""
    return images.classify("lenet", model(config), config, size=(32, 32))


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
