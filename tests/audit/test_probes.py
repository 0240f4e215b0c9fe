"""Probes are the regressions that scikit-learn finds, and read more from a layer that knows more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from sklearn.linear_model import LogisticRegression

from jdl import data
from jdl.audit import linear_probe, probe_layers
from jdl.audit.probes import _pooled
from jdl.models import MLP


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.parametrize("l2", [1e-2, 1e-1])
def test_equals_scikit_learn_on_the_same_objective(digits, l2):
    x = digits.train["inputs"].reshape(-1, 64)[:600].astype(np.float32) / 16
    y = digits.train["labels"][:600]
    probe = linear_probe(x, y, l2=l2, tolerance=1e-5)
    reference = LogisticRegression(C=1 / (len(x) * l2), solver="newton-cg", tol=1e-7).fit(
        x.astype(np.float64), y
    )
    np.testing.assert_allclose(probe.kernel, reference.coef_.T, atol=2e-3 * np.abs(reference.coef_).max())
    ours, theirs = jax.nn.softmax(probe.logits(x)), reference.predict_proba(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    losses = -np.log(theirs[np.arange(len(y)), y]).mean() + l2 / 2 * np.square(reference.coef_).sum()
    np.testing.assert_allclose(probe.loss, losses, rtol=1e-5)
    assert probe.gradient_norm <= 1e-5
    assert probe.steps < 500


@pytest.mark.parametrize(
    ("features", "labels", "options", "words"),
    [
        (np.ones((3, 2, 1)), [0, 1, 1], {}, r"features \[N, D\] and integer labels \[N\]; got \(3, 2, 1\)"),
        (np.ones((3, 2)), [0, 1], {}, "got \\(3, 2\\), int64 \\(2,\\)"),
        (np.ones((3, 2)), [0.0, 1.0, 1.0], {}, "float64"),
        (np.ones((0, 2)), np.zeros(0, int), {}, "needs examples"),
        (np.full((3, 2), np.nan), [0, 1, 1], {}, "not finite"),
        (np.ones((3, 2)), [0, 1, 4], {"num_classes": 4}, r"labels must be in 0..3; got 0 to 4"),
        (np.ones((3, 2)), [0, -1, 1], {}, "got -1 to 1"),
        (np.ones((3, 2)), [0, 1, 1], {"l2": -1}, "l2 must be at least 0"),
        (100 * np.eye(3), [0, 1, 2], {"max_steps": 1, "tolerance": 1e-7}, "1 steps are too few"),
    ],
)
def test_says_what_is_wrong(features, labels, options, words):
    with pytest.raises(ValueError, match=words):
        linear_probe(features, labels, **options)


@pytest.mark.parametrize("shape", [(5, 7, 6, 3), (5, 1, 9, 3), (5, 4, 3), (5, 3)])
def test_pooled_features_are_means_of_cells(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    parts = x
    for axis in range(1, x.ndim - 1):
        cells = min(2, shape[axis])
        edges = [-(-shape[axis] * c // cells) for c in range(1, cells)]
        means = [part.mean(axis, keepdims=True) for part in np.split(parts, edges, axis)]
        parts = np.concatenate(means, axis)
    np.testing.assert_allclose(_pooled(jnp.asarray(x), 2), parts.reshape(5, -1), atol=1e-6)


class Reads(linen.Module):
    """A first layer that forgets all but one pixel's sign, a second that squares what is left."""

    @linen.compact
    def __call__(self, inputs, train=False):
        x = linen.Dense(4, name="mixes", use_bias=False)(inputs)
        product = linen.Dense(1, name="product", use_bias=False)(x[:, :1] * x[:, 1:2])
        return linen.Dense(1, name="loses", use_bias=False)(jnp.sign(x[:, 2:3]) + 0 * product)


def test_accuracy_tells_where_the_answer_can_be_read():
    """The class is the sign of a product, which no linear map reads from the factors."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    params = {
        "mixes": {"kernel": jnp.eye(4)},
        "product": {"kernel": jnp.ones((1, 1))},
        "loses": {"kernel": jnp.ones((1, 1))},
    }
    train, test = ({"inputs": x[part], "labels": y[part]} for part in (slice(400), slice(400, 600)))
    found = probe_layers(Reads(), {"params": params}, train, test, batch_size=150)
    assert list(found) == ["inputs", "mixes", "product", "loses"]
    assert found["product"] > 0.97
    assert max(found["inputs"], found["mixes"], found["loses"]) < 0.65


def test_one_probe_is_the_regression_on_that_layer(digits):
    model = MLP((20, 10))
    train, test = ({"inputs": part["inputs"][:300] / 16.0, "labels": part["labels"][:300]}
                   for part in (digits.train, digits.test))  # fmt: skip
    variables = model.init(jax.random.key(0), train["inputs"][:1])
    found = probe_layers(model, variables, train, test, "Dense_0", l2=1e-2, batch_size=128)
    kernel, bias = (np.asarray(variables["params"]["Dense_0"][name]) for name in ("kernel", "bias"))
    hidden = [part["inputs"].reshape(300, -1) @ kernel + bias for part in (train, test)]
    mean, deviation = hidden[0].mean(0), hidden[0].std(0)
    x_train, x_test = ((x - mean) / deviation for x in hidden)
    reference = LogisticRegression(C=1 / (300 * 1e-2), tol=1e-6, max_iter=5000).fit(x_train, train["labels"])
    assert found["Dense_0"] == pytest.approx(reference.score(x_test, test["labels"]), abs=0.007)
