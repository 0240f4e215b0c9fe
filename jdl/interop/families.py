"""The families of models that Hugging Face folders hold and that are ours too."""

from __future__ import annotations

from typing import Any

from jdl.interop.family import Family
from jdl.interop.family_decoders import GPT2, LLAMA, MISTRAL, QWEN2
from jdl.interop.family_efficient import EFFICIENTNET, MOBILENET_V1, MOBILENET_V2
from jdl.interop.family_encoders import BERT, T5
from jdl.interop.family_vision import CONVNEXT, RESNET, VIT
from jdl.models import ConvNeXt, EfficientNet, EncoderDecoder, MobileNet, ResNet, Transformer, ViT

_TEXT = (BERT, GPT2, LLAMA, MISTRAL, QWEN2, T5)
_IMAGES = (CONVNEXT, EFFICIENTNET, MOBILENET_V1, MOBILENET_V2, RESNET, VIT)
FAMILIES = {family.kind: family for family in (*_TEXT, *_IMAGES)}

_BY_CLASS = {EncoderDecoder: T5, ViT: VIT, ResNet: RESNET, ConvNeXt: CONVNEXT, EfficientNet: EFFICIENTNET}


def family_of(module: Any) -> Family:
    """The family that a module may belong to.

    Raises:
        ValueError: for a module that is of none.
    """
    if isinstance(module, Transformer):
        if module.block.rotary is not None:
            if module.block.qkv_bias and not module.block.use_bias:
                return QWEN2
            return LLAMA if module.block.window is None else MISTRAL
        return GPT2 if module.block.causal else BERT
    name = type(module).__name__
    if isinstance(module, MobileNet):
        blocks = [block for stage in module.stages for block in stage]
        if not module.hidden_width and not any(block.squeeze for block in blocks):
            return MOBILENET_V2 if any(block.expanded for block in blocks) else MOBILENET_V1
        name = f"{name} v3"
    for kind, family in _BY_CLASS.items():
        if isinstance(module, kind):
            return family
    raise ValueError(f"a {name} is of none of the families {', '.join(FAMILIES)}")
