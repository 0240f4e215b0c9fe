"""Hugging Face's efficient networks of images: MobileNet v1 and v2, EfficientNet."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from jdl.interop import names
from jdl.interop.family import Config, Family
from jdl.interop.family_vision import images_of, side_of
from jdl.models import EfficientNet, MobileNet, mobilenet_v1, mobilenet_v2
from jdl.models.efficientnet import BASE, SIZES, Blocks, efficientnet
from jdl.nn.inverted import round_channels


def _mobilenet(make: Callable[..., MobileNet], fields: Config) -> MobileNet:
    activation = fields["hidden_act"]
    if activation not in ("relu", "relu6"):
        raise ValueError(f'"hidden_act" is {activation!r}; supported are relu, relu6')
    module = make(
        fields["depth_multiplier"],
        activation=activation,
        # The published files give TensorFlow's share to keep; it is dropped there as here.
        dropout=fields["classifier_dropout_prob"],
        padding="SAME" if fields["tf_padding"] else None,
        epsilon=fields["layer_norm_eps"],
    )
    stages = tuple(tuple(block._replace(activation=activation) for block in stage) for stage in module.stages)
    return module.clone(stages=stages)


def _mobilenet_config(
    make: Callable[..., MobileNet], widest: int, module: MobileNet, params: Any
) -> dict[str, Any]:
    """The fields of a network whose last stage has ``widest`` channels at width 1."""
    fields = {
        "num_channels": params["stem"]["conv"]["kernel"].shape[2],
        "depth_multiplier": module.stages[-1][-1].features / widest,
        "hidden_act": module.activation,
        "tf_padding": module.padding == "SAME",
        "classifier_dropout_prob": module.dropout,
        "layer_norm_eps": module.epsilon,
    }
    if _mobilenet(make, fields).stages != module.stages:
        raise ValueError(
            f"transformers has no such MobileNet: its stages are not those of {make.__name__} of width "
            f"{fields['depth_multiplier']} with {module.activation} everywhere"
        )
    return fields


def _mobilenet_v2(fields: Config) -> MobileNet:
    def channels(module: MobileNet) -> list[int]:
        blocks = [block for stage in module.stages for block in stage]
        return [module.top_width, module.stem_width, *(block.features for block in blocks)]

    module, width = _mobilenet(mobilenet_v2, fields), fields["depth_multiplier"]
    # There, scaled channels are rounded to whole ones before they are rounded to eights.
    top, *others = (round_channels(round(unscaled * width)) for unscaled in channels(mobilenet_v2()))
    if channels(module) != [max(1280, top), *others]:
        raise ValueError(f'"depth_multiplier" is {width}, which transformers rounds to other channels')
    return module


_MOBILENET_FIELDS = {
    "num_channels": 3,
    "depth_multiplier": 1.0,
    "hidden_act": "relu6",
    "tf_padding": True,
    "layer_norm_eps": 1e-3,
}

MOBILENET_V1 = Family(
    kind="mobilenet_v1",
    fields={**_MOBILENET_FIELDS, "classifier_dropout_prob": 0.999},
    only={"min_depth": 8},
    module=functools.partial(_mobilenet, mobilenet_v1),
    config=functools.partial(_mobilenet_config, mobilenet_v1, 1024),
    outputs=[
        ("MobileNetV1Model", {"num_classes": 0}),
        ("MobileNetV1ForImageClassification", {"num_classes": int}),
    ],
    example=lambda fields: images_of(fields, 224),
    rules=lambda module: names.MOBILENET_V1_HUGGING_FACE,
    base="mobilenet_v1.",
    heads=["head"],
    unused=["classifier.*"],
)

MOBILENET_V2 = Family(
    kind="mobilenet_v2",
    fields={**_MOBILENET_FIELDS, "classifier_dropout_prob": 0.8},
    only={
        "depth_divisible_by": 8,
        "min_depth": 8,
        "expand_ratio": 6,
        "output_stride": 32,
        "first_layer_is_expansion": True,
        "finegrained_output": True,
    },
    module=_mobilenet_v2,
    config=functools.partial(_mobilenet_config, mobilenet_v2, 320),
    outputs=[
        ("MobileNetV2Model", {"num_classes": 0}),
        ("MobileNetV2ForImageClassification", {"num_classes": int}),
    ],
    example=lambda fields: images_of(fields, 224),
    rules=lambda module: names.MOBILENET_V2_HUGGING_FACE,
    base="mobilenet_v2.",
    heads=["head"],
    unused=["classifier.*"],
)


def _odd(stages: Sequence[Blocks], side: int) -> list[int]:
    """The blocks, counted through from 0, that halve an image of odd side, which is padded on both sides."""
    odd, i, side = [], 0, -(-side // 2)
    for stage in stages:
        if stage.stride == 2:
            if side % 2:
                odd.append(i)
            side = -(-side // 2)
        i += stage.depth
    return odd


def _efficientnet(fields: Config) -> EfficientNet:
    def channels(features: int) -> int:
        return round_channels(features * fields["width_coefficient"], fields["depth_divisor"])

    leaving = list(fields["out_channels"])
    if list(fields["in_channels"]) != [32, *leaving[:-1]]:
        raise ValueError(f'"in_channels" is {fields["in_channels"]}; only 32 and "out_channels" is supported')
    if fields["squeeze_expansion_ratio"] <= 0:
        raise ValueError(
            f'"squeeze_expansion_ratio" is {fields["squeeze_expansion_ratio"]}; only above 0 is supported'
        )
    rows = [fields[name] for name in ("num_block_repeats", "kernel_sizes", "strides", "expand_ratios")]
    if any(len(row) != len(leaving) for row in rows):
        raise ValueError(f'"out_channels" has {len(leaving)} stages, other fields have another number')
    entering, stages = channels(32), []
    for features, depth, kernel, stride, expansion in zip(leaving, *rows, strict=True):
        if stride == 1 and channels(features) == entering:
            raise ValueError(f'"out_channels" is {leaving}, where a first block could add its input')
        entering = channels(features)
        depth = math.ceil(depth * fields["depth_coefficient"])
        stages.append(Blocks(depth, entering, kernel, stride, expansion))
    _require_padding(fields, stages)
    return EfficientNet(
        tuple(stages),
        channels(32),
        fields["hidden_dim"],
        squeeze=fields["squeeze_expansion_ratio"],
        dropout=fields["dropout_rate"],
        stochastic_depth=fields["drop_connect_rate"],
        momentum=fields["batch_norm_momentum"],
        epsilon=fields["batch_norm_eps"],
    )


def _require_padding(fields: Config, stages: Sequence[Blocks]) -> None:
    """Refuses padding that is not TensorFlow's for images of the size that is named.

    Images of other sizes are padded as TensorFlow does here, and as those of that size there.
    """
    side, padding = side_of(fields, "image_size"), set(fields["depthwise_padding"])
    if side % 2:
        raise ValueError(f'"image_size" is {side}; only even sizes are supported')
    firsts = [sum(stage.depth for stage in stages[:s]) for s in range(len(stages))]
    padded = [i for i, stage in zip(firsts, stages, strict=True) if stage.stride == 2 and i in padding]
    if padded != _odd(stages, side):
        raise ValueError(
            f'"depthwise_padding" is {fields["depthwise_padding"]}; only {_odd(stages, side)} is supported '
            f'for "image_size" {side}'
        )


def _efficientnet_config(module: EfficientNet, params: Any) -> dict[str, Any]:
    """The fields, for images of the published size; 224 pixels where there is none.

    One factor scales the stem, the top and all stages there: it is the top's.
    """
    width = module.top_width / 1280

    def unscaled(s: int, features: int) -> int:
        published = BASE[s].features if s < len(BASE) else 0
        return published if round_channels(published * width) == features else round(features / width)

    leaving = [unscaled(s, stage.features) for s, stage in enumerate(module.stages)]
    side = next(
        (size.image_size for name, size in SIZES.items() if efficientnet(name).stages == module.stages), 224
    )
    return {
        "num_channels": params["stem"]["conv"]["kernel"].shape[2],
        "image_size": side,
        "width_coefficient": width,
        "depth_coefficient": 1.0,
        "kernel_sizes": [stage.kernel for stage in module.stages],
        "in_channels": [32, *leaving[:-1]],
        "out_channels": leaving,
        "depthwise_padding": _odd(module.stages, side),
        "strides": [stage.stride for stage in module.stages],
        "num_block_repeats": list(module.depths),
        "expand_ratios": [stage.expansion for stage in module.stages],
        "squeeze_expansion_ratio": module.squeeze,
        "hidden_dim": module.top_width,
        "batch_norm_eps": module.epsilon,
        "batch_norm_momentum": module.momentum,
        "dropout_rate": module.dropout,
        "drop_connect_rate": module.stochastic_depth,
    }


EFFICIENTNET = Family(
    kind="efficientnet",
    fields={
        "num_channels": 3,
        "image_size": 600,
        "width_coefficient": 2.0,
        "depth_coefficient": 3.1,
        "depth_divisor": 8,
        "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
        "in_channels": [32, 16, 24, 40, 80, 112, 192],
        "out_channels": [16, 24, 40, 80, 112, 192, 320],
        "depthwise_padding": [],
        "strides": [1, 2, 2, 2, 1, 2, 1],
        "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
        "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
        "squeeze_expansion_ratio": 0.25,
        "hidden_dim": 2560,
        "batch_norm_eps": 1e-3,
        "batch_norm_momentum": 0.99,
        "dropout_rate": 0.5,
        "drop_connect_rate": 0.2,
    },
    only={"hidden_act": "swish", "pooling_type": "mean"},
    module=_efficientnet,
    config=_efficientnet_config,
    outputs=[
        ("EfficientNetModel", {"num_classes": 0}),
        ("EfficientNetForImageClassification", {"num_classes": int}),
    ],
    example=lambda fields: images_of(fields, side_of(fields, "image_size")),
    rules=lambda module: names.efficientnet_hugging_face(module.depths),
    base="efficientnet.",
    heads=["head"],
    unused=["classifier.*"],
)
