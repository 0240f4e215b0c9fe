"""Published texts: counts as their authors give them, in every packing, and damage that is named."""

import gzip
import hashlib
import lzma
import zipfile

import numpy as np
import pytest

from jdl.data import load, load_parallel, load_sentences, load_text, names, sentences, sources, text_sources
from jdl.data.sentences import parse_labelled


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
        (load, "fashion-mnist", "there are digits, mnist, .*; did you mean 'fashion_mnist'"),
        (load, "CIFAR-10", "did you mean 'cifar10'"),
        (load, "zzz", "japanese_vowels$"),
        (load, "sst2", "'sst2' is loaded by load_sentences"),
        (load_sentences, "SST-2", "did you mean 'sst2'"),
        (load_parallel, "wmt14", "load_parallel knows no set called 'wmt14', there are multi30k$"),
        (load, "wikitext2", "'wikitext2' is loaded by load_text"),
        (load_text, "digits", "'digits' is loaded by load$"),
        (load_text, "shakespeare", "there are tiny_shakespeare, wikitext2; did you mean 'tiny_shakespeare'"),
    ],
)
def test_unknown_names(function, name, message):
    with pytest.raises(ValueError, match=message):
        function(name)


def test_every_set_is_listed_by_the_function_that_loads_it():
    tables = [sources._SETS, text_sources._TEXTS, text_sources._SENTENCES, text_sources._PARALLEL]
    assert [tuple(table) for table in tables] == list(names.LOADED_BY.values())


def test_wikitext_in_every_packing(own, monkeypatch):
    data = {stem: f" \n = {stem} = \n".encode() for stem in text_sources.WIKITEXT2}
    small(text_sources.WIKITEXT2, data, monkeypatch)
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


def test_wikitext2(official_data):
    official_data("wikitext2")
    text = load_text("wikitext2")
    tokens = [part.replace("\n", " <eos> ").split() for part in (text.train, text.validation, text.test)]
    assert [len(part) for part in tokens] == [2_088_628, 217_646, 245_569]
    assert len(set(tokens[0])) == 33_278


def test_multi30k(official_data):
    official_data("multi30k")
    multi30k = load_parallel("multi30k")
    assert multi30k.languages == ("en", "de")
    parts = [multi30k.train, multi30k.validation, *multi30k.tests.values()]
    assert [len(part.source) for part in parts] == [29_000, 1_014, 1_000, 1_000, 461]
    assert all(len(part.source) == len(part.target) for part in parts)
    assert all(sentence for part in parts for side in part for sentence in side)
    assert multi30k.train.source[0] == "Two young, White males are outside near many bushes."
    assert multi30k.train.target[0].startswith("Zwei junge weiße Männer sind im Freien")


def test_multi30k_that_does_not_match_line_by_line(own, monkeypatch):
    data = dict.fromkeys(text_sources.MULTI30K, b"one\ntwo\n")
    data["val.de"] = b"eins\n"
    small(text_sources.MULTI30K, data, monkeypatch)
    (own / "multi30k").mkdir(parents=True)
    for name, content in data.items():
        (own / "multi30k" / f"{name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="multi30k, val: 2 English and 1 German sentences"):
        load_parallel("multi30k")
    (own / "multi30k" / "val.de.gz").write_bytes(b"\x1f\x8bdamaged")
    with pytest.raises(ValueError, match="val.de.gz is damaged"):
        load_parallel("multi30k")


SIZES = {
    "mr": (10_662, None, None),
    "sst2": (6_920, 872, 1_821),
    "sst5": (8_544, 1_101, 2_210),
    "trec": (5_452, None, 500),
    "subj": (10_000, None, None),
    "cr": (3_775, None, None),
    "mpqa": (10_606, None, None),
}


@pytest.mark.parametrize("name", SIZES)
def test_sentences(official_data, name):
    official_data("sentence_classification")
    found = load_sentences(name)
    parts = (found.train, found.validation, found.test)
    assert tuple(part and len(part.texts) for part in parts) == SIZES[name]
    for part in filter(None, parts):
        assert part.labels.dtype == np.int32
        assert part.labels.shape == (len(part.texts),)
        assert np.unique(part.labels).tolist() == list(range(len(found.class_names)))
        assert sum(not text for text in part.texts) == {"cr": 4, "mpqa": 3}.get(name, 0)
        assert all("\n" not in text and text == text.strip() for text in part.texts)
    known = {
        "mr": ("simplistic , silly and tedious .", "negative"),
        "sst2": ("one long string of cliches .", "negative"),
        "sst5": ("no movement , no yuks , not much of anything .", "negative"),
        "trec": ("How far is it from Denver to Aspen ?", "number"),
        "subj": ("smart and alert , thirteen conversations about one thing is a small gem .", "subjective"),
        "cr": ("many of our disney movies do n 't play on this dvd player .", "negative"),
        "mpqa": ("failing to support", "negative"),
    }
    text, label = known[name]
    (where,) = [part for part in parts if part and text in part.texts][:1]
    assert found.class_names[where.labels[where.texts.index(text)]] == label


def test_sentences_in_latin_1_keep_their_lines():
    data = "0 caf\xe9 \x85 fin .\n1 ok\n".encode("latin-1")
    assert parse_labelled(data).texts == ("caf\xe9 \x85 fin .", "ok")
    assert parse_labelled("1 na\xefve".encode()).texts == ("na\xefve",)


@pytest.mark.parametrize("line", ["2 too large", "x no label", "1", "", "-1 negative"])
def test_damaged_sentences(line):
    with pytest.raises(ValueError, match="x, line 2: expected a label from 0 to 1"):
        parse_labelled(f"0 fine\n{line}\n".encode(), "x")


def test_urls_name_files_that_are_looked_for():
    for parts in (text_sources.WIKITEXT2, text_sources.MULTI30K, sentences.PARTS):
        for part in parts.values():
            assert len(part.sha256) == 64
            files = {place.partition("!")[0] for place in part.places}
            assert {url.rpartition("/")[2] for url in part.urls} <= files
