"""What devices say to one another in a compiled program, read from its text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jdl.train import hlo

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
"""Operations by which devices exchange arrays."""

_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")


class Traffic(NamedTuple):
    """How often one run of a program does something, and the bytes that come out of it on each device."""

    times: int
    bytes: int


def collectives(hlo_text: str) -> dict[str, Traffic]:
    """Counts the exchanges between devices in a compiled program.

    An asynchronous pair of operations, or a chain of them that a TPU overlaps with other work, is one
    exchange. What is done in a loop counts as often as the loop turns, where that is written in the program:
    in XLA's own notes, or as the constant that its condition compares a counter with; otherwise once. Of the
    branches of a condition all are counted. A TPU's "all-reduce-scatter" is a reduce-scatter.

    Args:
        hlo_text: the optimised program, ``jax.jit(f).lower(...).compile().as_text()``.

    Returns:
        By kind, of `KINDS`, those that occur: how often, and the bytes of their results on one device.

    Raises:
        ValueError: for a text that is no such program.

    Example:
        >>> text = '''HloModule f
        ...
        ... ENTRY %main (p: f32[8]) -> f32[64] {
        ...   %p = f32[8]{0} parameter(0)
        ...   ROOT %all-gather = f32[64]{0} all-gather(%p), channel_id=1, dimensions={0}
        ... }
        ... '''
        >>> collectives(text)
        {'all-gather': Traffic(times=1, bytes=256)}
    """
    computations, entry = hlo.parse(hlo_text)
    if not entry:
        raise ValueError("the text is no compiled program: it must have one computation marked ENTRY")
    times: dict[str, int] = defaultdict(int)
    _walk(entry, 1, computations, times)
    # By channel, since every link of a chain of asynchronous operations names the exchange it belongs to.
    found: dict[tuple[str, str], Traffic] = {}
    for name, runs in times.items():
        for i, (kind, size, channel) in enumerate(_exchanges(name, computations[name])):
            key = kind, channel or f"{name} {i}"
            found[key] = max(found.get(key, Traffic(0, 0)), Traffic(runs, runs * size))
    sums = {kind: [traffic for (k, _), traffic in found.items() if k == kind] for kind in KINDS}
    return {
        kind: Traffic(sum(x.times for x in each), sum(x.bytes for x in each))
        for kind, each in sums.items()
        if each
    }


def _walk(name: str, runs: int, computations: Mapping[str, hlo.Computation], times: dict[str, int]) -> None:
    """Adds up how often a computation, and those it calls, run."""
    times[name] += runs
    for operation in computations[name].values():
        if operation.kind.endswith(("-done", "-update")):
            continue  # They call again, by name, what was started.
        turns = hlo.turns(operation, computations) if operation.kind == "while" else 1
        for one, several in _CALLED.findall(operation.attributes):
            for called in [one, *several.split(",")]:
                called = called.strip().lstrip("%")
                if called in computations:
                    _walk(called, runs * turns, computations, times)


def _exchanges(name: str, computation: hlo.Computation) -> Iterator[tuple[str, int, str]]:
    """Kind, bytes and channel of each exchange of a computation."""
    for operation in computation.values():
        kind = operation.kind.removesuffix("-start").removeprefix("ragged-")
        if kind not in KINDS:
            continue
        result = operation.shape
        if operation.kind.endswith("-start") and kind != "all-reduce":
            result = hlo.entries(result)[1]  # The first is what goes in.
        if kind == "all-reduce" and "all-reduce-scatter" in name:
            kind, result = "reduce-scatter", next(o.shape for o in computation.values() if o.is_root)
        channel = _CHANNEL.search(operation.attributes)
        yield kind, hlo.contents(result), channel[1] if channel else ""
