"""Autoencoders have the sizes of their papers, keep what they should of a code, and see what they may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.models import VAE, VQVAE, Autoencoder, MaskedAutoencoder, PixelCNN, ViT
from jdl.nn.patches import from_patches, patches
from tests.compiling import jit

KEY = jax.random.key(0)


def shape_of(model, x, **options):
    return jax.eval_shape(lambda x: model.init_with_output(KEY, x, **options)[0], x).shape


def test_the_vae_of_the_flax_example_has_its_number_of_parameters():
    """Dense layers 784-500-(20, 20) and 20-500-784."""
    params = jax.eval_shape(VAE().init, KEY, jnp.zeros((1, 28, 28, 1)))
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(
        (a + 1) * b for a, b in ((784, 500), (500, 20), (500, 20), (20, 500), (500, 784))
    )


@pytest.mark.parametrize("parameters", [1, 2])
def test_convolutions_halve_and_double_and_give_what_a_likelihood_needs(parameters):
    for model in (
        Autoencoder((8, 12, 3), (16, 5), (4, 6), parameters=parameters),
        VAE((8, 12, 3), 5, (16,), (4, 6), parameters=parameters),
        VQVAE((8, 12, 3), 8, 1, 2, 4, 2, parameters=parameters),
    ):
        expected = (2, 8, 12, 3) + (() if parameters == 1 else (parameters,))
        assert shape_of(model, jnp.zeros((2, 8, 12, 3))) == expected


def test_a_k_sparse_code_keeps_its_largest():
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    dense, sparse = Autoencoder((5,), (8,)), Autoencoder((5,), (8,), sparsity=3)
    variables = dense.init(KEY, x)
    full, kept = (model.apply(variables, x, method="encode") for model in (dense, sparse))
    for before, after in zip(np.asarray(full), np.asarray(kept), strict=True):
        largest = np.argsort(before)[-3:]
        np.testing.assert_array_equal(after[largest], before[largest])
        assert np.count_nonzero(after) == 3
    # Of equal entries, no more than so many either.
    alike = jax.tree.map(jnp.ones_like, variables)
    ties = sparse.apply(alike, x, method="encode")
    np.testing.assert_array_equal((np.asarray(ties) != 0).sum(1), 3)


def test_codes_make_the_images_that_they_came_from():
    """Through the codes of images, and through their vectors, a VQ-VAE decodes the same."""
    model = VQVAE((8, 8, 1), 4, 1, 2, 5, 2)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)

    def both(x):
        variables = model.init(KEY, x)
        codes = model.apply(variables, x, method="codes")
        return codes, model.apply(variables, codes, method="decode_codes"), model.apply(variables, x)

    codes, decoded, whole = jit(both)(x)
    assert codes.shape == (2, 2, 2)
    assert codes.dtype == jnp.int32
    np.testing.assert_allclose(decoded, whole, rtol=1e-5, atol=1e-6)


def test_pixelcnn_sees_all_before_a_place_and_nothing_after():
    """Also to the right of it in the rows above, where masked kernels leave a blind spot."""
    model = PixelCNN(4, 8, 3, 3)
    x = jnp.zeros((1, 4, 4), jnp.int32)
    variables = jit(model.init)(KEY, x)
    apply = jit(model.apply)
    base = apply(variables, x)
    for place in range(16):
        i, j = divmod(place, 4)
        moved = np.asarray(apply(variables, x.at[0, i, j].set(3)))
        changes = np.abs(moved - base)[0].max(-1).ravel() > 0
        assert not changes[: place + 1].any(), "a place must not see itself or what comes after it"
        later = [(a, b) for a in range(4) for b in range(4) if a * 4 + b > place]
        near = [(a, b) for a, b in later if a - i <= 2 and abs(b - j) <= 2]
        missing = [(a, b) for a, b in near if not changes[a * 4 + b]]
        assert not missing, f"what is at {i, j} should matter at {missing}"


def test_a_masked_encoder_is_a_vision_transformer_with_the_same_parameters():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    masked = MaskedAutoencoder(4, 8, 2, 2, 4, 1, 2, visible=0.5)
    params = jit(masked.init)(KEY, x)["params"]
    vit = ViT(4, 8, 2, 2, num_classes=0, pool="mean")
    ours = {name: params[name] for name in ("stem", "encoder", "norm", "positions")}
    expected = jax.eval_shape(vit.init, KEY, x)["params"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, expected)
    features = jit(vit.apply)({"params": ours}, x)
    _, kept = jit(lambda v, x: masked.apply(v, x, capture_intermediates=True))({"params": params}, x)
    np.testing.assert_allclose(features, kept["intermediates"]["norm"]["__call__"][0].mean(1), rtol=1e-4)


def test_patches_go_back_to_images():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    np.testing.assert_array_equal(from_patches(patches(x, 2), x.shape[1:], 2), x)
    np.testing.assert_array_equal(patches(x, 2)[1, 4], x[1, 2:4, 2:4].reshape(-1))


IMAGES = jnp.zeros((1, 8, 8, 1))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Autoencoder((8, 8, 1), ()), IMAGES, "at least one width in features"),
        (Autoencoder((8, 8, 1), (4,), sparsity=5), IMAGES, "keeps 1 to 4 entries of a code of 4; got 5"),
        (
            Autoencoder((6, 8, 1), (4,), (2, 2)),
            jnp.zeros((1, 6, 8, 1)),
            r"multiples of 4; got the shape \(6, 8, 1\)",
        ),
        (VAE((8, 8, 1), classes=3), IMAGES, 'takes inputs {"data": ..., "condition": integers'),
        (VAE((8, 8, 1)), {"data": IMAGES, "condition": jnp.zeros(1, jnp.int32)}, "without a condition"),
        (VQVAE((6, 8, 1)), IMAGES, "multiples of 4; got the shape"),
        (VQVAE((8, 8, 3)), jnp.zeros((1, 3, 8, 8)), "looks like channels first"),
        (PixelCNN(4), jnp.zeros((1, 4, 4)), "map of integers .* got float32"),
        (MaskedAutoencoder(3), IMAGES, "multiples of its patch, 3 pixels; got 8x8"),
        (MaskedAutoencoder(4, visible=0.9), IMAGES, "visible=0.9 of 4 patches"),
    ],
)
def test_says_what_is_wrong(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        shape_of(model, inputs)
