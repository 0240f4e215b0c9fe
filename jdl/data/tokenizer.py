"""From text to ids of tokens, and back: characters, bytes and words; `jdl.data.bpe` has subwords.

A tokenizer is a pair of pure functions and what a model must know of them. Text is only ever text: no words
in it become special tokens unless that is asked for, so that a document cannot end itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

UNKNOWN = "<unk>"
"""The special token that stands for what a tokenizer of characters or words has not seen."""


Specials = bool | Literal["around"]
"""What of special tokens a text gets: none, all that it names besides those around it, or those around it."""


class Tokenizer(NamedTuple):
    """What makes ids of text and text of ids.

    Attributes:
        encode: ``text, specials=False -> int32 [n]``. With ``specials="around"`` a tokenizer that puts some
            around a text (BERT's ``[CLS]``) does so; with ``specials=True``, besides, names of special tokens
            in the text are these tokens.
        encode_batch: the same for a list of texts, on all cores where the tokenizer can.
        decode: ``ids, specials=False -> text``, without the special tokens unless these are asked for. Bytes
            that are no UTF-8 become U+FFFD.
        vocab_size: V; ids are 0 to V - 1.
        specials: ids of the special tokens by name.
        description: all of it as JSON: `to_json`.
    """

    encode: Callable[..., np.ndarray]
    encode_batch: Callable[..., list[np.ndarray]]
    decode: Callable[..., str]
    vocab_size: int
    specials: dict[str, int]
    description: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The tokenizer as a dictionary that JSON takes, for `from_json`."""
        return self.description

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that gave this description.

        Raises:
            ValueError: if it describes none.
        """
        kind = description.get("kind") if isinstance(description, Mapping) else None
        if kind == "hugging_face":
            from jdl.data.bpe import hugging_face

            return hugging_face(description.get("tokenizer", {}))
        if kind not in _MAKERS:
            raise ValueError(f"a tokenizer's kind is one of {', '.join(_MAKERS)}, hugging_face; got {kind!r}")
        try:
            return _MAKERS[kind](**{name: x for name, x in description.items() if name != "kind"})
        except TypeError as error:
            raise ValueError(f"this describes no tokenizer of {kind}: {error}") from None

    @property
    def fingerprint(self) -> str:
        """What identifies it: sha256 over its description, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        kind = self.description["kind"].replace("_", " ")
        specials = f", with {' '.join(self.specials)}" if self.specials else ""
        return f"<Tokenizer: {kind}, {self.vocab_size} tokens{specials}>"


def character_tokenizer(text: str | Sequence[str], specials: Sequence[str] = ()) -> Tokenizer:
    """A token for each character of a text, in the order of Unicode, then the special tokens.

    Args:
        text: what has all the characters there will be.
        specials: names of special tokens; with `UNKNOWN` among them it stands for all other characters,
            which are an error otherwise.

    Raises:
        ValueError: if there are no characters or a special token comes twice.

    Example:
        >>> tokenizer = character_tokenizer("hello", specials=["<eos>"])
        >>> tokenizer.encode("hole").tolist(), tokenizer.decode([2, 3, 4]), tokenizer.specials
        ([1, 3, 2, 0], 'lo', {'<eos>': 4})
    """
    return _characters("".join(sorted({character for part in text for character in part})), specials)


def byte_tokenizer(specials: Sequence[str] = ()) -> Tokenizer:
    """A token for each of the 256 bytes of UTF-8, then the special tokens: any text, in ids below 256.

    Example:
        >>> byte_tokenizer().encode("né").tolist()
        [110, 195, 169]
    """
    return _tokenizer(
        {"kind": "bytes", "specials": list(specials)},
        [bytes([i]) for i in range(256)],
        _numbered(specials, 256),
        _encode_bytes,
    )


def word_tokenizer(
    texts: str | Iterable[str],
    *,
    specials: Sequence[str] = ("<pad>", UNKNOWN),
    min_count: int = 1,
    max_words: int | None = None,
    lower: bool = False,
    newline: str = "",
) -> Tokenizer:
    """A token for each word of some texts, words being what white space separates; `decode` puts one space.

    Args:
        texts: what has the words, a text or many.
        specials: names of special tokens, which have the first ids; with `UNKNOWN` among them it stands for
            all other words, which are an error otherwise.
        min_count: how often a word must come to have a token.
        max_words: how many words have one, the commonest; None for all.
        lower: make texts lower-case.
        newline: the special token that the end of a line is, such as the ``<eos>`` of WikiText; "" where it
            is white space like any other.

    Returns:
        The tokenizer, words in the order of how common they are, and alphabetically where that is equal.

    Raises:
        ValueError: if no words are left, or ``newline`` is none of the special tokens.

    Example:
        >>> tokenizer = word_tokenizer("the cat and the dog")
        >>> tokenizer.encode("the bird and the cat").tolist()
        [2, 1, 3, 2, 4]
        >>> tokenizer.decode([2, 5])
        'the dog'
    """
    counts: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        counts.update(_words_of(_checked_text(text), lower))
    for special in specials:
        del counts[special]
    common = sorted((word for word, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
    return _words(common[:max_words], specials, lower, newline)


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int], specials: bool = False) -> Iterator[str]:
    """Text as its tokens come: for each id what is new, "" while a character is incomplete.

    What comes out, joined, is ``tokenizer.decode(ids, specials)`` (but where decoding changes what it gave
    before, as WordPiece's does that closes the gaps around an apostrophe).

    Args:
        tokenizer: any.
        ids: ids one at a time, as a model generates them.
        specials: as in ``decode``.

    Yields:
        One text an id, and a last one if the ids end within a character.

    Example:
        >>> list(decode_stream(byte_tokenizer(), "né!".encode()))
        ['n', '', 'é', '!']
    """
    # The last ids that were told stay, since they may shape what follows: a word that begins a text has no
    # space before it.
    held: list[int] = []
    told, text = 0, ""
    for token in ids:
        held.append(int(token))
        now = tokenizer.decode(held, specials)
        if now.endswith("\ufffd") or len(now) <= len(text):
            yield ""
            continue
        yield now[len(text) :]
        held = held[told:]
        told, text = len(held), tokenizer.decode(held, specials)
    rest = tokenizer.decode(held, specials)[len(text) :]
    if rest:
        yield rest


def _checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"text must be a string; got {type(text).__name__}")
    return text


def _utf(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is half a surrogate pair, {text[error.start]!r}: the text "
            "was decoded wrongly"
        ) from None


def checked_ids(ids: Any, vocab_size: int) -> np.ndarray:
    """Ids as an integer array [n].

    Raises:
        ValueError: if they are no integers [n], or one is outside the vocabulary.
    """
    found = np.asarray(ids)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise ValueError(f"ids must be integers [n]; got {found.dtype} of shape {found.shape}")
    outside = (found < 0) | (found >= vocab_size)
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"id {found[at]}, at position {at}, lies outside 0..{vocab_size - 1}")
    return found.astype(np.int64)


def _numbered(specials: Sequence[str], start: int) -> dict[str, int]:
    if len(set(specials)) != len(specials) or not all(specials):
        raise ValueError(f"names of special tokens must be different and not empty; got {list(specials)}")
    return {name: start + i for i, name in enumerate(specials)}


def _characters(characters: str, specials: Sequence[str]) -> Tokenizer:
    if not characters:
        raise ValueError("a tokenizer of characters needs a text that has some")
    numbered = _numbered(specials, len(characters))
    points = np.frombuffer(_utf(characters, "utf-32-le"), "<u4")
    return _tokenizer(
        {"kind": "characters", "characters": characters, "specials": list(specials)},
        [character.encode() for character in characters],
        numbered,
        functools.partial(_encode_characters, points, numbered.get(UNKNOWN)),
    )


def _words(words: Sequence[str], specials: Sequence[str], lower: bool, newline: str) -> Tokenizer:
    if not words:
        raise ValueError("a tokenizer of words needs texts that have some")
    numbered = _numbered(specials, 0)
    if newline and newline not in numbered:
        raise ValueError(f"newline must be one of the special tokens {', '.join(specials)}; got {newline!r}")
    table = {word: len(numbered) + i for i, word in enumerate(words)}
    settings = {"specials": list(specials), "lower": lower, "newline": newline}
    return _tokenizer(
        {"kind": "words", "words": list(words), **settings},
        [word.encode() for word in words],
        numbered,
        functools.partial(_encode_words, table, numbered.get(UNKNOWN), lower, numbered.get(newline)),
        separator=b" ",
        kept={numbered[newline]: b"\n"} if newline else {},
    )


_MAKERS: dict[str, Callable[..., Tokenizer]] = {
    "characters": _characters,
    "bytes": byte_tokenizer,
    "words": _words,
}


def _tokenizer(
    description: dict[str, Any],
    pieces: list[bytes],
    specials: dict[str, int],
    plain: Callable[[str], np.ndarray],
    separator: bytes = b"",
    kept: Mapping[int, bytes] | None = None,
) -> Tokenizer:
    """A tokenizer whose tokens are ``pieces`` in order, the special ones where their ids say.

    Args:
        description: its own.
        pieces: what each token but the special ones decodes to.
        specials: ids by name.
        plain: ``text -> int32 [n]`` of a text without special tokens.
        separator: what `decode` puts between tokens.
        kept: what special tokens decode to that are part of the text.
    """
    size = len(pieces) + len(specials)
    rest = iter(pieces)
    names = {i: name.encode() for name, i in specials.items()}
    spelled = [names[i] if i in names else next(rest) for i in range(size)]
    text = [(kept or {}).get(i, b"") if i in names else piece for i, piece in enumerate(spelled)]
    hidden = frozenset(names) - frozenset(kept or {})
    encode = functools.partial(_encode, plain, specials)
    return Tokenizer(
        encode,
        functools.partial(_encode_batch, encode),
        functools.partial(_decode, spelled, text, hidden, separator),
        size,
        specials,
        description,
    )


def checked_specials(specials: Any) -> Specials:
    """What was asked of special tokens.

    Raises:
        ValueError: if it is none of False, True and "around".
    """
    if specials not in (False, True, "around"):
        raise ValueError(f'specials is False, True or "around"; got {specials!r}')
    return specials


def _encode(
    plain: Callable[[str], np.ndarray], names: Mapping[str, int], text: str, specials: Specials = False
) -> np.ndarray:
    _checked_text(text)
    if not (checked_specials(specials) is True and names):
        return plain(text)
    either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    parts = re.split(f"({either})", text)
    ids = [np.array([names[part]], np.int32) if part in names else plain(part) for part in parts]
    return np.concatenate(ids)


def _encode_batch(
    encode: Callable[..., np.ndarray], texts: Sequence[str], specials: Specials = False
) -> list[np.ndarray]:
    return [encode(text, specials) for text in _several(texts)]


def _several(texts: Sequence[str]) -> Sequence[str]:
    """Texts, once it is known that they are not one, whose characters would be taken for texts."""
    if isinstance(texts, str):
        raise ValueError("encode_batch takes several texts and was given one: put it into [ ], or use encode")
    return texts


def _decode(
    spelled: Sequence[bytes],
    text: Sequence[bytes],
    hidden: frozenset[int],
    separator: bytes,
    ids: Any,
    specials: bool = False,
) -> str:
    found = checked_ids(ids, len(spelled)).tolist()
    pieces = [spelled[i] for i in found] if specials else [text[i] for i in found if i not in hidden]
    return separator.join(pieces).decode("utf-8", errors="replace")


def _encode_bytes(text: str) -> np.ndarray:
    return np.frombuffer(_utf(text, "utf-8"), np.uint8).astype(np.int32)


def _encode_characters(points: np.ndarray, unknown: int | None, text: str) -> np.ndarray:
    found = np.frombuffer(_utf(text, "utf-32-le"), "<u4")
    ids = np.minimum(np.searchsorted(points, found), len(points) - 1)
    missing = points[ids] != found
    if missing.any():
        if unknown is None:
            at = int(missing.argmax())
            raise ValueError(
                f"character {at} of the text, {text[at]!r}, is none that the tokenizer has; the special "
                f"token {UNKNOWN!r} would stand for it"
            )
        ids = np.where(missing, unknown, ids)
    return ids.astype(np.int32)


def _words_of(text: str, lower: bool) -> list[str]:
    return (text.lower() if lower else text).split()


def _encode_words(
    table: Mapping[str, int], unknown: int | None, lower: bool, newline: int | None, text: str
) -> np.ndarray:
    ids: list[int] = []
    lines = text.split("\n") if newline is not None else [text]
    for i, line in enumerate(lines):
        if i and newline is not None:
            ids.append(newline)
        for word in _words_of(line, lower):
            found = table.get(word, unknown)
            if found is None:
                raise ValueError(
                    f"the word {word!r} is none that the tokenizer has; the special token {UNKNOWN!r} would "
                    "stand for it"
                )
            ids.append(found)
    return np.array(ids, np.int32)
