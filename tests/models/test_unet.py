"""U-Net has the layers of the paper's figure, and computes what PyTorch's twin computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import tasks, train
from jdl.interop import load_weights, names
from jdl.models import UNet, unet_output_size
from jdl.nn import features
from tests.models import parity
from tests.models.twins import classic


def test_has_the_layers_of_figure_one():
    """23 convolutions, counted from the figure: k k C F + F each, for one input channel and two classes."""
    widths = [64, 128, 256, 512, 1024]
    down = [(9, before, width) for before, width in zip([1, *widths], widths, strict=False)]
    table = down + [(9, width, width) for width in widths]
    for width in widths[:-1]:
        table += [(4, 2 * width, width), (9, 2 * width, width), (9, width, width)]
    table += [(1, 64, 2)]
    assert len(table) == 23
    expected = sum(k * c * f + f for k, c, f in table)
    assert expected == 31_030_658
    for module, size in (UNet(2), 64), (UNet(2, padding="valid"), 572):
        params = parity.shapes(module, size, channels=1)["params"]
        assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_multiply_adds_are_those_of_every_layer_of_the_figure():
    """The paper prints the size of every map; outputs of each convolution times its kernel."""
    sides = [(570, 568), (282, 280), (138, 136), (66, 64), (30, 28)]
    ups = [(56, 54, 52), (104, 102, 100), (200, 198, 196), (392, 390, 388)]
    total, before = 0, 1
    for s, (first, second) in enumerate(sides):
        width = 64 * 2**s
        total += 9 * width * (first**2 * before + second**2 * width)
        before = width
    for s, (up, first, second) in zip((3, 2, 1, 0), ups, strict=True):
        width = 64 * 2**s
        # A transposed convolution multiplies each of its outputs with one position of the kernel.
        total += up**2 * 2 * width * width + 9 * width * (first**2 * 2 * width + second**2 * width)
    total += 388**2 * 64 * 2
    batch = {"inputs": jax.ShapeDtypeStruct((1, 572, 572, 1), np.float32)}
    task = tasks.segmentation(UNet(2, padding="valid"))
    assert train.summary(task, batch).multiply_adds == total


class Projected:
    """A module whose logits of an image are sums over its pixels, each weighted differently."""

    def __init__(self, module, weights):
        self.init, self.module, self.weights = module.init, module, weights

    def apply(self, *arguments, **options):
        outputs = self.module.apply(*arguments, **options)
        if isinstance(outputs, tuple):
            return self._projected(outputs[0]), outputs[1]
        return self._projected(outputs)

    def _projected(self, y):
        return (y * self.weights[None, :, :, None]).sum((1, 2))


# Batch statistics of the lowest maps are those of few numbers: images of 16x16 leave a pixel each.
@pytest.mark.parametrize(("size", "train"), [(16, False), (48, True)])
def test_equals_torch(torch, size, train):
    module = UNet(3, width=2, norm=True)
    reference = classic.unet(torch, 2, 3, norm=True, padding=1)
    weights = np.random.default_rng(1).normal(size=(size, size)).astype(np.float32) / size
    theirs = lambda y: (y * torch.tensor(weights, dtype=y.dtype)).sum((2, 3))
    parity.compare(
        torch, Projected(module, weights), reference, names.UNET_MILESIAL, size, train=train, logits=theirs,
        tolerance=1e-5 if train else 1e-4, double=train,
    )  # fmt: skip


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_paper_s_network_equals_torch_at_every_pixel(torch, padding):
    size = 32 if padding == "same" else 188
    module = UNet(3, width=2, padding=padding)
    reference = classic.unet(torch, 2, 3, norm=False, padding=int(padding == "same"))
    parity.randomise(torch, reference)
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    variables = load_weights(parity.shapes(module, size), tensors, names.UNET_MILESIAL)
    x = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    actual = jax.jit(module.apply)(variables, x)
    assert actual.shape[1] == (size if padding == "same" else unet_output_size(size))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_an_output_sees_nothing_of_the_padding_where_there_is_none():
    """A pixel more or less around the image changes no output but those it adds."""
    module = UNet(2, width=2, depth=1, padding="valid")
    x = np.random.default_rng(0).normal(size=(1, 24, 24, 1)).astype(np.float32)
    variables = module.init(jax.random.key(0), x)
    whole, part = module.apply(variables, x), module.apply(variables, x[:, 2:-2, 2:-2])
    np.testing.assert_allclose(whole[:, 2:-2, 2:-2], part, atol=1e-5)


def test_stages_give_their_feature_maps():
    module, images = UNet(2, width=4), jax.ShapeDtypeStruct((1, 64, 48, 1), np.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)
    stages = ("stage1", "stage5", "decoder4", "decoder1")
    maps = jax.eval_shape(lambda v, x: features(module, v, x, stages), variables, images)
    assert [x.shape[1:] for x in maps] == [(64, 48, 4), (4, 3, 64), (8, 6, 32), (64, 48, 4)]


def test_without_classes_gives_the_last_map():
    y = jax.eval_shape(
        lambda x: UNet(0, width=4, depth=2).init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, 8, 8, 3))
    )
    assert y.shape == (1, 8, 8, 4)


@pytest.mark.parametrize(("size", "output"), [(572, 388), (188, 4), (204, 20)])
def test_size_of_the_output_without_padding(size, output):
    assert unet_output_size(size) == output


@pytest.mark.parametrize(
    ("shape", "padding", "message"),
    [
        ((1, 100, 96, 1), "same", "multiples of 16, got 100x96; pad to 112x96"),
        ((1, 571, 572, 1), "valid", "image 571 pixels wide or high; 556 and 572 pixels fit"),
        ((1, 64, 64, 1), "valid", "image 64 pixels wide or high; 188 pixels fit"),
        ((64, 64, 1), "same", "UNet takes images"),
        ((1, 64, 64, 1), "mirror", 'has the paddings "same" and "valid"; got \'mirror\''),
    ],
)
def test_says_which_images_it_takes(shape, padding, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet(2, padding=padding).init, jax.random.key(0), jnp.zeros(shape))
    with pytest.raises(ValueError, match="at least once; got depth -1"):
        jax.eval_shape(UNet(2, depth=-1).init, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
