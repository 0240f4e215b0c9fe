"""Two convolutions with fewer than 100,000 parameters, the small row of the Fashion-MNIST benchmark table.

Trains the network of that row (5x5 convolutions with 32 and 64 features, max-pooling, one linear layer) on
Fashion-MNIST, or on the digits that ship with the package, MNIST or CIFAR-10. The table reports a test
accuracy of 0.925 without preprocessing or augmentation, after 30 passes of Adam.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
2017; benchmark table of its repository, row "2 Conv Layers net <100K parameters".
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments import cli, images, running
from jdl import models

PUBLISHED = "0.925 test accuracy on Fashion-MNIST (its benchmark table, 2 Conv Layers net <100K parameters)"


@dataclass(frozen=True)
class Config(images.Config):
    """Settings of the two-convolution network's training."""

    batch_norm: bool = False
    """Normalise after each max-pooling; the row's own network does not."""
    dropout: float = 0.0
    """Share of the last layer's inputs dropped in training; the row's own network drops none."""


def model(config: Config) -> models.TwoConv:
    """The network that the configuration describes."""
    return models.TwoConv(batch_norm=config.batch_norm, dropout=config.dropout)


def main(config: Config) -> running.Outcome:
    """Trains the network as the configuration says."""
    return images.classify("two_conv", model(config), config)


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
