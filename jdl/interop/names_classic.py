"""Maps of names of the convolutional networks of 2012 to 2017, for `jdl.interop.load_weights`."""

from __future__ import annotations

from jdl.models.vgg import VGG


def vgg_torchvision(model: VGG) -> list[tuple[str, str]]:
    """The map of a `jdl.models.vgg` from torchvision, where a layer's number counts all layers before it.

    Args:
        model: the module, such as ``vgg(16)``; depths and normalisation are read from it.

    Returns:
        Rules.

    Example:
        >>> from jdl.models import vgg
        >>> vgg_torchvision(vgg(11))[:3]
        [('stage1/block1/conv', 'features.0'), ('stage2/block1/conv', 'features.3'),
         ('stage3/block1/conv', 'features.6')]
        >>> vgg_torchvision(vgg(11, norm=True))[2]
        ('stage2/block1/conv', 'features.4')
    """
    rules, position = [], 0
    for s, depth in enumerate(model.depths, 1):
        for b in range(1, depth + 1):
            rules.append((f"stage{s}/block{b}/conv", f"features.{position}"))
            if model.norm:
                rules.append((f"stage{s}/block{b}/norm", f"features.{position + 1}"))
            position += 3 if model.norm else 2
        position += 1
    heads = [("hidden1", "classifier.0"), ("hidden2", "classifier.3"), ("head", "classifier.6")]
    return rules + heads


ALEXNET_TORCHVISION = [
    ("stem/conv", "features.0"),
    ("stage1/block1/conv", "features.3"),
    ("stage2/block1/conv", "features.6"),
    ("stage2/block2/conv", "features.8"),
    ("stage2/block3/conv", "features.10"),
    ("hidden1", "classifier.1"),
    ("hidden2", "classifier.4"),
    ("head", "classifier.6"),
]
"""`jdl.models.AlexNet` from torchvision."""


def _squeezenet(*before_first: int) -> list[tuple[str, str]]:
    stages = [
        (f"stage{s}/block{{b}}/{part}/conv", f"features.{{b+{before}}}.{part}")
        for s, before in enumerate(before_first, 1)
        for part in ("squeeze", "expand1x1", "expand3x3")
    ]
    return [("stem/conv", "features.0"), *stages, ("head", "classifier.1")]


SQUEEZENET_1_0_TORCHVISION = _squeezenet(2, 6, 11)
"""``jdl.models.squeezenet("1.0")`` from torchvision."""

SQUEEZENET_1_1_TORCHVISION = _squeezenet(2, 5, 8)
"""``jdl.models.squeezenet("1.1")`` from torchvision."""


def _googlenet() -> list[tuple[str, str]]:
    parts = {
        "stem": "conv1",
        "stem_1x1": "conv2",
        "stem_3x3": "conv3",
        "auxiliary{i}/conv": "aux{i}.conv",
    }
    branches = {"1": "1", "2_1": "2.0", "2_2": "2.1", "3_1": "3.0", "3_2": "3.1", "4": "4.1"}
    parts |= {
        f"inception{{s}}{letter}/branch{ours}": f"inception{{s}}{letter}.branch{theirs}"
        for letter in "abcde"
        for ours, theirs in branches.items()
    }
    heads = [("auxiliary{i}/hidden", "aux{i}.fc1"), ("auxiliary{i}/head", "aux{i}.fc2"), ("head", "fc")]
    layers = {"conv": "conv", "norm": "bn"}
    return [(f"{a}/{x}", f"{b}.{y}") for a, b in parts.items() for x, y in layers.items()] + heads


GOOGLENET_TORCHVISION = _googlenet()
"""`jdl.models.GoogLeNet` from torchvision. Without auxiliary classifiers, ``ignore=["aux*"]``. The ImageNet
weights are of images normalised to (x - 0.5) / 0.5."""


def _densenet(norm: str, conv: str) -> list[tuple[str, str]]:
    ours = "stage{s}/block{b}/layer{i}"
    theirs = "features.denseblock{s}.denselayer{b}"
    return [
        ("stem/conv", "features.conv0"),
        ("stem/norm", "features.norm0"),
        (f"{ours}/norm", f"{theirs}.{norm}"),
        (f"{ours}/conv", f"{theirs}.{conv}"),
        ("transition{s}/norm", "features.transition{s}.norm"),
        ("transition{s}/conv", "features.transition{s}.conv"),
        ("norm", "features.norm5"),
        ("head", "classifier"),
    ]


DENSENET_TORCHVISION = _densenet("norm{i}", "conv{i}")
"""`jdl.models.densenet` from the ``state_dict`` of torchvision's and timm's models."""

DENSENET_TORCHVISION_FILE = _densenet("norm.{i}", "conv.{i}")
"""`jdl.models.densenet` from the files that torchvision downloads, and renames when it loads them."""


def _unet() -> list[tuple[str, ...]]:
    rules: list[tuple[str, ...]] = []
    for b, (conv, norm) in enumerate(((0, 1), (3, 4)), 1):
        for layer, number in (("conv", conv), ("norm", norm)):
            rules += [
                (f"stage1/block{b}/{layer}", f"inc.double_conv.{number}"),
                (f"stage{{s}}/block{b}/{layer}", f"down{{s-1}}.maxpool_conv.1.double_conv.{number}"),
                *(
                    (f"decoder{s}/block{b}/{layer}", f"up{5 - s}.conv.double_conv.{number}")
                    for s in range(1, 5)
                ),
            ]
    rules += [(f"up{s}", f"up{5 - s}.up", "transposed") for s in range(1, 5)]
    return [*rules, ("head", "outc.conv")]


UNET_MILESIAL = _unet()
"""``jdl.models.UNet(norm=True)`` of depth 4 from milesial's Pytorch-UNet (with transposed convolutions)."""
