"""Layers of networks without batch normalisation equal PyTorch's and Linen's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jdl.nn.plain import ConvRelu, UpConv, local_response_norm


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalisation_equals_torch(torch, size):
    x = 3 * images(2, 4, 4, 8)
    alpha, beta, k = 0.02, 0.75, 1.5
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.local_response_norm(theirs, size, alpha * size, beta, k)
    (expected**2).sum().backward()
    ours = lambda x: local_response_norm(x, size, k, alpha, beta)
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected.detach().permute(0, 2, 3, 1), rtol=1e-5)
    gradient = jax.grad(lambda x: (ours(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, theirs.grad.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_local_response_normalisation_needs_an_odd_size():
    with pytest.raises(ValueError, match="size must be odd.*got 4"):
        local_response_norm(jnp.ones((1, 8)), size=4)


@pytest.mark.parametrize("factor", [2, 3])
def test_up_convolution_equals_a_transposed_convolution(factor):
    x = images(2, 3, 5, 4)
    ours = UpConv(6, factor)
    theirs = linen.ConvTranspose(6, (factor, factor), (factor, factor), padding="VALID")
    variables = jax.tree.map(lambda x: jnp.asarray(images(*x.shape)), ours.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))

    def loss(module):
        return lambda variables, x: (module.apply(variables, x) ** 2).sum()

    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)
    actual, expected = (jax.grad(loss(module), (0, 1))(variables, x) for module in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), actual, expected)


def test_up_convolution_computes_in_bfloat16():
    y, variables = UpConv(6, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), images(2, 3, 5, 4))
    assert y.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_convolution_keeps_the_size_or_not():
    shape = lambda **options: (
        ConvRelu(4, 5, **options).init_with_output(jax.random.key(0), images(1, 9, 9, 2))[0].shape
    )
    assert shape() == (1, 9, 9, 4)
    assert shape(padding=0) == (1, 5, 5, 4)
    assert shape(padding=1, stride=2) == (1, 4, 4, 4)
