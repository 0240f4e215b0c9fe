"""Dense is x W + b, over any leading axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jdl.nn import Dense, as_float
from jdl.nn.linear import flat_dot_general, float32_dot_general


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 3, 4)])
def test_flat_product_equals_einsum_in_value_and_gradient(leading):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((*leading, 6), (6, 7)))
    numbers = (((x.ndim - 1,), (0,)), ((), ()))

    def value_and_gradient(product):
        return jax.value_and_grad(lambda x, kernel: jnp.sin(product(x, kernel)).sum(), (0, 1))(x, kernel)

    actual = value_and_gradient(lambda x, kernel: flat_dot_general(x, kernel, numbers))
    expected = value_and_gradient(lambda x, kernel: jnp.einsum("...d,df->...f", x, kernel))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_flat_product_passes_other_contractions_on():
    x, kernel = jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(12.0).reshape(3, 4)
    numbers = (((1, 2), (0, 1)), ((), ()))
    np.testing.assert_array_equal(flat_dot_general(x, kernel, numbers), lax.dot_general(x, kernel, numbers))


@pytest.mark.parametrize("axis", [0, 1])
def test_float32_sums_have_the_gradients_of_a_product(axis):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 6)), rng.normal(size=(6, 7) if axis == 0 else (7, 6))
    numbers = (((2,), (axis,)), ((), ()))
    contracted = "...d,df->...f" if axis == 0 else "...d,fd->...f"

    def found(product, dtype):
        value = lambda x, kernel: jnp.sin(product(x, kernel)).sum()
        arguments = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
        return jax.value_and_grad(value, (0, 1))(*arguments), jax.jvp(value, arguments, arguments)[1]

    wide = lambda x, kernel: float32_dot_general(x, kernel, numbers)
    expected = found(lambda x, kernel: jnp.einsum(contracted, x, kernel), jnp.float32)
    close = lambda tolerance: (
        lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance)
    )
    jax.tree.map(close(1e-5), found(wide, jnp.float32), expected)
    jax.tree.map(close(0.1), found(wide, jnp.bfloat16), expected)


def test_gradients_of_float32_sums_are_products_of_narrow_numbers():
    """Of a float32 cotangent and a bfloat16 matrix an accelerator makes products in float32."""
    x, kernel = jnp.ones((2, 3, 6), jnp.bfloat16), jnp.ones((6, 7), jnp.bfloat16)
    wide = lambda x, kernel: float32_dot_general(x, kernel, (((2,), (0,)), ((), ())))
    assert wide(x, kernel).dtype == jnp.float32
    program = jax.make_jaxpr(jax.grad(lambda *given: wide(*given).sum(), (0, 1)))(x, kernel)
    products = [e for e in program.eqns if e.primitive is lax.dot_general_p]
    assert len(products) >= 2
    assert {x.aval.dtype for e in products for x in e.invars} == {jnp.dtype(jnp.bfloat16)}


def test_dense_equals_torch_in_value_and_gradient(torch):
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    layer = Dense(5)
    variables = layer.init(jax.random.key(0), x)
    reference = torch.nn.Linear(6, 5)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.asarray(variables["params"]["kernel"]).T))
        reference.bias.copy_(torch.tensor(np.asarray(variables["params"]["bias"])))
    torch_x = torch.tensor(x, requires_grad=True)
    y = reference(torch_x)
    y.sin().sum().backward()

    np.testing.assert_allclose(layer.apply(variables, x), y.detach(), rtol=1e-5, atol=1e-5)
    loss = lambda params, x: jnp.sin(layer.apply({"params": params}, x)).sum()
    params, inputs = jax.grad(loss, (0, 1))(variables["params"], x)
    np.testing.assert_allclose(params["kernel"].T, reference.weight.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["bias"], reference.bias.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inputs, torch_x.grad, rtol=1e-4, atol=1e-5)


def test_dense_computes_in_its_dtype_with_float32_parameters():
    x = jnp.ones((2, 3, 4))
    layer = Dense(5, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("given", "dtype", "expected"),
    [
        ("uint8", None, "float32"),
        ("bool", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("float32", None, "float32"),
        ("uint8", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_as_float_keeps_floats_and_converts_the_rest(given, dtype, expected):
    assert as_float(jnp.ones(2, given), dtype).dtype == expected
