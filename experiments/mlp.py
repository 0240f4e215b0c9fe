"""The multilayer perceptron: neurons in layers, each fully connected to the one before.

Trains LeNet-300-100, the two-hidden-layer network of the LeNet paper, or any other widths, on the digits
that ship with the package, MNIST, Fashion-MNIST or CIFAR-10. The paper reports 3.05 % test error on MNIST
for 300 and 100 hidden units.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proceedings of
the IEEE 86(11), 1998.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments import cli, images, running
from jdl import models

PUBLISHED = (
    "3.05 % test error on MNIST, 300 and 100 hidden units (LeCun et al. 1998, as the MNIST page has it)"
)


@dataclass(frozen=True)
class Config(images.Config):
    """Settings of an MLP's training."""

    hidden: tuple[int, ...] = (300, 100)
    """Widths of the hidden layers."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    residual: bool = False
    """Residual blocks where neighbouring layers are equally wide."""


def model(config: Config) -> models.MLP:
    """The network that the configuration describes."""
    return models.MLP((*config.hidden, 10), dropout=config.dropout, residual=config.residual)


def main(config: Config) -> running.Outcome:
    """Trains an MLP as the configuration says."""
    return images.classify("mlp", model(config), config)


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
