"""Likelihoods are those of PyTorch and SciPy, and those of levels add up to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jdl.nn import bernoulli, discretized_logistic, gaussian
from jdl.nn.distributions import normal_kl, normal_log_prob
from tests.compiling import jit

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(4, 3, 2)).astype(np.float32)
X = RNG.normal(size=(4, 3)).astype(np.float32)


def test_equal_pytorch(torch):
    d, t = torch.distributions, torch.tensor
    bits = (X > 0).astype(np.float32)
    mean, log_std = OUTPUTS[..., 0], OUTPUTS[..., 1]
    normal = d.Normal(t(mean), t(log_std).exp())
    pairs = [
        (bernoulli().log_prob(mean, bits), d.Bernoulli(logits=t(mean)).log_prob(t(bits))),
        (gaussian().log_prob(OUTPUTS[..., 0], X), d.Normal(t(mean), 1.0).log_prob(t(X))),
        (gaussian(0.3).log_prob(OUTPUTS[..., 0], X), d.Normal(t(mean), 0.3).log_prob(t(X))),
        (gaussian(None).log_prob(OUTPUTS, X), normal.log_prob(t(X))),
        (normal_log_prob(X, mean, log_std), normal.log_prob(t(X))),
        (normal_kl(mean, log_std), d.kl_divergence(normal, d.Normal(0.0, 1.0))),
    ]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_grey_levels_have_the_mass_of_their_interval_under_scipys_logistic():
    outputs = np.array([0.2, -2.0], np.float32)
    levels = np.arange(16)
    log_p = discretized_logistic(16).log_prob(np.tile(outputs, (16, 1)), levels.astype(np.float32) / 15)
    edges = np.concatenate([[-np.inf], (np.arange(15) + 0.5) * 2 / 15 - 1, [np.inf]])
    mass = np.diff(stats.logistic.cdf(edges, 0.2, np.exp(-2.0)))
    np.testing.assert_allclose(np.exp(log_p), mass, rtol=1e-4)


def of_levels(likelihood):
    levels = np.arange(32, dtype=np.float32) / 31
    return jit(lambda o: likelihood.log_prob(jnp.broadcast_to(o, (32, likelihood.parameters)), levels))


OF_LEVELS = {mixtures: of_levels(discretized_logistic(32, mixtures)) for mixtures in (1, 3)}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), mixtures=st.sampled_from([1, 3]), size=st.floats(0.1, 8.0))
def test_probabilities_of_all_levels_add_up_to_one(seed, mixtures, size):
    parameters = discretized_logistic(32, mixtures).parameters
    outputs = size * np.random.default_rng(seed).normal(size=parameters).astype(np.float32)
    log_p = OF_LEVELS[mixtures](outputs)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)


def test_gradients_are_finite_where_a_level_is_all_but_impossible():
    likelihood = discretized_logistic(256)
    outputs = jnp.array([[0.9, -9.0], [-3.0, -9.0], [3.0, 4.0], [0.5, 95.0]])
    x = jnp.array([0.0, 1.0, 0.5, 0.5])
    log_p, gradient = jit(jax.value_and_grad(lambda o: likelihood.log_prob(o, x).sum()))(outputs)
    assert np.isfinite(log_p)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (bernoulli(), [0.7]),
        (gaussian(0.5), [0.3]),
        (gaussian(None), [0.3, -0.5]),
        (discretized_logistic(64), [0.1, -2.0]),
        (discretized_logistic(64, 2), [0.5, 0.0, -0.4, 0.4, -2.5, -3.0]),
        (discretized_logistic(256), [1.0, -1.0]),
        (discretized_logistic(256), [1.0, 0.0]),
        (discretized_logistic(256), [-0.9, -0.5]),
    ],
)
def test_samples_have_the_mean_and_are_of_the_support(likelihood, outputs):
    outputs = np.tile(np.asarray(outputs, np.float32), (20_000, 1))
    outputs = outputs[:, 0] if likelihood.parameters == 1 else outputs
    drawn, means = map(
        np.asarray, jit(lambda o: (likelihood.sample(jax.random.key(0), o), likelihood.mean(o)))(outputs)
    )
    assert drawn.shape == means.shape == (20_000,)
    assert drawn.mean() == pytest.approx(means[0], abs=0.015)
    assert likelihood.support[0] <= drawn.min() <= drawn.max() <= likelihood.support[1]


def test_bytes_in_bfloat16_are_still_the_same_levels():
    x = jnp.arange(256) / 255
    outputs = jnp.broadcast_to(jnp.array([0.1, -1.0]), (256, 2))
    likelihood = discretized_logistic()
    log_prob = jit(lambda x: likelihood.log_prob(outputs, x.astype(jnp.float32)))
    exact, rounded = log_prob(x), log_prob(x.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(exact, rounded)


def test_a_learned_scale_has_a_limit():
    sharp = gaussian(None, smallest=0.1).log_prob(jnp.array([[0.0, -99.0]]), jnp.zeros(1))
    assert float(sharp[0]) == pytest.approx(-np.log(0.1) - 0.5 * np.log(2 * np.pi), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian(0.0), "scale must be positive; got 0"),
        (lambda: gaussian(smallest=-1), "at least -1"),
        (lambda: discretized_logistic(1), "2 levels and 1 component; got 1 and 1"),
        (
            lambda: gaussian(None).log_prob(jnp.zeros((2, 3)), jnp.zeros((2, 3))),
            r"needs \(2, 3, 2\), 2 for each",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
