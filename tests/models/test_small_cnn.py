"""The two-convolution network has the published size, and computes what PyTorch's twin computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.models import TwoConv

IMAGES = np.random.default_rng(0).normal(size=(4, 12, 12, 1)).astype(np.float32)
LABELS = np.array([3, 1, 4, 1])


def test_number_of_parameters_of_each_layer():
    shapes = jax.eval_shape(TwoConv().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    counts = {name: sum(x.size for x in jax.tree.leaves(layer)) for name, layer in shapes.items()}
    assert counts == {"Conv_0": 832, "Conv_1": 51_264, "Dense_0": 31_370}


def twin(torch, params, batch_norm):
    nn = torch.nn
    layers = {}
    for i, (before, after) in enumerate(((1, 8), (8, 16))):
        layers[f"Conv_{i}"] = nn.Conv2d(before, after, 5, padding=2, bias=not batch_norm)
        layers[f"pool_{i}"] = nn.MaxPool2d(2)
        if batch_norm:
            layers[f"BatchNorm_{i}"] = nn.BatchNorm2d(after)
        layers[f"relu_{i}"] = nn.ReLU()
    layers |= {"flat": nn.Flatten(), "Dense_0": nn.Linear(144, 10)}
    with torch.no_grad():
        for name, of_layer in params.items():
            for ours, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
                if ours in of_layer:
                    getattr(layers[name], theirs).copy_(
                        torch.tensor(torch_layout(np.asarray(of_layer[ours])))
                    )
    return nn.Sequential(*layers.values()), layers


def torch_layout(x):
    """PyTorch's order; the inputs of the product come channel by channel there."""
    if x.ndim == 4:
        return x.transpose(3, 2, 0, 1)
    if x.ndim == 2:
        return x.reshape(3, 3, 16, 10).transpose(3, 2, 0, 1).reshape(10, 144)
    return x


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_equals_torch_in_value_and_gradient(torch, batch_norm, train):
    model = TwoConv(features=(8, 16), batch_norm=batch_norm)
    variables = model.init(jax.random.key(0), IMAGES)
    noise = lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape)
    params = jax.tree.map(noise, variables["params"])
    reference, layers = twin(torch, params, batch_norm)
    expected = reference.train(train)(torch.tensor(IMAGES.transpose(0, 3, 1, 2)))
    torch.nn.functional.cross_entropy(expected, torch.tensor(LABELS)).backward()

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, IMAGES, train, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[np.arange(4), LABELS].mean(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-4, atol=1e-4)
    for name, of_layer in grads.items():
        for ours, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
            if ours in of_layer:
                actual, gradient = (
                    torch_layout(np.asarray(of_layer[ours])),
                    getattr(layers[name], theirs).grad,
                )
                np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-4, err_msg=f"{name} {ours}")


@pytest.mark.parametrize("shape", [(4, 30, 28, 1), (28, 28, 1), (4, 1, 28, 28)])
def test_says_which_images_it_takes(shape):
    with pytest.raises(ValueError, match=r"height and width multiples of 4; got shape \(.*\)"):
        jax.eval_shape(TwoConv().init, jax.random.key(0), jnp.zeros(shape))
