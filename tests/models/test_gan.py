"""The networks of GANs beside PyTorch written out by hand; DCGAN's are compared in tests/experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.models import DCGANDiscriminator, DCGANGenerator, MLPGenerator, ResNetDiscriminator, ResNetGenerator
from tests.compiling import jit

RNG = np.random.default_rng(0)
LABELS = np.array([1, 0, 1], np.int32)
LATENTS = RNG.normal(size=(3, 4)).astype(np.float32)
IMAGES = RNG.normal(size=(3, 8, 8, 2)).astype(np.float32)

PLAYERS = {
    "mlp": (MLPGenerator((8, 8, 2), (6,), 2), {"latents": LATENTS, "labels": LABELS}),
    "dcgan": (DCGANGenerator((8, 8), 2, 3, 2), {"latents": LATENTS, "labels": LABELS}),
    "dcgan judge": (DCGANDiscriminator(3, "batch", 2), {"images": IMAGES, "labels": LABELS}),
    "resnet": (ResNetGenerator((8, 8), 2, 3, 2), {"latents": LATENTS, "labels": LABELS}),
    "resnet judge": (ResNetDiscriminator(3, "spectral", 2), {"images": IMAGES, "labels": LABELS}),
}


def random(module, inputs):
    """Variables whose parameters and statistics are all random."""
    variables = jit(module.init)(jax.random.key(0), inputs)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.array(x + 0.3 * rng.random(x.shape), np.float32), variables)


@pytest.mark.parametrize("name", PLAYERS)
def test_every_parameter_has_a_slope_and_low_precision_is_near(name):
    module, inputs = PLAYERS[name]
    variables = random(module, inputs)
    collections = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(module):
        def of(params):
            given = {"params": params, **collections}
            y, _ = module.apply(given, inputs, train=True, mutable=list(collections))
            return (y.astype(jnp.float32) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

        return of

    graded = jax.value_and_grad(loss(module), has_aux=True)
    (_, y), slope = jit(graded)(variables["params"])
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(slope) if not np.any(g)]
    assert not dead
    low = jit(loss(module.clone(dtype=jnp.bfloat16)))(variables["params"])[1]
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), y, atol=0.05 * np.abs(y).max())


def _tools(torch, params):
    """A convolution by name, as a function of images [B, C, H, W]."""
    functional = torch.nn.functional
    tensor = lambda x: torch.tensor(np.array(x))

    def convolved(name, x):
        kernel = tensor(params[name]["kernel"]).permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, tensor(params[name]["bias"]), padding=kernel.shape[-1] // 2)

    return functional, tensor, convolved


def test_the_residual_discriminator_is_that_of_the_table(torch):
    module, inputs = ResNetDiscriminator(3, "none", 2), PLAYERS["resnet judge"][1]
    variables = random(module, inputs)
    params = variables["params"]
    functional, tensor, convolved = _tools(torch, params)
    pool = lambda x: functional.avg_pool2d(x, 2)
    x = tensor(IMAGES.transpose(0, 3, 1, 2))
    h = convolved("block1_conv2", torch.relu(convolved("block1_conv1", x)))
    x = pool(h) + pool(convolved("block1_shortcut", x))
    for block in (2, 3, 4):
        h = convolved(f"block{block}_conv2", torch.relu(convolved(f"block{block}_conv1", torch.relu(x))))
        x = pool(h) + pool(convolved("block2_shortcut", x)) if block == 2 else h + x
    h = torch.relu(x).mean((2, 3))
    embedded = tensor(params["projection"]["embedding"])[LABELS.astype(np.int64)]
    head = {name: tensor(x) for name, x in params["head"].items()}
    expected = h @ head["kernel"][:, 0] + head["bias"] + (embedded * h).sum(1)
    np.testing.assert_allclose(jit(module.apply)(variables, inputs), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_the_residual_generator_is_that_of_the_table(torch):
    module, inputs = PLAYERS["resnet"]
    variables = random(module, inputs)
    params, stats = variables["params"], variables["batch_stats"]
    functional, tensor, convolved = _tools(torch, params)
    rows = LABELS.astype(np.int64)

    def normalised(x, stats, scale, bias):
        y = functional.batch_norm(x, tensor(stats["mean"]), tensor(stats["var"]), eps=1e-5)
        return torch.relu(y * scale[..., None, None] + bias[..., None, None])

    def conditional(name, x):
        tables = [tensor(params[name][which]["embedding"])[rows] for which in ("scale", "bias")]
        return normalised(x, stats[name]["BatchNorm_0"], *tables)

    double = lambda x: functional.interpolate(x, scale_factor=2, mode="nearest")
    dense = params["Dense_0"]
    x = tensor(LATENTS) @ tensor(dense["kernel"]) + tensor(dense["bias"])
    x = x.reshape(3, 4, 4, 3).permute(0, 3, 1, 2)
    h = convolved("block1_conv1", double(conditional("block1_norm1", x)))
    x = convolved("block1_conv2", conditional("block1_norm2", h)) + convolved("block1_shortcut", double(x))
    x = normalised(x, stats["norm"], *(tensor(params["norm"][which])[None] for which in ("scale", "bias")))
    expected = torch.tanh(convolved("out", x)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(jit(module.apply)(variables, inputs), expected, atol=1e-5)


def test_refuses_in_words_labels_missing_or_not_wanted_and_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r'with 2 classes takes \{"latents", "labels"\}; got an array'):
        DCGANGenerator((8, 8), 1, 2, 2).init(jax.random.key(0), LATENTS)
    with pytest.raises(ValueError, match="without classes: set num_classes"):
        DCGANDiscriminator(2).init(jax.random.key(0), PLAYERS["dcgan judge"][1])
    with pytest.raises(ValueError, match="9x9 cannot be halved to 4 pixels or more"):
        DCGANGenerator((9, 9), 1).init(jax.random.key(0), LATENTS)
    with pytest.raises(ValueError, match='"batch", "spectral" or "none"; got \'layer\''):
        DCGANDiscriminator(2, "layer").init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="channels first"):
        ResNetDiscriminator(2).init(jax.random.key(0), np.zeros((1, 3, 16, 16)))


@pytest.mark.parametrize(
    "make", [DCGANGenerator((16, 16), 1, 8, 10), MLPGenerator((16, 16, 1), (64,), 10)], ids=["dcgan", "mlp"]
)
def test_a_class_does_not_drown_the_latents_out(make):
    """Or the generator learns one image a class, whatever the latents."""
    rng = np.random.default_rng(0)
    given = {"latents": rng.normal(size=(200, 32)).astype(np.float32), "labels": np.arange(200) % 10}

    def spreads(given):
        images, _ = make.init_with_output(jax.random.key(0), given, train=True)
        of_class = images.reshape(20, 10, -1)
        return of_class.std(0).mean(), images.reshape(200, -1).std(0).mean()

    within, overall = jax.jit(spreads)(given)
    assert within > 0.9 * overall
    alike = {**given, "labels": np.zeros(200, int)}
    one, other = (
        jax.jit(lambda g: make.init_with_output(jax.random.key(0), g)[0])(g) for g in (given, alike)
    )
    assert not np.allclose(one, other), "the class has no effect"
