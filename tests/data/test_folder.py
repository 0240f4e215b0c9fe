"""A folder of images: batches that are a function of (seed, i), whoever reads them, and broken files."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import linen
from PIL import Image

from jdl import data, learners, tasks, train
from jdl.data import image_folder

COUNT = 23
CODE = """
import sys, hashlib
from jdl.data import image_folder
batches = image_folder(sys.argv[1], 4, seed=5, size=24, threads=3)
print(hashlib.sha256(b"".join(batches(i)["inputs"].tobytes() for i in (7, 2))).hexdigest())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 photographs of three classes, of different sizes; a photograph's red is its number."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        place = root / ("ant", "bee", "cat/of several kinds")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(30, 90, 2)
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[..., 0] = 10 * i
        pixels[..., 1] = np.linspace(0, 255, width)[None]
        pixels[..., 2] = np.linspace(0, 255, height)[:, None]
        Image.fromarray(pixels).save(place / f"{i:02}.{'JPEG' if i % 2 else 'jpg'}", quality=95)
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "ant" / ".hidden.jpg").write_text("no image")
    (root / "list.txt").write_text("no image")
    return root


@pytest.fixture
def broken(tmp_path):
    """16 images of two classes, of which three cannot be read."""
    for i in range(16):
        place = tmp_path / ("a", "b")[i // 8]
        place.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)).save(
            place / f"{i:02}.jpg"
        )
    whole = (tmp_path / "a" / "03.jpg").read_bytes()
    (tmp_path / "a" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "09.jpg").write_text("this is no image")
    (tmp_path / "b" / "15.jpg").write_bytes(b"")
    return tmp_path


BROKEN = ("a/03.jpg", "b/09.jpg", "b/15.jpg")


def numbers(batch):
    """Which photograph each image of a batch is, by its red."""
    return np.round(batch["inputs"][..., 0].mean((1, 2)) / 10).astype(int)


def test_files_and_labels(folder):
    batches = image_folder(folder, 4)
    assert batches.class_names == ("ant", "bee", "cat")
    assert len(batches.files) == batches.num_examples == COUNT
    assert list(batches.files[:2]) == ["ant/00.jpg", "ant/03.JPEG"]
    assert batches.files[-1] == "cat/of several kinds/20.jpg"
    assert list(batches.files) == sorted(batches.files)
    assert batches.labels.tolist() == [("ant", "bee", "cat").index(name[:3]) for name in batches.files]
    assert repr(batches) == "<FolderBatches: 6 batches of 4 from 23 examples, in order>"
    assert jax.tree_util.all_leaves([batches])


def test_one_pass_in_order(folder):
    batches = image_folder(folder, 4, size=24)
    assert len(batches) == 6
    seen = [batches(i) for i in range(6)]
    assert all(batch["inputs"].shape == (4, 24, 24, 3) for batch in seen)
    assert seen[0]["inputs"].dtype == np.uint8
    assert seen[0]["labels"].dtype == np.int32
    weights = np.concatenate([batch["weights"] for batch in seen])
    np.testing.assert_array_equal(weights, np.arange(24) < COUNT)
    wanted = [int(name[-7:-5] if name.endswith("JPEG") else name[-6:-4]) for name in batches.files]
    np.testing.assert_array_equal(np.concatenate([numbers(batch) for batch in seen])[:COUNT], wanted)
    np.testing.assert_array_equal(np.concatenate([x["labels"] for x in seen])[:COUNT], batches.labels)
    with pytest.raises(IndexError, match="batches 0 to 5"):
        batches(6)


def test_every_image_once_an_epoch_with_a_crop_of_its_own(folder):
    batches = image_folder(folder, 4, seed=1, size=24)
    assert set(batches(0)) == {"inputs", "labels"}
    seen = [batches(i) for i in range(12)]
    order = np.concatenate([numbers(batch) for batch in seen])
    images = np.concatenate([batch["inputs"] for batch in seen])
    np.testing.assert_array_equal(np.sort(order[:COUNT]), np.arange(COUNT))
    np.testing.assert_array_equal(np.sort(order[COUNT : 2 * COUNT]), np.arange(COUNT))
    assert (order[:COUNT] != order[COUNT : 2 * COUNT]).any()
    np.testing.assert_array_equal(order % 3, np.concatenate([batch["labels"] for batch in seen]))
    first, second = (images[np.flatnonzero(order == 7)[epoch]] for epoch in range(2))
    assert (first != second).any()
    again = data.shuffled({"labels": np.arange(COUNT)}, 4, seed=1, resident=False)
    rows = np.concatenate([again(i)["labels"] for i in range(12)])
    np.testing.assert_array_equal(batches.labels[rows], order % 3)


def test_crops_depend_on_nothing_but_seed_epoch_and_image(folder):
    def stream(batch_size, steps, **options):
        batches = image_folder(folder, batch_size, seed=5, size=24, **options)
        return np.concatenate([batches(i)["inputs"] for i in steps])

    whole = stream(4, range(12))
    np.testing.assert_array_equal(stream(2, range(24)), whole)
    np.testing.assert_array_equal(stream(4, reversed(range(12)), threads=1)[:4], whole[-4:])
    np.testing.assert_array_equal(stream(4, [9], threads=5), whole[36:40])
    shards = [stream(4, [3], shard=(index, 2)) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(shards), whole[12:16])
    other = image_folder(folder, 4, seed=6, size=24)
    assert (other(0)["inputs"] != whole[:4]).any()
    used = image_folder(folder, 4, seed=5, size=24)
    used(0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(used))(9)["inputs"], whole[36:40])


def test_another_process_reads_the_same(folder):
    import hashlib

    batches = image_folder(folder, 4, seed=5, size=24, threads=1)
    mine = hashlib.sha256(b"".join(batches(i)["inputs"].tobytes() for i in (7, 2))).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == mine


def test_middle_crops_in_training(folder):
    shuffled, plain = (
        image_folder(folder, 23, seed=2, size=24, crop="center"),
        image_folder(folder, 23, size=24),
    )
    got, wanted = shuffled(0), plain(0)
    for image, number in zip(got["inputs"], numbers(got), strict=True):
        np.testing.assert_array_equal(image, wanted["inputs"][list(numbers(wanted)).index(number)])


def test_fingerprint_is_of_the_files(folder, broken):
    reference = image_folder(folder, 4).fingerprint
    assert image_folder(folder, 2, seed=7, size=16, threads=1).fingerprint == reference
    assert image_folder(folder, 4, classes=["bee", "ant", "cat"]).fingerprint != reference
    before = image_folder(broken, 4).fingerprint
    (broken / "b" / "15.jpg").write_bytes(b"x")
    grown = image_folder(broken, 4).fingerprint
    (broken / "b" / "15.jpg").rename(broken / "b" / "14b.jpg")
    assert len({before, grown, image_folder(broken, 4).fingerprint}) == 3


def test_an_unreadable_file_stops_with_its_name(broken):
    batches = image_folder(broken, 4, size=24)
    with pytest.raises(OSError, match=r"cannot read the image .*a/03.jpg: .*truncated.*skip"):
        batches(0)
    batches(1)
    with pytest.raises(OSError, match=r"cannot read the image .*b/09.jpg: cannot identify"):
        batches(2)
    with pytest.raises(OSError, match=r"b/15.jpg"):
        batches(3)
    (broken / "a" / "04.jpg").unlink()
    with pytest.raises(OSError, match=r"a/04.jpg.*No such file"):
        batches(1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_without_permission(broken):
    (broken / "a" / "05.jpg").chmod(0)
    with pytest.raises(OSError, match=r"a/05.jpg.*Permission denied"):
        image_folder(broken, 4, size=24)(1)


def test_unreadable_files_are_skipped_at_weight_zero(broken):
    batches = image_folder(broken, 4, size=24, on_error="skip")
    with pytest.warns(UserWarning, match="1 so far: .*a/03.jpg") as first:
        seen = [batches(0)]
    assert len(first) == 1
    seen += [batches(i) for i in (1, 2)]  # b/09.jpg: told at the end of the epoch
    with pytest.warns(UserWarning, match="3 so far: .*a/03.jpg.*; .*b/09.jpg.*; .*b/15.jpg") as last:
        seen.append(batches(3))
    assert len(last) == 1
    assert batches.skipped == BROKEN
    batches(0)  # nothing new: no warning, which would be an error here
    batches(3)
    weights = np.concatenate([batch["weights"] for batch in seen])
    bad = np.array([name in BROKEN for name in batches.files])
    np.testing.assert_array_equal(weights, ~bad)
    # The next readable image of the batch, and the first one after the last.
    np.testing.assert_array_equal(seen[0]["inputs"][3], seen[0]["inputs"][0])
    np.testing.assert_array_equal(seen[2]["inputs"][1], seen[2]["inputs"][2])
    np.testing.assert_array_equal(seen[3]["inputs"][3], seen[3]["inputs"][0])
    for name in BROKEN:
        (broken / name).unlink()
    whole = image_folder(broken, 13, size=24)(0)
    images, labels = (np.concatenate([batch[name] for batch in seen]) for name in ("inputs", "labels"))
    np.testing.assert_array_equal(images[~bad], whole["inputs"])
    np.testing.assert_array_equal(labels[~bad], whole["labels"])


def test_skipping_in_training(broken):
    batches = image_folder(broken, 5, seed=0, size=24, on_error="skip")
    with pytest.warns(UserWarning, match="so far") as told:
        seen = [batches(i) for i in range(16)]  # five epochs
    assert 1 <= len(told) <= 2
    assert "3 so far" in str(told[-1].message)
    assert sum(batch["weights"].sum() for batch in seen) == 5 * 13
    assert all(batch["inputs"].shape == (5, 24, 24, 3) for batch in seen)
    clean = image_folder(broken, 5, seed=0, size=24, on_error="skip")
    assert set(clean(0)) == {"inputs", "labels", "weights"}


def test_a_batch_without_a_readable_image(broken):
    for file in (broken / "a").iterdir():
        file.write_text("gone")
    with pytest.raises(OSError, match=r"none of the 4 images of batch 1 can be read: .*a/04.jpg"):
        image_folder(broken, 4, size=24, on_error="skip")(1)


def test_classes(folder, tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="class 'cat' has no images.*give classes"):
        image_folder(tmp_path, 1)
    with pytest.raises(ValueError, match="has no images of the classes 'ant', 'cat'"):
        image_folder(tmp_path, 1, classes=["ant", "cat"])
    Image.new("RGB", (9, 9)).save(tmp_path / "cat" / "1.png")
    batches = image_folder(tmp_path, 1, size=8, classes=image_folder(folder, 1).class_names)
    assert batches(0)["labels"].tolist() == [2]
    with pytest.raises(ValueError, match="no classes: 'cat'"):
        image_folder(tmp_path, 1, classes=["ant", "bee"])
    with pytest.raises(ValueError, match="different names"):
        image_folder(tmp_path, 1, classes=["cat", "cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"batch_size": 24, "seed": 0}, "larger than the data, 23 examples"),
        ({"seed": -1}, "seed must lie"),
        ({"size": 0}, "size"),
        ({"size": 32.5}, "whole number of pixels, at least 1; got 32.5"),
        ({"size": (32, 48)}, "whole number of pixels"),
        ({"size": 24, "resize": 20}, "resize must be at least size, 24 pixels; got 20"),
        ({"crop": "random"}, "random crops need a seed"),
        ({"crop": "middle"}, "crop must be one of"),
        ({"scale": (0, 1)}, "scale"),
        ({"ratio": (2, 1)}, "ratio"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"threads": 0}, "threads"),
        ({"shard": (0, 3)}, "not divisible by the 3 shards"),
    ],
)
def test_errors(folder, options, message):
    with pytest.raises(ValueError, match=message):
        image_folder(folder, **{"batch_size": 4, **options})


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*missing"):
        image_folder(tmp_path / "missing", 1)
    with pytest.raises(ValueError, match="has no sub-folders"):
        image_folder(tmp_path, 1)


class Colours(linen.Module):
    @linen.compact
    def __call__(self, images, train=False):
        return linen.Dense(3)(images.astype(np.float32).mean((1, 2)) / 255)


def trained(folder, steps, run=None):
    task = tasks.augmented(tasks.classification(Colours()), data.random_flip())
    batches = image_folder(folder, 8, seed=3, size=24)
    return train.fit(
        learners.gradient(task, optax.sgd(0.1)),
        batches,
        steps,
        evaluation=image_folder(folder, 8, size=24),
        mesh="data:1",
        run=run and train.Run(run, data=batches.fingerprint, save_every=4),
    )


def test_fit_trains_and_resumes_on_it(folder, tmp_path):
    whole = trained(folder, 8)
    assert np.isfinite(whole.history.last("evaluation")["loss"])
    trained(folder, 4, tmp_path / "run")
    resumed = trained(folder, 8, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)
