"""Architectures, one file a family.

A model is a Linen module called as ``module.apply(variables, inputs, train=False)``. Each file has a
function ``tiny()`` that returns a small module and a batch for it.
"""

from jdl.models.airbench import AirBench
from jdl.models.alexnet import AlexNet
from jdl.models.autoencoder import Autoencoder
from jdl.models.bert import bert
from jdl.models.convlstm import ConvLSTMNet
from jdl.models.convnext import ConvNeXt, convnext
from jdl.models.densenet import DenseNet, densenet, densenet_cifar
from jdl.models.efficientnet import EfficientNet, efficientnet
from jdl.models.encoder_decoder import EncoderDecoder, transformer
from jdl.models.gan import (
    DCGANDiscriminator,
    DCGANGenerator,
    MLPGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
)
from jdl.models.googlenet import GoogLeNet
from jdl.models.gpt import gpt
from jdl.models.lenet import LeNet5
from jdl.models.llama import llama
from jdl.models.mae import MaskedAutoencoder
from jdl.models.mixer import Mixer, mixer
from jdl.models.mlp import MLP
from jdl.models.mobilenet import MobileNet, mobilenet_v1, mobilenet_v2, mobilenet_v3
from jdl.models.nin import NiN
from jdl.models.pixelcnn import PixelCNN
from jdl.models.recurrent import Recurrent
from jdl.models.recurrent_lm import RecurrentLM, awd_lstm
from jdl.models.resnet import ResNet, resnet, resnet_cifar, wide_resnet
from jdl.models.seq2seq import Seq2Seq
from jdl.models.shufflenet import ShuffleNet, shufflenet_v2
from jdl.models.small_cnn import TwoConv
from jdl.models.squeezenet import SqueezeNet, squeezenet
from jdl.models.t5 import t5
from jdl.models.textcnn import TextCNN
from jdl.models.transformer import Transformer
from jdl.models.unet import UNet, unet_output_size
from jdl.models.vae import VAE
from jdl.models.vgg import VGG, vgg
from jdl.models.vit import ViT, vit
from jdl.models.vqvae import VQVAE

__all__ = [
    "MLP",
    "VAE",
    "VGG",
    "VQVAE",
    "AirBench",
    "AlexNet",
    "Autoencoder",
    "ConvLSTMNet",
    "ConvNeXt",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DenseNet",
    "EfficientNet",
    "EncoderDecoder",
    "GoogLeNet",
    "LeNet5",
    "MLPGenerator",
    "MaskedAutoencoder",
    "Mixer",
    "MobileNet",
    "NiN",
    "PixelCNN",
    "Recurrent",
    "RecurrentLM",
    "ResNet",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "Seq2Seq",
    "ShuffleNet",
    "SqueezeNet",
    "TextCNN",
    "Transformer",
    "TwoConv",
    "UNet",
    "ViT",
    "awd_lstm",
    "bert",
    "convnext",
    "densenet",
    "densenet_cifar",
    "efficientnet",
    "gpt",
    "llama",
    "mixer",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "resnet",
    "resnet_cifar",
    "shufflenet_v2",
    "squeezenet",
    "t5",
    "transformer",
    "unet_output_size",
    "vgg",
    "vit",
    "wide_resnet",
]
