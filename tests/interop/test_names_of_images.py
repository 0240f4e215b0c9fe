"""Maps of names of networks of images give the names and shapes of libraries that are not installed here."""

import hashlib

import jax
import numpy as np
import pytest

from jdl.interop import export_weights, load_weights, names
from jdl.models import ConvNeXt, ViT, efficientnet, mobilenet_v2, mobilenet_v3
from tests.models.parity import shapes

CONVNEXT = ConvNeXt((1, 2, 1, 1), (8, 16, 24, 32), num_classes=7)
VIT = ViT(8, 16, 2, 2, 32, num_classes=5)

# Of timm 1.0.31, torchvision 0.29.1 and facebookresearch/ConvNeXt at 06f7b05: a network, the SHA-256 of the
# sorted lines "name shape" of its state_dict without counters, and some of them.
PUBLISHED = {
    "ConvNeXt of timm": (
        CONVNEXT,
        names.CONVNEXT_TIMM,
        "3e6a5b712869d2fb4cf8dd696cd9efe5c07b41d5257150da2fc4ee5f4eef0e7d",
        {"stages.1.downsample.1.weight": (16, 8, 2, 2), "stages.1.blocks.1.mlp.fc1.weight": (64, 16)},
    ),
    "ConvNeXt of timm, conv_mlp": (
        CONVNEXT,
        names.CONVNEXT_CONV_TIMM,
        "7d1e5ae59634933d610ee03197bb0aba9d13226999514035853b3960c28cc95f",
        {"stages.1.blocks.1.mlp.fc1.weight": (64, 16, 1, 1), "head.fc.weight": (7, 32)},
    ),
    "ConvNeXt of its authors": (
        CONVNEXT,
        names.CONVNEXT_FACEBOOK,
        "d8fef024d41ea3cd38f24f31d98fa77a33270d2101ffa62c6c32427575b4af89",
        {"downsample_layers.0.0.weight": (8, 3, 4, 4), "stages.1.1.pwconv2.weight": (16, 64)},
    ),
    "ConvNeXt of torchvision": (
        CONVNEXT,
        names.CONVNEXT_TORCHVISION,
        "ab5511caac321604b67c449f7b831fd92a5a9e6180a3115c8942603c64fad7b9",
        {"features.3.1.layer_scale": (16, 1, 1), "features.2.1.weight": (16, 8, 2, 2)},
    ),
    "ViT of timm": (
        VIT,
        names.VIT_TIMM,
        "d0a70bf18df620eace48837bbdc65ea187b217109fc8590a87760a389b4ea5b1",
        {"blocks.1.attn.qkv.weight": (48, 16), "patch_embed.proj.weight": (16, 3, 8, 8)},
    ),
    "ViT of torchvision": (
        VIT,
        names.VIT_TORCHVISION,
        "4ed79f63117f6120894a427559d78ec48576976533befd965a95d2b14ad56df8",
        {"encoder.layers.encoder_layer_1.mlp.3.weight": (16, 32), "class_token": (1, 1, 16)},
    ),
    "tf_efficientnet_b1": (
        efficientnet("b1"),
        names.EFFICIENTNET_TIMM,
        "48ab6dffb99449a5aec50934164974d503c4a1373098b90bbf14d048caafc787",
        {"blocks.0.1.conv_pw.weight": (16, 16, 1, 1), "blocks.1.0.conv_pwl.weight": (24, 96, 1, 1)},
    ),
    "tf_efficientnet_lite0": (
        efficientnet("lite0"),
        names.EFFICIENTNET_TIMM,
        "9e9d040635458c95a43c0ff8aa1044a73404e275c0b9ac8da02cfcdc886f50e8",
        {"blocks.6.0.conv_dw.weight": (1152, 1, 3, 3), "classifier.bias": (1000,)},
    ),
    "mobilenetv2_100": (
        mobilenet_v2(),
        names.MOBILENET_V2_TIMM,
        "5a95ee06712e31e934b48b8c37dbd8ff35daa7b5ff23f2e93f7e234c15d46ec5",
        {"blocks.4.2.conv_pwl.weight": (96, 576, 1, 1), "blocks.6.0.bn3.running_var": (320,)},
    ),
    "tf_mobilenetv3_large_100": (
        mobilenet_v3("large"),
        names.MOBILENET_V3_LARGE_TIMM,
        "3dba8ad57b7701f1b04a89641f0a7a7145177d9aaf449f1211ba6dd8935c68b5",
        {"blocks.4.1.se.conv_reduce.bias": (168,), "blocks.6.0.conv.weight": (960, 160, 1, 1)},
    ),
    "tf_mobilenetv3_small_100": (
        mobilenet_v3("small"),
        names.MOBILENET_V3_SMALL_TIMM,
        "fefefaa6b0100de1e987199654390559406efaf09e8ea44bccfce0c8da951716",
        {"blocks.0.0.se.conv_expand.weight": (16, 8, 1, 1), "conv_head.bias": (1024,)},
    ),
}


@pytest.mark.parametrize("which", PUBLISHED)
def test_gives_the_published_names_and_shapes(which):
    module, rules, digest, some = PUBLISHED[which]
    rng, form = np.random.default_rng(0), shapes(module, 32)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), form)
    tensors = export_weights(variables, rules)
    assert some.items() <= {name: x.shape for name, x in tensors.items()}.items()
    lines = sorted(f"{name} {x.shape}" for name, x in tensors.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    loaded = load_weights(form, tensors, rules)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


def test_a_scale_that_is_not_one_of_channels_is_named():
    tensors = export_weights(
        jax.tree.map(lambda x: np.zeros(x.shape), shapes(CONVNEXT, 32)), names.CONVNEXT_TORCHVISION
    )
    tensors["features.3.1.layer_scale"] = np.zeros((16, 2, 2), np.float32)
    with pytest.raises(
        ValueError, match=r'stage2/block2/layer_scale \(16,\) \("features.3.1.layer_scale" \(16, 2, 2\)\)'
    ):
        load_weights(shapes(CONVNEXT, 32), tensors, names.CONVNEXT_TORCHVISION)
