"""Texts as published: running text, sentences with a class, sentences with their translation.

Files are found, downloaded and verified as `jdl.data.sources` says. ``tiny_shakespeare`` comes with the
package: 1,115,394 characters of Shakespeare's plays (public domain), as collected by Karpathy for char-rnn;
the first 90 % train and the last 10 % validate, as in nanoGPT.
"""

from __future__ import annotations

import functools
import lzma
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jdl.data.batches import fingerprint
from jdl.data.download import Part, contents
from jdl.data.names import LOADED_BY, maker
from jdl.data.sentences import Sentences, sentences


class Text(NamedTuple):
    """A published text, split as those who report results on it do.

    Attributes:
        name: what `load_text` calls it.
        train: the text to learn from.
        validation: the text to choose by.
        test: the text to report on; None where the set has none.
        fingerprint: sha256 over the three.
        source: provenance, licence and citation, in one line.
    """

    name: str
    train: str
    validation: str
    test: str | None
    fingerprint: str
    source: str


class Pairs(NamedTuple):
    """Sentences and their translations, one for one.

    Attributes:
        source: N sentences of one language.
        target: N sentences of the other.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]


class Parallel(NamedTuple):
    """A published set of translations.

    Attributes:
        name: what `load_parallel` calls it.
        languages: those of source and target.
        train: to learn from.
        validation: to choose by.
        tests: to report on, by name.
        fingerprint: sha256 over all sentences.
        provenance: licence and citation, in one line.
    """

    name: str
    languages: tuple[str, str]
    train: Pairs
    validation: Pairs
    tests: dict[str, Pairs]
    fingerprint: str
    provenance: str


def _wikitext_part(stem: str, sha256: str) -> Part:
    archive = "wikitext-2-v1.zip"
    member = f"wikitext-2/wiki.{stem}.tokens"
    places = (f"{stem}.txt.xz", f"{stem}.txt", f"wiki.{stem}.tokens", member, f"{archive}!{member}")
    urls = (
        f"https://wikitext.smerity.com/{archive}",
        f"https://s3.amazonaws.com/research.metamind.io/wikitext/{archive}",
        f"https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/{stem}.txt",
    )
    return Part(sha256, places, urls)


WIKITEXT2 = {
    stem: _wikitext_part(stem, sha256)
    for stem, sha256 in {
        "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    }.items()
}

_MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"

MULTI30K = {
    name: Part(sha256, (f"{name}.gz", name), (f"{_MULTI30K_URL}{name}.gz",))
    for name, sha256 in {
        "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
        "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
        "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
        "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
        "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
        "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
        "test_2017_flickr.en": "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98",
        "test_2017_flickr.de": "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081",
        "test_2017_mscoco.en": "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2",
        "test_2017_mscoco.de": "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22",
    }.items()
}


def _fingerprint(*parts: str) -> str:
    return fingerprint([np.frombuffer(part.encode(), np.uint8) for part in parts])


def _text(name: str, train: str, validation: str, test: str | None, source: str) -> Text:
    return Text(name, train, validation, test, _fingerprint(train, validation, test or ""), source)


def _tiny_shakespeare() -> Text:
    path = Path(str(resources.files("jdl.data") / "tiny_shakespeare.txt.xz"))
    text = lzma.decompress(path.read_bytes()).decode()
    cut = len(text) * 9 // 10
    source = (
        "Shakespeare's plays, public domain, https://github.com/karpathy/char-rnn; Karpathy, char-rnn, 2015"
    )
    return _text("tiny_shakespeare", text[:cut], text[cut:], None, source)


def _wikitext2() -> Text:
    data = {stem: part.decode() for stem, part in contents("wikitext2", WIKITEXT2).items()}
    source = (
        "WikiText-2, from Wikipedia, CC BY-SA 3.0; "
        "Merity, Xiong, Bradbury and Socher, Pointer sentinel mixture models, arXiv:1609.07843"
    )
    return _text("wikitext2", data["train"], data["valid"], data["test"], source)


def _multi30k() -> Parallel:
    data = {name: part.decode() for name, part in contents("multi30k", MULTI30K).items()}

    def pairs(stem: str) -> Pairs:
        source, target = (
            tuple(line.strip() for line in data[f"{stem}.{language}"].strip("\n").split("\n"))
            for language in ("en", "de")
        )
        if len(source) != len(target):
            raise ValueError(f"multi30k, {stem}: {len(source)} English and {len(target)} German sentences")
        return Pairs(source, target)

    tests = {
        "test2016": pairs("test_2016_flickr"),
        "test2017": pairs("test_2017_flickr"),
        "mscoco2017": pairs("test_2017_mscoco"),
    }
    provenance = (
        "Multi30k, https://github.com/multi30k/dataset, for research, not for commerce (from Flickr30K); "
        "Elliott, Frank, Sima'an and Specia, Multi30K: multilingual English-German image descriptions, 2016"
    )
    whole = _fingerprint(*(data[name] for name in MULTI30K))
    return Parallel("multi30k", ("en", "de"), pairs("train"), pairs("val"), tests, whole, provenance)


_TEXTS: dict[str, Callable[[], Text]] = {"tiny_shakespeare": _tiny_shakespeare, "wikitext2": _wikitext2}
_SENTENCES = {name: functools.partial(sentences, name) for name in LOADED_BY["load_sentences"]}
_PARALLEL = {"multi30k": _multi30k}


def load_text(name: str) -> Text:
    """A published text.

    Args:
        name: ``"tiny_shakespeare"`` (characters) or ``"wikitext2"`` (words, with ``<unk>`` for rare ones; one
            space between words, and the end of a line is the ``<eos>`` that published perplexities count).

    Returns:
        The `Text`.

    Raises:
        ValueError: if there is no such text, or a file that was found is not what was published.
        FileNotFoundError: if it is not on this machine and cannot be downloaded; the message says what to put
            where.

    Example:
        >>> text = load_text("tiny_shakespeare")
        >>> len(text.train), len(text.validation), text.train[:14]
        (1003854, 111540, 'First Citizen:')
    """
    return maker(name, "load_text", _TEXTS)()


def load_sentences(name: str) -> Sentences:
    """A published set of sentences to classify.

    Args:
        name: ``"sst2"``, ``"sst5"`` (each with training, validation and test sentences; only whole sentences,
            no phrases), ``"trec"`` (training and test), or ``"mr"``, ``"subj"``, ``"cr"``, ``"mpqa"`` (one
            set, for ten-fold cross-validation).

    Returns:
        The `Sentences`.

    Raises:
        ValueError: if there is no such set, or a file that was found is not what was published.
        FileNotFoundError: if it is not on this machine and cannot be downloaded; the message says what to put
            where.

    Reference:
        Kim, "Convolutional neural networks for sentence classification", 2014, table 1.
    """
    return maker(name, "load_sentences", _SENTENCES)()


def load_parallel(name: str) -> Parallel:
    """A published set of translations.

    Args:
        name: ``"multi30k"``: 29,000 descriptions of photos, English to German, with 1,014 to choose by and
            the test sets ``test2016``, ``test2017`` (1,000 each) and ``mscoco2017`` (461).

    Returns:
        The `Parallel` set, its sentences as they were written: not lower-cased, not split into words.

    Raises:
        ValueError: if there is no such set, or a file that was found is not what was published.
        FileNotFoundError: if it is not on this machine and cannot be downloaded; the message says what to put
            where.
    """
    return maker(name, "load_parallel", _PARALLEL)()
