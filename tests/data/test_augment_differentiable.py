"""Augmentation with a gradient: what each change does, and that slopes pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.data import differentiable
from tests.compiling import jit

X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)


def test_colors_are_changed_as_published():
    transform = jit(differentiable(("color",), size=(8, 8)))
    y = np.array(transform(jax.random.key(0), {"inputs": X})["inputs"])
    shift = (y - X).mean((1, 2, 3))
    assert -0.5 <= shift.min() < -0.4
    assert 0.4 < shift.max() <= 0.5
    # Grey levels know of contrast alone, the distance from them of saturation too.
    grey = lambda x: x.mean(3) - x.mean((1, 2, 3))[:, None, None]
    contrast = (grey(y) * grey(X)).sum((1, 2)) / (grey(X) ** 2).sum((1, 2))
    np.testing.assert_allclose(grey(y), contrast[:, None, None] * grey(X), atol=1e-5)
    assert 0.5 <= contrast.min() < 0.6
    assert 1.4 < contrast.max() <= 1.5
    color = lambda x: x - x.mean(3, keepdims=True)
    both = (color(y) * color(X)).sum((1, 2, 3)) / (color(X) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(color(y), both[:, None, None, None] * color(X), atol=1e-5)
    saturation = both / contrast
    assert 0 <= saturation.min() < 0.2
    assert 1.8 < saturation.max() <= 2


def test_slopes_pass_through_all_of_it():
    transform = differentiable(size=(8, 8))

    @jit
    def both(x):
        value = lambda x: (transform(jax.random.key(0), {"inputs": x})["inputs"] ** 2).sum()
        return jax.jvp(value, (x,), (X,))[1], jax.grad(value)(x)

    forward, slope = both(jnp.asarray(X))
    np.testing.assert_allclose(forward, (slope * X).sum(), rtol=1e-4)
    assert (slope != 0).any((1, 2, 3)).all()


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="policy must be some of"):
        differentiable(("flip",))
    with pytest.raises(ValueError, match="8x8 pixels; got uint8"):
        differentiable(size=(8, 8))(jax.random.key(0), {"inputs": jnp.zeros((1, 8, 8, 1), jnp.uint8)})
