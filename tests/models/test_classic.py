"""VGG, AlexNet, NiN, SqueezeNet, GoogLeNet, DenseNet: published sizes, and what PyTorch's twins compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.interop import export_weights, load_weights, names
from jdl.models import AlexNet, GoogLeNet, NiN, densenet, densenet_cifar, squeezenet, vgg
from jdl.models.densenet import DenseNet
from jdl.models.squeezenet import SqueezeNet
from jdl.models.vgg import VGG
from jdl.nn import features
from tests.models import parity
from tests.models.twins import classic

# Parameters: torchvision's documentation of its models (with biases under batch normalisation, 3x3 for the
# paper's 5x5 in GoogLeNet). Millions of multiply-adds on 224x224 images: the same.
IMAGENET = {
    "VGG-11": (vgg(11), 132_863_336, 7_609),
    "VGG-13": (vgg(13), 133_047_848, 11_308),
    "VGG-16": (vgg(16), 138_357_544, 15_470),
    "VGG-19": (vgg(19), 143_667_240, 19_632),
    "VGG-11 normalised": (vgg(11, norm=True), 132_868_840, 7_609),
    "VGG-13 normalised": (vgg(13, norm=True), 133_053_736, 11_308),
    "VGG-16 normalised": (vgg(16, norm=True), 138_365_992, 15_470),
    "VGG-19 normalised": (vgg(19, norm=True), 143_678_248, 19_632),
    "AlexNet": (AlexNet(), 61_100_840, 714),
    "SqueezeNet 1.0": (squeezenet("1.0"), 1_248_424, 819),
    "SqueezeNet 1.1": (squeezenet("1.1"), 1_235_496, 349),
    "GoogLeNet": (GoogLeNet(), 6_624_904, 1_498),
    "DenseNet-121": (densenet(121), 7_978_856, 2_834),
    "DenseNet-161": (densenet(161), 28_681_000, 7_728),
    "DenseNet-169": (densenet(169), 14_149_480, 3_360),
    "DenseNet-201": (densenet(201), 20_013_928, 4_291),
}


@pytest.mark.parametrize("model", IMAGENET)
def test_published_parameters_and_multiply_adds(model):
    module, parameters, multiply_adds = IMAGENET[model]
    found = parity.size_of(module, 224)
    assert found[0] == parameters
    assert found[1] == pytest.approx(multiply_adds, rel=0.01)


def test_googlenet_with_auxiliary_classifiers_has_thirteen_million():
    assert parity.size_of(GoogLeNet(auxiliary=True), 224)[0] == 13_004_888


# Table 2 of the paper, in millions. k is the growth.
@pytest.mark.parametrize(
    ("depth", "growth", "bottleneck", "millions"),
    [
        (40, 12, False, 1.0), (100, 12, False, 7.0),
        (100, 12, True, 0.8), (250, 24, True, 15.3), (190, 40, True, 25.6),
    ],
)  # fmt: skip
def test_densenets_for_cifar_have_the_parameters_of_table_two(depth, growth, bottleneck, millions):
    module = densenet_cifar(depth, growth, bottleneck=bottleneck)
    assert round(parity.size_of(module, 32)[0] / 1e6, 1) == millions


def test_network_in_network_has_each_layer_of_its_configuration():
    """Computed by hand from the layers of the authors' configuration: k k C F + F."""
    table = [
        (5, 3, 192), (1, 192, 160), (1, 160, 96), (5, 96, 192), (1, 192, 192), (1, 192, 192),
        (3, 192, 192), (1, 192, 192), (1, 192, 10),
    ]  # fmt: skip
    assert parity.size_of(NiN(), 32)[0] == sum(k * k * c * f + f for k, c, f in table) == 966_986


def nin_names():
    rules, position = [], 0
    for s in (1, 2, 3):
        for b in (1, 2):
            rules.append((f"stage{s}/block{b}/conv", f"{position}"))
            position += 2
        position += s < 3
    return [*rules, ("head", f"{position}")]


class Summed:
    """A module whose logits in training are those of all its classifiers added."""

    def __init__(self, module):
        self.init, self.module = module.init, module

    def apply(self, *arguments, train=False, **options):
        outputs = self.module.apply(*arguments, train=train, **options)
        if not train:
            return outputs
        (logits, *others), changed = outputs
        return logits + 0.3 * sum(others), changed


def test_vgg_equals_torch(torch):
    for norm, train, size in (False, False, 16), (True, False, 16), (True, True, 20):
        module = VGG((1, 2), (8, 12), num_classes=3, hidden=16, pooled=3, norm=norm, dropout=0.0)
        reference = classic.vgg(torch, (1, 2), (8, 12), 16, 3, 3, norm)
        rules = names.vgg_torchvision(module)
        parity.compare(torch, module, reference, rules, size, train=train)


@pytest.mark.parametrize("response_norm", [False, True])
def test_alexnet_equals_torch(torch, response_norm):
    widths = (8, 12, 8, 10, 8)
    module = AlexNet(3, widths, 16, response_norm, dropout=0.0)
    reference = classic.alexnet(torch, widths, 16, 3, response_norm)
    parity.compare(torch, module, reference, names.ALEXNET_TORCHVISION, 70)


def test_network_in_network_equals_torch(torch):
    widths, kernels = ((8, 10), (8, 8), (8, 8)), (5, 5, 3)
    reference = classic.nin(torch, widths, kernels, 3)
    parity.compare(torch, NiN(3, widths, kernels, dropout=0.0), reference, nin_names(), 14)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_squeezenet_equals_torch(torch, version):
    fires = [(4, 8)] * 8
    if version == "1.0":
        stem, stages, rules = (8, 7), (fires[:3], fires[3:7], fires[7:]), names.SQUEEZENET_1_0_TORCHVISION
    else:
        stem, stages, rules = (8, 3), (fires[:2], fires[2:4], fires[4:]), names.SQUEEZENET_1_1_TORCHVISION
    reference = classic.squeezenet(torch, stem, stages, 3)
    parity.compare(torch, SqueezeNet(stem, stages, 3, dropout=0.0), reference, rules, 38)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_googlenet_equals_torch(torch, auxiliary):
    """With auxiliary classifiers in training, where they are; without them their tensors are ignored."""
    small = (8, 8, 12, 8, 10, 6)
    blocks = dict.fromkeys(["3b", "4a", "4d", "4e", "5a"], small)
    reference = classic.googlenet(torch, (8, 8, 8), blocks, 3)
    module = GoogLeNet(3, auxiliary, blocks=blocks, stem=(8, 8, 8), dropout=0.0)
    if auxiliary:
        logits = lambda y: y[0] + 0.3 * (y[1] + y[2]) if isinstance(y, tuple) else y
        rules = names.GOOGLENET_TORCHVISION
        parity.compare(torch, Summed(module), reference, rules, 40, train=True, logits=logits, tolerance=2e-4)
        return
    parity.randomise(torch, reference)
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    variables = load_weights(parity.shapes(module, 33), tensors, names.GOOGLENET_TORCHVISION, ignore=["aux*"])
    x = np.random.default_rng(0).normal(size=(2, 33, 33, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_densenet_equals_torch(torch, train):
    module = DenseNet((2, 1, 1), 6, num_classes=3, stem_width=8)
    reference = classic.densenet(torch, (2, 1, 1), 6, 8, 3)
    parity.compare(
        torch,
        module,
        reference,
        names.DENSENET_TORCHVISION,
        35,
        train=train,
        tolerance=1e-4,
        double=train,
    )


PUBLISHED_NAMES = {
    **{
        f"VGG-{depth}, norm={norm}": (
            vgg(depth, 8, norm=norm, hidden=8),
            names.vgg_torchvision(vgg(depth, norm=norm)),
            ["features.0.weight", f"features.{last}.bias", "classifier.6.bias"],
        )
        for depth, norm, last in [
            (11, False, 18), (13, False, 22), (16, False, 28), (19, False, 34),
            (11, True, 26), (13, True, 32), (16, True, 41), (19, True, 50),
        ]
    },
    "AlexNet": (AlexNet(hidden=8), names.ALEXNET_TORCHVISION, ["features.10.weight", "classifier.6.bias"]),
    "SqueezeNet 1.0": (
        squeezenet("1.0"),
        names.SQUEEZENET_1_0_TORCHVISION,
        ["features.3.squeeze.weight", "features.7.squeeze.weight", "features.12.expand3x3.bias"],
    ),
    "SqueezeNet 1.1": (
        squeezenet("1.1"),
        names.SQUEEZENET_1_1_TORCHVISION,
        ["features.3.squeeze.weight", "features.6.squeeze.weight", "features.12.expand3x3.bias"],
    ),
    "GoogLeNet": (
        GoogLeNet(auxiliary=True),
        names.GOOGLENET_TORCHVISION,
        ["inception4e.branch3.1.bn.running_var", "aux2.fc2.bias", "fc.weight", "conv3.conv.weight"],
    ),
    "DenseNet": (
        densenet(121),
        names.DENSENET_TORCHVISION,
        ["features.denseblock4.denselayer16.norm2.weight", "features.transition3.conv.weight"],
    ),
    "DenseNet's file": (
        densenet(121),
        names.DENSENET_TORCHVISION_FILE,
        ["features.denseblock4.denselayer16.norm.2.weight", "features.norm5.bias"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED_NAMES)
def test_every_parameter_of_the_published_layouts_has_a_name(model):
    """`export_weights` raises where a parameter has no name, or two have one."""
    module, rules, some = PUBLISHED_NAMES[model]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parity.shapes(module, 64))
    assert set(some) <= set(export_weights(zeros, rules))


def test_stages_give_their_feature_maps():
    sizes = [
        (vgg(11), [("stage1", 64), ("stage4", 8)]),
        (AlexNet(), [("stem", 15), ("stage1", 7), ("stage2", 3)]),
        (squeezenet("1.0"), [("stem", 29), ("stage1", 14), ("stage2", 7), ("stage3", 3)]),
        (densenet(121), [("stem", 32), ("stage1", 16), ("stage4", 2)]),
        (NiN(), [("stage1", 64), ("stage2", 32), ("stage3", 16)]),
        (GoogLeNet(), [("stem", 32), ("stem_3x3", 16), ("inception3b", 8), ("inception4e", 4)]),
    ]
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    for module, expected in sizes:
        maps = jax.eval_shape(
            lambda v, x, module=module, names=[n for n, _ in expected]: features(module, v, x, names),
            parity.shapes(module, 64),
            images,
        )
        assert [x.shape[1] for x in maps] == [size for _, size in expected], type(module).__name__


@pytest.mark.parametrize(
    ("module", "features"),
    [
        (vgg(11, 0, hidden=32), 32), (AlexNet(0, hidden=32), 32), (NiN(0), 192), (squeezenet("1.1", 0), 512),
        (GoogLeNet(0), 1024), (densenet(121, 0), 1024),
    ],
)  # fmt: skip
def test_without_classes_gives_features_of_any_image(module, features):
    for size, channels in (64, 1), (75, 4):
        images = jax.ShapeDtypeStruct((2, size, size - 3 * (size > 64), channels), np.uint8)
        output = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], images)
        assert (output.shape, output.dtype) == ((2, features), jnp.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vgg(18), "vgg has the depths 11, 13, 16, 19; got 18"),
        (lambda: squeezenet("2.0"), 'squeezenet has the versions "1.0" and "1.1"; got \'2.0\''),
        (lambda: densenet(100), "densenet has the depths 121, 161, 169, 201; got 100"),
        (lambda: densenet_cifar(101), "densenet_cifar needs a depth of 6n \\+ 4, got 101"),
        (lambda: parity.shapes(GoogLeNet(0, True), 32), "auxiliary classifiers need num_classes"),
        (lambda: parity.shapes(AlexNet(widths=(8, 8)), 64), "five convolutions; got widths"),
        (lambda: parity.shapes(densenet(121, stem="small"), 64), 'has the stems "imagenet" and "cifar"'),
        (lambda: parity.shapes(densenet(121, compression=0.0), 64), "compression in .0, 1.; got 0.0"),
        (lambda: parity.shapes(vgg(11), 31), "VGG takes images .* of at least 32x32 pixels"),
        (lambda: parity.shapes(AlexNet(), 62), "AlexNet takes images .* of at least 63x63 pixels"),
        (lambda: parity.shapes(densenet(121), 28), "DenseNet takes images .* of at least 29x29 pixels"),
        (lambda: parity.shapes(squeezenet("1.0"), 6), "SqueezeNet takes images .* of at least 7x7 pixels"),
        (lambda: parity.shapes(NiN(), 7), "NiN takes images .* of at least 8x8 pixels"),
        (lambda: parity.shapes(GoogLeNet(), 14), "GoogLeNet takes images .* of at least 15x15 pixels"),
    ],
)
def test_says_what_it_takes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
