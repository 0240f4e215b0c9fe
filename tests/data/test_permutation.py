"""The permutation is a bijection, looks random, and is the same in numpy, under jit and in every process."""

import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jdl.data.permutation import divmod_product, permute

# Of permute over a few sizes: any change of the permutation changes every batch of every run there was.
GOLDEN = "aa8cfbcc44424e3b61621f0b8a3cbc36831b3b5b055f29929723c98cdccfd758"


def digest() -> str:
    entries = [
        permute(np.arange(n), n, seed, epoch)
        for n in (1, 2, 10, 1437, 50_000)
        for seed, epoch in ((0, 0), (7, 3))
    ]
    return hashlib.sha256(np.concatenate(entries).astype("<u4").tobytes()).hexdigest()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_is_a_bijection(size, seed, epoch):
    entries = permute(np.arange(size), size, seed, epoch)
    assert entries.dtype == np.uint32
    np.testing.assert_array_equal(np.sort(entries), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 97, 1000, 50_000])
def test_numpy_and_jit_agree(size):
    traced = jax.jit(lambda x, epoch: permute(x, size, 5, epoch, jnp))
    for epoch in (0, 1, 2**32 - 1):
        expected = permute(np.arange(size), size, 5, epoch)
        np.testing.assert_array_equal(traced(jnp.arange(size, dtype=jnp.uint32), np.uint32(epoch)), expected)


def test_large_sizes_stay_in_range():
    for size in (2**30, 2**30 - 35, 10**9 + 7):
        entries = permute(np.arange(size - 5000, size), size, 1)
        assert entries.max() < size
        assert len(np.unique(entries)) == 5000


def table(size, epochs, seed=0):
    """Permutations of ``epochs`` epochs, [epochs, size]."""
    positions = np.broadcast_to(np.arange(size, dtype=np.uint32), (epochs, size))
    return permute(positions, size, seed, np.arange(epochs, dtype=np.uint32)[:, None]).astype(int)


@pytest.mark.parametrize("size", [10, 16, 97, 1000])
def test_every_entry_is_uniform_over_positions(size):
    epochs = 1000
    entries = table(size, epochs)
    observed = np.stack([np.bincount(entries[:, j], minlength=size) for j in (0, 1, size // 2, size - 1)])
    assert stats.chisquare(observed.ravel(), np.full(observed.size, epochs / size)).pvalue > 1e-4


@pytest.mark.parametrize("size", [10, 97, 1000])
def test_neighbours_and_consecutive_epochs_are_unrelated(size):
    epochs = 1500
    entries = table(size, epochs)
    between_epochs = np.bincount((entries[1:, 3] - entries[:-1, 3]) % size, minlength=size)
    assert stats.chisquare(between_epochs).pvalue > 1e-4
    between_neighbours = np.bincount((entries[:, 1] - entries[:, 0]) % size, minlength=size)[1:]
    assert stats.chisquare(between_neighbours).pvalue > 1e-4
    correlation = np.corrcoef(entries[:200])[np.triu_indices(200, 1)]
    assert abs(correlation.mean()) < 5 / np.sqrt(size * correlation.size)


def test_epochs_and_seeds_differ():
    reference = permute(np.arange(100), 100, 0)
    for seed, epoch in ((0, 1), (1, 0), (2**32, 0), (2**64 - 1, 0)):
        assert (permute(np.arange(100), 100, seed, epoch) == reference).mean() < 0.1
    assert (permute(np.arange(100), 100, 0, 1) != permute(np.arange(100), 100, 1, 0)).any()


def test_small_sizes_reach_every_order():
    orders, counts = np.unique(table(5, 12_000), axis=0, return_counts=True)
    assert len(orders) == 120
    assert counts.min() > 50
    assert counts.max() < 150


def test_equal_in_another_process():
    code = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    program = f"import sys; sys.path[:0] = {sys.path!r}; {code}"
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == digest() == GOLDEN


@pytest.mark.parametrize(("size", "seed"), [(0, 0), (-1, 0), (2**30 + 1, 0), (5, -1), (5, 2**64)])
def test_bounds(size, seed):
    with pytest.raises(ValueError, match="got"):
        permute(np.zeros(1), size, seed)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_divmod_product_is_exact(i, data):
    size = data.draw(st.integers(1, 2**30))
    factor = data.draw(st.integers(1, size))
    assert tuple(map(int, divmod_product(i, factor, size))) == divmod(i * factor, size)


@pytest.mark.parametrize("size", [1, 1437, 50_000, 10**6 + 3, 2**29 + 1, 2**30])
def test_divmod_product_traced(size):
    factor = min(size, 12_345)
    traced = jax.jit(lambda i: divmod_product(i, factor, size, jnp))
    for i in (0, 1, 10**8, 2**31 - 1, 2**32 - 1):
        assert tuple(map(int, traced(np.uint32(i)))) == divmod(i * factor, size)
