"""The experiments on autoencoders learn the digits that ship with the package, and report what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import anomaly, cli, deep_autoencoder, torch_vae, vae, vqvae
from experiments.pictures import Pictures
from jdl import audit, data, tasks
from jdl.train.history import read_lines

DIGITS = data.load("digits")


def run(module, folder, **settings):
    where = cli.Execution(run=str(folder), mesh="data:1", quiet=True)
    return module.main(dataclasses.replace(module.Config(dataset="digits"), execution=where, **settings))


def test_a_vae_learns_and_its_estimate_is_above_its_bound(tmp_path):
    outcome = run(vae, tmp_path, latent=2, hidden=(32,), steps=200, evaluate_every=100, estimate=4)
    losses = read_lines(tmp_path / "metrics.jsonl").series("test", "loss")[1]
    found = outcome.test
    assert losses[-1] < 0.7 * losses[0]
    assert 0 < found["negative_log_likelihood"] < found["loss"] + 3 * found["standard_error"]
    assert found["active_units"] == 2
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"samples-000100.png", "plane-000200.png", "reconstructions.gif", "samples.gif"} <= drawn


def test_grey_levels_become_bits_of_their_probability():
    config = vae.Config(dataset="digits")
    train, test = vae.prepared(config, DIGITS)
    again = vae.prepared(config, DIGITS)[1]
    assert train["inputs"].dtype == bool
    np.testing.assert_array_equal(test["inputs"], again["inputs"])
    assert test["inputs"].mean() == pytest.approx(DIGITS.test["inputs"].mean() / 255, abs=0.01)
    raw = vae.prepared(dataclasses.replace(config, binarize="afresh", examples=100), DIGITS)[0]["inputs"]
    assert (raw.dtype, len(raw)) == (np.uint8, 100)
    draw = jax.vmap(lambda key: vae.afresh(key, {"inputs": raw})["inputs"])
    bits = draw(jax.random.split(jax.random.key(0), 300))
    np.testing.assert_allclose(bits.mean(0), raw / 255, atol=0.15)


def test_the_estimate_goes_over_all_images_in_parts():
    module = vae.model(vae.Config(latent=2, hidden=(4,)), (8, 8, 1))
    bits = vae.binarized(DIGITS.test["inputs"][:7], 0)
    latent = tasks.latent_model(module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    whole, error = vae.log_likelihood(latent, bits, 400, batch=7)
    parts, _ = vae.log_likelihood(latent, bits, 400, batch=3)
    assert parts == pytest.approx(whole, abs=6 * error)


def test_the_peer_in_pytorch_comes_to_the_same(torch, tmp_path):
    config = vae.Config(dataset="digits", latent=4, hidden=(32,), steps=400)
    ours = run(vae, tmp_path, latent=4, hidden=(32,), steps=400, evaluate_every=400).test["loss"]
    assert torch_vae.main(0, config) == pytest.approx(ours, rel=0.05)
    with pytest.raises(ValueError, match="plain bound"):
        torch_vae.main(0, dataclasses.replace(config, binarize="afresh"))


def test_a_deep_autoencoder_is_compared_with_principal_components(tmp_path):
    outcome = run(deep_autoencoder, tmp_path, features=(64, 8), steps=300, evaluate_every=300)
    assert outcome.test["squared_error"] == pytest.approx(64 * outcome.test["mse"])
    x = np.asarray(data.Preprocess()(DIGITS.test["inputs"])).reshape(-1, 64)
    found = audit.pca(data.Preprocess()(DIGITS.train["inputs"]), 8)
    back = np.asarray(found.inverse(found.transform(x.reshape(-1, 8, 8, 1)))).reshape(-1, 64)
    assert outcome.test["squared_error_of_pca"] == pytest.approx(((x - back) ** 2).sum(1).mean(), rel=1e-4)
    assert (tmp_path / "beside_pca.png").exists()


@pytest.mark.slow
def test_a_vqvae_gets_a_prior_that_draws(tmp_path):
    small = {"width": 8, "depth": 1, "halvings": 1, "entries": 8, "size": 4}
    prior = {"prior_features": 8, "prior_depth": 1, "prior_steps": 40}
    outcome = run(vqvae, tmp_path, **small, **prior, steps=60, evaluate_every=60, learning_rate=5e-3)
    found = outcome.test
    assert 1 <= found["codebook_perplexity"] <= 8
    assert found["bits_per_dimension_with_prior"] < found["bits_per_dimension"] < 8
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "prior" / "pictures" / "samples-000040.png").exists()


def test_a_digit_that_was_left_out_is_told_from_the_others(tmp_path):
    outcome = run(anomaly, tmp_path, left_out=0, latent=8, hidden=(64,), steps=300, evaluate_every=300)
    areas = {name: x for name, x in outcome.test.items() if name.startswith("auroc")}
    assert sorted(areas) == ["auroc_components", "auroc_log_likelihood", "auroc_reconstruction"]
    assert areas["auroc_reconstruction"] > 0.7
    assert all(0 < area <= 1 for area in areas.values())
    with pytest.raises(ValueError, match="the classes 0 to 9"):
        run(anomaly, tmp_path / "other", left_out=10)


def test_pictures_are_kept_under_the_step_of_their_record(tmp_path):
    pictures = Pictures(tmp_path, lambda variables: {"dot": variables * np.ones((2, 2, 3))}, enlarge=1)
    for step in (0, 5):
        pictures(jax.tree_util.Partial(lambda v, x: x, jnp.float32(step / 5)), None)
        pictures.log({"split": "train", "step": 99})
        pictures.log({"split": "test", "step": step})
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["dot-000000.png", "dot-000005.png"]
    (film,) = pictures.animate()
    with Image.open(film) as moving:
        assert moving.n_frames == 2
