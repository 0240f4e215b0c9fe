"""The fast recipe: what is frozen stays, slow weights are what they say, views are averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import airbench, torch_resnet
from jdl import data, train
from jdl.models.airbench import whitening_kernel


def images(count=64):
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 256, (count, 8, 8, 3)), 4, 1), 4, 2)
    return {"inputs": smooth.astype(np.uint8), "labels": np.arange(count, dtype=np.int32) % 10}


def test_lookahead_pulls_back_to_its_average():
    tx = optax.chain(optax.sgd(1.0), airbench.lookahead(2, 4, 0.5))
    params = {"w": jnp.zeros(1)}
    state = tx.init(params)
    fast, slow = 0.0, 0.0
    for step in range(1, 5):
        updates, state = tx.update({"w": -jnp.ones(1)}, state, params)
        params = optax.apply_updates(params, updates)
        fast += 1
        if step % 2 == 0:
            kept = 0.25 * (step / 4) ** 3
            slow = fast = kept * slow + (1 - kept) * fast
        np.testing.assert_allclose(params["w"], fast, rtol=1e-6)


def test_trains_with_a_whitening_layer_that_stays():
    arrays = images()
    config = airbench.Config(widths=(8, 8, 8), batch_size=16, epochs=3.0, whiten_bias_epochs=1.0)
    preprocess = data.fit_preprocess(arrays["inputs"])
    learner = airbench.learner(config, preprocess, arrays["inputs"], 12)
    batches = data.shuffled(arrays, 16, seed=0, resident=False)
    state = jax.jit(learner.init)(jax.random.key(0), batches(0))
    expected = whitening_kernel(np.asarray(preprocess(arrays["inputs"])))
    step, biases, heads = jax.jit(learner.step), [], []
    for i in range(12):
        np.testing.assert_array_equal(state.params["whiten"]["kernel"], expected)
        state, _ = step(state, batches(i))
        biases.append(np.asarray(state.params["whiten"]["bias"]))
        heads.append(np.asarray(state.params["head"]["kernel"]))
    assert np.any(biases[3] != biases[1])
    assert np.any(heads[11] != heads[9])
    # Its rate is zero after a third of the steps; the slow weights may still be pulled.
    np.testing.assert_allclose(biases[11], biases[9], atol=1e-3)


def test_an_image_is_mirrored_in_every_other_epoch():
    arrays = images(12)
    arrays["mirrored"] = np.arange(12) % 3 == 0
    plain = data.shuffled(arrays, 8, seed=1, resident=True)
    batches = airbench.Alternating(plain)
    seen = np.zeros((4, 12), int)
    for step in range(6):  # four epochs, of one and a half batches each
        before, after = plain(step), jax.jit(lambda b, i: b(i))(batches, step)
        assert set(after) == {"inputs", "labels"}
        for j in range(8):
            x, y = np.asarray(before["inputs"][j]), np.asarray(after["inputs"][j])
            way = {x.tobytes(): 1, x[:, ::-1].tobytes(): -1}[y.tobytes()]
            row = next(i for i in range(12) if np.array_equal(arrays["inputs"][i], x))
            seen[(step * 8 + j) // 12, row] = way
    np.testing.assert_array_equal(seen[0] == -1, arrays["mirrored"])
    np.testing.assert_array_equal(seen[1], -seen[0])
    np.testing.assert_array_equal(seen[2:], seen[:2])


def test_fit_learns_from_batches_that_alternate():
    arrays = {**images(), "mirrored": np.arange(64) % 2 == 0}
    config = airbench.Config(widths=(8, 8, 8), batch_size=16, views=False)
    preprocess = data.fit_preprocess(arrays["inputs"])
    learner = airbench.learner(config, preprocess, arrays["inputs"], 6)
    batches = airbench.Alternating(data.shuffled(arrays, 16, seed=0, resident=True))
    assert batches.shard == (0, 1)
    fitted = train.fit(learner, batches, 3, mesh="data:1")
    assert np.isfinite(fitted.history.last("train")["loss"])


def test_views_are_averaged():
    arrays = images(4)
    config = airbench.Config(widths=(8, 8, 8))
    preprocess = data.fit_preprocess(arrays["inputs"])
    viewed = airbench.learner(config, preprocess, arrays["inputs"], 4)
    state = jax.jit(viewed.init)(jax.random.key(0), arrays)
    plain = airbench.learner(dataclasses.replace(config, views=False), preprocess, arrays["inputs"], 4)
    x = arrays["inputs"]
    variables, wide = viewed.variables(state), np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def of(x):
        return (plain.predict(variables, x) + plain.predict(variables, x[:, :, ::-1])) / 2

    expected = of(x) / 2 + of(wide[:, :-2, :-2]) / 4 + of(wide[:, 2:, 2:]) / 4
    logits = viewed.predict(variables, x)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    scored = viewed.evaluate(variables, arrays, jax.random.key(1))
    assert scored["accuracy"].weight == 4
    assert scored["accuracy"].total == (logits.argmax(-1) == arrays["labels"]).sum()


@pytest.mark.parity
def test_the_pytorch_peer_trains(torch, monkeypatch):
    arrays = images(40)
    dataset = data.Dataset("toy", arrays, arrays, tuple("0123456789"), "none", "made here")
    monkeypatch.setattr(data, "load", lambda name: dataset)
    config = torch_resnet.resnet.Config(steps=3, batch_size=16, depth=8)
    assert 0 <= torch_resnet.main(0, config) <= 100
