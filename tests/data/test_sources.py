"""Published sets: those in the package against scikit-learn and nanoGPT's counts, official files where there
are any.
"""

import hashlib
import io
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from jdl.data import fingerprint, load, load_text, sources

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


def test_tiny_shakespeare():
    text = load_text("tiny_shakespeare")
    whole = text.train + text.validation
    assert (len(text.train), len(text.validation), len(set(whole)), text.test) == (
        1_003_854,
        111_540,
        65,
        None,
    )
    assert hashlib.sha256(whole.encode()).hexdigest() == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )
    assert text.fingerprint == load_text("tiny_shakespeare").fingerprint


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        (
            load,
            "fashion-mnist",
            "there are digits, mnist, fashion_mnist, cifar10, isbi2012; did you mean 'fashion_mnist'",
        ),
        (load, "CIFAR-10", "did you mean 'cifar10'"),
        (load, "zzz", "isbi2012$"),
        (load, "wikitext2", "'wikitext2' is loaded by load_text"),
        (load_text, "digits", "'digits' is loaded by load$"),
        (load_text, "shakespeare", "there are tiny_shakespeare, wikitext2; did you mean 'tiny_shakespeare'"),
    ],
)
def test_unknown_names(function, name, message):
    with pytest.raises(ValueError, match=message):
        function(name)


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


def test_wikitext_in_every_packing(own, monkeypatch):
    data = {stem: f" \n = {stem} = \n".encode() for stem in sources.WIKITEXT2}
    small(sources.WIKITEXT2, data, monkeypatch)
    folder = own / "wikitext2"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "wikitext-2-v1.zip", "w") as archive:
        for stem, content in data.items():
            archive.writestr(f"wikitext-2/wiki.{stem}.tokens", content)
    text = load_text("wikitext2")
    assert (text.train, text.validation, text.test) == (
        " \n = train = \n",
        " \n = valid = \n",
        " \n = test = \n",
    )
    (folder / "wikitext-2-v1.zip").unlink()
    for stem, content in data.items():
        (folder / f"wiki.{stem}.tokens").write_bytes(content)
    assert load_text("wikitext2") == text
    for stem, content in data.items():
        (folder / f"{stem}.txt.xz").write_bytes(lzma.compress(content))
    assert load_text("wikitext2") == text


def test_urls_name_files_that_are_looked_for():
    for parts in (sources.MNIST, sources.FASHION_MNIST, sources.CIFAR10, sources.WIKITEXT2):
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


def test_wikitext2(official_data):
    official_data("wikitext2")
    text = load_text("wikitext2")
    tokens = [part.replace("\n", " <eos> ").split() for part in (text.train, text.validation, text.test)]
    assert [len(part) for part in tokens] == [2_088_628, 217_646, 245_569]
    assert len(set(tokens[0])) == 33_278


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
