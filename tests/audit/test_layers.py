"""What the layers make of the inputs: every submodule's output, kernels and maps as images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jdl.audit import activation_maps, activations, filters, layer_activation
from jdl.interop import from_nnx
from jdl.models import TwoConv

MODEL = TwoConv(4, (4, 8), (3, 3), batch_norm=True, dropout=0.1)
BATCH = {"inputs": np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)}
LAYERS = ["Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1", "Dropout_0", "Dense_0"]


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), BATCH["inputs"])


def test_every_layer_in_order_of_computation(variables):
    seen = activations(MODEL, variables, BATCH["inputs"])
    assert list(seen) == LAYERS
    assert seen["Conv_1"].shape == (8, 4, 4, 8)
    np.testing.assert_array_equal(seen["Dense_0"], MODEL.apply(variables, BATCH["inputs"]))


def test_compiled_they_keep_their_order(variables):
    compiled = jax.jit(lambda variables, x: activations(MODEL, variables, x))(variables, BATCH["inputs"])
    seen = activations(MODEL, variables, BATCH["inputs"])
    assert list(compiled) == LAYERS
    for name, x in seen.items():
        np.testing.assert_allclose(compiled[name], x, rtol=1e-5, atol=1e-5)


def test_a_module_is_asked_without_its_noise_and_with_its_own_intermediates():
    class Sows(linen.Module):
        @linen.compact
        def __call__(self, inputs, train=False):
            self.sow("stages", "input", inputs)
            self.sow("intermediates", "inputs", inputs)
            x = linen.Dropout(0.9, deterministic=not train)(linen.Dense(3)(inputs))
            carry = self.variable("carry", "sum", jnp.zeros, x.shape)
            carry.value += x
            return x

    variables = {"params": Sows().init(jax.random.key(0), jnp.ones((2, 4)))["params"]}
    seen = activations(Sows(), variables, jnp.ones((2, 4)))
    assert list(seen) == ["Dense_0", "Dropout_0"]
    np.testing.assert_array_equal(seen["Dense_0"], seen["Dropout_0"])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("Conv_*", ["Conv_0", "Conv_1"]),
        (["Dense_0", "Conv_0"], ["Conv_0", "Dense_0"]),
        ("*_1", ["Conv_1", "BatchNorm_1"]),
    ],
)
def test_layers_are_selected_by_pattern(variables, layers, expected):
    assert list(activations(MODEL, variables, BATCH["inputs"], layers)) == expected


def test_says_which_layers_there_are(variables):
    with pytest.raises(
        ValueError, match=r"there is no layer 'conv_\*'; there are Conv_0, BatchNorm_0, Conv_1"
    ):
        activations(MODEL, variables, BATCH["inputs"], ["Conv_0", "conv_*"])
    with pytest.raises(ValueError, match="must name one layer; it stands for Conv_0, Conv_1"):
        layer_activation(MODEL, variables, BATCH["inputs"], "Conv_?")


def test_a_module_without_layers_is_told_so():
    module, inputs = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs)), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="it calls no Linen submodule"):
        activations(module, module.init({"params": jax.random.key(0)}, inputs), inputs)


def test_filters_are_the_kernels_scaled(variables):
    images = filters(variables, "Conv_1")
    kernel = np.asarray(variables["params"]["Conv_1"]["kernel"])
    assert images.shape == (8, 3, 3, 4)
    for image, weights in zip(images, kernel.transpose(3, 0, 1, 2), strict=True):
        np.testing.assert_allclose((image - 0.5) * 2 * np.abs(weights).max(), weights, atol=1e-6)
        assert max(abs(image.min() - 0.5), abs(image.max() - 0.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("layer", ["Dense_0", "nowhere"])
def test_says_which_layers_have_filters(variables, layer):
    with pytest.raises(ValueError, match=f"'{layer}' has no kernel .*; those that have: Conv_0, Conv_1"):
        filters(variables, layer)


def test_maps_fill_the_scale(variables):
    maps = np.asarray(activation_maps(MODEL, variables, BATCH["inputs"], "Conv_0"))
    raw = np.asarray(activations(MODEL, variables, BATCH["inputs"])["Conv_0"])
    assert maps.shape == (8, 4, 8, 8, 1)
    np.testing.assert_allclose(maps.min((2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(maps.max((2, 3)), 1, atol=1e-6)
    assert np.corrcoef(maps[3, 2].ravel(), raw[3, :, :, 2].ravel())[0, 1] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="maps are"):
        activation_maps(MODEL, variables, BATCH["inputs"], "Dense_0")
