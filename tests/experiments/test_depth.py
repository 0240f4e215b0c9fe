"""Plain against residual networks: the layers are measured right, and the study runs from end to end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments import cli, depth, ledger
from jdl import models


@pytest.mark.parametrize("shortcut", ["none", "padding"])
def test_signals_are_those_of_the_layers(shortcut):
    module = models.resnet_cifar(8, shortcut=shortcut)
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.normal(size=(4, 8, 8, 3)).astype(np.float32), "labels": np.arange(4)}
    variables = module.init(jax.random.key(0), batch["inputs"])
    # The first response, after a normalisation with this scale, deviates by it.
    variables["params"]["stem"]["norm"]["scale"] = jnp.full(16, 3.0)
    names = depth.layers(8)
    found = depth.signals(module, variables, batch, names)

    def loss(params):
        logits, _ = module.apply(
            {**variables, "params": params}, batch["inputs"], train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    expected = [jnp.linalg.norm(gradient["stem"]["conv"]["kernel"].ravel())] + [
        jnp.linalg.norm(gradient[s][b][c]["conv"]["kernel"].ravel())
        for s, b, c in (name.split("/") for name in names[1:])
    ]
    np.testing.assert_allclose(found["gradient"], expected, rtol=1e-3)
    assert len(found["response"]) == 7
    np.testing.assert_allclose(found["response"][0], 3, rtol=1e-3)
    np.testing.assert_allclose(found["response"][1:], 1, rtol=1e-2)


def test_the_study_is_kept_and_is_not_done_twice(tmp_path, monkeypatch, capsys):
    config = depth.Config(
        dataset="digits", depths=(8,), shortcuts=("padding",), steps=80, batch_size=64, moments=2,
        measured=32, execution=cli.Execution(str(tmp_path / "study"), "data:1"),
    )  # fmt: skip
    found = depth.main(config)
    assert list(found) == ["ResNet-8"]
    assert depth.label(8, "none") == "plain-8"
    for one in found.values():
        assert one["steps"] == [0, 40, 80]
        assert np.shape(one["response"]) == np.shape(one["gradient"]) == (3, 7)
        assert one["training_error"][0] is None
        assert one["training_error"][2] < one["training_error"][1]
        assert (np.asarray(one["gradient"]) > 0).all()
        assert one["response"][0] != one["response"][2]
    printed = capsys.readouterr().out
    assert "ResNet-8, by layer" in printed
    assert "stage3/block1/conv2" in printed
    with Image.open(tmp_path / "study/depth.png") as picture:
        assert min(picture.size) > 400
    entry = ledger.read(tmp_path / "study/ledger")[0]
    (row,) = entry.rows
    assert (row.label, row.samples) == ("ResNet-8", (found["ResNet-8"]["test_error"][-1],))
    assert row.more["first kernel's gradient at the end"] == found["ResNet-8"]["gradient"][2][0]
    assert "--steps 80" in entry.command

    monkeypatch.setattr(depth, "measure", None)
    resumed = cli.resumed(depth.Config, ["--resume", str(tmp_path / "study")])
    assert depth.main(resumed) == found
    with pytest.raises(ValueError, match="moments was 2 and is now 3"):
        depth.main(dataclasses.replace(config, moments=3))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depths": (20, 21)}, "6n \\+ 2, got 21"),
        ({"moments": 0}, "moments must be at least 1; got 0"),
        ({"shortcuts": ()}, "nothing to train"),
    ],
)
def test_mistakes_are_explained_before_anything_is_done(tmp_path, wrong, words):
    execution = cli.Execution(str(tmp_path / "study"), quiet=True)
    with pytest.raises(ValueError, match=words):
        depth.main(depth.Config(dataset="digits", **wrong, execution=execution))
    assert not (tmp_path / "study").exists()
