"""Parameter groups by path: labels, masks and scales do to each parameter what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl.learners import decays, gradient, label_by_path, mask_by_path, scale_by_path
from jdl.models import MLP
from jdl.tasks import classification

BATCH = {
    "inputs": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32),
    "labels": np.arange(8) % 3,
}
TASK = classification(MLP((6, 6, 3), residual=True))


def trained(tx, steps=3):
    """Parameters before and after, by path."""
    learner = gradient(TASK, tx)
    state = learner.init(jax.random.key(0), BATCH)
    before, step = state.params, jax.jit(learner.step)
    for _ in range(steps):
        state, _ = step(state, BATCH)

    def flat(params):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}

    return flat(before), flat(state.params)


def test_frozen_parameters_stay_bitwise():
    labels = label_by_path({"frozen": "^Dense_0/", "free": ".*"})
    before, after = trained(
        optax.multi_transform({"frozen": optax.set_to_zero(), "free": optax.adamw(0.1)}, labels)
    )
    for name in before:
        assert (before[name].tobytes() == after[name].tobytes()) == name.startswith("Dense_0/"), name


def test_the_first_pattern_found_counts():
    params = {"a": {"kernel": 0.0, "bias": 0.0}, "b": {"kernel": 0.0}}
    labels = label_by_path({"biases": "bias$", "first": "^a/", "rest": ""})(params)
    assert labels == {"a": {"kernel": "first", "bias": "biases"}, "b": {"kernel": "rest"}}


def test_parameters_without_a_label_are_named():
    with pytest.raises(ValueError, match=r"no pattern of \['\^head/'\] is found in: body/bias, body/kernel"):
        label_by_path({"head": "^head/"})({"body": {"kernel": 0.0, "bias": 0.0}, "head": {"kernel": 0.0}})


def test_scales_are_learning_rates():
    rates = {"^Dense_0/": 0.0, "^Dense_1/kernel": 0.1}
    before, plain = trained(optax.sgd(0.5), steps=1)
    _, scaled = trained(optax.chain(optax.sgd(0.5), scale_by_path(rates)), steps=1)
    for name in before:
        expected = next((rate for start, rate in rates.items() if name.startswith(start[1:])), 1.0)
        np.testing.assert_allclose(
            scaled[name] - before[name],
            expected * (plain[name] - before[name]),
            rtol=1e-4,
            atol=1e-6,
            err_msg=name,
        )


def test_decay_spares_biases_norms_and_embeddings():
    params = {
        "Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "LayerNorm_0": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "S2": {"bias": jnp.ones((1, 1, 1, 3))},
        "Embed_0": {"embedding": jnp.ones((5, 3))},
        "Conv_0": {"kernel": jnp.ones((3, 3, 1, 2))},
    }
    kept = {path for path, x in flatten(decays(params)) if x}
    assert kept == {"Dense_0/kernel", "Conv_0/kernel"}
    decayed = optax.add_decayed_weights(0.1, mask=decays)
    updates, _ = decayed.update(jax.tree.map(jnp.zeros_like, params), decayed.init(params), params)
    assert {path for path, x in flatten(updates) if np.any(x)} == kept


def flatten(tree):
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_mask_is_a_search():
    mask = mask_by_path("Dense_1/.*l$")({"Dense_1": {"kernel": 0, "bias": 0}, "Dense_10": {"kernel": 0}})
    assert mask == {"Dense_1": {"kernel": True, "bias": False}, "Dense_10": {"kernel": False}}
