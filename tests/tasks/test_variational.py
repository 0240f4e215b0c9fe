"""Bounds on a likelihood that is known: probabilistic PCA; and what is reported, scheduled and kept free."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from scipy import stats

from jdl import audit, learners, tasks
from jdl.core import summarize
from jdl.models import VAE, vae
from jdl.nn import gaussian
from tests.compiling import jit

RNG = np.random.default_rng(0)
W, MEAN, NOISE = RNG.normal(size=(2, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32), 0.5
X = (RNG.normal(size=(6, 2)) @ W + MEAN + NOISE * RNG.normal(size=(6, 5))).astype(np.float32)
BATCH = {"inputs": X, "weights": np.array([1, 1, 0.5, 2, 0, 1], np.float32)}
KEY = jax.random.key(0)


class LinearGaussian(linen.Module):
    """x = z W + mean + noise, with a posterior that is off by a factor in its spread."""

    spread: float = 1.0

    def encode(self, x, train=False):
        covariance = np.linalg.inv(np.eye(2) + W @ W.T / NOISE**2)
        mean = (x - MEAN.reshape(1, 5)) @ W.T @ covariance.astype(np.float32) / NOISE**2
        std = self.spread * np.sqrt(np.diag(covariance)).astype(np.float32)
        return mean, jnp.broadcast_to(jnp.log(std), mean.shape)

    def decode(self, z, train=False):
        return z @ W + MEAN.reshape(1, 5)

    def __call__(self, x, train=False):
        return self.decode(self.encode(x)[0])


EXACT = stats.multivariate_normal(MEAN, W.T @ W + NOISE**2 * np.eye(5)).logpdf(X)
LIKELIHOOD = gaussian(NOISE)


def test_the_bounds_climb_to_the_likelihood_of_probabilistic_pca():
    module = LinearGaussian(1.3)
    weights = BATCH["weights"]
    exact = (EXACT * weights).sum() / weights.sum()

    def bound(task):
        evaluate = jit(jax.vmap(lambda key: task.evaluate({"params": {}}, BATCH, key)["loss"].value()))
        return -float(evaluate(jax.random.split(KEY, 400)).mean())

    bounds = [bound(tasks.elbo(module, LIKELIHOOD))]
    bounds += [bound(tasks.importance_weighted(module, LIKELIHOOD, samples=k)) for k in (2, 10, 100)]
    assert bounds == sorted(bounds)
    assert bounds[0] < exact - 0.1
    assert bounds[-1] == pytest.approx(exact, abs=0.02)
    one = bound(tasks.importance_weighted(module, LIKELIHOOD, samples=1))
    assert one == pytest.approx(bounds[0], abs=0.05), "with one sample it is the evidence lower bound"


def test_the_estimate_covers_the_exact_likelihood_within_its_standard_error():
    model = tasks.latent_model(LinearGaussian(1.3), {"params": {}}, LIKELIHOOD)
    found = audit.log_likelihood(model.posterior, model.log_joint, X, KEY, 4000, chunk=500)
    off = np.abs(found.estimate - EXACT) / found.standard_error
    assert (off < 4).all(), off
    assert (found.standard_error < 0.05).all()
    again = audit.log_likelihood(model.posterior, model.log_joint, X, KEY, 4000, chunk=1000)
    np.testing.assert_allclose(again.estimate, found.estimate, rtol=1e-5)
    estimate, error = found.mean()
    assert abs(estimate - EXACT.mean()) < 4 * error
    # Twenty repeats scatter by as much as one says.
    estimate = lambda key: audit.log_likelihood(model.posterior, model.log_joint, X, key, 100)
    few = jit(jax.vmap(estimate))(jax.random.split(KEY, 20))
    np.testing.assert_allclose(few.standard_error.mean(0), few.estimate.std(0), rtol=0.6)
    # By weights known: effective samples are all where the posterior is exact, and few where it is far off.
    assert (found.effective_samples <= 4000).all()
    exact = audit.log_likelihood(
        lambda x: (x / 2, jnp.full_like(x, np.log(2) / -2)),
        lambda z, x: -0.5 * (z**2 + (x - z) ** 2).sum(-1), jnp.ones((1, 1)), KEY, 20,
    )  # fmt: skip
    np.testing.assert_allclose(exact.effective_samples, 20, rtol=1e-4)
    far = audit.log_likelihood(
        lambda x: (x / 2 + 3, jnp.full_like(x, -2.0)),
        lambda z, x: -0.5 * (z**2 + (x - z) ** 2).sum(-1), jnp.ones((1, 1)), KEY, 20,
    )  # fmt: skip
    assert far.effective_samples[0] < 5
    with pytest.raises(ValueError, match="multiple of chunk; got 100 and 30"):
        audit.log_likelihood(model.posterior, model.log_joint, X, KEY, 100, chunk=30)


def terms(**options):
    """Total and metrics of a small VAE's training loss, without noise."""
    task = tasks.elbo(MODEL, samples=0, **options)
    variables = VARIABLES if "beta" not in options or not callable(options["beta"]) else COUNTED
    total, (weight, changed, metrics) = jit(task.loss)(variables, BITS, KEY)
    return float(total / weight), changed, metrics


MODEL = VAE((5,), 3, (4,), activation=jnp.tanh)
BITS = {"inputs": (X > 0).astype(np.float32), "weights": BATCH["weights"]}
VARIABLES = jit(tasks.elbo(MODEL).init)(KEY, BITS)
COUNTED = {**VARIABLES, "schedule": {"step": jnp.array(3)}}


def test_beta_weighs_the_divergence_and_free_bits_bound_it_from_below():
    loss, _, metrics = terms()
    found = summarize(metrics)
    assert loss == pytest.approx(found["reconstruction"] + found["kl"], rel=1e-5)
    assert found["bits_per_dimension"] == pytest.approx(loss / (5 * np.log(2)), rel=1e-5)
    assert terms(beta=4.0)[0] == pytest.approx(found["reconstruction"] + 4 * found["kl"], rel=1e-5)
    evaluated = summarize(jit(tasks.elbo(MODEL, samples=0, beta=4.0).evaluate)(VARIABLES, BITS, KEY))
    assert evaluated["loss"] == pytest.approx(loss, rel=1e-5), "what is measured has no beta"
    per_unit = evaluated["kl_of_unit"]
    assert per_unit.sum() == pytest.approx(found["kl"], rel=1e-5)
    level = float(np.median(per_unit))
    expected = found["reconstruction"] + np.maximum(per_unit, level).sum()
    assert terms(free_bits=level)[0] == pytest.approx(expected, rel=1e-5)


def test_a_schedule_counts_steps_in_a_collection_of_its_own():
    schedule = optax.linear_schedule(0.0, 1.0, 4)
    plain = summarize(terms()[2])
    loss, changed, metrics = terms(beta=schedule)
    assert loss == pytest.approx(plain["reconstruction"] + 0.75 * plain["kl"], rel=1e-5)
    assert summarize(metrics)["beta"] == 0.75
    assert int(changed["schedule"]["step"]) == 4
    learner = learners.gradient(tasks.elbo(MODEL, beta=schedule), optax.sgd(0.01))
    state = jit(learner.init)(KEY, BITS)
    step = jit(learner.step)
    betas = []
    for _ in range(6):
        state, metrics = step(state, BITS)
        betas.append(summarize(metrics)["beta"])
    assert betas == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_conditional_model_decodes_by_its_condition():
    module, batch = vae.tiny()
    task = tasks.elbo(module)
    variables = jit(task.init)(KEY, batch)
    model = tasks.latent_model(module, variables)
    z, condition = jnp.zeros((2, 3)), jnp.array([0, 1])
    images = jit(lambda model, codes: model.decode(codes))(model, {"data": z, "condition": condition})
    assert images.shape == (2, 4, 4, 1)
    assert np.abs(images[0] - images[1]).max() > 1e-3
    inputs = batch["inputs"]
    joint = jit(lambda model, z, x: model.log_joint(z, x))(model, jnp.zeros((8, 3)), inputs)
    probability = jit(lambda model, codes: model.decode(codes))(
        model, {"data": jnp.zeros((8, 3)), "condition": inputs["condition"]}
    )
    log_px = stats.bernoulli(np.asarray(probability)).logpmf(inputs["data"]).sum((1, 2, 3))
    np.testing.assert_allclose(joint, log_px + 3 * stats.norm.logpdf(0), rtol=1e-5)
    drawn = np.asarray(model.sample(KEY, {"data": z, "condition": condition}))
    assert set(np.unique(drawn)) <= {0, 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.elbo(MODEL, beta=-1.0), "must be at least 0; got -1"),
        (lambda: tasks.elbo(MODEL, free_bits=-0.1), "must be at least 0"),
        (lambda: tasks.importance_weighted(MODEL, samples=0), "at least one sample; got 0"),
        (lambda: tasks.elbo(MODEL).check({"inputs": X}), "data outside 0..1"),
        (
            lambda: tasks.elbo(VAE((2,), 1, (2,), classes=2)).check(
                {"inputs": {"data": np.zeros((2, 2)), "condition": np.array([0, 2])}}
            ),
            "conditions must be from 0 to 1; they are 0 to 2",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
