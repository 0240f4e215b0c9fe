"""The GAN experiments on small images: what they keep, score and resume, and their peer in PyTorch."""

import copy
import json

import jax
import numpy as np
import optax
import pytest

from experiments import cli, gan, generated, torch_gan
from jdl import data, learners, tasks
from jdl.core import summarize


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A classifier that was hardly trained."""
    folder = tmp_path_factory.mktemp("features") / "lenet"
    return generated.judge(data.load("digits"), str(folder), steps=30, quiet=True)


def config(folder, **changes):
    small = {"dataset": "digits", "width": 4, "latents": 4, "batch_size": 16, "samples": 50}
    execution = cli.Execution(run=str(folder), mesh="data:1", quiet=True)
    return gan.Config(**{"steps": 4, **small, **changes}, execution=execution)


def test_runs_scores_draws_and_goes_on(tmp_path, judge, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(generated, "judge", lambda dataset, folder, **options: judge)
    settings = config(tmp_path / "run", evaluate_every=2, averaging=0.5)
    outcome = gan.main(settings)
    kept = json.loads((tmp_path / "run/scores.json").read_text())
    assert kept["samples"] == 50
    assert kept["frechet"] > kept["frechet_of_training_set"] > 0
    assert 1 <= kept["classifier_score"] <= 10
    assert outcome.test["frechet"] == kept["frechet"]
    assert sorted(path.name for path in (tmp_path / "run/pictures").iterdir()) == [
        "samples-000000.png", "samples-000002.png", "samples-000004.png", "samples.gif"
    ]  # fmt: skip
    with Image.open(tmp_path / "run/pictures/samples.gif") as animation:
        assert animation.n_frames == 3
    last = outcome.fitted.history.last("test")
    assert {"distance", "spread", "frechet", "kernel", "signs", "sample_spread"} <= set(last)
    assert gan.main(settings).test == outcome.test
    assert "nearer to training images" in generated.told(kept)


def test_what_is_asked_for_is_counted(tmp_path, judge, monkeypatch):
    monkeypatch.setattr(generated, "judge", lambda dataset, folder, **options: judge)
    outcome = gan.main(config(tmp_path / "run", steps=2, conditional=True))
    assert 0 <= outcome.test["agreement"] <= 1
    assert "of the class asked for" in generated.told(outcome.test)
    images = data.load("digits").test
    right, wrong = (judge.scores(images["inputs"], (images["labels"] + i) % 10)["agreement"] for i in (0, 1))
    assert right == pytest.approx(judge.accuracy)
    assert wrong <= 1 - right
    # One image a class, rightly labelled, is far from all images of the class.
    first = [int(np.flatnonzero(images["labels"] == c)[0]) for c in range(10)]
    same, repeated = (
        judge.scores(images["inputs"][rows], images["labels"][rows])["frechet_by_class"]
        for rows in (np.arange(360), np.repeat(first, 36))
    )
    assert same < 1e-6 < 10 * judge.scores(images["inputs"])["frechet_of_training_set"] < repeated


@pytest.mark.parametrize("architecture", ["convolutional", "residual"])
@pytest.mark.parametrize("recipe", gan.RECIPES)
def test_every_recipe_takes_a_step(recipe, architecture):
    settings = config("", recipe=recipe, architecture=architecture, conditional=True, augment=True)
    if (recipe, architecture) == ("dcgan", "residual"):
        with pytest.raises(ValueError, match="is made for --recipe wgan_gp or sngan"):
            gan.learner(settings, (8, 8, 1))
        return
    learner = gan.learner(settings, (8, 8, 1))
    size = 16 * gan.updates(settings)
    batch = {
        "inputs": jax.ShapeDtypeStruct((size, 8, 8, 1), np.uint8),
        "labels": jax.ShapeDtypeStruct((size,), np.int32),
    }
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(learner.step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert ("gradient_penalty" in metrics) == (recipe == "wgan_gp")
    made = jax.eval_shape(learner.predict, learner.variables(state), gan.given(settings, 3, 0))
    assert made.shape == (3, 8, 8, 1)


def test_images_become_bytes_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(generated.to_bytes(generated.to_unit(pixels)), pixels)
    made = generated.sample(
        lambda z: z.reshape(-1, 1, 1, 1), np.array(pixels.ravel()[:7, None] / 127.5 - 1), at_once=3
    )
    assert made.ravel().tolist() == [*range(7)]


def test_the_test_set_itself_scores_best(judge):
    dataset = data.load("digits")
    scores = judge.scores(dataset.test["inputs"])
    assert scores["frechet"] < 1e-6
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1
    assert scores["classes"] >= 1
    # Wherever in the training set the copies are from.
    assert judge.scores(dataset.train["inputs"][:360])["copied"] == 1
    assert judge.scores(dataset.train["inputs"][-360:])["copied"] == 1


def _as_pytorch(torch, network, variables):
    """Loads the weights of a network of ours, layer by layer."""
    params, order = variables["params"], []
    for name in sorted(params, key=lambda name: (name == "head", name.rsplit("_", 1)[-1])):
        order += [params[name]] if "BatchNorm" not in name else []
    norms = [params[name] for name in sorted(params) if "BatchNorm" in name]
    with torch.no_grad():
        for layer in network:
            kind = type(layer).__name__.removeprefix("Parametrized")
            if kind == "BatchNorm2d":
                norm = norms.pop(0)
                layer.weight.copy_(torch.tensor(np.array(norm["scale"])))
                layer.bias.copy_(torch.tensor(np.array(norm["bias"])))
            elif kind in ("Linear", "Conv2d", "ConvTranspose2d"):
                given = order.pop(0)
                kernel = np.array(given["kernel"])
                if kind == "ConvTranspose2d":
                    kernel = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
                else:
                    kernel = kernel.T if kind == "Linear" else kernel.transpose(3, 2, 0, 1)
                layer.weight.copy_(torch.tensor(kernel.copy()))
                if layer.bias is not None:
                    layer.bias.copy_(torch.tensor(np.array(given["bias"])))
    return network


def test_the_peer_has_the_same_networks(torch):
    settings = config("", width=3)
    make, judge = gan.networks(settings, (16, 16, 2), 10)
    z = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    images, variables = jax.jit(lambda z: make.init_with_output(jax.random.key(0), z, train=True))(z)
    peer = _as_pytorch(torch, torch_gan.generator((16, 16), 2, 3, 4), variables)
    made = peer(torch.tensor(z))
    np.testing.assert_allclose(images, made.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
    logits, variables = jax.jit(lambda x: judge.init_with_output(jax.random.key(1), x, train=True))(images)
    peer = _as_pytorch(torch, torch_gan.discriminator((16, 16), 2, 3, "batch"), variables)
    np.testing.assert_allclose(logits, peer(made).detach().numpy()[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp"])
def test_turns_of_the_peer_are_those_of_ours(torch, name, monkeypatch):
    """From the same weights, images, latents and places of the penalty: every loss of three turns."""
    recipe, settings = gan.RECIPES[name], config("", width=3, recipe=name)
    n, B, Z = gan.updates(settings), 4, 5
    make, judge = gan.networks(settings, (16, 16, 1), 10)
    players = tasks.gan(
        make, judge, lambda key, batch: batch["latents"], loss=recipe.loss, gradient_penalty=recipe.penalty,
        preprocess=generated.to_unit,
    )  # fmt: skip
    adam = optax.adam(1e-3, *recipe.betas)
    learner = learners.gan(players, adam, adam, discriminator_steps=n)
    rng = np.random.default_rng(0)
    turns = [
        {
            "inputs": rng.integers(0, 256, (n * B, 16, 16, 1), np.uint8),
            "latents": rng.normal(size=(n * B, Z)).astype(np.float32),
        }
        for _ in range(3)
    ]
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jax.numpy.full(shape, 0.25, dtype))
    state = jax.jit(learner.init)(jax.random.key(0), turns[0])
    networks = [
        _as_pytorch(torch, network, {"params": player.params})
        for network, player in (
            (torch_gan.generator((16, 16), 1, 3, Z), state.generator),
            (torch_gan.discriminator((16, 16), 1, 3, recipe.normalization), state.discriminator),
        )
    ]
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3, recipe.betas) for network in networks]
    step = jax.jit(learner.step)
    for turn in turns:
        x, z = torch.tensor(turn["inputs"].transpose(0, 3, 1, 2) / np.float32(127.5) - 1), turn["latents"]
        # Every n-th row is a part of a batch; the generator's update has those of the first part.
        draws = iter([torch.tensor(z[i::n]) for i in [*range(n), *([0] if n > 1 else [])]])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *shape, device, draws=draws: next(draws))
            patch.setattr(torch, "rand", lambda *shape: torch.full(shape, 0.25))
            _, made = torch_gan.take_turn(
                torch_gan.Players(*networks, *optimizers), recipe, [x[i::n] for i in range(n)], Z
            )
        state, metrics = step(state, turn)
        assert next(draws, None) is None
        np.testing.assert_allclose(summarize(metrics)["generator_loss"], made.item(), rtol=1e-4)
    for network, player in zip(networks, (state.generator, state.discriminator), strict=True):
        twin = _as_pytorch(torch, copy.deepcopy(network), {"params": player.params})
        for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
            np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=1e-5)


def test_the_peer_s_generator_learns_without_gradients_of_the_discriminator_s_weights(torch):
    make, judge = torch_gan.generator((16, 16), 1, 3, 5), torch_gan.discriminator((16, 16), 1, 3, "batch")
    optimizers = [torch.optim.Adam(network.parameters()) for network in (make, judge)]
    counts = [0, 0]
    for i, network in enumerate((make, judge)):
        weight = next(network.parameters())
        weight.register_post_accumulate_grad_hook(lambda _, i=i: counts.__setitem__(i, counts[i] + 1))
    for _ in range(2):
        players = torch_gan.Players(make, judge, *optimizers)
        torch_gan.take_turn(players, gan.RECIPES["dcgan"], [torch.zeros(4, 1, 16, 16)], 5)
    assert counts == [2, 2]


@pytest.mark.parametrize("recipe", gan.RECIPES)
def test_the_peer_trains_and_is_scored_alike(torch, recipe, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "judge", lambda dataset, folder, **options: judge)
    settings = config(tmp_path / "peer", recipe=recipe, steps=2)
    scores = torch_gan.main(settings)
    assert json.loads((tmp_path / "peer/scores.json").read_text()) == scores
    assert scores["samples"] == 50
    assert np.isfinite(scores["frechet"])
