"""Subwords: byte pair encoding, trained, and read as Hugging Face and tiktoken keep it.

All run in Hugging Face's `tokenizers`, an extra. Whatever its JSON describes is read as it is: WordPiece and
Unigram too.

Reference:
    Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units", 2016; of bytes:
    Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.2.
"""

from __future__ import annotations

import base64
import binascii
import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.tokenizer import (
    Specials,
    Tokenizer,
    _checked_text,
    _numbered,
    _several,
    _utf,
    checked_ids,
    checked_specials,
)

PATTERNS = {
    "gpt2": r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    "cl100k": (
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"""
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
    ),
    "o200k": (
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"""
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"""
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
        r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
    ),
}
"""How text is cut before pairs are merged, by name: GPT-2's way, that of GPT-3.5 and 4, that of GPT-4o."""


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = (),
    *,
    min_count: int = 2,
    pattern: str = "gpt2",
) -> Tokenizer:
    """Byte pair encoding of some texts: any text comes back as it was, and common words are one token.

    Args:
        texts: what to learn from, read once, one at a time; or one text.
        vocab_size: V, special tokens and the 256 bytes included; fewer where the texts have no more pairs.
        specials: names of special tokens, which have the first ids.
        min_count: how often a pair must come to be merged.
        pattern: how text is cut before: a name in `PATTERNS`, or a regular expression.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if V has no room for bytes and special tokens, there are no texts, or the pattern is a
            mere word that is no name in `PATTERNS`.
        ImportError: without the extra.

    Example:
        >>> tokenizer = train_bpe(["the cat", "the hat", "the bat"], 260, specials=["<eos>"])
        >>> ids = tokenizer.encode("the cat sat")
        >>> len(ids), tokenizer.decode(ids)
        (7, 'the cat sat')
    """
    library = _library()
    _numbered(specials, 0)
    if vocab_size < 256 + len(specials):
        raise ValueError(
            f"a vocabulary of {vocab_size} has no room for the 256 bytes and {len(specials)} special tokens"
        )
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = _byte_level(pattern)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=list(_byte_characters()),
        min_frequency=min_count,
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in [texts] if isinstance(texts, str) else texts:
            seen += bool(_checked_text(text))
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise ValueError("byte pair encoding needs texts to learn from; there are none, or all are empty")
    return hugging_face(json.loads(tokenizer.to_str()))


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer from a file: Hugging Face's ``tokenizer.json``, or what `save_tokenizer` wrote.

    Args:
        path: the file, or the folder with a ``tokenizer.json``; or, of BERT and GPT-2, the folder with what
            older releases have instead, ``vocab.txt``, or ``vocab.json`` and ``merges.txt``.

    Raises:
        ValueError: if the file holds no tokenizer.
        OSError: if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        folder, path = path, path / "tokenizer.json"
        if not path.is_file():
            return _from_vocabulary(folder)
    try:
        description = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} holds no tokenizer: it is no JSON ({error})") from None
    try:
        if isinstance(description, dict) and "kind" in description:
            return Tokenizer.from_json(description)
        return hugging_face(description)
    except ValueError as error:
        raise ValueError(f"{path} holds no tokenizer: {error}") from None


def _from_vocabulary(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of BERT or GPT-2 without a ``tokenizer.json``."""
    config, own = (
        json.loads(file.read_text("utf-8")) if (file := folder / name).is_file() else {}
        for name in ("config.json", "tokenizer_config.json")
    )
    model, kind = config.get("model_type"), own.get("tokenizer_class", "").removesuffix("Fast")

    def is_told(its_model: str, its_kind: str) -> bool:
        """Whether the files say so, by one name or both; another kind may cut text in another way."""
        return bool(model or kind) and model in (its_model, None) and kind in (its_kind, "")

    words, pairs = folder / "vocab.txt", (folder / "vocab.json", folder / "merges.txt")
    is_plain = not (folder / "added_tokens.json").exists()
    library = _library()
    try:
        if is_plain and words.is_file() and is_told("bert", "BertTokenizer"):
            made = library.BertWordPieceTokenizer(
                str(words),
                lowercase=own.get("do_lower_case", True),
                strip_accents=own.get("strip_accents"),
                handle_chinese_chars=own.get("tokenize_chinese_chars", True),
            )
            return hugging_face(json.loads(made.to_str()))
        if is_plain and all(file.is_file() for file in pairs) and is_told("gpt2", "GPT2Tokenizer"):
            made = library.Tokenizer(library.models.BPE.from_file(*map(str, pairs)))
            made.pre_tokenizer, made.decoder = _byte_level("gpt2")
            made.add_special_tokens(["<|endoftext|>"])
            return hugging_face(json.loads(made.to_str()))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"the vocabulary in {folder} cannot be read: {error}") from None
    raise FileNotFoundError(
        f"{folder} has no tokenizer.json, nor BERT's vocab.txt or GPT-2's vocab.json and merges.txt with a "
        'config.json that says so; transformers makes one: AutoTokenizer.from_pretrained("...")'
        f'.save_pretrained("{folder}")'
    )


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Writes a tokenizer: as Hugging Face's ``tokenizer.json`` where it can be, else as jdl's own JSON.

    Args:
        tokenizer: any.
        path: the file, or an existing folder for a ``tokenizer.json`` in it.

    Example:
        >>> import tempfile
        >>> from jdl.data import character_tokenizer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tokenizer(character_tokenizer("abc"), folder)
        ...     print(load_tokenizer(folder).encode("cab").tolist())
        [2, 0, 1]
    """
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    description = tokenizer.to_json()
    path.write_text(json.dumps(description.get("tokenizer", description), ensure_ascii=False), "utf-8")


def load_ranks(
    ranks: str | os.PathLike[str] | Mapping[bytes, int],
    pattern: str,
    specials: Mapping[str, int] | None = None,
) -> Tokenizer:
    """The tokenizer of tiktoken's ranks: bytes of each token, by which neighbours merge, lowest first.

    Args:
        ranks: a ``.tiktoken`` file (on each line a token in base64, a space and its rank), or token -> rank.
        pattern: how text is cut before, which the ranks do not say and which decides the ids: a name in
            `PATTERNS` (of ``cl100k_base.tiktoken``, "cl100k"), or a regular expression.
        specials: ids of the special tokens, such as {"<|endoftext|>": 50256}.

    Returns:
        The tokenizer; a token's id is its rank.

    Raises:
        ValueError: if the file is damaged, a byte has no token, an id comes twice, or the pattern is a mere
            word that is no name in `PATTERNS`.

    Example:
        >>> ranks = {bytes([i]): i for i in range(256)} | {b"he": 256, b"hel": 257}
        >>> load_ranks(ranks, "gpt2").encode("hello").tolist()
        [257, 108, 111]
    """
    if not isinstance(ranks, Mapping):
        ranks = _read_ranks(Path(ranks))
    if missing := [i for i in range(256) if bytes([i]) not in ranks]:
        raise ValueError(f"{len(missing)} bytes have no token, for example byte {missing[0]}")
    ids = [*ranks.values(), *(specials or {}).values()]
    if len(set(ids)) != len(ids) or min(ids) < 0:
        raise ValueError("every token and special token must have a rank of its own, 0 or more")
    characters = _byte_characters()

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    by_rank = sorted(ranks, key=ranks.__getitem__)
    parts = ((_parts(token, ranks), token) for token in by_rank if len(token) > 1)
    library = _library()
    model = library.models.BPE(
        # The special ones too: the library would number those that it does not know anew, without gaps.
        vocab={spelled(token): rank for token, rank in ranks.items()} | dict(specials or {}),
        merges=[(spelled(pair[0]), spelled(pair[1])) for pair, _ in parts if len(pair) == 2],
        # tiktoken looks a whole piece up before it merges.
        ignore_merges=True,
    )
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = _byte_level(pattern)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [
        {"id": i, "content": name, "special": True, **dict.fromkeys(_ADDED_FLAGS, False)}
        for name, i in (specials or {}).items()
    ]
    return hugging_face(description)


_ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected a token in base64, a space and its rank; got {line[:40]!r}"
            ) from None
    return ranks


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What ``token`` is merged from: its bytes, merged as far as tokens of lower rank go."""
    own = ranks[token]
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        merged = [ranks.get(a + b, own) for a, b in itertools.pairwise(parts)]
        lowest = min(merged)
        if lowest >= own:
            break
        at = merged.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@functools.cache
def _byte_characters() -> tuple[str, ...]:
    """The character that stands for each byte in byte-level vocabularies: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = iter(range(256, 512))
    return tuple(chr(byte if byte in seen else next(unseen)) for byte in range(256))


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError('subwords need tokenizers: pip install -e ".[text]"') from None
    return tokenizers


def _byte_level(pattern: str) -> tuple[Any, Any]:
    library = _library()
    if pattern not in PATTERNS and re.fullmatch(r"\w*", pattern):
        raise ValueError(
            f"pattern is one of {', '.join(PATTERNS)} or a regular expression; got {pattern!r}, a mere word"
        )
    cut = library.pre_tokenizers.Split(library.Regex(PATTERNS.get(pattern, pattern)), "isolated")
    to_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return library.pre_tokenizers.Sequence([cut, to_bytes]), library.decoders.ByteLevel()


class _Functions:
    """Encoding and decoding by `tokenizers`; pickles as its description."""

    def __init__(self, description: str) -> None:
        self.description = description

    def __reduce__(self) -> Any:
        return _Functions, (self.description,)

    @functools.cached_property
    def literal(self) -> Any:
        """Takes names of special tokens for text."""
        tokenizer = _library().Tokenizer.from_str(self.description)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def special(self) -> Any:
        """Takes them for special tokens."""
        tokenizer = _library().Tokenizer.from_str(self.description)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def size(self) -> int:
        return max(self.literal.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, specials: Specials = False) -> np.ndarray:
        _utf(_checked_text(text), "utf-8")
        tokenizer = self.special if checked_specials(specials) is True else self.literal
        return np.array(tokenizer.encode(text, add_special_tokens=bool(specials)).ids, np.int32)

    def encode_batch(self, texts: Sequence[str], specials: Specials = False) -> list[np.ndarray]:
        for text in _several(texts):
            _utf(_checked_text(text), "utf-8")
        tokenizer = self.special if checked_specials(specials) is True else self.literal
        found = tokenizer.encode_batch(list(texts), add_special_tokens=bool(specials))
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Any, specials: bool = False) -> str:
        found = checked_ids(ids, self.size).tolist()
        return self.literal.decode(found, skip_special_tokens=not specials)


def hugging_face(description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a ``tokenizer.json`` describes; truncation and padding in it are left alone.

    Args:
        description: the JSON.

    Raises:
        ValueError: if it describes none.
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"a tokenizer's description is a dictionary; got {type(description).__name__}")
    functions = _Functions(json.dumps(description))
    try:
        added = functions.literal.get_added_tokens_decoder()
        size = functions.size
    except ImportError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"the tokenizer's description cannot be read: {error}") from None
    specials = {token.content: i for i, token in sorted(added.items()) if token.special}
    return Tokenizer(
        functions.encode,
        functions.encode_batch,
        functions.decode,
        size,
        specials,
        {"kind": "hugging_face", "tokenizer": dict(description)},
    )
