"""LeNet-5 has the paper's parameters, layer by layer, and computes what PyTorch's twin computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.models.lenet import C3_CONNECTIONS, LeNet5, output_codes


def images(channels=1, batch=4):
    return np.random.default_rng(0).normal(size=(batch, 32, 32, channels)).astype(np.float32)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize(("layout", "parameters"), [("modern", 61_706), ("1998", 60_000)])
def test_number_of_parameters(layout, parameters):
    assert count(shapes(LeNet5(layout=layout), images())) == parameters


def test_number_of_parameters_of_each_published_layer():
    published = {"C1": 156, "S2": 12, "C3": 1_516, "S4": 32, "C5": 48_120, "F6": 10_164}
    assert {
        name: count(layer) for name, layer in shapes(LeNet5(layout="1998"), images()).items()
    } == published


def test_connections_of_c3_are_those_of_table_one():
    table = [
        "X   XXX  XXXX XX",
        "XX   XXX  XXXX X",
        "XXX   XXX  X XXX",
        " XXX  XXXX  X XX",
        "  XXX  XXXX XX X",
        "   XXX  XXXX XXX",
    ]
    seen = [[below for below in range(6) if table[below][above] == "X"] for above in range(16)]
    assert [sorted(below) for below in C3_CONNECTIONS] == seen


def modern_twin(torch, params):
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    layers = [layer for layer in model if hasattr(layer, "weight")]
    for layer, name in zip(layers, ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2"), strict=True):
        transfer(torch, layer, params[name])
    return model, dict(zip(("Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2"), layers, strict=True))


def published_twin(torch, params):
    """The 1998 layout with C3 as a full convolution whose missing connections are zero."""
    nn = torch.nn

    class Tanh(nn.Module):
        def forward(self, x):
            return 1.7159 * torch.tanh(2 / 3 * x)

    class Subsampling(nn.Module):
        def __init__(self, params):
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(torch.tensor(np.asarray(params[name])).reshape(-1, 1, 1))
                for name in ("coefficient", "bias")
            )

        def forward(self, x):
            return nn.functional.avg_pool2d(x, 2) * self.weight + self.bias

    class Codes(nn.Module):
        def forward(self, x):
            return -((x[:, None] - torch.tensor(output_codes(10))) ** 2).sum(-1) / 2

    c1, c3, c5, f6 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 120), nn.Linear(120, 84)
    s2, s4 = Subsampling(params["S2"]), Subsampling(params["S4"])
    for layer, name in ((c1, "C1"), (c5, "C5"), (f6, "F6")):
        transfer(torch, layer, params[name])
    full, position = np.zeros((5, 5, 6, 16), np.float32), 0
    for above, below in enumerate(C3_CONNECTIONS):
        for i in below:
            full[:, :, i, above] = params["C3"]["kernel"][:, :, position]
            position += 1
    transfer(torch, c3, {"kernel": full, "bias": params["C3"]["bias"].ravel()})
    layers = [c1, Tanh(), s2, Tanh(), c3, Tanh(), s4, Tanh(), nn.Flatten(), c5, Tanh(), f6, Tanh(), Codes()]
    return nn.Sequential(*layers), {"C1": c1, "S2": s2, "C3": c3, "S4": s4, "C5": c5, "F6": f6}


def transfer(torch, layer, params):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(torch_layout(np.asarray(params["kernel"]))))
        layer.bias.copy_(torch.tensor(np.asarray(params["bias"])))


def torch_layout(kernel):
    """PyTorch's order of a kernel; the 400 inputs of the first product come channel by channel there."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if kernel.shape[0] == 400:
        kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(400, -1)
    return kernel.T


@pytest.mark.parametrize(("layout", "twin"), [("modern", modern_twin), ("1998", published_twin)])
def test_equals_torch_in_value_and_gradient(torch, layout, twin):
    model, x, labels = LeNet5(layout=layout), images(), np.array([3, 1, 4, 1])
    params = model.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    reference, layers = twin(torch, params)
    expected = reference(torch.tensor(x.transpose(0, 3, 1, 2)))
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()

    def loss(params):
        logits = model.apply({"params": params}, x)
        return -jax.nn.log_softmax(logits)[np.arange(4), labels].mean(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-4, atol=1e-4)
    for name, layer in layers.items():
        weight = np.asarray(grads[name].get("kernel", grads[name].get("coefficient")))
        if name == "C3":
            gathered = layer.weight.grad.numpy().transpose(2, 3, 1, 0)
            pairs = [(below, above) for above, seen in enumerate(C3_CONNECTIONS) for below in seen]
            theirs = np.stack([gathered[:, :, below, above] for below, above in pairs], -1)
        else:
            weight = torch_layout(weight) if name not in ("S2", "S4") else weight
            theirs = layer.weight.grad.numpy()
        np.testing.assert_allclose(weight.ravel(), theirs.ravel(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            np.ravel(grads[name]["bias"]), layer.bias.grad.numpy().ravel(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("layout", ["modern", "1998"])
@pytest.mark.parametrize("channels", [1, 3])
def test_takes_any_channels_and_types(layout, channels):
    model = LeNet5(num_classes=7, layout=layout)
    x = (images(channels) > 0).astype(np.uint8)
    logits = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], x)
    assert (logits.shape, logits.dtype) == ((4, 7), jnp.float32)


@pytest.mark.parametrize("shape", [(4, 28, 28, 1), (32, 32, 1), (4, 1, 32, 32)])
def test_says_which_images_it_takes(shape):
    with pytest.raises(ValueError, match=r"takes images \[batch, 32, 32, channels\]; got shape \(.*\)"):
        shapes(LeNet5(), jnp.zeros(shape))


def test_says_which_layouts_it_has():
    with pytest.raises(ValueError, match='has the layouts "modern" and "1998"; got \'2012\''):
        shapes(LeNet5(layout="2012"), images())


def test_distances_of_the_published_output_survive_bfloat16():
    """They are near 84, where bfloat16 steps by a half: too coarse for logits."""
    x = images()
    model = LeNet5(layout="1998")
    variables = model.init(jax.random.key(0), x)
    exact = model.apply(variables, x)
    low = LeNet5(layout="1998", dtype=jnp.bfloat16).apply(variables, x)
    np.testing.assert_allclose(
        jax.nn.log_softmax(low.astype(jnp.float32)), jax.nn.log_softmax(exact), atol=0.5
    )
    assert low.dtype == jnp.float32
