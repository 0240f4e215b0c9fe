"""What the published sets are called, and which function loads each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")

LOADED_BY = {
    "load": ("digits", "mnist", "fashion_mnist", "cifar10", "isbi2012", "japanese_vowels"),
    "load_text": ("tiny_shakespeare", "wikitext2"),
    "load_sentences": ("mr", "sst2", "sst5", "trec", "subj", "cr", "mpqa"),
    "load_parallel": ("multi30k",),
}
"""Names of the sets, by the function of `jdl.data` that loads them."""


def maker(name: str, function: str, makers: Mapping[str, Callable[[], T]]) -> Callable[[], T]:
    """The function that makes a set.

    Args:
        name: of the set.
        function: which of `LOADED_BY` the user called.
        makers: its sets by name.

    Raises:
        ValueError: if there is no such set, naming the function that loads it or a set of a similar name.
    """
    if name in makers:
        return makers[name]
    for other, names in LOADED_BY.items():
        if name in names:
            raise ValueError(f"{name!r} is loaded by {other}")
    close = difflib.get_close_matches(name.lower().replace("-", "_"), makers, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{function} knows no set called {name!r}, there are {', '.join(makers)}{hint}")
