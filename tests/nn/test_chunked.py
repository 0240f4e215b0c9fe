"""Chunks change neither values nor gradients, and hold a chunk's logits instead of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS, psum
from jdl.nn.chunked import chunked_token_scores, token_scores
from jdl.train.mesh import make_mesh
from tests.compiling import jit

B, T, D, V = 8, 7, 4, 11
SOFTENED = {"label_smoothing": 0.1, "z_loss": 0.01}


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    h, w = rng.normal(size=(B, T, D)), rng.normal(size=(D, V))
    return jnp.asarray(h, dtype), jnp.asarray(w, dtype), jnp.asarray(rng.integers(0, V, (B, T)))


def scores(h, w, labels, chunk, **options):
    if chunk is None:
        return token_scores(h @ w, labels, **options)
    return chunked_token_scores(lambda h: h @ w, h, labels, chunk, **options)


@functools.partial(jit, static_argnames=("chunk",))
def value_and_grad(h, w, labels, chunk):
    def loss(h, w):
        found = scores(h, w, labels, chunk, **SOFTENED)
        # Each position has a weight of its own, so that one in the wrong place shows.
        weights = jnp.arange(B * T, dtype=jnp.float32).reshape(B, T)
        return (weights * found.loss).sum(), found

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(h, w)


@pytest.mark.parametrize("chunk", [1, 3, 7, 9])
def test_chunks_change_neither_values_nor_gradients(chunk):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        value_and_grad(*arrays(), chunk),
        value_and_grad(*arrays(), None),
    )


def test_low_precision_is_scored_in_float32():
    (_, chunked), grads = value_and_grad(*arrays(jnp.bfloat16), 3)
    (_, whole), expected = value_and_grad(*arrays(jnp.bfloat16), None)
    for a, b in zip(chunked, whole, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        # The gradient of h in chunks is rounded from float32.
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=0.05, atol=2.0)


def test_the_gradient_of_low_precision_does_not_depend_on_the_number_of_chunks():
    """It is added up in float32: in bfloat16 the sum of 64 chunks would lose most of their last bits."""
    T, D, V = 256, 8, 16
    rng = np.random.default_rng(0)
    h, w = rng.normal(size=(B, T, D)), rng.normal(size=(D, V))
    labels = jnp.asarray(rng.integers(0, V, (B, T)))

    def gradient(chunk, dtype):
        low = lambda x: jnp.asarray(x, jnp.float32).astype(jnp.bfloat16).astype(dtype)
        loss = lambda w: scores(low(h), w.astype(dtype), labels, chunk).loss.sum()
        return jit(jax.grad(loss))(low(w).astype(jnp.float32))

    exact = gradient(None, jnp.float32)
    error = {n: float(jnp.linalg.norm(gradient(T // n, jnp.bfloat16) - exact)) for n in (1, 64)}
    assert error[64] < 1.5 * error[1]
    assert error[64] < 0.01 * float(jnp.linalg.norm(exact))


def test_scores_equal_torch(torch):
    h, w, labels = arrays()
    targets = torch.tensor(np.asarray(labels)).long().flatten()
    logits = torch.tensor(np.asarray(h @ w), requires_grad=True)
    loss = (
        torch.nn.functional.cross_entropy(
            logits.reshape(-1, V),
            targets,
            label_smoothing=0.1,
            reduction="none",
        )
        + 0.01 * torch.logsumexp(logits.reshape(-1, V), -1).square()
    )
    (loss * torch.arange(B * T)).sum().backward()
    (_, found), grads = value_and_grad(h, w, labels, 2)
    np.testing.assert_allclose(found.loss.ravel(), loss.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads[0], logits.grad.numpy() @ np.asarray(w).T, rtol=1e-4, atol=1e-3)
    right = logits.detach().argmax(-1).numpy() == np.asarray(labels)
    np.testing.assert_array_equal(found.correct, right)
    plain = torch.nn.functional.cross_entropy(logits.detach().reshape(-1, V), targets, reduction="none")
    np.testing.assert_allclose(found.surprise.ravel(), plain.numpy(), rtol=1e-5, atol=1e-5)


def test_of_equal_logits_the_first_is_the_answer():
    logits = jnp.array([[2.0, 5.0, 5.0], [5.0, 5.0, 1.0], [0.0, 0.0, 0.0], [jnp.nan, 0.0, 1.0]])
    found = [token_scores(logits, jnp.full(4, label)).correct.tolist() for label in range(3)]
    assert found == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_label_that_is_impossible_costs_infinitely_much():
    logits = jnp.array([[0.0, -jnp.inf]])
    assert token_scores(logits, jnp.array([1])).surprise.tolist() == [jnp.inf]
    assert token_scores(logits, jnp.array([0])).surprise.tolist() == [0.0]


def test_the_gradient_scatters_nothing_into_logits():
    """A scatter keeps and passes over all logits several times more on an accelerator."""
    arguments = jnp.zeros((2, 3, 5), jnp.bfloat16), jnp.zeros((2, 3), jnp.int32)
    loss = lambda *arguments: token_scores(*arguments, **SOFTENED).loss.sum()
    program = str(jax.make_jaxpr(jax.grad(loss))(*arguments))
    assert "exp" in program
    assert "scatter" not in program
    assert "gather" not in program


def test_rows_may_be_split_over_devices():
    mesh = make_mesh("data:8")
    h, w, labels = arrays()

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(AXIS), P(), P(AXIS)), out_specs=P(), check_vma=False
    )
    def split(h, w, labels):
        loss = lambda w: scores(h, w, labels, 3, **SOFTENED).loss.sum()
        return psum(jax.value_and_grad(loss)(w))

    whole = jax.value_and_grad(lambda w: scores(h, w, labels, None, **SOFTENED).loss.sum())(w)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), jit(split)(h, w, labels), whole
    )


def test_the_logits_are_never_held_whole():
    B, T, D, V, chunk = 4, 256, 8, 4096, 16
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in (((B, T, D), "float32"), ((D, V), "float32"), ((B, T), "int32"))
    ]

    def memory(chunk):
        loss = lambda h, w, labels: scores(h, w, labels, chunk, **SOFTENED).loss.sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * B * T * V
    whole, chunked = memory(None), memory(chunk)
    assert whole > logits
    # The logits of a chunk, their gradient, and the sum of the gradients of w.
    assert chunked < 4 * logits * chunk / T + 4 * D * V * 4
    assert chunked < whole / 8


def test_what_does_not_fit_is_refused():
    h, w, labels = arrays()
    with pytest.raises(ValueError, match="chunk, .* at least 1; got 0"):
        scores(h, w, labels, 0)
    with pytest.raises(
        ValueError, match=r"labels of shape \(8, 6\) do not fit hidden states of shape \(8, 7, 4\)"
    ):
        scores(h, w, labels[:, 1:], 2)
