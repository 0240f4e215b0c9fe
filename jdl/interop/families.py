"""The families of models that Hugging Face folders hold and that are ours too."""

from __future__ import annotations

from typing import Any

from jdl.interop.family import Family
from jdl.interop.family_decoders import GPT2, LLAMA, MISTRAL, QWEN2
from jdl.interop.family_encoders import BERT, T5
from jdl.interop.family_vision import RESNET, VIT
from jdl.models import EncoderDecoder, ResNet, Transformer, ViT

FAMILIES = {family.kind: family for family in (BERT, GPT2, LLAMA, MISTRAL, QWEN2, RESNET, T5, VIT)}


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
    for kind, family in ((EncoderDecoder, T5), (ViT, VIT), (ResNet, RESNET)):
        if isinstance(module, kind):
            return family
    raise ValueError(f"a {type(module).__name__} is of none of the families {', '.join(FAMILIES)}")
