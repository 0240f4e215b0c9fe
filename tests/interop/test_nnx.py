"""An NNX model trains through the library as a Linen model does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jdl import data, interop, learners, tasks, train


class Net(nnx.Module):
    """BatchNorm, Dropout and a list of layers: every kind of state an NNX model has."""

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.layers[0](x)))
        return self.layers[1](self.dropout(x))


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240).astype(np.int32)
    inputs = rng.normal(size=(240, 16)).astype(np.float32) + np.eye(3, 16, dtype=np.float32)[labels] * 3
    return {"inputs": inputs, "labels": labels}


def task(rate=0.3):
    return tasks.classification(interop.from_nnx(lambda rngs: Net(rate, rngs=rngs)))


def test_it_trains_through_fit_with_batchnorm_and_dropout(arrays):
    learner = learners.gradient(task(), optax.adam(1e-2))
    evaluation = data.in_order(arrays, 60)
    fitted = train.fit(
        learner,
        data.shuffled(arrays, 32),
        120,
        evaluation=evaluation,
        loggers=[lambda record: None],
        mesh="data:1",
    )
    assert fitted.history.last("evaluation")["accuracy"] > 0.9
    statistics = fitted.variables["batch_stats"]["norm"]
    assert float(jnp.abs(statistics["mean"]).max()) > 0.1


def test_dropout_follows_the_key_and_is_off_in_prediction(arrays):
    net = task()
    variables = net.init(jax.random.key(0), arrays)
    total = [float(net.loss(variables, arrays, jax.random.key(seed))[0]) for seed in (1, 1, 2)]
    assert total[0] == total[1] != total[2]
    first, second = (np.asarray(net.predict(variables, arrays["inputs"])) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_each_key_initialises_differently(arrays):
    a, b = (task().init(jax.random.key(seed), arrays)["params"]["layers"][0]["kernel"] for seed in (0, 1))
    assert float(jnp.abs(a - b).max()) > 0.01


def test_it_computes_what_the_model_itself_computes(arrays):
    model = Net(0.0, rngs=nnx.Rngs(7))
    _, params, stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    variables = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}
    net = task(0.0)
    model.eval()
    expected = model(arrays["inputs"])
    np.testing.assert_allclose(net.predict(variables, arrays["inputs"]), expected, rtol=1e-6, atol=1e-6)
    model.train()
    expected = optax.softmax_cross_entropy_with_integer_labels(
        model(arrays["inputs"]), arrays["labels"]
    ).sum()
    total, (_, changed, _) = net.loss(variables, arrays, jax.random.key(0))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(
        changed["batch_stats"]["norm"]["mean"], model.norm.mean[...], rtol=1e-5, atol=1e-6
    )


def test_an_ensemble_of_nnx_models_starts_from_different_weights(arrays):
    learner = learners.ensemble(learners.gradient(task(), optax.sgd(0.1)), 2)
    state = learner.init(jax.random.key(0), arrays)
    kernel = state.params["layers"][0]["kernel"]
    assert kernel.shape == (2, 16, 32)
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.01
