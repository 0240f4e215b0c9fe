"""Pooling equals PyTorch's and Linen's, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jdl.nn import Conv, avg_pool, max_pool

POOLS = {"max": (max_pool, linen.max_pool), "avg": (avg_pool, linen.avg_pool)}
# (height, width), window, strides: windows that tile the image, that leave a rest, that overlap.
SHAPES = [
    ((6, 8), (2, 2), None),
    ((6, 9), (2, 3), (2, 3)),
    ((7, 8), (2, 2), None),
    ((6, 6), (3, 3), (2, 2)),
    ((5, 4), (5, 4), None),
    ((4, 6), (2, 2), (3, 3)),
]


def images(size, channels=3):
    return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)


def value_and_gradient(pool, x):
    """The pooled images, and the gradient of a function that weighs each of their entries differently."""
    y, pullback = jax.vjp(pool, jnp.asarray(x))
    return y, pullback(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))[0]


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(("size", "window", "strides"), SHAPES)
def test_pooling_equals_linen(kind, size, window, strides):
    ours, linens = POOLS[kind]
    actual = value_and_gradient(lambda x: ours(x, window, strides), images(size))
    expected = value_and_gradient(lambda x: linens(x, window, strides or window), images(size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(("size", "window", "strides"), SHAPES)
def test_pooling_equals_torch(torch, kind, size, window, strides):
    y, gradient = value_and_gradient(lambda x: POOLS[kind][0](x, window, strides), images(size))
    x = torch.tensor(images(size).transpose(0, 3, 1, 2), requires_grad=True)
    pool = getattr(torch.nn.functional, f"{kind}_pool2d")
    reference = pool(x, window, strides).permute(0, 2, 3, 1)
    reference.backward(torch.cos(torch.arange(y.size, dtype=torch.float32)).reshape(y.shape))
    np.testing.assert_allclose(y, reference.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_gradient_at_a_tie_is_the_first_ones_where_windows_tile():
    tied = jnp.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x, (2, 2)).sum())(tied)
    np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])


@pytest.mark.parametrize(("window", "strides"), [((2, 2), (2, 2)), ((3, 3), (2, 2))])
def test_no_gradient_is_lost_where_the_inputs_are_computed_again(window, strides):
    """Unoptimised, XLA fuses the computation of the inputs into each use, rounded differently."""
    rng = np.random.default_rng(1)
    x, scale, shift = images((16, 16)), *rng.normal(size=(2, 1, 1, 1, 3)).astype(np.float32)

    def total(scale, x, shift, pool):
        y = pool(jax.nn.relu(jnp.sin(x) * scale + shift), window, strides)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    def gradient(pool):
        options = {"xla_backend_optimization_level": 0}
        return jax.jit(jax.grad(functools.partial(total, pool=pool)), compiler_options=options)(
            scale, x, shift
        )

    np.testing.assert_allclose(gradient(max_pool), gradient(linen.max_pool), rtol=1e-4, atol=1e-4)


def test_gradient_at_a_tie_is_the_first_ones_where_windows_overlap():
    gradient = jax.grad(lambda x: max_pool(x, (2, 2), (1, 1)).sum())(jnp.ones((1, 2, 3, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 1, 0], [0, 0, 0]])


def test_gradient_through_relu_and_pooling_equals_torch_where_all_is_zero(torch):
    x = -np.abs(images((4, 4)))
    gradient = jax.grad(lambda x: max_pool(jax.nn.relu(x), (2, 2)).sum())(jnp.asarray(x))
    torch_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch.nn.functional.max_pool2d(torch_x.relu(), 2).sum().backward()
    np.testing.assert_array_equal(gradient, torch_x.grad.permute(0, 2, 3, 1))


@pytest.mark.parametrize("strides", [None, (1, 1)])
def test_max_pool_does_not_hide_nan(strides):
    x = jnp.ones((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert np.isnan(max_pool(x, (2, 2), strides)).all()


@pytest.mark.parametrize("kind", POOLS)
def test_pooling_keeps_bfloat16(kind):
    x = images((4, 4))
    y = POOLS[kind][0](jnp.asarray(x, jnp.bfloat16), (2, 2))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), POOLS[kind][0](x, (2, 2)), rtol=2e-2, atol=2e-2)


def test_conv_equals_torch(torch):
    x = images((6, 7))
    layer = Conv(4, (3, 2), padding="VALID")
    y, variables = layer.init_with_output(jax.random.key(0), x)
    reference = torch.nn.Conv2d(3, 4, (3, 2))
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.asarray(variables["params"]["kernel"]).transpose(3, 2, 0, 1)))
        reference.bias.zero_()
    expected = reference(torch.tensor(x.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-5, atol=1e-5)
