"""What devices say to one another in a compiled program, read from its text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
"""Operations by which devices exchange arrays."""

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|token|opaque|(?:bf|f|s|u|c)\d+(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?[\w.-]+ = (.+)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r"^s32\[\]\S* constant\((\d+)\)")


class Traffic(NamedTuple):
    """How often one run of a program does something, and the bytes that come out of it on each device."""

    times: int
    bytes: int


class _Instruction(NamedTuple):
    type: str
    operation: str
    rest: str


class _Computation(NamedTuple):
    name: str
    is_entry: bool
    instructions: list[_Instruction]
    root: str


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
    computations = {computation.name: computation for computation in _parse(hlo_text)}
    entries = [computation for computation in computations.values() if computation.is_entry]
    if len(entries) != 1:
        raise ValueError("the text is no compiled program: it must have one computation marked ENTRY")
    times: dict[str, int] = defaultdict(int)
    _walk(entries[0], 1, computations, times)
    # By channel, since every link of a chain of asynchronous operations names the exchange it belongs to.
    found: dict[tuple[str, str], Traffic] = {}
    for name, runs in times.items():
        for i, (kind, size, channel) in enumerate(_exchanges(computations[name])):
            key = kind, channel or f"{name} {i}"
            found[key] = max(found.get(key, Traffic(0, 0)), Traffic(runs, runs * size))
    sums = {kind: [traffic for (k, _), traffic in found.items() if k == kind] for kind in KINDS}
    return {
        kind: Traffic(sum(x.times for x in each), sum(x.bytes for x in each))
        for kind, each in sums.items()
        if each
    }


def _parse(text: str) -> Iterator[_Computation]:
    current: _Computation | None = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = _Computation(header[2], bool(header[1]), [], "")
        elif line.startswith("}") and current is not None:
            yield current
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[1])
            current.instructions.append(instruction)
            if line.lstrip().startswith("ROOT "):
                current = current._replace(root=instruction.type)


def _instruction(text: str) -> _Instruction:
    """``TYPE OPERATION(...), ...``, where the type of several results is in parentheses, with spaces."""
    end = _closing(text) if text.startswith("(") else text.index(" ") if " " in text else len(text)
    operation, _, rest = text[end:].strip().partition("(")
    return _Instruction(text[:end], operation, rest)


def _closing(text: str) -> int:
    """Where the parenthesis that a text begins with is closed."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _walk(
    computation: _Computation, runs: int, computations: dict[str, _Computation], times: dict[str, int]
) -> None:
    """Adds up how often a computation, and those it calls, run."""
    times[computation.name] += runs
    for _, operation, rest in computation.instructions:
        if operation.endswith(("-done", "-update")):
            continue  # They call again, by name, what was started.
        turns = _trips(rest, computations) if operation == "while" else 1
        for one, several in _CALLED.findall(rest):
            for name in [one, *several.split(",")]:
                called = computations.get(name.strip().lstrip("%"))
                if called is not None:
                    _walk(called, runs * turns, computations, times)


def _trips(rest: str, computations: dict[str, _Computation]) -> int:
    """How often a loop turns, 1 where its program does not say."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.-]+)", rest)
    test = computations.get(condition[1]) if condition else None
    if test is None or not test.instructions or "direction=LT" not in test.instructions[-1].rest:
        return 1
    bounds = [_BOUND.match(f"{x.type} {x.operation}({x.rest}") for x in test.instructions]
    numbers = [int(bound[1]) for bound in bounds if bound]
    return numbers[0] if len(numbers) == 1 else 1


def _exchanges(computation: _Computation) -> Iterator[tuple[str, int, str]]:
    """Kind, bytes and channel of each exchange of a computation."""
    for type_, operation, rest in computation.instructions:
        kind = operation.removesuffix("-start").removeprefix("ragged-")
        if kind not in KINDS:
            continue
        result = type_
        if operation.endswith("-start") and kind != "all-reduce":
            result = _second(type_)  # The first is what goes in.
        if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
            kind, result = "reduce-scatter", computation.root
        channel = _CHANNEL.search(rest)
        yield kind, _size(result), channel[1] if channel else ""


def _second(type_: str) -> str:
    """The second entry of a type ``(a, b, ...)``."""
    inner, depth, start, parts = type_[1:-1], 0, 0, []
    for i, character in enumerate(inner):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(inner[start:i])
            start = i + 1
    parts.append(inner[start:])
    return parts[1] if len(parts) > 1 else type_


def _size(type_: str) -> int:
    """The bytes of all arrays in a type."""
    bits = 0
    for dtype, dimensions in _SHAPE.findall(type_):
        elements = 1
        for size in re.findall(r"\d+", dimensions):
            elements *= int(size)
        width = _BITS.get(dtype)
        bits += elements * (int(re.findall(r"\d+", dtype)[0]) if width is None else width)
    return -(-bits // 8)
