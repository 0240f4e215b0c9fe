"""Taps read and move every layer's output, through calls that repeat, rematerialise, compile and scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jdl.nn.taps import tapped

X = jnp.arange(6.0).reshape(2, 3)


class Twice(linen.Module):
    """One layer called twice, beside things that the model keeps for itself."""

    @linen.compact
    def __call__(self, x):
        self.sow("stages", "input", x)
        self.sow("intermediates", "input", x)
        dense = linen.Dense(3, name="dense")
        return x + dense(jnp.tanh(dense(x)))


class Chain(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.remat(Twice)(name="remat")(x)
        x = linen.jit(linen.Dense)(3, name="jit")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        x = linen.Dropout(0.5, deterministic=not train, name="output")(x)  # a name like a collection's
        return linen.Dense(2, name="a")(x)


ORDER = ["remat/dense", "remat/dense:2", "remat", "jit", "norm", "output", "a"]


@pytest.fixture
def variables():
    variables = Chain().init(jax.random.key(0), X)
    return {name: variables[name] for name in ("params", "batch_stats")}


def test_outputs_come_in_order_of_computation_even_from_jit(variables):
    y, changed, found = tapped(Chain(), variables, X)
    assert list(found) == ORDER
    assert changed == {}
    np.testing.assert_array_equal(found["a"], y)
    np.testing.assert_array_equal(y, Chain().apply(variables, X))
    compiled = jax.jit(lambda variables: tapped(Chain(), variables, X)[2])(variables)
    assert list(compiled) == ORDER
    # Sums of terms of about one, in two orders: a rounding of such a term or two, where they cancel.
    np.testing.assert_allclose(compiled["remat/dense:2"], found["remat/dense:2"], rtol=1e-6, atol=2.5e-7)


def test_training_mode_changes_collections_as_apply_does(variables):
    options = {"train": True, "rngs": {"dropout": jax.random.key(1)}}
    expected, statistics = Chain().apply(variables, X, mutable=["batch_stats"], **options)
    y, changed, _ = tapped(Chain(), variables, X, mutable=["batch_stats"], **options)
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, changed, statistics)


def test_derivative_with_respect_to_what_is_added_is_that_of_finite_differences(variables):
    _, _, found = tapped(Chain(), variables, X)
    zeros = {name: jnp.zeros_like(x) for name, x in found.items()}

    @jax.jit
    def total(add):
        return jnp.sin(tapped(Chain(), variables, X, add=add)[0]).sum()

    gradient = jax.grad(total)(zeros)
    for name, slope in gradient.items():
        change = jax.random.normal(jax.random.key(3), slope.shape)
        moved = [total({**zeros, name: step * change}) for step in (0.05, -0.05)]
        np.testing.assert_allclose((moved[0] - moved[1]) / 0.1, (slope * change).sum(), rtol=1e-2, atol=1e-3)


def test_scanned_layers_are_seen_where_the_collection_is_carried():
    class Body(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return linen.Dense(3, name="dense")(x), None

    def outputs(axes):
        scanned = linen.scan(Body, variable_axes=axes, split_rngs={"params": True}, length=4)
        module = linen.Sequential([lambda x: scanned(name="body")(x, None)[0], linen.Dense(1)])
        variables = module.init(jax.random.key(0), X)
        return tapped(module, {"params": variables["params"]}, X)[2]

    assert "body/dense" not in outputs({"params": 0})
    assert outputs({"params": 0, "taps": 0})["body/dense"].shape == (4, 2, 3)


def test_says_which_outputs_there_are(variables):
    with pytest.raises(
        ValueError, match="no submodule has the output b; there are remat/dense, remat/dense:2"
    ):
        tapped(Chain(), variables, X, add={"b": jnp.zeros((2, 2))})
