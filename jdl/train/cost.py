"""What a compiled step costs, told before it is run: memory by kind, operations, traffic, and time.

The time is a roofline's: a device that multiplies, reads its memory and talks to its neighbours at its peak
rates, all three at once, takes as long as the slowest of them, and as long as the three together if nothing
overlaps. Both are lower bounds, since no program keeps to the peak rates.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", 2009.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jdl.core import PyTree
from jdl.train import hlo
from jdl.train.chips import GIB, Chip, chip_of
from jdl.train.collectives import Traffic, collectives
from jdl.train.jaxprs import flops
from jdl.train.sharding import FSDP

ASSUMPTIONS = (
    "products and convolutions, those of remat twice, at the chip's peak rate, elementwise work free",
    "what the compiled program reads and writes in the device's memory moved at its peak rate",
    "collectives as few bytes as they can be, at the peak rate of all links of a chip, without latency",
    "products split evenly over the devices",
    "of a loop whose number of turns is not known, one turn",
)


class Memory(NamedTuple):
    """Bytes on one device while a program runs.

    Attributes:
        parameters: of the model.
        optimizer: what the optimiser remembers.
        other: the rest of the state (running statistics, averages, keys).
        data: the batch, or the data that live on the device.
        results: what it gives that does not take the place of an argument.
        temporaries: what it needs in between.
        code: the program itself.
    """

    parameters: int
    optimizer: int
    other: int
    data: int
    results: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Cost(NamedTuple):
    """What one step of a program costs.

    Attributes:
        params: number of parameters.
        flops: operations in products and convolutions by type, on all devices together.
        traffic: bytes moved through the memory of one device.
        collectives: by kind, how many run, the bytes of their results, and those sent, on one device.
        sent: bytes that one device sends for all of them.
        memory: bytes on one device.
        chip: what the device can do.
        devices: how many there are.
        compiled_in: seconds that compiling took.
    """

    params: int
    flops: Mapping[str, int]
    traffic: int
    collectives: Mapping[str, Traffic]
    sent: int
    memory: Memory
    chip: Chip
    devices: int
    compiled_in: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds that each part of a step takes at the device's peak rates."""
        return {
            "products": sum(n / self.chip.peak(dtype) for dtype, n in self.flops.items()) / self.devices,
            "memory": self.traffic / self.chip.bandwidth,
            "collectives": self.sent / (self.chip.interconnect or math.inf),
        }

    @property
    def seconds(self) -> float:
        """The least that a step can take: as long as its slowest part."""
        return max(self.parts.values())

    @property
    def bound(self) -> str:
        """The slowest part."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def utilisation(self) -> float:
        """The share of the device's peak that products, those of remat too, reach in `seconds`: at most."""
        return self.parts["products"] / self.seconds if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """Operations a byte of traffic."""
        return sum(self.flops.values()) / self.devices / max(self.traffic, 1)

    @property
    def fits(self) -> bool:
        """Whether the device's memory holds it."""
        return self.memory.total <= self.chip.memory

    def sentence(self, steps: int = 1) -> str:
        """What a person wants to know before the first of so many steps."""
        each = f", {self.devices} devices" if self.devices > 1 else ""
        return (
            f"{self.params:,} parameters; a step is {si(sum(self.flops.values()))}FLOP, needs "
            f"{gib(self.memory.total)} of {gib(self.chip.memory)} a device, and takes at least "
            f"{duration(self.seconds)}, {duration(sum(self.parts.values()))} if nothing overlaps "
            f"({self.chip.name}{each}; {self.bound} at the peak rate "
            f"{'measured here' if 'measured' in self.chip.source else 'of the data sheet'})"
            + (f"; {steps:,} steps at least {duration(steps * self.seconds)}" if steps > 1 else "")
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            **{name: value for name, value in self._asdict().items() if name not in ("memory", "chip")},
            "collectives": {kind: each._asdict() for kind, each in self.collectives.items()},
            "memory": {**self.memory._asdict(), "total": self.memory.total, "capacity": self.chip.memory},
            "chip": self.chip._asdict(),
            "fits": self.fits,
            "intensity": self.intensity,
            "roofline": {
                "parts": self.parts,
                "seconds": self.seconds,
                "without_overlap": sum(self.parts.values()),
                "bound": self.bound,
                "utilisation": self.utilisation,
                "assumptions": list(ASSUMPTIONS),
            },
        }

    def __str__(self) -> str:
        """A table."""
        lines = [f"{self.params:,} parameters on {self.devices} x {self.chip.name}", ""]
        lines += ["memory of a device"]
        lines += [f"  {name:<14} {gib(size):>12}" for name, size in self.memory._asdict().items()]
        room = "fits" if self.fits else "DOES NOT FIT"
        lines += [f"  {'total':<14} {gib(self.memory.total):>12} of {gib(self.chip.memory)}: {room}", ""]
        lines += [f"products         {si(sum(self.flops.values()))}FLOP ({', '.join(self.flops)})"]
        lines += [f"memory traffic   {gib(self.traffic)} a device, {self.intensity:.1f} FLOP a byte"]
        for kind, (count, size, sent) in self.collectives.items():
            lines += [f"{kind:<16} {count} x, {gib(size)} a device, {gib(sent)} sent"]
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.parts.items())
        lines += [
            "",
            f"a step takes     at least {duration(self.seconds)} ({self.bound}); "
            f"{duration(sum(self.parts.values()))} if nothing overlaps ({parts})",
            f"utilisation      at most {100 * self.utilisation:.0f} % of the peak",
            f"peak rates       {self.chip.source}",
        ]
        if self.sent and not self.chip.interconnect:
            lines += ["not counted      exchanges: the rate between devices is not known"]
        return "\n".join(lines)


class DoesNotFit(ValueError):
    """A step needs more memory than the device has.

    Attributes:
        needed: bytes, as far as the compiler says.
        memory: bytes that there are.
        parts: in how many times as many parts a batch is estimated to fit; 1 where that is no cure.
    """

    def __init__(self, message: str, needed: float, memory: float, parts: int = 1) -> None:
        """Keeps the figures beside the sentence."""
        super().__init__(message)
        self.needed, self.memory, self.parts = needed, memory, parts


def cost(traced: Any, state: PyTree, mesh: Mesh, examples: int = 1) -> Cost:
    """Compiles a program, which its first call then need not do again, and says what it costs.

    Args:
        traced: the program for its arguments, from ``jax.jit(f).trace(...)``; the first is the state.
        state: the first argument: arrays or shapes, with shardings.
        mesh: the devices.
        examples: how many of a batch a device has, by which what does not fit may be divided.

    Raises:
        DoesNotFit: if the compiler finds that the device's memory does not hold it.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    chip = chip_of(mesh.devices.flat[0], owners.count(owners[0]))
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _refused(str(error), state, mesh, chip, examples) from None
    seconds = time.perf_counter() - start
    traffic, exchanged = _read(compiled, mesh)
    found = Cost(
        params=sum(math.prod(x.shape) for kind, x in kinds(state) if kind == "parameters"),
        flops=flops(traced.jaxpr.jaxpr),
        traffic=traffic,
        collectives=exchanged,
        sent=sum(each.sent for each in exchanged.values()),
        memory=_memory(compiled, state),
        chip=chip,
        devices=mesh.size,
        compiled_in=seconds,
    )
    if not found.fits:
        raise _too_large(found.memory, found.memory.total, chip, mesh, examples)
    return found


def _read(compiled: Any, mesh: Mesh) -> tuple[int, Mapping[str, Traffic]]:
    """Bytes moved through a device's memory, and what devices exchange."""
    try:
        text = compiled.as_text()
        return hlo.traffic(text), collectives(text) if mesh.size > 1 else {}
    except (LookupError, TypeError, ValueError, StopIteration) as error:
        # A compiler that writes its programs in another way must keep nobody from training.
        warnings.warn(
            f"the compiled program cannot be read ({type(error).__name__}: {error}): loops are counted as "
            f"one turn, and what devices exchange not at all",
            stacklevel=2,
        )
        return int((compiled.cost_analysis() or {}).get("bytes accessed", 0)), {}


def kinds(state: PyTree) -> list[tuple[str, Any]]:
    """The arrays of a state, each with its kind: "parameters", "optimizer" or "other"."""

    def kind(path: str) -> str:
        if re.search(r"\bopt_state\b", path):
            return "optimizer"
        return "parameters" if re.search(r"\bparams\b", path) else "other"

    return [(kind(jax.tree_util.keystr(path)), x) for path, x in jax.tree_util.tree_leaves_with_path(state)]


def _sizes(state: PyTree, formats: PyTree = None) -> dict[str, int]:
    """Bytes of a state on one device, by kind; with the formats it has there, filled up to whole tiles."""
    found = {"parameters": 0, "optimizer": 0, "other": 0}
    arrays = kinds(state)
    known = [getattr(each, "layout", None) for each in jax.tree.leaves(formats)]
    layouts = known if len(known) == len(arrays) else [None] * len(arrays)
    for (kind, x), layout in zip(arrays, layouts, strict=True):
        shape = list(x.sharding.shard_shape(x.shape))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            found[kind] += 8 * math.prod(shape)
            continue
        if layout is not None and layout.tiling:
            for axis, n in zip(reversed(layout.major_to_minor), reversed(layout.tiling[0]), strict=False):
                shape[axis] = -(-shape[axis] // n) * n
        found[kind] += math.prod(shape) * x.dtype.itemsize
    return found


def _memory(compiled: Any, state: PyTree) -> Memory:
    analysis = compiled.memory_analysis()
    sizes = _sizes(state, compiled.input_formats[0][:1])
    if analysis is None:  # a backend that does not say; its state is known
        return Memory(**sizes, data=0, results=0, temporaries=0, code=0)
    return Memory(
        **sizes,
        data=max(0, analysis.argument_size_in_bytes - sum(sizes.values())),
        results=max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def _refused(message: str, state: PyTree, mesh: Mesh, chip: Chip, examples: int) -> DoesNotFit:
    """What the compiler says when it runs out of memory, in our words."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    said = [float(n) * units[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([KMGT])\b", message)]
    needed = max(said, default=chip.memory)
    memory = Memory(**_sizes(state), data=0, results=0, temporaries=0, code=0)
    memory = memory._replace(temporaries=max(0, int(needed) - memory.total))
    return _too_large(memory, needed, chip, mesh, examples)


def _too_large(memory: Memory, needed: float, chip: Chip, mesh: Mesh, examples: int) -> DoesNotFit:
    """Says what does not fit, and the nearest setting that is likely to, with so many examples a device."""
    named = ", ".join(f"{name} {gib(size)}" for name, size in memory._asdict().items() if size)
    state = memory.parameters + memory.optimizer
    rest = memory.total - memory.temporaries - state
    # Gradients are as large whatever the batch.
    gradients = min(memory.parameters, memory.temporaries)
    room = chip.memory - rest - state - gradients
    parts = (k for k in range(1, examples + 1) if examples % k == 0)
    fitting = next((k for k in parts if (memory.temporaries - gradients) / k <= room), None)
    if rest > chip.memory:
        cure = "what is no parameter and no optimizer state does not fit: leave the data on the host"
    elif fitting:
        cure = (
            f"a batch {fitting} times smaller is estimated to fit, or computing it in {fitting} times as "
            f"many parts (learners.gradient(..., accumulate=...)); so may bfloat16 and remat where they are "
            f"not in use"
        )
    else:
        shared = n = mesh.shape.get(FSDP, 1)
        while n < 2**16 and state * shared / n > (chip.memory - rest) / 2:
            n *= 2
        cure = f'the state alone leaves no room: share it over at least {n} devices, with mesh="{FSDP}:{n}"'
    has = f"a device ({chip.name}) has {gib(chip.memory)}"
    told = f"a step needs at least {gib(needed)} and {has}: {named}; {cure}"
    return DoesNotFit(told, needed, chip.memory, fitting or 1)


def gib(size: float) -> str:
    """Bytes in words.

    Example:
        >>> gib(3 * 2**29), gib(5000), gib(7e6)
        ('1.50 GiB', '4.9 KiB', '6.7 MiB')
    """
    if size >= GIB:
        return f"{size / GIB:,.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def si(count: float) -> str:
    """A count with a prefix, for the unit that follows.

    Example:
        >>> si(1.2345e12) + "FLOP"
        '1.23 TFLOP'
    """
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000 or prefix == "P":
            break
        count /= 1000
    return f"{count:.3g} {prefix}"


UNITS = (("h", 3600.0, 7200.0), ("min", 60.0, 120.0), ("s", 1.0, 1.0), ("ms", 1e-3, 1e-3), ("us", 1e-6, 0.0))
"""Units of time, their seconds, and from how many on they are used."""


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(0.01234), duration(2.5), duration(4e-6), duration(5400)
        ('12.3 ms', '2.50 s', '4.00 us', '90.0 min')
    """
    unit, size, _ = next(each for each in UNITS if seconds >= each[2])
    return f"{seconds / size:.{2 if seconds / size < 10 else 1}f} {unit}"
