"""The complete recipe of today on CIFAR-10, each part of which can be switched off.

RandAugment, Mixup or CutMix (one of them a batch), label smoothing, stochastic depth, Nesterov momentum,
weight decay of the kernels alone, averaged weights, and a cosine after a warm-up, on the residual networks of
`experiments.resnet`: the same fields with other defaults. ``--mixup 0`` leaves out Mixup, ``--rand-augment
0`` RandAugment, and so on. It is made for long training: short runs do better with less of it.

Wightman, Touvron and Jegou, "ResNet strikes back", 2021; Cubuk et al., "RandAugment", 2020; Zhang et al.,
"mixup", 2018; Yun et al., "CutMix", 2019; Szegedy et al., 2016 (label smoothing); Huang et al., 2016
(stochastic depth); Izmailov et al., 2018 (averaged weights).
"""

from __future__ import annotations

from experiments import cli, resnet, running

PUBLISHED = "none: the papers have other networks, and train them for longer"

DEFAULTS = resnet.Config(
    schedule="cosine",
    warmup=0.05,
    nesterov=True,
    weight_decay=5e-4,
    decay_all=False,
    rand_augment=9.0,
    mixup=0.2,
    cutmix=1.0,
    label_smoothing=0.1,
    stochastic_depth=0.1,
    averaging=0.999,
)


def main(config: resnet.Config = DEFAULTS) -> running.Outcome:
    """Trains a residual network as the configuration says."""
    return resnet.main(config)


if __name__ == "__main__":
    cli.command(main, resnet.Config, __doc__, DEFAULTS)
