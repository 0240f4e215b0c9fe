"""Pooling to a given size and over the edge equal PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.nn.pooling import (
    adaptive_avg_pool,
    avg_pool_over_edge,
    flatten_channels_first,
    max_pool_over_edge,
)


def images(*size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def theirs_and_gradient(torch, pool, x):
    x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = pool(x)
    (y**2).sum().backward()
    return y.detach().permute(0, 2, 3, 1).numpy(), x.grad.permute(0, 2, 3, 1).numpy()


def assert_equal(torch, ours, theirs, x):
    expected, expected_gradient = theirs_and_gradient(torch, theirs, x)
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: (ours(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (14, 21), (5, 9), (1, 2), (16, 10)])
def test_adaptive_average_equals_torch(torch, size):
    pool = lambda x: torch.nn.functional.adaptive_avg_pool2d(x, (7, 4))
    assert_equal(torch, lambda x: adaptive_avg_pool(x, (7, 4)), pool, images(*size))


def test_adaptive_average_of_the_same_size_is_exact_and_keeps_bfloat16():
    x = jnp.asarray(images(7, 7), jnp.bfloat16)
    assert adaptive_avg_pool(x, (7, 7)) is x
    assert adaptive_avg_pool(x, (3, 3)).dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(4, 5), (6, 7), (8, 9), (2, 3), (3, 3)])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2)])
def test_pooling_over_the_edge_equals_torch_in_ceil_mode(torch, size, window, stride):
    functional = torch.nn.functional
    for ours, theirs in (
        (max_pool_over_edge, functional.max_pool2d),
        (avg_pool_over_edge, functional.avg_pool2d),
    ):
        assert_equal(
            torch,
            lambda x, ours=ours: ours(x, window, stride),
            lambda x, theirs=theirs: theirs(x, window, stride, ceil_mode=True),
            images(*size),
        )


def test_flattens_in_the_order_of_torch(torch):
    x = images(2, 3)
    expected = torch.tensor(x.transpose(0, 3, 1, 2)).flatten(1)
    np.testing.assert_array_equal(flatten_channels_first(jnp.asarray(x)), expected)
