"""Data sets as published: found on this machine or downloaded, verified, parsed, and the same for everyone.

`load` gives image sets as uint8 [N, H, W, C] in 0..255 and int32 labels (texts are in
`jdl.data.text_sources`). Files are looked for in ``$JDL_DATA/<name>/`` under the names of the official
release, then in the cache (``$JDL_CACHE``, ``$XDG_CACHE_HOME/jdl`` or ``~/.cache/jdl``), and then downloaded
into the cache.

``digits`` comes with the package: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998;
CC BY 4.0, https://doi.org/10.24432/C50P49), the 1,797 images of its test file, which scikit-learn's
``load_digits`` distributes too: 8x8 counts in 0..16, here scaled to round(count * 255 / 16). The split is
ours: stratified by digit with seed 0, 1,437 for training and 360 for testing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdl.data import isbi2012, japanese_vowels
from jdl.data.batches import fingerprint
from jdl.data.download import Part, contents
from jdl.data.formats import parse_cifar_batch, parse_idx_pair
from jdl.data.names import maker
from jdl.data.splits import split


class Dataset(NamedTuple):
    """Images (or sequences) and labels of a published set.

    Attributes:
        name: what `load` calls it.
        train: ``inputs`` and ``labels``, as `load` says.
        test: as ``train``.
        class_names: one for each label.
        fingerprint: `fingerprint` of ``{"test": test, "train": train}``.
        source: provenance, licence and citation, in one line.
    """

    name: str
    train: dict[str, Any]
    test: dict[str, Any]
    class_names: tuple[str, ...]
    fingerprint: str
    source: str


def _packaged(file: str) -> Path:
    return Path(str(resources.files("jdl.data") / file))


def _dataset(
    name: str,
    train: dict[str, Any],
    test: dict[str, Any],
    class_names: Iterable[str],
    source: str,
) -> Dataset:
    return Dataset(name, train, test, tuple(class_names), fingerprint({"train": train, "test": test}), source)


def _digits() -> Dataset:
    with np.load(_packaged("digits.npz")) as file:
        counts, labels = file["inputs"].astype(np.float64), file["labels"].astype(np.int32)
    images = np.rint(counts * (255 / 16)).astype(np.uint8)[..., None]
    train, test = split({"inputs": images, "labels": labels}, (1437, 360), seed=0)
    source = (
        "UCI Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49, CC BY 4.0; "
        "Alpaydin and Kaynak, Cascading classifiers, Kybernetika 1998"
    )
    return _dataset("digits", train, test, map(str, range(10)), source)


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx_parts(mirrors: tuple[str, ...], sums: tuple[str, ...]) -> dict[str, Part]:
    return {
        name: Part(sha256, (f"{name}.gz", name), tuple(f"{mirror}{name}.gz" for mirror in mirrors))
        for name, sha256 in zip(_IDX_FILES, sums, strict=True)
    }


MNIST = _idx_parts(
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

FASHION_MNIST = _idx_parts(
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


def _cifar_part(batch: str, sha256: str) -> Part:
    member = f"cifar-10-batches-py/{batch}"
    archive = "cifar-10-python.tar.gz"
    return Part(
        sha256, (member, batch, f"{archive}!{member}"), (f"https://www.cs.toronto.edu/~kriz/{archive}",)
    )


# The sums of the batches inside cifar-10-python.tar.gz (md5 c58f30108f718f92721af3b95e74349a); their md5s
# begin c99cafc1, d4bba439, 54ebc095, 634d1841, 482c414d and, for the test batch, 40351d58.
CIFAR10 = {
    batch: _cifar_part(batch, sha256)
    for batch, sha256 in {
        "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    }.items()
}


def _idx_dataset(name: str, parts: dict[str, Part], class_names: Iterable[str], source: str) -> Dataset:
    data = contents(name, parts)
    train, test = (
        parse_idx_pair(data[images], data[labels], (images, labels))
        for images, labels in (_IDX_FILES[:2], _IDX_FILES[2:])
    )
    return _dataset(name, train, test, class_names, source)


def _mnist() -> Dataset:
    source = (
        "MNIST, http://yann.lecun.com/exdb/mnist/, no licence stated by the authors; "
        "LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998"
    )
    return _idx_dataset("mnist", MNIST, map(str, range(10)), source)


def _fashion_mnist() -> Dataset:
    source = (
        "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist, MIT; Xiao et al., arXiv:1708.07747"
    )
    clothes = ("t-shirt/top", "trouser", "pullover", "dress", "coat")
    others = ("sandal", "shirt", "sneaker", "bag", "ankle boot")
    return _idx_dataset("fashion_mnist", FASHION_MNIST, clothes + others, source)


def _cifar10() -> Dataset:
    data = contents("cifar10", CIFAR10)
    batches = {name: parse_cifar_batch(data.pop(name), name) for name in CIFAR10}
    test = batches.pop("test_batch")
    train = {key: np.concatenate([batch[key] for batch in batches.values()]) for key in ("inputs", "labels")}
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    source = (
        "CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html, no licence stated by the author; "
        "Krizhevsky, Learning multiple layers of features from tiny images, 2009"
    )
    return _dataset("cifar10", train, test, names, source)


def _isbi2012() -> Dataset:
    return _dataset("isbi2012", *isbi2012.isbi2012(), ("membrane", "cell"), isbi2012.SOURCE)


def _japanese_vowels() -> Dataset:
    train, test = japanese_vowels.japanese_vowels()
    return _dataset("japanese_vowels", train, test, japanese_vowels.SPEAKERS, japanese_vowels.SOURCE)


_SETS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "isbi2012": _isbi2012,
    "japanese_vowels": _japanese_vowels,
}


def load(name: str) -> Dataset:
    """A published set of labelled images or sequences.

    Args:
        name: ``"digits"``, ``"mnist"``, ``"fashion_mnist"`` or ``"cifar10"``; ``"isbi2012"``, whose labels
            are of pixels; or ``"japanese_vowels"``, sequences of 12 numbers from 9 speakers.

    Returns:
        The `Dataset`: ``inputs`` uint8 [N, H, W, C] in 0..255, ``labels`` int32 [N], or of pixels [N, H, W].
        Inputs that are sequences: ``sequence`` float32 [N, T, D] and ``lengths`` int32 [N].

    Raises:
        ValueError: if there is no such set, or a file that was found is not what was published.
        FileNotFoundError: if it is not on this machine and cannot be downloaded; the message says what to put
            where.

    Example:
        >>> digits = load("digits")
        >>> digits.train["inputs"].shape, digits.test["labels"].shape
        ((1437, 8, 8, 1), (360,))
    """
    return maker(name, "load", _SETS)()
