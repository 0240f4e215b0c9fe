"""Maps of names of published models, for `jdl.interop.load_weights`.

Each is named after our model and the library whose ``state_dict`` it reads, and serves every depth and width
of the family.
"""

from __future__ import annotations

from jdl.interop.names_classic import (  # noqa: F401
    ALEXNET_TORCHVISION,
    DENSENET_TORCHVISION,
    DENSENET_TORCHVISION_FILE,
    GOOGLENET_TORCHVISION,
    SQUEEZENET_1_0_TORCHVISION,
    SQUEEZENET_1_1_TORCHVISION,
    UNET_MILESIAL,
    vgg_torchvision,
)
from jdl.interop.names_efficient import CONVNEXT_CONV_TIMM as CONVNEXT_CONV_TIMM
from jdl.interop.names_efficient import CONVNEXT_FACEBOOK as CONVNEXT_FACEBOOK
from jdl.interop.names_efficient import CONVNEXT_HUGGING_FACE as CONVNEXT_HUGGING_FACE
from jdl.interop.names_efficient import CONVNEXT_TIMM as CONVNEXT_TIMM
from jdl.interop.names_efficient import CONVNEXT_TORCHVISION as CONVNEXT_TORCHVISION
from jdl.interop.names_efficient import EFFICIENTNET_TIMM as EFFICIENTNET_TIMM
from jdl.interop.names_efficient import EFFICIENTNET_TORCHVISION as EFFICIENTNET_TORCHVISION
from jdl.interop.names_efficient import MIXER_TIMM as MIXER_TIMM
from jdl.interop.names_efficient import MOBILENET_V1_HUGGING_FACE as MOBILENET_V1_HUGGING_FACE
from jdl.interop.names_efficient import MOBILENET_V2_HUGGING_FACE as MOBILENET_V2_HUGGING_FACE
from jdl.interop.names_efficient import MOBILENET_V2_TIMM as MOBILENET_V2_TIMM
from jdl.interop.names_efficient import MOBILENET_V2_TORCHVISION as MOBILENET_V2_TORCHVISION
from jdl.interop.names_efficient import MOBILENET_V3_LARGE_TIMM as MOBILENET_V3_LARGE_TIMM
from jdl.interop.names_efficient import MOBILENET_V3_LARGE_TORCHVISION as MOBILENET_V3_LARGE_TORCHVISION
from jdl.interop.names_efficient import MOBILENET_V3_SMALL_TIMM as MOBILENET_V3_SMALL_TIMM
from jdl.interop.names_efficient import MOBILENET_V3_SMALL_TORCHVISION as MOBILENET_V3_SMALL_TORCHVISION
from jdl.interop.names_efficient import SHUFFLENET_TORCHVISION as SHUFFLENET_TORCHVISION
from jdl.interop.names_efficient import VIT_HUGGING_FACE as VIT_HUGGING_FACE
from jdl.interop.names_efficient import VIT_TIMM as VIT_TIMM
from jdl.interop.names_efficient import VIT_TORCHVISION as VIT_TORCHVISION
from jdl.interop.names_efficient import VIT_TORCHVISION_FILE as VIT_TORCHVISION_FILE
from jdl.interop.names_efficient import efficientnet_hugging_face as efficientnet_hugging_face
from jdl.interop.names_efficient import efficientnet_lite_pytorch as efficientnet_lite_pytorch
from jdl.interop.names_language import BERT_HUGGING_FACE as BERT_HUGGING_FACE
from jdl.interop.names_language import GPT2_HUGGING_FACE as GPT2_HUGGING_FACE
from jdl.interop.names_language import LLAMA_HUGGING_FACE as LLAMA_HUGGING_FACE
from jdl.interop.names_language import T5_1_1_HUGGING_FACE as T5_1_1_HUGGING_FACE
from jdl.interop.names_language import T5_HUGGING_FACE as T5_HUGGING_FACE
from jdl.interop.names_recurrent import AWD_LSTM_SALESFORCE as AWD_LSTM_SALESFORCE
from jdl.interop.names_recurrent import RECURRENT_TORCH as RECURRENT_TORCH
from jdl.interop.names_recurrent import recurrent_torch as recurrent_torch
from jdl.interop.names_recurrent import recurrent_torch_layer as recurrent_torch_layer

_RESNET_BLOCKS = [
    ("stage{s}/block{b}/conv{i}/conv", "layer{s}.{b-1}.conv{i}"),
    ("stage{s}/block{b}/conv{i}/norm", "layer{s}.{b-1}.bn{i}"),
    ("stage{s}/block{b}/shortcut/conv", "layer{s}.{b-1}.downsample.0"),
    ("stage{s}/block{b}/shortcut/norm", "layer{s}.{b-1}.downsample.1"),
]

RESNET_TORCHVISION = [("stem/conv", "conv1"), ("stem/norm", "bn1"), *_RESNET_BLOCKS, ("head", "fc")]
"""`jdl.models.resnet` from torchvision and timm (ResNet, ResNeXt, wide ResNet)."""

RESNET_CIFAR = [("stem/conv", "conv1"), ("stem/norm", "bn1"), *_RESNET_BLOCKS, ("head", "linear")]
"""`jdl.models.resnet_cifar` from Yerlan Idelbayev's pytorch_resnet_cifar10."""

RESNET_HUGGING_FACE = [
    ("stem/conv", "resnet.embedder.embedder.convolution"),
    ("stem/norm", "resnet.embedder.embedder.normalization"),
    ("stage{s}/block{b}/conv{i}/conv", "resnet.encoder.stages.{s-1}.layers.{b-1}.layer.{i-1}.convolution"),
    ("stage{s}/block{b}/conv{i}/norm", "resnet.encoder.stages.{s-1}.layers.{b-1}.layer.{i-1}.normalization"),
    ("stage{s}/block{b}/shortcut/conv", "resnet.encoder.stages.{s-1}.layers.{b-1}.shortcut.convolution"),
    ("stage{s}/block{b}/shortcut/norm", "resnet.encoder.stages.{s-1}.layers.{b-1}.shortcut.normalization"),
    ("head", "classifier.1"),
]
"""`jdl.models.resnet` from Hugging Face transformers."""
