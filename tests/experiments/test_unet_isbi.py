"""The U-Net experiment moves labels with images, and reports what it found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli, unet_isbi
from jdl import data


def batch(side=32):
    """Images whose labels can be read from them, pixel by pixel."""
    labels = np.random.default_rng(0).integers(0, 2, (16, side, side)).astype(np.int32)
    return {"inputs": (255 * labels[..., None]).astype(np.uint8), "labels": labels}


def test_parts_are_cut_mirrored_and_turned_with_their_labels():
    transform = unet_isbi.augmentation(unet_isbi.Config(crop=16, bend=0), side=32)
    moved = transform(jax.random.key(0), batch())
    assert moved["inputs"].shape == (16, 16, 16, 1)
    np.testing.assert_array_equal(moved["inputs"][..., 0] // 255, moved["labels"])


def test_weights_of_pixels_move_with_them():
    config = unet_isbi.Config(crop=16, bend=0, weighted=True)
    given = batch()
    moved = unet_isbi.augmentation(config, side=32)(
        jax.random.key(0), {**given, "weights": given["labels"].astype(np.float32)}
    )
    assert moved["weights"].shape == (16, 16, 16)
    np.testing.assert_array_equal(moved["weights"], moved["labels"])


def test_turns_and_mirrors_give_all_eight_symmetries():
    image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    many = {"inputs": image.repeat(256, 0), "labels": image[..., 0].repeat(256, 0)}
    transform = data.compose(data.random_flip(also=("labels",)), unet_isbi.turned)
    seen = np.asarray(transform(jax.random.key(0), many)["inputs"]).reshape(256, 4)
    assert len(np.unique(seen, axis=0)) == 8


def test_labels_bend_with_images():
    """Smooth bands, so that only pixels beside an edge may differ by interpolation."""
    labels = np.tile((np.arange(64) // 16 % 2).astype(np.int32), (4, 64, 1))
    straight = {"inputs": (255 * labels[..., None]).astype(np.uint8), "labels": labels}
    transform = unet_isbi.augmentation(unet_isbi.Config(crop=64, bend=3.0, smoothness=8.0), side=64)
    bent = transform(jax.random.key(0), straight)
    images, labels = np.asarray(bent["inputs"][..., 0]), np.asarray(bent["labels"])
    np.testing.assert_array_equal(images > 127, labels == 1)
    # Mirrored and turned bands would be straight.
    rows, columns = (labels != labels[:, :1]).any((1, 2)), (labels != labels[:, :, :1]).any((1, 2))
    assert (rows & columns).all()


def test_the_mean_over_symmetries_is_the_same_of_every_version():
    from jdl import models, tasks

    plain = tasks.segmentation(models.UNet(2, width=2, depth=1))
    task = unet_isbi.symmetric(plain)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(plain.init)(jax.random.key(0), {"inputs": x, "labels": np.zeros((2, 8, 8), np.int32)})
    y = np.asarray(jax.jit(task.predict)(variables, x))
    np.testing.assert_allclose(np.exp(y).sum(-1), 1, rtol=1e-5)
    for version in (lambda a: a[:, ::-1], lambda a: np.rot90(a, 1, (1, 2)), lambda a: a.swapaxes(1, 2)):
        found = jax.jit(task.predict)(variables, np.ascontiguousarray(version(x)))
        np.testing.assert_allclose(found, version(y), rtol=1e-4, atol=1e-5)
        assert np.abs(jax.jit(plain.predict)(variables, version(x)) - version(y)).max() > 1e-3
    sure = unet_isbi.symmetric(plain._replace(predict=lambda variables, x: jnp.concatenate([x, 300 - x], -1)))
    assert np.isfinite(sure.predict(variables, x)).all()
    with pytest.raises(ValueError, match="slices are 4x8: --no-symmetries"):
        task.predict(variables, x[:, :4])


@pytest.mark.slow
def test_reports_errors_of_pixels_and_overlap_on_the_test_slices(monkeypatch, tmp_path):
    slices = batch()
    test = {name: x[:8] for name, x in slices.items()}
    dataset = data.Dataset("isbi2012", slices, test, ("membrane", "cell"), "fingerprint", "made here")
    monkeypatch.setattr(data, "load", lambda name: dataset)
    config = unet_isbi.Config(
        width=2, steps=2, batch_size=8, crop=16, bend=0, evaluate_every=2, weighted=True
    )
    where = cli.Execution(run=str(tmp_path / "run"), mesh="data:1", quiet=True)
    outcome = unet_isbi.main(dataclasses.replace(config, execution=where))
    assert np.shape(outcome.test["iou"]) == np.shape(outcome.test["dice"]) == (2,)
    assert 0 < outcome.test["accuracy"] < 1
    text = unet_isbi.described(outcome.test, dataset.class_names)
    assert f"pixel error {1 - outcome.test['accuracy']:.4f}" in text
    assert f"membrane {outcome.test['iou'][0]:.3f}" in text
