"""A network for one's own photographs: it learns them, from nothing or from published weights."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import cli, evaluate, photographs
from jdl import data, interop, models
from jdl.interop import names

COLORS = {"grass": (30, 160, 40), "sand": (200, 180, 120), "sea": (20, 60, 190)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three colours with noise."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for name, color in COLORS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture = np.clip(rng.normal(color, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(root / part / name / f"{i}.jpg")
    return root


def tiny(num_classes):
    return models.ResNet((1, 1), (8, 16), num_classes=num_classes, stem_width=8)


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch):
    known = photographs.MODELS["resnet18"]._replace(make=tiny)
    monkeypatch.setitem(photographs.MODELS, "resnet18", known)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of another number of classes, under torchvision's names."""
    variables = jax.jit(tiny(7).init)(jax.random.key(5), np.zeros((1, 32, 32, 3), np.float32))
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    interop.write_tensors(path, interop.export_weights(variables, names.RESNET_TORCHVISION))
    return path


def config(folder, run, **options):
    found = photographs.Config(
        train=str(folder / "train"),
        test=str(folder / "test"),
        size=32,
        steps=12,
        batch_size=8,
        evaluate_every=12,
        execution=cli.Execution(run=str(run), mesh="data:1", quiet=True),
    )
    return dataclasses.replace(found, **options)


def test_begins_with_the_weights_but_for_the_last_layer(folder, weights, tmp_path):
    batch = {"inputs": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(2, np.int32)}

    def begun(**options):
        learner = photographs.recipe(config(folder, tmp_path, **options), data.Preprocess(), 3)
        return jax.device_get(jax.jit(learner.init)(jax.random.key(0), batch)).params

    found, plain = begun(weights=str(weights)), begun()
    tensors = interop.read_tensors(weights)
    np.testing.assert_array_equal(
        found["stage2"]["block1"]["conv2"]["conv"]["kernel"],
        tensors["layer2.0.conv2.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(found["head"]["kernel"], plain["head"]["kernel"])
    assert found["head"]["kernel"].shape == (16, 3)
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        begun(weights=str(weights), model="mobilenet_v2")


@pytest.mark.slow
def test_learns_colours_and_tells_those_of_other_pictures(folder, weights, tmp_path):
    outcome = photographs.main(config(folder, tmp_path / "run", weights=str(weights), steps=40))
    assert outcome.test["accuracy"] > 0.6
    classifier = evaluate.load(tmp_path / "run")
    assert classifier.class_names == list(COLORS)
    assert evaluate.test_metrics(classifier)["accuracy"] == pytest.approx(outcome.test["accuracy"])
    paths = [folder / "test" / name / "0.jpg" for name in COLORS]
    told = [name for name, _ in evaluate.classify_pictures(classifier, paths)]
    tested = photographs.tested(classifier.config, tuple(COLORS))
    logits = np.asarray(jax.jit(classifier.loaded.predict)(tested(0)["inputs"]))
    expected = {tested.files[i]: list(COLORS)[x.argmax()] for i, x in enumerate(logits)}
    assert told == [expected[f"{name}/0.jpg"] for name in COLORS]
    half = tmp_path / "half.jpg"
    half.write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{half} cannot be read"):
        evaluate.classify_pictures(classifier, [paths[0], half])


def test_a_picture_is_read_as_the_test_pictures_are(tmp_path):
    """Upright, whatever the camera wrote, and not stretched."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "class").mkdir()
    Image.fromarray(pixels).save(tmp_path / "class" / "turned.jpg", exif=exif)
    found = photographs.picture(tmp_path / "class" / "turned.jpg", 28)
    np.testing.assert_array_equal(found, data.image_folder(tmp_path, 1, size=28)(0)["inputs"][0])
    rows = found.mean((1, 2))
    assert rows[0] > 200
    assert rows[-1] < 50


@pytest.mark.parametrize("name", photographs.MODELS)
def test_every_network_has_its_map_of_names(name):
    make, rules = photographs.MODELS[name]

    def blank(num_classes):
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
        found = jax.eval_shape(make(num_classes).init, jax.random.key(0), image)
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), found)

    tensors = {key: x + 1 for key, x in interop.export_weights(blank(1000), rules).items()}
    found = interop.load_weights(blank(3), tensors, rules, fresh=["head"])
    head = found["params"].pop("head")
    assert not any(np.any(x) for x in jax.tree.leaves(head))
    assert all(np.all(x == 1) for x in jax.tree.leaves(found))


def test_a_missing_folder_is_asked_for(folder, tmp_path):
    with pytest.raises(ValueError, match="--train, --test"):
        photographs.main(config(folder, tmp_path, train=""))
    with pytest.raises(FileNotFoundError, match="no folder"):
        photographs.main(config(folder, tmp_path, test=str(tmp_path / "nowhere")))
    for name in ("grass", "sea"):
        shutil.copytree(folder / "test" / name, tmp_path / "fewer" / name)
    with pytest.raises(ValueError, match="has no pictures of sand, which"):
        photographs.main(config(folder, tmp_path, test=str(tmp_path / "fewer")))
    shutil.copytree(folder / "test" / "sea", tmp_path / "fewer" / "shore")
    with pytest.raises(ValueError, match="sub-folders that are no classes: 'shore'"):
        photographs.main(config(folder, tmp_path, test=str(tmp_path / "fewer")))
