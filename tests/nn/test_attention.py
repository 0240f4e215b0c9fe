"""Attention as a function equals PyTorch's and a loop by hand; in blocks too, and in memory linear in T."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.nn import attention
from jdl.nn.attention import attention_by_head
from jdl.nn.attention_parts import Sight
from jdl.nn.positions import Buckets, alibi, alibi_slopes, bucket_bias
from tests.compiling import CHEAPLY, jit

B, T, S, H, K = 2, 5, 7, 4, 4


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def arrays(heads=H, T=T, S=S):
    return normal(0, B, T, H, K), normal(1, B, S, heads, K), normal(2, B, S, heads, K)


def values_and_gradients(**options):
    """A compiled function of queries, keys and values: outputs, and gradients of a weighted sum of them."""

    def run(q, k, v):
        y, pullback = jax.vjp(lambda *x: attention(*x, **options), q, k, v)
        return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return jit(run)


@pytest.mark.parametrize(
    ("heads", "S", "options"),
    [
        (H, S, {}),
        (2, S, {"mask": np.random.default_rng(3).random((B, 1, T, S)) < 0.7}),
        (1, T, {"causal": True, "scale": 0.3}),
        (2, S, {"bias": normal(4, 1, H, T, S)}),
    ],
)
def test_equals_torch_in_value_and_gradient(torch, heads, S, options):
    given = arrays(heads, S=S)
    leaves = [torch.tensor(x.transpose(0, 2, 1, 3).copy(), requires_grad=True) for x in given]
    theirs = options.get("mask", options.get("bias"))
    if "mask" in options:
        options["mask"][..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(
        *leaves,
        attn_mask=None if theirs is None else torch.tensor(theirs),
        is_causal=options.get("causal", False),
        scale=options.get("scale"),
        enable_gqa=True,
    )
    weights = torch.cos(torch.arange(expected.numel()).float()).reshape(B, T, H, K).transpose(1, 2)
    (expected * weights).sum().backward()
    actual = values_and_gradients(**options)(*given)
    for ours, reference in zip(actual, [expected.detach(), *(x.grad for x in leaves)], strict=True):
        np.testing.assert_allclose(ours, reference.transpose(1, 2), rtol=0, atol=1e-5)


def by_hand(q_steps, k_steps, real, q_segments, k_segments, table, causal, window):
    """Who sees whom, pair by pair."""
    seen = np.zeros((B, 1, len(q_steps[0]), len(k_steps[0])), bool)
    for b, _, t, s in np.ndindex(seen.shape):
        distance = q_steps[b % len(q_steps)][t] - k_steps[b % len(k_steps)][s]
        seen[b, 0, t, s] = (
            (not causal or distance >= 0)
            and (window is None or abs(distance) < window)
            and (real is None or real[b][s])
            and (q_segments is None or q_segments[b][t] == k_segments[b][s])
            and (table is None or table[b, 0, t, s])
        )
    return seen


def of(*shape, elements):
    return st.lists(elements, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda values: np.array(values).reshape(shape)
    )


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    q_steps=of(B, 3, elements=st.integers(0, 5)),
    k_steps=of(1, 4, elements=st.integers(0, 5)),
    real=st.none() | of(B, 4, elements=st.booleans()),
    segments=st.none() | st.tuples(*(of(B, n, elements=st.integers(0, 2)) for n in (3, 4))),
    table=st.none() | of(B, 1, 3, 4, elements=st.booleans()),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 4),
)
def test_who_sees_whom(q_steps, k_steps, real, segments, table, causal, window):
    fields = q_steps, k_steps, real, *(segments or (None, None)), table
    sight = Sight(*(None if x is None else jnp.asarray(x) for x in fields), None, causal, window)
    expected = by_hand(*fields, causal, window)
    mask = sight.mask()
    mask = np.ones((), bool) if mask is None else np.asarray(mask)
    np.testing.assert_array_equal(np.broadcast_to(mask, expected.shape), expected)


SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 2, 2]])
TABLE = jnp.asarray(normal(5, 8, H))
VARIANTS = {
    "causal": {"causal": True},
    "causal window and segments": {"causal": True, "window": 3, "segments": (SEGMENTS, SEGMENTS)},
    "window of both sides": {"window": 2},
    "lengths, one of them zero": {"lengths": jnp.array([0, 4])},
    "steps of a cache": {
        "causal": True,
        "steps": (jnp.array([[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7, 8]]), jnp.arange(7).reshape(1, 7)),
    },
    "mask": {"mask": jnp.asarray(np.random.default_rng(6).random((B, H, S, S)) < 0.3)},
    "alibi": {"causal": True, "bias": functools.partial(alibi, alibi_slopes(H))},
    "buckets": {"bias": functools.partial(bucket_bias, Buckets(8, 6), TABLE)},
    "bias": {"bias": jnp.asarray(normal(7, 1, H, S, S)), "scale": 1.0},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_blocks_equal_the_whole(options):
    given = arrays(2, T=S)
    whole, blocks = values_and_gradients(**options)(*given), values_and_gradients(**options, chunk=3)(*given)
    for expected, actual in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def test_one_query_of_a_cache_is_a_block_of_its_own():
    options = {"causal": True, "steps": (jnp.array([[4], [6]]), jnp.arange(S).reshape(1, S))}
    given = arrays(2, T=1)
    whole, blocks = (jit(functools.partial(attention, **options, chunk=chunk)) for chunk in (None, 3))
    np.testing.assert_allclose(blocks(*given), whole(*given), rtol=0, atol=2e-6)
    padded = jax.make_jaxpr(functools.partial(attention, **options, chunk=3))(*given)
    assert f"{B},{H},3,3]" not in str(padded)


def test_a_learned_bias_gets_its_gradient_in_blocks():
    q, k, v = (x.transpose(0, 2, 1, 3) for x in arrays(T=S))

    def gradient(chunk):
        def total(table):
            bias = functools.partial(bucket_bias, Buckets(8, 6), table)
            return jnp.square(attention_by_head(q, k, v, bias=bias, chunk=chunk)).sum()

        return jit(jax.grad(total))(TABLE)

    expected = gradient(None)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient(3), expected, rtol=0, atol=1e-5)


def test_queries_that_may_look_nowhere_get_zeros_and_no_gradient():
    q, k, v = arrays()
    y, *gradients = values_and_gradients(lengths=jnp.array([0, 3]))(q, k, v)
    assert not np.any(y[0])
    assert np.all(np.any(y[1], axis=(1, 2)))
    assert all(np.isfinite(x).all() and not np.any(x[0]) for x in gradients)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"causal": True, "window": 3}, True),
        ({"lengths": jnp.array([0, 4])}, True),
        ({"causal": True, "segments": (SEGMENTS, SEGMENTS)}, True),
        ({"window": 3}, False),
        ({"bias": functools.partial(alibi, alibi_slopes(H))}, False),
    ],
)
def test_asks_cudnn_for_the_same(monkeypatch, options, fused):
    """Without a GPU: jax's own formulation takes the place of cuDNN's, with its arguments and refusals."""
    plain, asked = jax.nn.dot_product_attention, []

    def stands_in(*arrays, implementation, **given):
        assert implementation == "cudnn"
        asked.append(given)
        window = given["local_window_size"]
        if window is not None and window[1]:
            raise ValueError("cuDNN does not support a right window")
        return plain(*arrays, implementation="xla", **given)

    given = [x.astype(jnp.bfloat16) for x in arrays(2, T=S)]
    expected = attention(*given, **options)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stands_in)
    # What is lowered for CUDA runs here.
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, cuda, default: cuda(*arrays))
    asked.clear()
    actual = attention(*given, **options)
    assert bool(asked) == (fused or "window" in options)
    np.testing.assert_allclose(actual.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=0.02)
    if "lengths" in options:
        assert not np.any(actual[0])


def test_without_cudnn_a_program_for_cuda_is_the_portable_one():
    given = [x.astype(jnp.bfloat16) for x in arrays(2, T=S)]
    exported = jax.export.export(jax.jit(attention), platforms=["cpu", "cuda"])(*given)
    np.testing.assert_array_equal(exported.call(*given), attention(*given))


def temporaries(T, chunk):
    x = jax.ShapeDtypeStruct((1, 2, T, 8), np.float32)
    gradient = jax.grad(
        lambda q, k, v: attention_by_head(q, k, v, causal=True, chunk=chunk).sum(), argnums=(0, 1, 2)
    )
    compiled = jax.jit(gradient, compiler_options=CHEAPLY).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_blocks_take_memory_linear_in_the_length():
    whole, blocks = ([temporaries(T, chunk) for T in (1024, 2048)] for chunk in (None, 64))
    logits = 4 * 2 * 2048**2
    assert whole[1] > logits
    assert blocks[1] < 2.2 * blocks[0]
    assert 10 * blocks[1] < whole[1]


def test_low_precision_keeps_logits_and_softmax_in_float32():
    given = [x.astype(jnp.bfloat16) for x in arrays(2)]
    low, exact = attention(*given), attention(*(x.astype(jnp.float32) for x in given))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), exact, rtol=0, atol=0.02)
    program = str(jax.make_jaxpr(attention)(*given))
    assert "preferred_element_type=float32" in program
    assert all("f32" in line for line in program.splitlines() if " exp " in line)


@pytest.mark.parametrize("chunk", [None, 16])
def test_dropout_drops_weights_and_keeps_the_mean(chunk):
    q, v = jnp.zeros((1, 1, 64, 2)), jnp.ones((1, 1, 64, 2))
    run = lambda seed: attention_by_head(q, q, v, dropout=0.5, key=jax.random.key(seed), chunk=chunk)
    y = np.asarray(run(0))[0, 0, :, 0]
    # Of 64 equal weights about half are left, and count twice.
    assert abs(y.mean() - 1) < 0.05
    assert 0.08 < y.std() < 0.18
    assert len(set(y[:16].tolist()) & set(y[16:32].tolist())) < 16
    np.testing.assert_array_equal(run(0), run(0))
    assert np.any(run(0) != run(1))


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 4, 5, 8), (1, 3, 5, 8)), {}, "4 heads of queries cannot share 3 heads of keys equally"),
        (((1, 4, 5, 8), (2, 4, 5, 8)), {}, "of as many rows"),
        (((1, 4, 5, 8), (1, 4, 5, 4)), {}, "keys as large as queries"),
        (((1, 4, 5, 8), (1, 4, 7, 8)), {"causal": True}, "5 queries and 7 keys do not say .* give the steps"),
        (((1, 4, 5, 8),) * 2, {"window": 0}, "a window has at least one position; got 0"),
        (((1, 4, 5, 8),) * 2, {"chunk": 0}, "a chunk has at least one position; got 0"),
        (((1, 4, 5, 8),) * 2, {"mask": np.ones((5, 5), bool)}, r"a mask is \[batch or 1, .*got \(5, 5\)"),
        (((1, 4, 5, 8),) * 2, {"dropout": 0.1}, "dropout needs a key"),
    ],
)
def test_says_what_is_wrong(shapes, options, message):
    q, k = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        attention_by_head(q, k, k, **options)
