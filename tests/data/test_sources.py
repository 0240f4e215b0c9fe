"""Published sets: the digits in the package against scikit-learn, official files where there are any."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from jdl.data import fingerprint, japanese_vowels, load, sources
from jdl.data.japanese_vowels import parse_ts

DIGITS = "b65bd2a1b7606ea24cf35cbaa9b68f6b68b3274f6e0d08cd34b098c188175c0f"


def test_digits_are_those_of_scikit_learn():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    reference = sklearn_datasets.load_digits()
    digits = load("digits")
    parts = [digits.train, digits.test]
    ours = {
        (x.tobytes(), int(y)) for part in parts for x, y in zip(part["inputs"], part["labels"], strict=True)
    }
    scaled = np.rint(reference.images * 255 / 16).astype(np.uint8)
    assert ours == {(x.tobytes(), int(y)) for x, y in zip(scaled, reference.target, strict=True)}
    assert len(ours) == 1797


def test_digits_split():
    digits = load("digits")
    assert digits.train["inputs"].shape == (1437, 8, 8, 1)
    assert digits.test["inputs"].shape == (360, 8, 8, 1)
    assert digits.train["inputs"].dtype == np.uint8
    assert digits.train["labels"].dtype == np.int32
    assert (digits.train["inputs"].min(), digits.train["inputs"].max()) == (0, 255)
    assert digits.class_names == tuple("0123456789")
    counts = np.bincount(digits.train["labels"])
    np.testing.assert_allclose(
        counts / 1437, (counts + np.bincount(digits.test["labels"])) / 1797, atol=1 / 1437
    )
    assert digits.fingerprint == fingerprint({"train": digits.train, "test": digits.test}) == DIGITS
    assert "CC BY 4.0" in digits.source
    assert "\n" not in digits.source


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty ``$JDL_DATA`` and cache."""
    monkeypatch.setenv("JDL_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("JDL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "own"


def small(parts, data, monkeypatch):
    """``parts`` with the sums of ``data`` in their place, and no way to download."""
    for name, part in list(parts.items()):
        changed = part._replace(sha256=hashlib.sha256(data[name]).hexdigest(), urls=("http://127.0.0.1:9/x",))
        monkeypatch.setitem(parts, name, changed)


@pytest.fixture
def cifar(own, monkeypatch):
    """Six small batches in the official pickle format."""
    rng = np.random.default_rng(0)
    data = {}
    for number, name in enumerate(sources.CIFAR10):
        content = {
            b"labels": [number] * 3,
            b"data": rng.integers(0, 256, (3, 3072), np.uint8),
            b"batch_label": b"x",
            b"filenames": [b"x"] * 3,
        }
        data[name] = pickle.dumps(content, protocol=2)
    small(sources.CIFAR10, data, monkeypatch)
    (own / "cifar10").mkdir(parents=True)
    return data


def test_cifar_from_archive_and_from_folder(own, cifar):
    with tarfile.open(own / "cifar10/cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in cifar.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    first = load("cifar10")
    assert first.train["inputs"].shape == (15, 32, 32, 3)
    assert first.test["inputs"].shape == (3, 32, 32, 3)
    assert first.train["labels"].tolist() == np.repeat(range(5), 3).tolist()
    assert first.test["labels"].tolist() == [5, 5, 5]
    assert first.class_names[3] == "cat"
    (own / "cifar10/cifar-10-python.tar.gz").unlink()
    for folder in ("cifar-10-batches-py", "."):
        (own / "cifar10" / folder).mkdir(exist_ok=True)
        for name, content in cifar.items():
            (own / "cifar10" / folder / name).write_bytes(content)
        assert load("cifar10").fingerprint == first.fingerprint


def test_cifar_batches_are_verified_before_they_are_read(own, cifar):
    for name, content in cifar.items():
        (own / "cifar10" / name).write_bytes(content)
    changed = bytearray(cifar["data_batch_2"])
    changed[-500] ^= 1
    (own / "cifar10/data_batch_2").write_bytes(changed)
    with pytest.raises(ValueError, match="data_batch_2 is not the published file: .* expected"):
        load("cifar10")


def test_what_is_missing_is_named(own, cifar):
    with pytest.raises(FileNotFoundError, match="cifar10 is not on this machine"):
        load("cifar10")


def test_urls_name_files_that_are_looked_for():
    for parts in (sources.MNIST, sources.FASHION_MNIST, sources.CIFAR10, japanese_vowels.PARTS):
        for part in parts.values():
            assert len(part.sha256) == 64
            files = {place.partition("!")[0] for place in part.places}
            assert {url.rpartition("/")[2] for url in part.urls} <= files


def test_mnist(official_data):
    official_data("mnist")
    mnist = load("mnist")
    assert mnist.train["inputs"].shape == (60_000, 28, 28, 1)
    assert mnist.test["inputs"].shape == (
        10_000,
        28,
        28,
        1,
    )
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train["labels"]).tolist() == counts
    assert mnist.train["inputs"].mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train["labels"][:5].tolist() == [5, 0, 4, 1, 9]


def test_fashion_mnist(official_data):
    official_data("fashion_mnist")
    fashion = load("fashion_mnist")
    assert fashion.train["inputs"].shape == (60_000, 28, 28, 1)
    assert fashion.test["inputs"].shape == (
        10_000,
        28,
        28,
        1,
    )
    assert np.bincount(fashion.train["labels"]).tolist() == [6000] * 10
    assert fashion.train["inputs"].mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert fashion.class_names[fashion.train["labels"][0]] == "ankle boot"


def test_cifar10(official_data):
    if not any(
        (official_data("cifar10") / f).exists() for f in ("cifar-10-batches-py", "cifar-10-python.tar.gz")
    ):
        pytest.skip("needs the official files of cifar10 under $JDL_DATA")
    cifar10 = load("cifar10")
    assert cifar10.train["inputs"].shape == (50_000, 32, 32, 3)
    assert cifar10.test["inputs"].shape == (
        10_000,
        32,
        32,
        3,
    )
    assert np.bincount(cifar10.train["labels"]).tolist() == [5000] * 10
    mean = cifar10.train["inputs"].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=5e-5)


def test_isbi2012_is_thirty_slices_with_labels_of_pixels(official_data):
    official_data("isbi2012_em")
    dataset = load("isbi2012")
    for part, count in (dataset.train, 24), (dataset.test, 6):
        inputs, labels = part["inputs"], part["labels"]
        assert (inputs.shape, inputs.dtype) == ((count, 512, 512, 1), np.uint8)
        assert (labels.shape, labels.dtype) == ((count, 512, 512), np.int32)
        assert set(np.unique(labels)) == {0, 1}
        # Membranes are dark, and a fifth of the image.
        assert inputs[..., 0][labels == 0].mean() < inputs[..., 0][labels == 1].mean() - 30
        assert 0.7 < labels.mean() < 0.85


def test_isbi2012_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("JDL_DATA", str(tmp_path))
    monkeypatch.setenv("JDL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"isbi2012_em is not on this machine.*Put its 60 files"):
        load("isbi2012")


def test_japanese_vowels(official_data):
    official_data("japanese_vowels")
    vowels = load("japanese_vowels")
    for part, count in (vowels.train, 270), (vowels.test, 370):
        x_NTD, lengths = part["inputs"]["sequence"], part["inputs"]["lengths"]
        assert (x_NTD.shape, x_NTD.dtype, lengths.dtype) == ((count, 29, 12), np.float32, np.int32)
        after_the_end = np.arange(29) >= lengths[:, None]
        assert (lengths.min(), lengths.max()) in ((7, 26), (7, 29))
        assert not x_NTD[after_the_end].any()
        assert x_NTD[~after_the_end].any(-1).all()
    assert np.bincount(vowels.train["labels"]).tolist() == [30] * 9
    # The sizes that the archive gives for its test set.
    assert np.bincount(vowels.test["labels"]).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert vowels.train["inputs"]["sequence"][0, :2, 0].tolist() == pytest.approx([1.860936, 1.891651])
    assert len(vowels.class_names) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2:3,4:a", "x is no .ts file: it has no line @data"),
        ("@data\n\n", "x holds no examples"),
        ("@problemName p\n@data\n1,2:3,4:a\n1,2:3:a\n", "x, line 4: "),
        ("@data\n1,2:3,4:a\n1,2:a\n", "x, line 3: expected 2 channels"),
        ("@data\n1,?:3,4:a\n", "x, line 2: could not convert"),
        ("@data\n1,nan:3,4:a\n", "x, line 2: expected 2 channels of finite numbers"),
        ("@data\na\n", "x, line 2: "),
    ],
)
def test_damaged_ts_files(text, message):
    with pytest.raises(ValueError, match=message):
        parse_ts(text, "x")
