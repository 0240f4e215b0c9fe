"""Dropout is Flax's, but for a rate that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jdl import models, nn


def test_dropout_drops_what_flax_drops():
    x, key = jnp.ones((3, 50)), jax.random.key(0)
    ours, theirs = (
        each(0.4, deterministic=False).apply({}, x, rngs={"dropout": key})
        for each in (nn.Dropout, linen.Dropout)
    )
    np.testing.assert_array_equal(ours, theirs)
    assert 0.2 < (ours == 0).mean() < 0.6


@pytest.mark.parametrize("rate", [50, 1.0, -0.1, float("nan")])
@pytest.mark.parametrize(
    "make", [lambda r: models.MLP((4, 2), dropout=r), lambda r: models.TextCNN(2, 9, dropout=r)]
)
def test_a_rate_that_is_none_is_refused_by_models(make, rate):
    inputs = jnp.zeros((2, 5)) if isinstance(make(0.0), models.MLP) else jnp.zeros((2, 5), jnp.int32)
    with pytest.raises(ValueError, match="dropout, a rate, must be at least 0 and below 1; got"):
        jax.eval_shape(make(rate).init, jax.random.key(0), inputs)
