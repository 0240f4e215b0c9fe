"""The MLP computes what PyTorch's twin computes, and its residual form trains at depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.models import MLP


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_lenet_300_100_has_its_number_of_parameters():
    params = jax.eval_shape(MLP((300, 100, 10)).init, jax.random.key(0), inputs(1, 28, 28, 1))
    assert sum(x.size for x in jax.tree.leaves(params)) == 266_610


def perturbed(model, x):
    params = model.init(jax.random.key(0), x)["params"]
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return structure.unflatten([p + 0.1 * rng.normal(size=p.shape).astype(np.float32) for p in leaves])


def gradient(model, params, x):
    def loss(params):
        y = model.apply({"params": params}, x)
        return jnp.sin(y).sum(), y

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def assert_same(torch, params_gradient, layers):
    for name, layer in layers.items():
        ours = params_gradient[name]
        weight = ours["kernel"].T if "kernel" in ours else ours["scale"]
        np.testing.assert_allclose(weight, layer.weight.grad, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours["bias"], layer.bias.grad, rtol=1e-4, atol=1e-4)


def twins(torch, params):
    """A PyTorch layer for each of ours, with the same weights."""
    layers = {}
    for name, p in params.items():
        weight = p["kernel"].T if "kernel" in p else p["scale"]
        layers[name] = (
            torch.nn.Linear(*weight.shape[::-1]) if "kernel" in p else torch.nn.LayerNorm(len(weight), 1e-6)
        )
        with torch.no_grad():
            layers[name].weight.copy_(torch.tensor(np.asarray(weight)))
            layers[name].bias.copy_(torch.tensor(np.asarray(p["bias"])))
    return layers


def test_plain_equals_torch_in_value_and_gradient(torch):
    model, x = MLP((9, 8, 3)), inputs(5, 2, 3, 1)
    params = perturbed(model, x)
    layers = twins(torch, params)
    h = torch.tensor(x).flatten(1)
    expected = layers["Dense_2"](layers["Dense_1"](layers["Dense_0"](h).relu()).relu())
    expected.sin().sum().backward()
    grads, y = gradient(model, params, x)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-4)
    assert_same(torch, grads, layers)


def test_residual_equals_torch_in_value_and_gradient(torch):
    model, x = MLP((8, 8, 8, 3), residual=True), inputs(5, 6)
    params = perturbed(model, x)
    layers = twins(torch, params)
    h = layers["Dense_0"](torch.tensor(x)).relu()
    for i in (0, 1):
        h = h + layers[f"Dense_{i + 1}"](layers[f"LayerNorm_{i}"](h).relu())
    expected = layers["Dense_3"](h)
    expected.sin().sum().backward()
    grads, y = gradient(model, params, x)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-4)
    assert_same(torch, grads, layers)


def test_depth_50_has_gradients_only_with_residuals():
    def first_and_last(residual):
        model, x = MLP((16,) * 50 + (2,), residual=residual), inputs(8, 6)
        grads, _ = gradient(model, jax.jit(model.init)(jax.random.key(0), x)["params"], x)
        return [float(jnp.linalg.norm(grads[f"Dense_{i}"]["kernel"])) for i in (0, 50)]

    # Plain layers halve the variance of what passes through them, forward and backward.
    assert max(first_and_last(residual=False)) < 1e-4
    assert min(first_and_last(residual=True)) > 1e-1


def test_dropout_acts_in_training_alone():
    model, x = MLP((64, 2), dropout=0.5), inputs(4, 3)
    variables = model.init(jax.random.key(0), x)
    noise = {"rngs": {"dropout": jax.random.key(1)}}
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x, **noise))
    assert np.any(model.apply(variables, x, train=True, **noise) != model.apply(variables, x))


def test_one_width_is_a_linear_model():
    x = inputs(4, 3)
    y, variables = MLP((2,)).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, x @ variables["params"]["Dense_0"]["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 28, 28, 1), (4, 5, 5, 3), (4, 7), (4,)])
def test_takes_any_shape_and_channels(shape):
    y = jax.eval_shape(
        lambda x: MLP((3,)).init_with_output(jax.random.key(0), x)[0], np.zeros(shape, np.uint8)
    )
    assert (y.shape, y.dtype) == ((4, 3), jnp.float32)


def test_no_width_is_refused():
    with pytest.raises(ValueError, match="at least one width in features"):
        MLP(()).init(jax.random.key(0), inputs(1, 2))
