"""Residual networks have the published sizes, compute what PyTorch's do, and run with published weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import torch_models
from jdl import interop, tasks
from jdl.interop import names
from jdl.models import ResNet, resnet, resnet_cifar, wide_resnet
from jdl.nn import features
from jdl.train import summary


def shapes(model, size):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


# Parameters: torchvision's documentation for the ImageNet layouts; He et al. 2016, table 6 and Zagoruyko and
# Komodakis 2016, table 5 in millions for the CIFAR ones.
@pytest.mark.parametrize(
    ("model", "size", "parameters"),
    [
        (resnet(18), 224, 11_689_512),
        (resnet(34), 224, 21_797_672),
        (resnet(50), 224, 25_557_032),
        (resnet(101), 224, 44_549_160),
        (resnet(152), 224, 60_192_808),
        (resnet(50, groups=32, group_width=4), 224, 25_028_904),
        (resnet(101, groups=32, group_width=8), 224, 88_791_336),
        (resnet(50, group_width=128), 224, 68_883_240),
        (resnet_cifar(20), 32, 269_722),
        (resnet_cifar(32), 32, 464_154),
        (resnet_cifar(44), 32, 658_586),
        (resnet_cifar(56), 32, 853_018),
        (resnet_cifar(110), 32, 1_727_962),
    ],
)
def test_number_of_parameters(model, size, parameters):
    assert count(shapes(model, size)) == parameters


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (wide_resnet(16, 8), 11.0),
        (wide_resnet(28, 10), 36.5),
        (wide_resnet(40, 4), 8.9),
        (resnet_cifar(110, pre_activation=True), 1.7),
        (resnet_cifar(164, pre_activation=True, bottleneck=True), 1.7),
    ],
)
def test_millions_of_parameters_in_the_papers(model, millions):
    assert count(shapes(model, 32)) / 1e6 == pytest.approx(millions, abs=0.06)


# He et al. 2016, table 1, in units of 1e9; the paper puts a bottleneck's stride at its first convolution,
# which saves 0.3e9, and rounds.
@pytest.mark.parametrize(
    ("depth", "published", "tolerance"), [(18, 1.8, 0.05), (34, 3.6, 0.1), (50, 3.8, 0.35), (101, 7.6, 0.3)]
)
def test_multiply_adds(depth, published, tolerance):
    task = tasks.classification(resnet(depth))
    found = summary(task, {"inputs": jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)})
    assert found.multiply_adds / 1e9 == pytest.approx(published, abs=tolerance)


def test_plain_network_has_as_many_parameters_as_the_residual_one():
    plain = shapes(resnet_cifar(20, shortcut="none"), 32)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, shapes(resnet_cifar(20), 32))


def test_features_are_those_of_the_stages():
    model, x = resnet_cifar(8), np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    one, two, three = features(model, variables, x, ("stage1", "stage2", "stage3"))
    assert [y.shape for y in (one, two, three)] == [(2, 32, 32, 16), (2, 16, 16, 32), (2, 8, 8, 64)]
    pooled = model.clone(num_classes=0).apply(variables, x)
    np.testing.assert_allclose(pooled, three.mean((1, 2)), atol=1e-6)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        model.apply(variables, x), pooled @ head["kernel"] + head["bias"][None], atol=1e-5
    )
    with pytest.raises(ValueError, match="has no \\['stage4'\\]; it has .*'stage3'"):
        features(model, variables, x, ("stage4",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(20), "depths 18, 34, 50, 101, 152; got 20"),
        (lambda: resnet(18, groups=32), "bottlenecks, which depth 18 does not have"),
        (lambda: resnet_cifar(21), "6n \\+ 2, got 21"),
        (lambda: wide_resnet(27, 10), "6n \\+ 4, got 27"),
        (lambda: shapes(resnet_cifar(20, shortcut="none", stochastic_depth=0.1), 32), "plain network"),
        (lambda: shapes(resnet_cifar(20, dropout=0.1), 32), "inside pre-activation blocks"),
        (lambda: shapes(ResNet((1, 1), (8,)), 32), "as many widths as depths"),
        (lambda: shapes(resnet_cifar(20, groups=8), 32), "basic blocks have none, got 8"),
        (lambda: resnet(18).init(jax.random.key(0), np.zeros((1, 3, 224, 224))), "looks like channels first"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def gradient(model, variables, x, labels):
    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    return jax.value_and_grad(loss)(variables["params"])


def assert_gradients_equal(grads, expected, rules):
    found = interop.export_weights({"params": grads}, rules)
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        np.testing.assert_allclose(found[name], theirs, rtol=0, atol=1e-4 * max(1e-2, np.abs(theirs).max()))


def state_of(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize("padding", [True, False])
def test_cifar_layout_equals_pytorch(torch, padding):
    torch.manual_seed(0)
    twin = torch_models.resnet((2, 1), (8, 12), 4, padding_shortcut=padding)
    kind = "padding" if padding else "projection"
    model = ResNet((2, 1), (8, 12), num_classes=4, stem="cifar", stem_width=8, shortcut=kind)
    check_against(torch, model, twin, twin, names.RESNET_TORCHVISION)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_imagenet_layout_equals_hugging_face(torch, kind):
    transformers = pytest.importorskip("transformers")
    widths = (8, 12) if kind == "basic" else (16, 32)
    torch.manual_seed(0)
    twin = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=list(widths), depths=[1, 2], layer_type=kind, num_labels=4
        )
    )
    inner = None if kind == "basic" else tuple(width // 4 for width in widths)
    # transformers has no projection in a first stage whose width is the stem's, as the paper has it.
    model = ResNet((1, 2), widths, inner, 4, stem_width=8)
    check_against(torch, model, twin, lambda x: twin(x).logits, names.RESNET_HUGGING_FACE)


PRE_ACTIVATION = (
    ("stem", "stem"),
    ("stage{s}/block{b}/shortcut", "stages.{s-1}.{b-1}.shortcut"),
    ("stage{s}/block{b}/norm{i}", "stages.{s-1}.{b-1}.norms.{i-1}"),
    ("stage{s}/block{b}/conv{i}", "stages.{s-1}.{b-1}.convs.{i-1}"),
    ("norm", "norm"),
    ("head", "head"),
)


def pre_activation_twin(torch, depths, widths, inner, stem_width, classes):
    """He et al. 2016, figure 4e, whose first activation lies before the first two paths part."""
    nn = torch.nn

    class Unit(nn.Module):
        def __init__(self, inputs, features, inner, stride, is_first):
            super().__init__()
            if inner is None:
                plan = [(inputs, features, 3, stride), (features, features, 3, 1)]
            else:
                plan = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, features, 1, 1)]
            self.norms = nn.ModuleList(nn.BatchNorm2d(each[0]) for each in plan)
            self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in plan)
            self.is_first = is_first
            if inputs != features or stride != 1:
                self.shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False)

        def forward(self, x):
            first = h = self.norms[0](x).relu()
            h = self.convs[0](h)
            for norm, conv in list(zip(self.norms, self.convs, strict=True))[1:]:
                h = conv(norm(h).relu())
            if hasattr(self, "shortcut"):
                return self.shortcut(first) + h
            return (first if self.is_first else x) + h

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, stem_width, 3, 1, 1, bias=False)
            self.stages, before = nn.ModuleList(), stem_width
            for s, (depth, width) in enumerate(zip(depths, widths, strict=True)):
                units = []
                for b in range(depth):
                    stride = 2 if s and not b else 1
                    units.append(Unit(before, width, inner and inner[s], stride, not s and not b))
                    before = width
                self.stages.append(nn.Sequential(*units))
            self.norm, self.head = nn.BatchNorm2d(before), nn.Linear(before, classes)

        def forward(self, x):
            x = self.stem(x)
            for stage in self.stages:
                x = stage(x)
            return self.head(self.norm(x).relu().mean((2, 3)))

    return Network()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("widths", "inner"),
    [((8, 12), None), ((12, 16), None), ((16, 24), (4, 6))],
    ids=["basic", "wide", "narrow"],
)
def test_pre_activation_equals_the_paper(torch, widths, inner):
    torch.manual_seed(0)
    twin = pre_activation_twin(torch, (2, 1), widths, inner, 8, 4)
    model = ResNet((2, 1), widths, inner, num_classes=4, stem="cifar", stem_width=8, pre_activation=True)
    check_against(torch, model, twin, twin, PRE_ACTIVATION)


@pytest.mark.parity
def test_groups_equal_hugging_face(torch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    twin = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16], depths=[2], layer_type="bottleneck", num_labels=4
        )
    )
    for layer in twin.resnet.encoder.stages[0].layers:
        layer.layer[1].convolution = torch.nn.Conv2d(4, 4, 3, 1, 1, groups=2, bias=False)
    model = ResNet((2,), (16,), (4,), 4, stem_width=8, groups=2)
    check_against(torch, model, twin, lambda x: twin(x).logits, names.RESNET_HUGGING_FACE)


def check_against(torch, model, twin, call, rules):
    """Logits, and the gradient of the cross-entropy in training, of the same weights."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(4, 32, 32, 3)).astype(np.float32), rng.integers(0, 4, 4)
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    state = state_of(twin)
    variables = interop.load_weights(jax.eval_shape(model.init, jax.random.key(0), x), state, rules)
    back = interop.export_weights(variables, rules)
    assert back.keys() == {name for name in state if "num_batches" not in name}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[name])

    inputs = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    twin.eval()
    with torch.no_grad():
        expected = call(inputs).numpy()
    np.testing.assert_allclose(model.apply(variables, x), expected, atol=1e-4 * np.abs(expected).max())
    twin.train()
    loss = torch.nn.functional.cross_entropy(call(inputs), torch.tensor(labels))
    loss.backward()
    value, grads = gradient(model, variables, x, labels)
    assert value == pytest.approx(loss.item(), abs=1e-5)
    assert_gradients_equal(grads, {name: p.grad.numpy() for name, p in twin.named_parameters()}, rules)


def cifar10_test(folder):
    """The 10,000 test images and labels, from lossless mosaics of 50 by 50 images."""
    image = pytest.importorskip("PIL.Image")
    mosaics = [np.asarray(image.open(path).convert("RGB")) for path in sorted(folder.glob("test_*.webp"))]
    if not mosaics:
        pytest.skip("needs the mosaics of CIFAR-10")
    tiles = [x.reshape(50, 32, 50, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for x in mosaics]
    return np.concatenate(tiles), np.load(folder / "test_labels.npy")


def test_published_resnet20_scores_its_published_accuracy_on_cifar10(official_data):
    """8.27 % test error, says the README of the repository that the weights come from."""
    folder, (images, labels) = (
        official_data("weights_resnet_cifar10"),
        cifar10_test(official_data("cifar10")),
    )
    model = resnet_cifar(20)
    variables = interop.load_weights(shapes(model, 32), folder / "resnet20-12fca82f.npz", names.RESNET_CIFAR)
    mean, deviation = np.float32([[[[0.485, 0.456, 0.406]]]]), np.float32([[[[0.229, 0.224, 0.225]]]])

    @jax.jit
    def correct(images, labels):
        return (model.apply(variables, (images / 255 - mean) / deviation).argmax(-1) == labels).sum()

    parts = [slice(i, i + 500) for i in range(0, len(labels), 500)]
    assert sum(int(correct(images[p].astype(np.float32), labels[p])) for p in parts) == 9173


@pytest.mark.parametrize("pre_activation", [False, True])
def test_blocks_that_are_computed_again_give_the_same_gradient(pre_activation):
    """Statistics and stochastic depth included, from the same variables."""
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    rngs = {"dropout": jax.random.key(1)}
    options = {"stem": "cifar", "stem_width": 4, "stochastic_depth": 0.5, "pre_activation": pre_activation}

    def step(model):
        def loss(params, variables):
            logits, changed = model.apply(
                {**variables, "params": params}, x, True, rngs=rngs, mutable=["batch_stats"]
            )
            return (logits**2).sum(), changed

        return lambda variables: jax.grad(loss, has_aux=True)(variables["params"], variables)

    plain, again = (ResNet((1,), (4,), num_classes=3, remat=remat, **options) for remat in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    assert "remat" in str(jax.make_jaxpr(step(again))(variables))
    assert "remat" not in str(jax.make_jaxpr(step(plain))(variables))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, *(jax.jit(step(model))(variables) for model in (plain, again)))
