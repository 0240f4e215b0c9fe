"""Activations equal JAX's, and keep their input alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.nn.activations import gelu, silu

PAIRS = {
    "gelu": (functools.partial(gelu, approximate=False), functools.partial(jax.nn.gelu, approximate=False)),
    "gelu_tanh": (gelu, jax.nn.gelu),
    "silu": (silu, jax.nn.silu),
}


def residuals(function, x):
    """Floats kept between the value and the gradient, beside the value."""
    _, pullback = jax.vjp(function, x)
    return sum(y.size for y in jax.tree.leaves(pullback) if jnp.issubdtype(y.dtype, jnp.floating))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_jax(name, dtype):
    ours, theirs = PAIRS[name]
    x = jnp.linspace(-6, 6, 97).astype(dtype)
    assert ours(x).dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    for by in (jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]):
        found, expected = (by(lambda x, f=f: f(x).astype(jnp.float32).sum())(x) for f in (ours, theirs))
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=tolerance, atol=tolerance
        )
    np.testing.assert_array_equal(jax.vmap(ours)(x), ours(x))


@pytest.mark.parametrize("name", PAIRS)
def test_only_the_input_is_kept(name):
    ours, theirs = PAIRS[name]
    x = jnp.ones(64)
    assert residuals(ours, x) == 64 < residuals(theirs, x)
