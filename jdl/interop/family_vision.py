"""Hugging Face's models of images: ViT, ResNet and ConvNeXt."""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.interop import names
from jdl.interop.family import Config, Family
from jdl.models import ConvNeXt, ResNet, ViT


def side_of(fields: Config, name: str) -> int:
    """The side of a square, which may be given twice.

    Raises:
        ValueError: if the two differ.
    """
    sides = np.unique(fields[name])
    if len(sides) > 1:
        raise ValueError(f'"{name}" is {fields[name]}; only squares are supported')
    return int(sides[0])


def images_of(fields: Config, side: int) -> np.ndarray:
    """An image of a side, [1, side, side, C]."""
    return np.zeros((1, side, side, fields["num_channels"]), np.float32)


def _vit(fields: Config) -> ViT:
    return ViT(
        side_of(fields, "patch_size"),
        fields["hidden_size"],
        fields["num_hidden_layers"],
        fields["num_attention_heads"],
        fields["intermediate_size"],
        epsilon=fields["layer_norm_eps"],
        dropout=fields["hidden_dropout_prob"],
    )


def _vit_config(module: ViT, params: Any) -> dict[str, Any]:
    side = round((params["positions"].shape[1] - 1) ** 0.5)
    return {
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "intermediate_size": module.hidden or 4 * module.width,
        "layer_norm_eps": module.epsilon,
        "image_size": side * module.patch,
        "patch_size": module.patch,
        "num_channels": params["stem"]["kernel"].shape[2],
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), module.dropout),
    }


VIT = Family(
    kind="vit",
    fields={
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "hidden_dropout_prob": 0.0,
    },
    only={"hidden_act": "gelu", "qkv_bias": True},
    module=_vit,
    config=_vit_config,
    outputs=[("ViTModel", {"num_classes": 0}), ("ViTForImageClassification", {"num_classes": int})],
    example=lambda fields: images_of(fields, side_of(fields, "image_size")),
    rules=lambda module: names.VIT_HUGGING_FACE,
    base="vit.",
    heads=["head"],
    unused=["classifier.*", "vit.pooler.*", "vit.embeddings.mask_token"],
)


def _resnet(fields: Config) -> ResNet:
    kinds = {"basic": None, "bottleneck": tuple(width // 4 for width in fields["hidden_sizes"])}
    if fields["layer_type"] not in kinds:
        raise ValueError(f'"layer_type" is {fields["layer_type"]!r}; supported are {", ".join(kinds)}')
    return ResNet(
        tuple(fields["depths"]),
        tuple(fields["hidden_sizes"]),
        kinds[fields["layer_type"]],
        stem_width=fields["embedding_size"],
    )


RESNET = Family(
    kind="resnet",
    fields={
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck",
    },
    only={"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
    module=_resnet,
    config=lambda module, params: {
        "num_channels": params["stem"]["conv"]["kernel"].shape[2],
        "embedding_size": module.stem_width,
        "hidden_sizes": list(module.widths),
        "depths": list(module.depths),
        "layer_type": "bottleneck" if module.inner else "basic",
    },
    outputs=[("ResNetModel", {"num_classes": 0}), ("ResNetForImageClassification", {"num_classes": int})],
    example=lambda fields: images_of(fields, 224),
    rules=lambda module: names.RESNET_HUGGING_FACE,
    base="resnet.",
    heads=["head"],
    unused=["classifier.*"],
)


_CONVNEXT_EPSILON = 1e-6


def _convnext(fields: Config) -> ConvNeXt:
    depths, widths, stages = fields["depths"], fields["hidden_sizes"], fields["num_stages"]
    if not len(depths) == len(widths) == stages:
        raise ValueError(f'"num_stages" is {stages}, "depths" {depths}, "hidden_sizes" {widths}')
    if fields["layer_scale_init_value"] <= 0:
        raise ValueError(
            f'"layer_scale_init_value" is {fields["layer_scale_init_value"]}; only above 0 is supported'
        )
    # Of the last normalisation alone: the others have ours there too. The usual 1e-12 changes the outputs by
    # 5e-7 of them over the variance of the features.
    if fields["layer_norm_eps"] > _CONVNEXT_EPSILON:
        raise ValueError(
            f'"layer_norm_eps" is {fields["layer_norm_eps"]}; only up to {_CONVNEXT_EPSILON} is supported'
        )
    return ConvNeXt(
        tuple(depths),
        tuple(widths),
        layer_scale=fields["layer_scale_init_value"],
        stochastic_depth=fields["drop_path_rate"],
    )


CONVNEXT = Family(
    kind="convnext",
    fields={
        "num_channels": 3,
        "num_stages": 4,
        "hidden_sizes": [96, 192, 384, 768],
        "depths": [3, 3, 9, 3],
        "layer_norm_eps": 1e-12,
        "layer_scale_init_value": 1e-6,
        "drop_path_rate": 0.0,
    },
    only={"hidden_act": "gelu", "patch_size": 4},
    module=_convnext,
    config=lambda module, params: {
        "num_channels": params["stem"]["kernel"].shape[2],
        "num_stages": len(module.depths),
        "hidden_sizes": list(module.widths),
        "depths": list(module.depths),
        "layer_norm_eps": _CONVNEXT_EPSILON,
        "layer_scale_init_value": module.layer_scale,
        "drop_path_rate": module.stochastic_depth,
    },
    outputs=[("ConvNextModel", {"num_classes": 0}), ("ConvNextForImageClassification", {"num_classes": int})],
    example=lambda fields: images_of(fields, 224),
    rules=lambda module: names.CONVNEXT_HUGGING_FACE,
    base="convnext.",
    heads=["head"],
    unused=["classifier.*"],
    aliases={"num_hidden_layers": "num_stages"},
)
