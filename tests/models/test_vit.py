"""ViT has the published parameters and multiply-adds, and computes what Hugging Face's computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import interop
from jdl.interop import load_weights, names, read_tensors, resize_positions
from jdl.models import ViT, vit
from jdl.models.vit import EncoderBlock
from jdl.nn import features, token_map
from tests.models.parity import compare, shapes, size_of


# Parameters: torchvision's documentation for base and large, timm's table of results for tiny and small.
# Billions of multiply-adds: torchvision's documentation for base and large, timm's for tiny and small.
@pytest.mark.parametrize(
    ("size", "patch", "parameters", "billions"),
    [
        ("tiny", 16, 5_717_416, 1.26),
        ("small", 16, 22_050_664, 4.6),
        ("base", 16, 86_567_656, 17.56),
        ("base", 32, 88_224_232, 4.41),
        ("large", 16, 304_326_632, 61.55),
        ("large", 32, 306_535_400, 15.38),
    ],
)
def test_has_the_published_size(size, patch, parameters, billions):
    counted, multiply_adds = size_of(vit(size, patch), 224)
    assert counted == parameters
    assert multiply_adds == pytest.approx(1e3 * billions, rel=0.02)


def reference_of(image_size=32):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


SMALL = ViT(8, 16, 2, 2, 32, num_classes=5)


def test_equals_hugging_face(torch, tmp_path):
    def published(model):
        """Its tensors as its files name them."""
        model.save_pretrained(tmp_path)
        return read_tensors(tmp_path)

    compare(
        torch,
        SMALL,
        reference_of(),
        names.VIT_HUGGING_FACE,
        32,
        logits=lambda output: output.logits,
        tensors=published,
    )


def test_other_image_sizes_by_resized_positions(torch, tmp_path):
    """From 32x32 to 64x64 pixels, as Hugging Face interpolates positions."""
    reference = reference_of()
    reference.save_pretrained(tmp_path)
    adapt = {"positions": resize_positions}
    variables = load_weights(shapes(SMALL, 64), tmp_path, names.VIT_HUGGING_FACE, adapt=adapt)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        images = torch.tensor(x.transpose(0, 3, 1, 2))
        expected = reference.eval()(images, interpolate_pos_encoding=True).logits.numpy()
    # The two bicubic kernels differ: a = -0.75 in PyTorch, -0.5 in JAX.
    actual = SMALL.apply(variables, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_tokens_are_a_map_of_the_image(pool):
    """Without blocks a token is its patch's own: the map says where a bright patch was."""
    model = ViT(patch=4, width=8, depth=0, num_heads=2, num_classes=0, pool=pool, grid=(3, 5))
    dark = np.zeros((2, 12, 20, 3), np.float32)
    bright = dark.copy()
    bright[1, 4:8, 12:16] = 1
    variables = model.init(jax.random.key(0), dark)
    maps = [token_map(*features(model, variables, x, "encoder"), (3, 5)) for x in (dark, bright)]
    assert maps[0].shape == (2, 3, 5, 8)
    assert np.argwhere(np.abs(maps[1] - maps[0]).sum(-1) > 0).tolist() == [[1, 1, 3]]
    with pytest.raises(ValueError, match="4x5 patches are 20 tokens; there are 1"):
        token_map(*features(model, variables, dark, "encoder"), (4, 5))


def test_mean_pooling_has_no_class_token():
    model = ViT(8, 16, 1, 2, 32, num_classes=5, pool="mean")
    params = shapes(model, 32)["params"]
    assert "token" not in params
    assert params["positions"].shape == (1, 16, 16)
    assert jax.eval_shape(model.apply, shapes(model, 32), jnp.zeros((2, 32, 32, 3))).shape == (2, 5)


def test_mean_pooling_without_positions_forgets_where_patches_are():
    model = ViT(8, 16, 1, 2, 32, num_classes=0, pool="mean")
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    moved = np.concatenate([x[:, 8:], x[:, :8]], 1)
    outputs = jax.jit(model.apply)
    assert np.abs(outputs(variables, x) - outputs(variables, moved)).max() > 1e-3
    variables["params"]["positions"] = jnp.zeros_like(variables["params"]["positions"])
    np.testing.assert_allclose(outputs(variables, x), outputs(variables, moved), atol=1e-5)


def test_takes_oblong_images_and_gives_pooled_features():
    model = ViT(8, 16, 1, 2, num_classes=0, grid=(2, 3))
    x = jnp.zeros((2, 16, 24, 1))
    assert jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], x).shape == (2, 16)


def test_positions_of_one_grid_are_not_taken_for_another():
    """16 patches make 4 rows of 4 or 2 of 8: the embeddings do not say which."""
    variables = shapes(SMALL, 32)
    with pytest.raises(ValueError, match=r"for images of 16x64 pixels give grid=\(2, 8\)"):
        jax.eval_shape(SMALL.apply, variables, jnp.zeros((1, 16, 64, 3)))
    oblong = SMALL.clone(grid=(2, 8))
    assert jax.eval_shape(oblong.init, jax.random.key(0), jnp.zeros((1, 16, 64, 3)))
    with pytest.raises(ValueError, match="a grid of 2x8 patches; images of 32x32 pixels make 4x4"):
        jax.eval_shape(oblong.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (SMALL, (1, 36, 32, 3), "multiples of its patch, 8 pixels; got 36x32"),
        (SMALL, (1, 4, 4, 3), "at least 8x8 pixels"),
        (SMALL, (1, 3, 32, 32), "looks like channels first"),
        (ViT(8, 16, 1, 2, pool="max"), (1, 32, 32, 3), 'has the pools "token" and "mean"; got \'max\''),
    ],
)
def test_says_what_is_wrong(model, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_says_which_sizes_it_has():
    with pytest.raises(ValueError, match="has the sizes tiny, small, base, large; got 'giant'"):
        vit("giant")


def test_says_what_to_do_with_images_of_another_size():
    variables = shapes(SMALL, 32)
    with pytest.raises(
        ValueError, match="64x64 pixels make 65 tokens, and the positions are of 17: .*resize_positions"
    ):
        jax.eval_shape(SMALL.apply, variables, jnp.zeros((1, 64, 64, 3)))


# Of what holds one map of queries, keys and values: a block's names there, and in PyTorch's encoder layer.
FUSED = {
    "VIT_TIMM": {
        "blocks.0.attn.qkv.": "self_attn.in_proj_",
        "blocks.0.attn.proj": "self_attn.out_proj",
        "blocks.0.mlp.fc": "linear",
        "blocks.0.": "",
    },
    "VIT_TORCHVISION": {
        "encoder.layers.encoder_layer_0.self_attention": "self_attn",
        "encoder.layers.encoder_layer_0.ln_": "norm",
        "encoder.layers.encoder_layer_0.mlp.0": "linear1",
        "encoder.layers.encoder_layer_0.mlp.3": "linear2",
    },
    "VIT_TORCHVISION_FILE": {
        "encoder.layers.encoder_layer_0.self_attention": "self_attn",
        "encoder.layers.encoder_layer_0.ln_": "norm",
        "encoder.layers.encoder_layer_0.mlp.linear_": "linear",
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("rules", FUSED)
def test_a_block_of_fused_projections_equals_pytorchs(torch, rules):
    model, x = ViT(4, 8, 2, 2, 16, num_classes=4), jax.random.normal(jax.random.key(1), (2, 5, 8))
    rng = np.random.default_rng(0)
    form = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), form)
    tensors = interop.export_weights(variables, getattr(names, rules))
    state = {}
    for name, tensor in tensors.items():
        old, new = next(((old, new) for old, new in FUSED[rules].items() if name.startswith(old)), ("", None))
        if new is not None:
            state[new + name.removeprefix(old)] = torch.tensor(tensor)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    layer.load_state_dict(state)
    expected = layer(torch.tensor(np.asarray(x))).detach().numpy()
    found = EncoderBlock(2, 16).apply({"params": variables["params"]["encoder"]["block1"]}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())

    back = interop.load_weights(form, tensors, getattr(names, rules))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_remat_computes_the_same_from_the_same_parameters():
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

    def gradient(model):
        def loss(variables):
            return jnp.square(
                model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)})
            ).sum()

        return jax.grad(loss)

    plain, again = (ViT(4, 8, 2, 2, num_classes=3, dropout=0.1, remat=remat) for remat in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    assert "remat" in str(jax.make_jaxpr(gradient(again))(variables))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, *(jax.jit(gradient(model))(variables) for model in (plain, again)))
