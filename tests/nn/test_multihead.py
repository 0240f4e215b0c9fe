"""Attention equals PyTorch's, takes masks, and looks nowhere where it may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.nn import MultiHeadAttention
from jdl.nn.attention import attention_weights

B, T, S, D, H = 2, 5, 7, 8, 2


def arrays():
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(B, T, D)), rng.normal(size=(B, S, D))
    return x.astype(np.float32), memory.astype(np.float32)


def layer_and_variables(**options):
    layer = MultiHeadAttention(H, **options)
    x, memory = arrays()
    variables = layer.init(jax.random.key(0), x, memory)
    return layer, jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), variables
    )


@pytest.mark.parametrize("masked", [False, True])
def test_equals_torch_in_value_and_gradient(torch, masked):
    layer, variables = layer_and_variables()
    x, memory = arrays()
    params = variables["params"]
    reference = torch.nn.MultiheadAttention(D, H, batch_first=True)
    parts = [params[name] for name in ("query", "key", "value")]
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.tensor(np.concatenate([p["kernel"].T for p in parts])))
        reference.in_proj_bias.copy_(torch.tensor(np.concatenate([p["bias"] for p in parts])))
        reference.out_proj.weight.copy_(torch.tensor(np.asarray(params["out"]["kernel"].T)))
        reference.out_proj.bias.copy_(torch.tensor(np.asarray(params["out"]["bias"])))
    mask = np.random.default_rng(1).random((B, H, T, S)) < 0.6 if masked else None
    if masked:
        mask[..., 0] = True
    theirs = None if mask is None else torch.tensor(~mask.reshape(B * H, T, S))
    expected, _ = reference(torch.tensor(x), *[torch.tensor(memory)] * 2, attn_mask=theirs)
    expected.square().sum().backward()

    def loss(variables):
        outputs = layer.apply(variables, x, memory, mask)
        return jnp.square(outputs).sum(), outputs

    grads, outputs = jax.jit(jax.grad(loss, has_aux=True))(variables)
    np.testing.assert_allclose(outputs, expected.detach(), rtol=0, atol=1e-5)
    gradient = np.concatenate([grads["params"][name]["kernel"].T for name in ("query", "key", "value")])
    np.testing.assert_allclose(gradient, reference.in_proj_weight.grad, rtol=1e-4, atol=1e-4)


def test_equals_the_attention_of_jax():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, n, H, 4)).astype(np.float32) for n in (T, S, S))
    mask = rng.random((B, 1, T, S)) < 0.8
    expected = jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask))
    weights = attention_weights(q, k, mask)
    np.testing.assert_allclose(jnp.einsum("BHTS,BSHK->BTHK", weights, v), expected, rtol=0, atol=1e-6)


def test_looks_nowhere_where_it_may_not():
    layer, variables = layer_and_variables()
    x, memory = arrays()
    mask = np.arange(S).reshape(1, 1, 1, S) < 3
    changed = memory.copy()
    changed[:, 3:] = 1e6
    actual = layer.apply(variables, x, changed, mask)
    np.testing.assert_array_equal(actual, layer.apply(variables, x, memory, mask))


def test_a_query_that_may_look_nowhere_gets_the_bias_alone():
    layer, variables = layer_and_variables()
    x, memory = arrays()
    mask = np.zeros((1, 1, 1, S), bool)
    outputs, gradient = jax.value_and_grad(lambda v: layer.apply(v, x, memory, mask).sum())(variables)
    np.testing.assert_allclose(outputs, B * T * variables["params"]["out"]["bias"].sum(), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_weights_are_float32_for_bfloat16():
    x = jnp.ones((B, T, H, 4), jnp.bfloat16)
    assert attention_weights(x, x).dtype == jnp.float32
    layer, variables = layer_and_variables(dtype=jnp.bfloat16)
    exact, _ = layer_and_variables()
    low = layer.apply(variables, *arrays())
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), exact.apply(variables, *arrays()), atol=0.2)


def test_dropout_drops_in_training_only():
    layer, variables = layer_and_variables(dropout=0.5)
    rngs = {"dropout": jax.random.key(1)}
    x, memory = arrays()
    noisy = layer.apply(variables, x, memory, train=True, rngs=rngs)
    quiet = layer.apply(variables, x, memory)
    assert np.abs(noisy - quiet).max() > 0.1
    np.testing.assert_array_equal(quiet, layer_and_variables()[0].apply(variables, x, memory))


@pytest.mark.parametrize(
    ("options", "mask", "message"),
    [
        ({"num_heads": 3}, None, "needs a multiple of its 3 heads, or a head size; got 8 features"),
        ({"num_heads": 2}, np.ones((T, S), bool), r"a mask is \[batch or 1, .*\(2, 2, 5, 7\); got \(5, 7\)"),
        ({"num_heads": 2}, np.ones((B, H, S, T), bool), r"got \(2, 2, 7, 5\)"),
    ],
)
def test_says_what_is_wrong(options, mask, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**options).init(jax.random.key(0), *arrays(), mask)


def test_a_head_size_of_its_own():
    layer = MultiHeadAttention(3, head_size=4, use_bias=False)
    outputs, variables = layer.init_with_output(jax.random.key(0), *arrays())
    shapes = {name: x["kernel"].shape for name, x in variables["params"].items()}
    assert shapes == {"query": (8, 12), "key": (8, 12), "value": (8, 12), "out": (12, 8)}
    assert outputs.shape == (B, T, D)
