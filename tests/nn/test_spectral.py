"""Spectral normalisation beside PyTorch's, and the convolutions that halve and double."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jdl.nn.doubling import Double, Halve, double, halve
from jdl.nn.spectral import SpectralConv, SpectralDense, SpectralEmbed
from tests.compiling import jit

RNG = np.random.default_rng(0)
NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_every_step_is_that_of_pytorch(torch, kind):
    layer, x = (SpectralDense(3), normal(4, 5)) if kind == "dense" else (
        SpectralConv(3, (3, 3), padding="VALID"), normal(2, 5, 5, 2)
    )  # fmt: skip
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = (variables["params"][name] for name in ("kernel", "bias"))
    to_torch = (1, 0) if kind == "dense" else (3, 2, 0, 1)
    reference = torch.nn.Linear(5, 3) if kind == "dense" else torch.nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.array(kernel).transpose(to_torch)))
        reference.bias.copy_(torch.tensor(np.array(bias)))
    reference = torch.nn.utils.parametrizations.spectral_norm(reference, n_power_iterations=1)
    state = reference.parametrizations.weight[0]
    u, v = (np.array(variables["spectral"]["kernel"][name]) for name in "uv")
    v = v if kind == "dense" else v.reshape(3, 3, 2).transpose(2, 0, 1).reshape(-1)
    with torch.no_grad():
        state._u.copy_(torch.tensor(u))
        state._v.copy_(torch.tensor(v))
    inputs = torch.tensor(x if kind == "dense" else x.transpose(0, 3, 1, 2))

    def loss(params, spectral):
        y, changed = layer.apply({"params": params, "spectral": spectral}, x, mutable=["spectral"])
        return jnp.square(y).sum(), (y, changed["spectral"])

    graded, predict = jit(jax.value_and_grad(loss, has_aux=True)), jit(layer.apply)
    params, spectral, rate = variables["params"], variables["spectral"], 0.01
    back = lambda y: y.detach().numpy() if kind == "dense" else y.detach().numpy().transpose(0, 2, 3, 1)
    for _ in range(3):
        reference.train()
        expected = reference(inputs)
        reference.zero_grad()
        expected.square().sum().backward()
        (_, (y, spectral)), gradient = graded(params, spectral)
        np.testing.assert_allclose(y, back(expected), atol=2e-5)
        weight = reference.parametrizations.weight.original
        np.testing.assert_allclose(
            np.array(gradient["kernel"]).transpose(to_torch), weight.grad.numpy(), rtol=1e-3, atol=1e-4
        )
        with torch.no_grad():
            weight -= rate * weight.grad
            reference.bias -= rate * reference.bias.grad
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    reference.eval()
    y = predict({"params": params, "spectral": spectral}, x)
    np.testing.assert_allclose(y, back(reference(inputs)), atol=5e-5)


def test_an_embedding_has_the_largest_singular_value_one():
    layer = SpectralEmbed(7, 4)
    table, _ = layer.init_with_output(jax.random.key(0), np.arange(7))
    np.testing.assert_allclose(np.linalg.svd(table)[1][0], 1, atol=1e-3)


def test_halving_and_doubling_are_convolutions():
    x, down, up = normal(2, 6, 4, 3), normal(4, 4, 3, 5), normal(4, 4, 3, 2)

    def of(first, second):
        def both(x, down, up):
            return first(x, down), second(x, up)

        def slopes(*args):
            return jax.grad(lambda *args: sum(jnp.square(y).sum() for y in both(*args)), (0, 1, 2))(*args)

        return lambda *args: (both(*args), slopes(*args))

    def strided(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=NHWC)

    expected = jit(of(strided, lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")))(x, down, up)
    found = jit(of(halve, double))(x, down, up)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), found, expected)


def test_a_doubled_image_is_that_of_pytorch(torch):
    layer, x = Double(2), normal(2, 3, 4, 3)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    reference = torch.nn.ConvTranspose2d(3, 2, 4, 2, 1)
    with torch.no_grad():
        kernel = np.array(variables["params"]["kernel"])[::-1, ::-1].transpose(2, 3, 0, 1)
        reference.weight.copy_(torch.tensor(kernel.copy()))
        reference.bias.zero_()
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_refuses_what_cannot_be_halved():
    with pytest.raises(ValueError, match="even height and width; got 5x4"):
        Halve(2).init(jax.random.key(0), jnp.ones((1, 5, 4, 1)))
    with pytest.raises(ValueError, match=r"a kernel \[4, 4, C, F\] and images"):
        double(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))
