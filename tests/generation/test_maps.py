"""Maps are drawn place by place from the logits of what was drawn before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.generation import sample_map
from tests.compiling import jit


def counting(symbols_BHW):
    """Surely one more than the symbol before, modulo 5."""
    flat = symbols_BHW.reshape(len(symbols_BHW), -1)
    before = jnp.concatenate([jnp.zeros_like(flat[:, :1]), flat[:, :-1]], 1)
    return 50 * jax.nn.one_hot((before + 1) % 5, 5).reshape(*symbols_BHW.shape, 5)


def test_each_place_follows_from_those_before():
    for temperature in (0.0, 1.0):
        drawn = jit(lambda key, t=temperature: sample_map(counting, key, (2, 2, 4), temperature=t))
        expected = (np.arange(8) + 1) % 5
        np.testing.assert_array_equal(drawn(jax.random.key(0)).reshape(2, 8), [expected, expected])


def test_draws_have_their_probabilities():
    logits = jnp.log(jnp.array([0.2, 0.8]))
    flat = lambda x: jnp.broadcast_to(logits, (*x.shape, 2))
    drawn = jit(lambda key: sample_map(flat, key, (500, 2, 2)))(jax.random.key(0))
    assert float(drawn.mean()) == pytest.approx(0.8, abs=0.03)
    assert len(np.unique(drawn.reshape(500, 4), axis=0)) > 8, "places are drawn apart from one another"
    sharp = jit(lambda key: sample_map(flat, key, (500, 2, 2), temperature=0.5))(jax.random.key(0))
    assert float(sharp.mean()) == pytest.approx(16 / 17, abs=0.03)


def test_refuses_a_negative_temperature():
    with pytest.raises(ValueError, match="temperature must be at least 0; got -1"):
        sample_map(counting, jax.random.key(0), (1, 1, 1), temperature=-1)
