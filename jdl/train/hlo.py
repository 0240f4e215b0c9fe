"""What a compiled program moves through a device's memory, read from its text.

The compiler's own count takes the body of a loop once, and the whole of a stacked array where a turn reads
one slice of it; here turns count, slices count as what they are, and arrays that a TPU keeps on the chip
(memory spaces other than its HBM) as nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
SKIPPED = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency", "domain",
}  # fmt: skip
"""Operations that move nothing."""

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class Operation(NamedTuple):
    """One operation of a program.

    Attributes:
        name: its name.
        kind: what it does ("fusion", "all-reduce", ...).
        shape: the text of its result's shape.
        operands: the names of what it takes.
        attributes: the text after its operands.
        is_root: whether its result is its computation's.
    """

    name: str
    kind: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def called(self, role: str) -> str | None:
        """The computation that it calls in a role ("calls", "body", ...)."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


Computation = dict[str, Operation]


def size(shape: str) -> int:
    """Bytes that a shape has in a device's memory, its tiles filled up; a tuple's are those of its arrays.

    Example:
        >>> size("(f32[4,100]{1,0:T(8,128)}, bf16[7]{0})")
        4110
        >>> size("f32[4,100]{1,0:T(8,128)S(1)}")
        0
    """
    return sum(_array_size(*found.groups(default="")) for found in _ARRAY.finditer(shape))


def contents(shape: str) -> int:
    """Bytes of the numbers in a shape, wherever and however they lie.

    Example:
        >>> contents("(f32[4,100]{1,0:T(8,128)S(1)}, bf16[7]{0})")
        1614
    """
    return sum(_array_size(dtype, dims, "") for dtype, dims, _ in _ARRAY.findall(shape))


def entries(shape: str) -> list[str]:
    """The shapes in a tuple's.

    Example:
        >>> entries("((f32[2,3]{1,0}, s32[]), bf16[7]{0})")
        ['(f32[2,3]{1,0}, s32[])', 'bf16[7]{0}']
    """
    found, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [each.strip() for each in found]


def _array_size(dtype: str, dims: str, layout: str) -> int:
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and re.search(r"S\([1-9]", layout):
        return 0
    sizes = [int(n.strip("<=")) for n in dims.split(",") if n]
    if tile and sizes:
        # The minor axes, in the order of the layout, fill whole tiles.
        order = [int(n) for n in layout.partition(":")[0].split(",") if n]
        for axis, n in zip(order, reversed(tile[1].split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(n)) * int(n)
    bits = BYTES[dtype] * 8 if dtype in BYTES else int((re.search(r"\d+", dtype) or ["32"])[0])
    return math.prod(sizes) * bits // 8


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program's text by name, and the name of the one that is entered."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = (_NAME.search(line) or re.search(r"([\w.\-]+)", line.removeprefix("ENTRY ")))[1]  # type: ignore[index]
            current = computations.setdefault(name, {})
            entry = name if line.startswith("ENTRY") else entry
        elif current is not None and " = " in line and line.startswith(" "):
            operation = _operation(line)
            current[operation.name] = operation
    return computations, entry


def _operation(line: str) -> Operation:
    left, _, right = line.strip().partition(" = ")
    shape, rest = _until_closed(right) if right.startswith("(") else right.split(" ", 1)
    kind, _, _ = rest.strip().partition("(")
    operands, attributes = _until_closed(rest.strip()[len(kind) :])
    names = tuple(_NAME.findall(operands))
    if kind in ("parameter", "constant"):
        names = (operands.strip("()"),)
    return Operation(
        left.removeprefix("ROOT ").lstrip("%"), kind, shape, names, attributes, left.startswith("ROOT")
    )


def _until_closed(text: str) -> tuple[str, str]:
    """Splits a text that starts with a parenthesis after the one that closes it."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _executed(
    computations: dict[str, Computation], name: str, times: int
) -> Iterator[tuple[Operation, Computation, int]]:
    """Every operation that runs outside of a fusion, the computation it is in, and how often it runs."""
    for operation in computations[name].values():
        if operation.kind == "while":
            turns_in_all = times * turns(operation, computations)
            yield from _executed(computations, operation.called("body") or "", turns_in_all)
        elif operation.kind == "conditional":
            # Branches differ little, or are the rare and the empty one: the one that moves most counts.
            listed = re.search(r"branch_computations=\{([^}]*)\}", operation.attributes)
            names = _NAME.findall(listed[1]) if listed else []
            names += [
                n for role in ("true_computation", "false_computation") if (n := operation.called(role))
            ]
            branches = [list(_executed(computations, branch, times)) for branch in names]
            yield from max(branches, key=lambda b: sum(t * moved(o, c, computations) for o, c, t in b))
        elif operation.kind == "call" or operation.kind == "async-start":
            yield from _executed(
                computations, operation.called("to_apply") or operation.called("calls") or "", times
            )
        else:
            yield operation, computations[name], times


def turns(operation: Operation, computations: Mapping[str, Computation]) -> int:
    """How often a loop runs: what the compiler says, or its counter is compared with; 1 where unknown."""
    said = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', operation.attributes)
    if said:
        return int(said[1])
    names, seen = [operation.called("condition") or ""], list[Operation]()
    while names:
        inside = list(computations[names.pop()].values())
        seen += inside
        names += [called for o in inside if (called := o.called("calls") or o.called("to_apply"))]
    compares = [o for o in seen if o.kind == "compare"]
    limits = [o.operands for o in seen if o.kind == "constant" and o.shape.startswith("s32[]")]
    if len(compares) == len(limits) == 1 and "direction=LT" in compares[0].attributes:
        return int(limits[0][0])
    return 1


def traffic(text: str) -> int:
    """Bytes that a program reads from and writes to a device's memory.

    Args:
        text: the text of a compiled program (``compiled.as_text()``).

    Returns:
        Bytes on one device; a loop whose number of turns is not known counts as one turn.
    """
    computations, entry = parse(text)
    return sum(
        times * moved(operation, around, computations)
        for operation, around, times in _executed(computations, entry, 1)
    )


def moved(operation: Operation, around: Computation, computations: dict[str, Computation]) -> int:
    """Bytes that one operation reads and writes."""
    kind = operation.kind
    if kind in SKIPPED or kind.endswith("-done") or "AllocateBuffer" in operation.attributes:
        return 0
    if kind == "copy-start":
        # Its result is the copy, what was copied, and a context.
        arrays = [found[0] for found in _ARRAY.finditer(operation.shape)]
        return sum(size(array) for array in arrays[:2])
    if kind == "all-gather-start":
        return sum(size(entry) for entry in entries(operation.shape)[:2])  # What goes in, and what comes out.
    if kind.endswith("-start"):
        return sum(size(around[name].shape) for name in operation.operands if name in around) * 2
    if kind in ("dynamic-slice", "slice", "gather"):
        return 2 * size(operation.shape)
    if kind in ("dynamic-update-slice", "scatter"):
        return 2 * size(around[operation.operands[1 if kind == "dynamic-update-slice" else -1]].shape)
    called = operation.called("calls") if kind == "fusion" else None
    read = 0
    for i, name in enumerate(operation.operands):
        if name in around:
            whole = size(around[name].shape)
            inside = computations.get(called or "")
            read += min(whole, _read_in(inside, i, computations)) if inside is not None else whole
    written = size(operation.shape)
    if called:
        written = min(written, _written_by(computations[called], computations))
    return read + written


def _read_in(computation: Computation, index: int, computations: dict[str, Computation]) -> int:
    """Bytes that a fusion reads of one of its parameters: less than all where it takes slices."""
    found = [o for o in computation.values() if o.kind == "parameter" and o.operands == (str(index),)]
    return sum(_read(computation, o, computations) for o in found)


def _read(computation: Computation, array: Operation, computations: dict[str, Computation]) -> int:
    total = 0
    for user in computation.values():
        if user.kind == "parameter" or array.name not in user.operands:
            continue
        place = user.operands.index(array.name)
        if user.kind in ("bitcast", "get-tuple-element", "reshape"):
            total += _read(computation, user, computations)
        elif user.kind in ("dynamic-slice", "slice", "gather") and place == 0:
            total += size(user.shape)
        elif user.kind == "dynamic-update-slice" and place == 0:
            total += 0
        elif user.kind == "fusion":
            total += _read_in(computations[user.called("calls") or ""], place, computations)
        else:
            return size(array.shape)
    return min(total, size(array.shape)) if array.kind != "bitcast" else total


def _written_by(computation: Computation, computations: dict[str, Computation]) -> int:
    """Bytes that a fusion writes: less than its result where that is an array updated in place."""

    def written(operation: Operation) -> int:
        if operation.kind == "tuple":
            return sum(written(computation[name]) for name in operation.operands)
        if operation.kind == "bitcast" and operation.operands[0] in computation:
            return min(size(operation.shape), written(computation[operation.operands[0]]))
        if operation.kind == "dynamic-update-slice":
            return size(computation[operation.operands[1]].shape)
        if operation.kind == "fusion":
            return _written_by(computations[operation.called("calls") or ""], computations)
        return size(operation.shape)

    return next(written(o) for o in computation.values() if o.is_root)
