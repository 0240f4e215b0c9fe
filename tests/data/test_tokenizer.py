"""Tokenizers: round trips of any text, against tiktoken and Hugging Face, and streams of characters."""

import base64
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data import (
    Tokenizer,
    byte_tokenizer,
    character_tokenizer,
    decode_stream,
    load_ranks,
    load_text,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    word_tokenizer,
)
from jdl.data.bpe import PATTERNS, _byte_characters, hugging_face

TEXT = load_text("tiny_shakespeare").validation[:20_000]
STRANGE = "naïve 😀 ½  \t\n\r\n don't 1234567 <eos> 中文 \u200d\ufffd e\u0301 I'LL\u00a0x   "


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXT.splitlines(keepends=True), 400, ["<pad>", "<eos>"])


@pytest.fixture(scope="module")
def every(bpe):
    return {
        "characters": character_tokenizer(TEXT + STRANGE, ["<eos>"]),
        "bytes": byte_tokenizer(["<eos>"]),
        "words": word_tokenizer(TEXT, specials=["<pad>", "<unk>", "<eos>"], newline="<eos>"),
        "bpe": bpe,
    }


def test_any_text_comes_back(bpe):
    tokenizers = [bpe, byte_tokenizer(["<eos>"])]

    @settings(max_examples=150, deadline=None)
    @given(st.text())
    def check(text):
        for tokenizer in tokenizers:
            ids = tokenizer.encode(text)
            assert ids.dtype == np.int32
            assert tokenizer.decode(ids) == text
            assert "".join(decode_stream(tokenizer, ids)) == text
            np.testing.assert_array_equal(tokenizer.encode_batch([text, "x"])[0], ids)

    check()


def test_real_and_strange_texts_come_back(every):
    for name, tokenizer in every.items():
        text = TEXT if name == "words" else TEXT + STRANGE
        ids = tokenizer.encode(text)
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
        expected = " ".join(text.replace("\n", " \n ").split(" ")).split() if name == "words" else text
        assert (tokenizer.decode(ids).split() if name == "words" else tokenizer.decode(ids)) == expected
    assert len(every["bpe"].encode(TEXT)) < 0.6 * len(TEXT)


def test_characters_are_numbered_as_nanogpt_does():
    text = load_text("tiny_shakespeare")
    tokenizer = character_tokenizer(text.train)
    table = {c: i for i, c in enumerate(sorted(set(text.train)))}
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode(text.validation[:1000]).tolist() == [table[c] for c in text.validation[:1000]]


def test_special_tokens_are_text_unless_asked_for(every):
    for tokenizer in every.values():
        eos = tokenizer.specials["<eos>"]
        text = "speak , <eos> speak"
        if "words" not in repr(tokenizer):
            assert eos not in tokenizer.encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = tokenizer.encode(text, specials=True).tolist()
        assert ids.count(eos) == 1
        assert "<eos>" in tokenizer.decode(ids, specials=True)
        assert "<eos>" not in tokenizer.decode(ids)
        np.testing.assert_array_equal(tokenizer.encode_batch([text], specials=True)[0], ids)
        if "words" not in repr(tokenizer):
            np.testing.assert_array_equal(tokenizer.encode(text, specials="around"), tokenizer.encode(text))
        with pytest.raises(ValueError, match="specials is False, True or \"around\"; got 'added'"):
            tokenizer.encode_batch([text], specials="added")


def test_json_and_pickle_give_the_same_tokenizer(every, tmp_path):
    for name, tokenizer in every.items():
        save_tokenizer(tokenizer, tmp_path / name)
        text = "speak , <eos> speak"
        for copy in (
            Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json()))),
            pickle.loads(pickle.dumps(tokenizer)),
            load_tokenizer(tmp_path / name),
        ):
            assert copy.fingerprint == tokenizer.fingerprint
            assert (copy.vocab_size, copy.specials) == (tokenizer.vocab_size, tokenizer.specials)
            for specials in (False, True):
                ids = tokenizer.encode(text, specials)
                np.testing.assert_array_equal(copy.encode(text, specials), ids)
                assert copy.decode(ids, specials) == tokenizer.decode(ids, specials)
    assert len({tokenizer.fingerprint for tokenizer in every.values()}) == len(every)
    assert repr(every["bytes"]) == "<Tokenizer: bytes, 257 tokens, with <eos>>"


def test_words():
    text = "b a a\nc b <unk> D d a\n"
    tokenizer = word_tokenizer([text, "e"], specials=["<unk>", "<eos>"], newline="<eos>", min_count=2)
    words = {0: "<unk>", 1: "<eos>", 2: "a", 3: "b"}
    assert tokenizer.vocab_size == 4
    ids = tokenizer.encode(text).tolist()
    assert [words[i] for i in ids] == ["b", "a", "a", "<eos>", "<unk>", "b", *["<unk>"] * 3, "a", "<eos>"]
    assert tokenizer.decode(ids) == "b a a \n b a \n"
    once, listed = (train_bpe(text, 300) for text in ("the cat the cat", ["the cat the cat"]))
    assert once.vocab_size == listed.vocab_size > 256
    lower = word_tokenizer(text, lower=True, max_words=3)
    assert lower.encode("A b D c <pad>").tolist() == [2, 3, 4, 1, 1]
    assert lower.encode("").shape == (0,)


def test_wikitext_has_the_published_vocabulary(official_data):
    official_data("wikitext2")
    text = load_text("wikitext2")
    tokenizer = word_tokenizer(text.train, specials=["<unk>", "<eos>"], newline="<eos>")
    assert tokenizer.vocab_size == 33_278
    parts = (text.train, text.validation, text.test)
    assert [len(tokenizer.encode(part)) for part in parts] == [2_088_628, 217_646, 245_569]


def test_characters_come_whole_out_of_a_stream(bpe):
    ids = byte_tokenizer().encode("é😀!")
    assert list(decode_stream(byte_tokenizer(), iter(ids))) == ["", "é", "", "", "", "😀", "!"]
    assert list(decode_stream(byte_tokenizer(), [195, 195])) == ["", "", "\ufffd\ufffd"]
    assert list(decode_stream(byte_tokenizer(), [255, 65])) == ["", "\ufffdA"]
    ids = bpe.encode(TEXT[:300] + STRANGE)
    parts = list(decode_stream(bpe, ids))
    assert "".join(parts) == TEXT[:300] + STRANGE
    assert len(parts) == len(ids)
    eos = bpe.specials["<eos>"]
    assert list(decode_stream(bpe, [eos, *bpe.encode("a"), eos])) == ["", "a", ""]


def metaspace():
    """A tokenizer of the kind that Llama and T5 have: a word carries the space before it."""
    vocabulary = [["<unk>", 0.0], ["\u2581a", -1.0], ["b", -1.0], ["\u2581", -2.0]]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    specials = [{"id": 0, "content": "<unk>", "special": True}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [{**special, **flags} for special in specials],
        "normalizer": None,
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False},
    }


def test_spaces_in_a_stream_and_no_truncation():
    tokenizer = hugging_face(metaspace())
    ids = tokenizer.encode("a ab b").tolist()
    assert ids == [1, 1, 2, 3, 2]
    assert tokenizer.decode(ids) == "a ab b"
    assert list(decode_stream(tokenizer, ids)) == ["a", " a", "b", " ", "b"]
    assert "".join(decode_stream(tokenizer, [1, 0, 1])) == tokenizer.decode([1, 0, 1]) == "a a"


def ranks_of(tokenizer):
    """The ranks of a byte-level tokenizer: its tokens but for the special ones, from 0."""
    byte = {character: i for i, character in enumerate(_byte_characters())}
    vocabulary = tokenizer.to_json()["tokenizer"]["model"]["vocab"]
    ordinary = sorted(set(vocabulary) - set(tokenizer.specials), key=vocabulary.__getitem__)
    return {bytes(byte[c] for c in token): rank for rank, token in enumerate(ordinary)}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ranks_as_tiktoken_reads_them(bpe, pattern, tmp_path, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    published = pytest.importorskip("tiktoken_ext.openai_public")
    ranks = ranks_of(bpe)
    # The pattern is tiktoken's own, and needs none of the files that its ranks are fetched from.
    for reader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(published, reader, lambda *_, **__: ranks)
    encoding = {"gpt2": "gpt2", "cl100k": "cl100k_base", "o200k": "o200k_base"}[pattern]
    split = getattr(published, encoding)()["pat_str"]
    specials = {"<|endoftext|>": len(ranks) + 3}
    (tmp_path / "x.tiktoken").write_bytes(
        b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    )
    ours = load_ranks(tmp_path / "x.tiktoken", pattern, specials)
    theirs = tiktoken.Encoding("x", pat_str=split, mergeable_ranks=ranks, special_tokens=specials)
    assert ours.vocab_size == theirs.n_vocab
    assert ours.specials == specials

    def check(text):
        ids = ours.encode(text).tolist()
        assert ids == theirs.encode_ordinary(text)
        assert ours.decode(ids) == theirs.decode(ids) == text

    check(TEXT)
    check(STRANGE)
    check("HelloWORLD's camelCase I'LL ÀÉ\u0301x a/b//\n/ \u01c5ABC中文Ａ3456\n\n  x\t\t\n ")
    settings(max_examples=100, deadline=None)(given(st.text())(check))()
    marked = "to be<|endoftext|> or not"
    ids = ours.encode(marked, specials=True).tolist()
    assert ids == theirs.encode(marked, allowed_special="all")
    assert ours.decode(ids, specials=True) == marked
    assert ours.decode(ids) == "to be or not"


def test_older_folders_as_transformers_reads_them(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = ["Hello, naïve World! 中文 [MASK] x", "don't to be   or not", "THE cat\n😀", TEXT[:300]]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyzïTHE,!'中"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyzïHE"] + ["hello", "the", "to", "##ld"]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for own in (None, {"do_lower_case": False}, {"tokenizer_class": "BertTokenizer", "strip_accents": False}):
        if own is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(own))
        ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        assert ours.specials == dict(zip(words[:5], range(5), strict=True))
        for text in texts:
            assert ours.encode(text, specials=True).tolist() == theirs(text)["input_ids"]

    folder = tmp_path / "gpt2"
    folder.mkdir()
    model = train_bpe(TEXT.splitlines(), 400).to_json()["tokenizer"]["model"]
    vocabulary = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]), "utf-8"
    )
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*texts, "to be<|endoftext|> or not"):
        ids = ours.encode(text, specials=True).tolist()
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, specials=True) == text


def test_folders_that_say_too_little_are_refused(tmp_path):
    """Other families cut text in other ways, which the vocabulary does not say."""
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    message = r"has no tokenizer.json, .* AutoTokenizer.from_pretrained\(.*save_pretrained\("
    for config in ({}, {"model_type": "qwen2"}, {"model_type": "bert"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(FileNotFoundError, match=message):
            load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"the vocabulary in .* cannot be read: .*sep_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<new>": 9}')
    with pytest.raises(FileNotFoundError, match=message):
        load_tokenizer(tmp_path)


def test_hugging_face_agrees_with_transformers(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(bpe, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in (TEXT[:2000], STRANGE):
        assert bpe.encode(text, specials=True).tolist() == theirs(text)["input_ids"]
    # Trained before by the library itself, whose pre-tokenizer has the pattern built in.
    assert bpe.to_json()["tokenizer"]["pre_tokenizer"]["type"] == "Sequence"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(b"x"), "text must be a string; got bytes"),
        (lambda t: t.encode("a\ud800"), "character 1 of the text is half a surrogate pair"),
        (lambda t: t.encode_batch(["a", None]), "text must be a string; got NoneType"),
        (lambda t: t.encode_batch("abc"), "several texts and was given one"),
        (lambda t: t.decode([0, 10**6]), "id 1000000, at position 1, lies outside 0"),
        (lambda t: t.decode([-1]), "id -1, at position 0, lies outside"),
        (lambda t: t.decode([[1]]), r"ids must be integers \[n\]; got int64 of shape \(1, 1\)"),
        (lambda t: t.decode([0.5]), "ids must be integers"),
    ],
)
def test_bad_texts_and_ids(every, call, message):
    for name, tokenizer in every.items():
        if name == "words" and "surrogate" in message:
            continue  # a word that there is none of
        with pytest.raises(ValueError, match=message):
            call(tokenizer)
    for tokenizer in every.values():
        assert tokenizer.decode([]) == ""
        assert tokenizer.encode("").tolist() == []


def test_bad_tokenizers(tmp_path):
    for make, message in [
        (lambda: character_tokenizer(""), "needs a text that has some"),
        (lambda: character_tokenizer("ab").encode("abc"), "character 2 of the text, 'c', is none"),
        (lambda: character_tokenizer("ab", ["<s>", "<s>"]), "different and not empty"),
        (lambda: word_tokenizer("a", min_count=2), "needs texts that have some"),
        (
            lambda: word_tokenizer("a", newline="<eos>"),
            "newline must be one of the special tokens <pad>, <unk>",
        ),
        (lambda: word_tokenizer("a", specials=()).encode("b"), "the word 'b' is none that the tokenizer has"),
        (lambda: word_tokenizer([None]), "text must be a string"),
        (lambda: train_bpe(["a"], 256, ["<s>"]), "no room for the 256 bytes and 1 special tokens"),
        (lambda: train_bpe([], 300), "needs texts to learn from"),
        (lambda: train_bpe([""], 300), "needs texts to learn from"),
        (lambda: load_ranks({b"a": 0}, "gpt2"), "255 bytes have no token, for example byte 0"),
        (
            lambda: load_ranks({bytes([i]): i for i in range(256)}, "gpt2", {"<s>": 3}),
            "a rank of its own",
        ),
        (
            lambda: load_ranks({bytes([i]): i for i in range(256)}, "cl100k_base"),
            "pattern is one of gpt2, cl100k, o200k or a regular expression; got 'cl100k_base'",
        ),
        (lambda: train_bpe(["a"], 300, pattern="gpt4"), "pattern is one of .* got 'gpt4', a mere word"),
        (lambda: Tokenizer.from_json({"kind": "morse"}), "one of characters, bytes, words, hugging_face"),
        (lambda: Tokenizer.from_json([]), "got None"),
        (lambda: Tokenizer.from_json({"kind": "hugging_face"}), "description cannot be read"),
        (lambda: Tokenizer.from_json({"kind": "bytes", "more": 1}), "describes no tokenizer of bytes"),
        (lambda: hugging_face([1]), "is a dictionary; got list"),
        (lambda: hugging_face({"model": 3}), "description cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    assert character_tokenizer("ab", ["<unk>"]).encode("abc").tolist() == [0, 1, 2]
    for content, message in [
        (b"YQ== 0\n?? 1\n", "line 2: expected a token in base64"),
        (b"YQ==\n", "line 1"),
        (b"YQ== x\n", "line 1"),
    ]:
        (tmp_path / "ranks").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_ranks(tmp_path / "ranks", "gpt2")
    with pytest.raises(TypeError, match="pattern"):
        load_ranks(tmp_path / "ranks")
    for content, message in [
        (b"\xff\xfe", "no JSON"),
        (b"[1]", "holds no tokenizer"),
        (b'{"kind": "bytes", "more": 1}', "holds no tokenizer"),
        (b'{"kind": "words", "words": ["a"]}', "holds no tokenizer"),
    ]:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install -e \"\.\[text\]\""):
        train_bpe(["a"], 300)
    with pytest.raises(ImportError, match="text"):
        hugging_face({})
