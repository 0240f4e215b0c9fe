"""The players of a GAN beside PyTorch written out by hand, and what their tasks measure and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from scipy.spatial.distance import cdist, pdist

from jdl import tasks
from jdl.core import Mean, summarize
from jdl.models import MLP, DCGANDiscriminator, DCGANGenerator
from jdl.nn import BatchNorm
from jdl.tasks.adversarial import ADVERSARIAL_LOSSES, OPPONENT, AdversarialLoss, energy
from tests.compiling import jit

RNG = np.random.default_rng(0)
BATCH = {
    "inputs": RNG.normal(size=(6, 3)).astype(np.float32),
    "weights": np.array([1, 0.5, 2, 0, 1, 1], np.float32),
    "latents": RNG.normal(size=(6, 2)).astype(np.float32),
}


def given(key, batch):
    return batch["latents"]


def players(loss, **options):
    generator, discriminator = MLP((5, 3), jnp.tanh), MLP((4, 1), jax.nn.silu)
    return tasks.gan(generator, discriminator, given, loss=loss, **options)


@pytest.fixture(scope="module")
def measured():
    """By loss and player, mean loss and gradient; the latents are given, so that nothing is random."""
    variables = players("hinge").generator.init(jax.random.key(0), BATCH)
    other = variables[OPPONENT]
    generator = {name: tree for name, tree in variables.items() if name != OPPONENT}

    def of(task, own, opponent):
        def mean(params):
            variables = {"params": params, OPPONENT: opponent}
            total, (weight, _, _) = task.loss(variables, BATCH, jax.random.key(1))
            return total / weight

        return jax.value_and_grad(mean)(own["params"])

    @jit
    def everything():
        found = {}
        for loss in ADVERSARIAL_LOSSES:
            pair = players(loss, r1=0.3 if loss == "non_saturating" else 0)
            found[loss] = of(pair.generator, generator, other), of(pair.discriminator, other, generator)
        return found

    return generator["params"], other["params"], everything()


def torch_loss(torch, loss, d_real, d_fake, weights):
    """Both players' losses from PyTorch's own functions."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(d_real), torch.zeros_like(d_real)
    mean = lambda x: (x * weights).sum() / weights.sum()
    log = lambda x, target: bce(x, target, reduction="none")
    return {
        "minimax": lambda: (-mean(log(d_fake, zeros)), mean(log(d_real, ones) + log(d_fake, zeros))),
        "non_saturating": lambda: (mean(log(d_fake, ones)), mean(log(d_real, ones) + log(d_fake, zeros))),
        "least_squares": lambda: (mean((d_fake - 1) ** 2) / 2, mean((d_real - 1) ** 2 + d_fake**2) / 2),
        "wasserstein": lambda: (-mean(d_fake), mean(d_fake - d_real)),
        "hinge": lambda: (-mean(d_fake), mean(torch.relu(1 - d_real) + torch.relu(1 + d_fake))),
    }[loss]()  # fmt: skip


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_losses_and_gradients_are_those_of_pytorch(torch, measured, loss):
    tensor = lambda x: torch.tensor(np.array(x), requires_grad=True)
    generator, discriminator = (jax.tree.map(tensor, params) for params in measured[:2])

    def mlp(params, x, activation):
        h = activation(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        return h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]

    x = torch.tensor(BATCH["inputs"], requires_grad=True)
    weights = torch.tensor(BATCH["weights"])
    d_real = mlp(discriminator, x, torch.nn.functional.silu)[:, 0]
    fake = mlp(generator, torch.tensor(BATCH["latents"]), torch.tanh)
    d_fake = mlp(discriminator, fake, torch.nn.functional.silu)[:, 0]
    of_generator, of_discriminator = torch_loss(torch, loss, d_real, d_fake, weights)
    if loss == "non_saturating":
        slope = torch.autograd.grad(d_real.sum(), x, create_graph=True)[0]
        of_discriminator = of_discriminator + 0.15 * (weights * slope.square().sum(1)).sum() / weights.sum()
    expected = []
    for value, params in ((of_generator, generator), (of_discriminator, discriminator)):
        leaves, structure = jax.tree.flatten(params)
        gradient = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        zeros = [np.zeros(p.shape) if g is None else g.numpy() for p, g in zip(leaves, gradient, strict=True)]
        expected.append((value.item(), structure.unflatten(zeros)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), measured[2][loss], tuple(expected))


class Echo(linen.Module):
    """Makes what it is given."""

    @linen.compact
    def __call__(self, inputs, train=False):
        return inputs + 0 * self.param("nothing", linen.initializers.zeros, (1, 1))


class Bowl(linen.Module):
    """s |x|^2 / 2, whose gradient is s x."""

    @linen.compact
    def __call__(self, inputs, train=False):
        scale = self.param("scale", linen.initializers.ones, ())
        return scale * jnp.square(inputs).sum(1, keepdims=True) / 2


def test_the_gradient_penalty_is_taken_between_each_real_and_fake_example():
    batch = {"inputs": np.full((64, 1), 3, np.float32), "latents": np.full((64, 1), 5, np.float32)}
    pair = tasks.gan(Echo(), Bowl(), given, loss="wasserstein", gradient_penalty=10)
    variables = pair.discriminator.init(jax.random.key(0), batch)

    def loss(params, batch):
        total, (weight, _, metrics) = pair.discriminator.loss(
            {**variables, "params": params}, batch, jax.random.key(1)
        )
        return total / weight, metrics["gradient_penalty"].value()

    graded = jit(jax.value_and_grad(loss, has_aux=True))
    (total, mean), _ = graded(variables["params"], batch)
    # The slope is the point itself, uniform on 3..5: the mean of (x - 1)^2 is 28 / 3.
    np.testing.assert_allclose(mean, 28 / 3, rtol=0.1)
    np.testing.assert_allclose(total, (25 - 9) / 2 + 10 * mean, rtol=1e-5)
    # Where both are the same point x nothing is random: with s the slope's factor, 10 (s x - 1)^2.
    same = {"inputs": batch["inputs"], "latents": batch["inputs"]}
    slope = graded(variables["params"], same)[1]["scale"]
    np.testing.assert_allclose(slope, 20 * (3 - 1) * 3, rtol=1e-5)
    at_zero = {name: np.zeros_like(x) for name, x in same.items()}
    assert np.isfinite(graded(variables["params"], at_zero)[1]["scale"])


def test_energy_distance_and_spread_are_those_of_scipy():
    x, y = (RNG.normal(size=(7, 2, 3)).astype(np.float32) for _ in range(2))
    weights = np.array([1, 0, 1, 1, 1, 0, 1], np.float32)
    found = summarize(energy(x, 2 * y, jnp.asarray(weights)))
    kept = weights > 0
    a, b = x[kept].reshape(5, -1), 2 * y[kept].reshape(5, -1)
    expected = 2 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean()
    np.testing.assert_allclose(found["distance"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["spread"], pdist(b).mean() / pdist(a).mean(), rtol=1e-5)


def test_augmentation_and_preprocessing_act_on_what_the_discriminator_sees():
    seen = []

    class Watch(Bowl):
        def __call__(self, inputs, train=False):
            seen.append(inputs)
            return super().__call__(inputs, train)

    pair = tasks.gan(
        Echo(), Watch(), given, loss="hinge",
        preprocess=lambda x: x / 2, augment=lambda key, batch: {"inputs": batch["inputs"] + 10},
    )  # fmt: skip
    batch = {"inputs": np.full((2, 1), 4, np.float32), "latents": np.full((2, 1), 3, np.float32)}
    variables = pair.discriminator.init(jax.random.key(0), batch)
    seen.clear()
    pair.discriminator.loss(variables, batch, jax.random.key(1))
    assert [float(x[0, 0]) for x in seen] == [12, 13]
    assert (
        float(pair.discriminator.evaluate(variables, batch, jax.random.key(1))["real_above_fake"].value())
        == 0
    )


def test_a_loss_may_be_of_ones_own():
    own = AdversarialLoss(lambda x: x, lambda x: 2 * x, lambda x: 3 * x)
    pair = tasks.gan(Echo(), Bowl(), given, loss=own)
    batch = {"inputs": np.ones((2, 1), np.float32), "latents": np.full((2, 1), 2, np.float32)}
    for task, expected in ((pair.generator, 3 * 2), (pair.discriminator, 0.5 + 2 * 2)):
        total, (weight, _, _) = task.loss(task.init(jax.random.key(0), batch), batch, jax.random.key(1))
        np.testing.assert_allclose(Mean(total, weight).value(), expected)


def test_refuses_in_words_what_cannot_be():
    with pytest.raises(ValueError, match="loss must be one of minimax, non_saturating"):
        players("logistic")
    with pytest.raises(ValueError, match="loss must be one of minimax, non_saturating"):
        players(None)
    with pytest.raises(ValueError, match="weights of penalties must be at least 0; got -1"):
        players("hinge", gradient_penalty=-1)
    with pytest.raises(ValueError, match="weights of penalties must be at least 0; got nan"):
        players("hinge", gradient_penalty=float("nan"))
    for latents in (0, 3.5):
        with pytest.raises(ValueError, match=f"at least one latent variable; got {latents}"):
            tasks.gan(MLP((3,)), MLP((1,)), latents)
    with pytest.raises(ValueError, match='a GAN needs a batch with "inputs"; it has'):
        players("hinge").generator.check({"labels": np.zeros(3)})
    with pytest.raises(ValueError, match="the data are uint8, which no generator makes"):
        players("hinge").generator.check({"inputs": np.zeros((2, 3), np.uint8)})
    images = {"inputs": np.zeros((2, 8, 8, 1), np.float32), "labels": np.array([0, 3])}
    pair = tasks.gan(DCGANGenerator((8, 8), 1, 2, 3), DCGANDiscriminator(2, "none", 3), 4, conditional=True)
    with pytest.raises(ValueError, match="labels must be from 0 to 2; they are 0 to 3"):
        pair.discriminator.check(images)
    pair.generator.check({**images, "labels": np.array([0, 2])})
    with pytest.raises(ValueError, match='needs a batch with "labels"; it has'):
        players("hinge", conditional=True).generator.check(BATCH)

    def lose(pair):
        variables = pair.discriminator.init(jax.random.key(0), BATCH)
        jax.eval_shape(lambda: pair.discriminator.loss(variables, BATCH, jax.random.key(1))[0])

    with pytest.raises(ValueError, match=r"makes examples of shape \(6, 2\), the data are \(6, 3\)"):
        lose(tasks.gan(MLP((2,)), MLP((1,)), given))
    with pytest.raises(ValueError, match=r"one logit an example; got \(6, 2\)"):
        lose(tasks.gan(MLP((3,)), MLP((2,)), given))

    class Normalised(linen.Module):
        @linen.compact
        def __call__(self, inputs, train=False):
            return linen.Dense(1)(BatchNorm()(inputs, train))

    with pytest.raises(ValueError, match="sees examples one by one"):
        lose(tasks.gan(MLP((3,)), Normalised(), given, r1=1))
