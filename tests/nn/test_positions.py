"""Positions equal twins by hand and what transformers computes."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.nn.positions import (
    Alibi,
    Buckets,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    Rotary,
    alibi,
    alibi_slopes,
    bucket_bias,
    sinusoidal,
)

B, T, H, K = 2, 5, 3, 8
POSITIONS = np.array([[0, 1, 2, 3, 4], [7, 8, 100, 3, 0]], np.int32)


def heads(seed=0):
    return np.random.default_rng(seed).normal(size=(B, T, H, K)).astype(np.float32)


def turned_by_hand(x, positions, frequencies, pairs):
    """Each pair as a complex number, times e^(i angle)."""
    y = x.copy()
    for n, (i, j) in enumerate(pairs):
        factor = np.exp(1j * positions.astype(np.float64) * frequencies[n])[..., None]
        z = (x[..., i] + 1j * x[..., j]) * factor
        y[..., i], y[..., j] = z.real, z.imag
    return y


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs(interleaved, size):
    n = (size or K) // 2
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + n) for i in range(n)]
    expected = turned_by_hand(heads(), POSITIONS, 10_000.0 ** (-np.arange(n) / n), pairs)
    rotation = Rotary(interleaved=interleaved, size=size).at(jnp.asarray(POSITIONS), K)
    np.testing.assert_allclose(rotation(heads()), expected, rtol=0, atol=1e-5)


def test_rotary_products_depend_on_distances_alone():
    q, k = heads(0), heads(1)
    products = []
    for shift in (0, 9):
        rotation = Rotary().at(jnp.asarray(POSITIONS[:1] + shift), K)
        products.append(jnp.einsum("BTHK,BSHK->BHTS", rotation(q), rotation(k)))
    np.testing.assert_allclose(*products, rtol=0, atol=1e-4)
    assert rotation(q.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kind", "theirs", "scaling"),
    [
        ("linear", {"factor": 4.0}, LinearScaling(4.0)),
        (
            "llama3",
            {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            Llama3Scaling(original=64),
        ),
    ],
)
def test_scaled_frequencies_equal_those_of_transformers(torch, kind, theirs, scaling):
    utilities = importlib.import_module("transformers.modeling_rope_utils")
    config = importlib.import_module("transformers").LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **theirs},
    )
    expected, _ = utilities.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    actual = Rotary(scaling=scaling).frequencies(32)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert not np.allclose(actual, Rotary().frequencies(32))


def test_ntk_scaling_is_a_larger_base():
    actual = Rotary(scaling=NTKScaling(4.0)).frequencies(K)
    np.testing.assert_allclose(actual, Rotary(10_000.0 * 4.0 ** (K / (K - 2))).frequencies(K), rtol=1e-6)
    assert actual[0] == 1
    np.testing.assert_allclose(actual[-1], Rotary().frequencies(K)[-1] / 4, rtol=1e-6)


def test_sinusoidal_positions_by_hand():
    expected = np.empty((3, 6))
    for row, p in zip(expected, (0, 1, 50), strict=True):
        for i in range(3):
            row[i], row[i + 3] = np.sin(p / 10_000 ** (2 * i / 6)), np.cos(p / 10_000 ** (2 * i / 6))
    np.testing.assert_allclose(sinusoidal(jnp.array([0, 1, 50]), 6), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 2, 6, 8, 12])
def test_alibi_equals_that_of_transformers(torch, num_heads):
    bloom = importlib.import_module("transformers.models.bloom.modeling_bloom")
    # Theirs grows with the key's position: the softmax is the same, a row at a time.
    theirs = bloom.build_alibi_tensor(torch.ones(1, T), num_heads, torch.float32).numpy()
    at = jnp.arange(T).reshape(1, T)
    ours = np.asarray(Alibi().bias(num_heads, None)(at, at))[0]
    for t in range(T):
        past = slice(0, t + 1)
        np.testing.assert_allclose(ours[:, t, past] - ours[:, t, :1], theirs[:, 0, past], rtol=0, atol=1e-5)
    assert ours.shape == (num_heads, T, T)


def test_alibi_by_hand():
    np.testing.assert_array_equal(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    bias = alibi(np.array([0.5, 0.25]), jnp.array([[3], [0]]), jnp.array([[0, 3, 4]]))
    np.testing.assert_array_equal(bias[0, :, 0], [[-1.5, 0, -0.5], [-0.75, 0, -0.25]])
    np.testing.assert_array_equal(bias[1, :, 0], [[0, -1.5, -2], [0, -0.75, -1]])


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (8, 20)])
def test_buckets_equal_those_of_transformers(torch, both_ways, count, farthest):
    t5 = importlib.import_module("transformers.models.t5.modeling_t5").T5Attention
    offsets = np.arange(-300, 301)
    expected = t5._relative_position_bucket(torch.tensor(offsets), both_ways, count, farthest)
    actual = Buckets(count, farthest, both_ways)(jnp.asarray(offsets))
    np.testing.assert_array_equal(actual, expected)
    assert len(np.unique(actual)) == count - both_ways  # offset 0 is in the first half


def test_bucket_bias_looks_up_each_head():
    table = jnp.arange(12.0).reshape(4, 3)
    bias = bucket_bias(Buckets(4, 4, both_ways=False), table, jnp.array([[0, 2]]), jnp.array([[0, 1, 2]]))
    np.testing.assert_array_equal(bias[0, :, 0], np.repeat(table[:1], 3, 0).T)
    np.testing.assert_array_equal(bias[0, :, 1], table[jnp.array([2, 1, 0])].T)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinusoidal(jnp.arange(3), 5), "an odd size, 5"),
        (lambda: Rotary(size=3).frequencies(8), "an even number of a head's 8 features; got 3"),
        (lambda: Rotary(size=10).frequencies(8), "an even number of a head's 8 features; got 10"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_all_are_static_settings():
    a, b = (Rotary(500.0, scaling=Llama3Scaling()) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert jax.tree.leaves(a) == [a]
