"""What devices say to one another in a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jdl.train import hlo

LEAST = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
"""Bytes that one of n devices sends at least, for a byte of its result."""
KINDS = tuple(LEAST)
"""Operations by which devices exchange arrays."""

_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_CHAIN = re.compile(r'\bchain_id="(\d+)"')


class Traffic(NamedTuple):
    """What one run of a program exchanges between devices.

    Attributes:
        times: how many exchanges.
        bytes: of their results, on one device.
        sent: bytes that one device sends for them, by the algorithm that sends the least: of a group of n, an
            all-gather or all-to-all (n - 1) / n of its result, a reduce-scatter n - 1 times its result, an
            all-reduce as one and then the other, a permutation its result.
    """

    times: int
    bytes: int
    sent: int


def collectives(hlo_text: str) -> dict[str, Traffic]:
    """Counts the exchanges between devices in a compiled program.

    An asynchronous pair of operations, or a chain of them that a TPU overlaps with other work, is one
    exchange. What is done in a loop counts as often as the loop turns, where that is written in the program:
    in XLA's own notes, or as the constant that its condition compares a counter with; otherwise once. Of the
    branches of a condition all are counted. A TPU's "all-reduce-scatter" is a reduce-scatter.

    Args:
        hlo_text: the optimised program, ``jax.jit(f).lower(...).compile().as_text()``.

    Returns:
        By kind, of `KINDS`, those that occur.

    Raises:
        ValueError: for a text that is no such program, or groups of devices that are written in no known way.

    Reference:
        Chan, Heimlich, Purkayastha and Van de Geijn, "Collective communication: theory, practice, and
        experience", 2007, for the least that is sent.

    Example:
        >>> text = '''HloModule f, num_partitions=8
        ...
        ... ENTRY %main (p: f32[8]) -> f32[64] {
        ...   %p = f32[8]{0} parameter(0)
        ...   ROOT %all-gather = f32[64]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8]
        ... }
        ... '''
        >>> collectives(text)
        {'all-gather': Traffic(times=1, bytes=256, sent=224)}
    """
    computations, entry = hlo.parse(hlo_text)
    if not entry:
        raise ValueError("the text is no compiled program: it must have one computation marked ENTRY")
    times: dict[str, int] = defaultdict(int)
    _walk(entry, 1, computations, times)
    counts = [
        int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", hlo_text.split("\n", 1)[0])
    ]
    # By chain, every link of which says what the whole of it gives.
    found: dict[tuple[str, str], Traffic] = {}
    for name, runs in times.items():
        for i, (kind, size, attributes) in enumerate(_exchanges(name, computations[name])):
            chain = _CHAIN.search(attributes)
            n = _group(attributes, math.prod(counts))
            sent = size * LEAST[kind](n)
            found[kind, chain[0] if chain else f"{name} {i}"] = Traffic(runs, runs * size, round(runs * sent))
    sums = {kind: [traffic for (k, _), traffic in found.items() if k == kind] for kind in KINDS}
    return {
        kind: Traffic(*(sum(figures) for figures in zip(*each, strict=True)))
        for kind, each in sums.items()
        if each
    }


def _group(attributes: str, devices: int) -> int:
    """How many devices take part in an exchange with one another."""
    written = re.search(r"\breplica_groups=(.*)", attributes)
    if written is None:
        return devices
    text = written[1]
    if listed := re.match(r"\{(?:\{([\d,]*)\}|\})", text):  # {{0,1},{2,3}}; {} for all in one
        return len(listed[1].split(",")) if listed[1] else devices
    if counted := re.match(r"\[\d+,(\d+)\]<=", text):  # [groups,size]<=[...]
        return int(counted[1])
    if named := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):  # mesh['x'=2,'y'=4], ... {'y'}
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        # Part of an axis reads 'x':(1)2, of which the last is its size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    raise ValueError(f"the groups of devices of an exchange are written in no known way: {text[:80]}")


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
    """Kind, bytes of the result, and attributes of each exchange of a computation."""
    for operation in computation.values():
        kind = operation.kind.removesuffix("-start").removeprefix("ragged-")
        if kind not in KINDS:
            continue
        result = operation.shape
        if operation.kind.endswith("-start") and kind != "all-reduce":
            result = hlo.entries(result)[1]  # The first is what goes in.
        if kind == "all-reduce" and "all-reduce-scatter" in name:
            kind, result = "reduce-scatter", next(o.shape for o in computation.values() if o.is_root)
        yield kind, hlo.contents(result), operation.attributes
