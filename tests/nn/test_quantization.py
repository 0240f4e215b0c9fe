"""A codebook follows the vectors that it stands for, on one device as on several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS
from jdl.nn.quantization import Codebook, perplexity
from tests.compiling import jit

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(8, 3, 2)).astype(np.float32)


@functools.partial(jit, static_argnums=0)
def follow(layer, collections, vectors, weights=None):
    rngs = {"sample": jax.random.key(1)}
    return layer.apply(collections, vectors, weights, train=True, mutable=["codebook"], rngs=rngs)


def test_takes_the_nearest_and_follows_as_the_paper_has_it():
    layer = Codebook(4, 2, decay=0.8)
    variables = layer.init(jax.random.key(0), VECTORS)
    start = jax.tree.map(np.asarray, variables["codebook"])
    weights = np.array([1, 1, 1, 0.5, 1, 0, 1, 1], np.float32)
    quantized, changed = follow(layer, variables, VECTORS, weights)
    distances = ((VECTORS[:, :, None] - start["entries"]) ** 2).sum(-1)
    codes = distances.argmin(-1)
    np.testing.assert_array_equal(quantized.codes, codes)
    np.testing.assert_array_equal(quantized.values, start["entries"][codes])
    n, s = np.zeros(4), np.zeros((4, 2))
    for vector, code, weight in zip(VECTORS.reshape(-1, 2), codes.ravel(), weights.repeat(3), strict=True):
        n[code] += weight
        s[code] += weight * vector
    counts, sums = 0.8 + 0.2 * n, 0.8 * start["entries"] + 0.2 * s
    np.testing.assert_allclose(changed["codebook"]["counts"], counts, rtol=1e-5)
    np.testing.assert_allclose(changed["codebook"]["entries"], sums / counts[:, None], rtol=1e-4, atol=1e-6)
    assert quantized.usage.sum() == 24
    # Without training nothing moves.
    _, still = layer.apply(variables, VECTORS, mutable=["codebook"])
    np.testing.assert_array_equal(still["codebook"]["entries"], start["entries"])


def test_entries_come_to_the_centres_of_clusters():
    centres = np.array([[5, 5], [-5, 5], [0, -5]], np.float32)
    vectors = centres[RNG.integers(0, 3, (8, 20))] + 0.1 * RNG.normal(size=(8, 20, 2)).astype(np.float32)
    layer = Codebook(3, 2, decay=0.5, restart=0.5)
    variables = layer.init(jax.random.key(0), vectors)
    for _ in range(30):
        quantized, variables = follow(layer, variables, vectors)
    error = np.abs(np.sort(variables["codebook"]["entries"], 0) - np.sort(centres, 0)).max()
    assert error < 0.2
    assert perplexity(quantized.usage.sum(0)) > 2.5


def test_dead_entries_become_vectors_of_the_batch():
    layer = Codebook(4, 2, decay=0.9, restart=0.95)
    far = layer.init(jax.random.key(0), VECTORS)
    entries = jnp.array([[0.0, 0.0], [90.0, 90.0], [-90.0, 90.0], [90.0, -90.0]])
    far = {"codebook": {**far["codebook"], "entries": entries, "sums": entries}}
    _, changed = follow(layer, far, VECTORS)
    fresh = np.asarray(changed["codebook"]["entries"])[1:]
    for entry in fresh:
        assert (VECTORS.reshape(-1, 2) == entry).all(1).any()
    np.testing.assert_array_equal(changed["codebook"]["counts"][1:], 1.0)
    # Without restarts they stay where they were, as long as it may last.
    still = Codebook(4, 2, decay=0.9)
    faded = {"codebook": {**far["codebook"], "counts": jnp.full(4, 1e-7), "sums": entries * 1e-7}}
    _, changed = follow(still, faded, VECTORS)
    np.testing.assert_array_equal(changed["codebook"]["entries"][1:], entries[1:])


def test_only_vectors_that_count_replace_dead_entries(devices):
    """Padding has no weight; on two devices each gives as many as its share, one that has none gives none."""
    layer, vectors = Codebook(4, 2, decay=0.9, restart=99.0), jnp.full((4, 3, 2), 777.0).at[1].set(5.0)
    variables, weights = layer.init(jax.random.key(0), vectors), jnp.array([0.0, 1.0, 0.0, 0.0])

    def step(variables, vectors, weights):
        rngs = {"sample": jax.random.key(1)}
        return layer.apply(variables, vectors, weights, train=True, mutable=["codebook"], rngs=rngs)[1]

    whole = step(variables, vectors, weights)
    mesh = Mesh(np.array(devices[:2]), (AXIS,))
    split = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS), P(AXIS)), out_specs=P(), check_vma=False)
    for changed in (whole, jit(split)(variables, vectors, weights)):
        np.testing.assert_array_equal(changed["codebook"]["entries"], np.full((4, 2), 5.0))
    # Where all count, all are drawn sooner or later.
    many = Codebook(400, 2, decay=0.9, restart=99.0)
    _, changed = follow(many, many.init(jax.random.key(0), vectors), vectors)
    assert 60 < (np.asarray(changed["codebook"]["entries"])[:, 0] == 5).sum() < 140


def test_devices_agree_on_the_codebook(devices):
    mesh = Mesh(np.array(devices[:2]), (AXIS,))
    layer = Codebook(4, 2, decay=0.9, restart=0.97)
    variables = layer.init(jax.random.key(0), VECTORS)
    entries = variables["codebook"]["entries"].at[3].set(99.0)
    variables = {"codebook": {**variables["codebook"], "entries": entries}}

    def step(variables, vectors):
        key = jax.random.fold_in(jax.random.key(1), jax.lax.axis_index(AXIS))
        out = layer.apply(variables, vectors, train=True, mutable=["codebook"], rngs={"sample": key})
        return jax.tree.map(lambda x: x[None], out[1])

    split = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False)
    each = jit(split)(variables, VECTORS)["codebook"]
    for leaf in jax.tree.leaves(each):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    _, alone = follow(layer, variables, VECTORS)
    kept = np.asarray(alone["codebook"]["counts"]) != 1
    assert 0 < kept.sum() < 4, "some entries should be dead, and some not"
    np.testing.assert_allclose(each["entries"][0][kept], alone["codebook"]["entries"][kept], rtol=1e-5)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="size 2; got vectors of shape"):
        Codebook(4, 2).init(jax.random.key(0), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="restart needs the counts"):
        Codebook(4, 2, decay=None, restart=1.0).init(jax.random.key(0), jnp.zeros((1, 2)))
