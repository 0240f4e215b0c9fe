"""How time and memory of a training step grow with the work, and with which exponent they should.

Each axis makes one thing larger and keeps the rest. Time is measured, a few steps a point; memory is what the
compiler lays out on one device (arguments, results and temporaries), operations are counted in the program.
The exponent is the slope of a least-squares line through the logarithms of all but the smallest points.

``python -m experiments.benchmarks.growth AXIS`` measures one axis in a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.harness import apart
from experiments.benchmarks.steps import program_of

STEPS = 5
"""Steps timed at each point."""
TITLE = "How a training step grows with its work"
NOTE = (
    "The exponent b of cost = a size^b, a least-squares line through the logarithms of all but the smallest "
    f"points. Of time, the shortest of {STEPS} steps at each; of memory, what the compiler lays out on one "
    "device; of operations, those of products, counted in the program, on all devices together."
)


class Axis(NamedTuple):
    """Something that makes the work larger.

    Attributes:
        title: what grows, and of what.
        sizes: how large it is at each point.
        make: size to a learner and a batch.
        seconds: the exponent that time should come to.
        memory: the exponent that memory should come to.
        devices: whether the size is the number of devices that the state and the batch are split over.
    """

    title: str
    sizes: tuple[int, ...]
    make: Callable[[int], tuple[Any, Any]]
    seconds: float
    memory: float
    devices: bool = False


class Curve(NamedTuple):
    """What was measured along an axis.

    Attributes:
        name: of the axis.
        sizes: of the points.
        seconds: shortest time of a step.
        memory: bytes on one device.
        flops: operations of products in a step, on all devices together.
    """

    name: str
    sizes: list[int]
    seconds: list[float]
    memory: list[int]
    flops: list[int]

    @property
    def exponents(self) -> dict[str, float]:
        """The fitted exponents of time, memory and operations."""
        return {what: exponent(self.sizes, getattr(self, what)) for what in ("seconds", "memory", "flops")}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The b of the least-squares fit log value = a + b log size, without the smallest quarter of the sizes.

    Args:
        sizes: increasing and positive, at least 2.
        values: positive.

    Raises:
        ValueError: if there are fewer than two points, or one that is not positive.

    Example:
        >>> round(exponent([1, 2, 4, 8], [9.0, 12.0, 48.0, 192.0]), 6)
        2.0
    """
    if len(sizes) < 2 or len(sizes) != len(values) or min(*sizes, *values) <= 0:
        raise ValueError(f"an exponent needs two points or more, all positive; got {sizes} and {values}")
    start = min(len(sizes) // 4, len(sizes) - 2)
    x, y = (np.log(np.asarray(each[start:], np.float64)) for each in (sizes, values))
    return float(np.polyfit(x, y, 1)[0])


def _mlp(batch_size: int, *widths: int) -> tuple[Any, Any]:
    import optax

    from jdl import learners, models, tasks

    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(batch_size, widths[0])).astype(np.float32),
        "labels": rng.integers(0, widths[-1], batch_size).astype(np.int32),
    }
    task = tasks.classification(models.MLP(widths[1:]))
    return learners.gradient(task, optax.adam(1e-3)), batch


def _gpt(
    batch_size: int,
    T: int,
    V: int,
    width: int,
    chunk: int | None = None,
    blocks: int | None = None,
    depth: int = 1,
) -> tuple[Any, Any]:
    import optax

    from jdl import learners, models, tasks

    tokens = np.random.default_rng(0).integers(0, V, (batch_size, T + 1)).astype(np.int32)
    model = models.gpt(vocab_size=V, context=T, width=width, depth=depth, num_heads=2, chunk=blocks)
    learner = learners.gradient(tasks.next_token(model, chunk=chunk), optax.adam(1e-3))
    return learner, {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}


def _points(n: int) -> tuple[Any, Any]:
    import optax

    from jdl import learners, models, tasks

    _, batch = _mlp(64, 256, 10)
    task = tasks.classification(models.MLP((256, 10)))
    rates = learners.grid(rate=list(np.geomspace(1e-4, 1e-2, n)))
    return learners.sweep(lambda rate: learners.gradient(task, optax.adam(rate)), rates), batch


AXES = {
    "width": Axis(
        "width of an MLP of 3 layers", (256, 512, 1024, 2048), lambda n: _mlp(64, n, n, n, 10), 2, 2
    ),
    "depth": Axis("layers of an MLP of width 256", (4, 8, 16, 32), lambda n: _mlp(64, *[256] * n, 10), 1, 1),
    "blocks": Axis(
        "layers of a GPT of width 128", (4, 8, 16, 32), lambda n: _gpt(4, 64, 32, 128, depth=n), 1, 1
    ),
    "sequence": Axis(
        "tokens, all of attention's logits at once",
        (256, 512, 1024, 2048),
        lambda n: _gpt(1, n, 32, 32),
        2,
        2,
    ),
    "sequence_in_blocks": Axis(
        "tokens, attention in blocks of 128",
        (256, 512, 1024, 2048),
        lambda n: _gpt(1, n, 32, 32, blocks=128),
        2,
        1,
    ),
    "batch": Axis(
        "examples for an MLP of width 256", (512, 1024, 2048, 4096), lambda n: _mlp(n, 256, 256, 10), 1, 1
    ),
    "classes": Axis(
        "different tokens, cross-entropy of 16 positions at a time",
        (2048, 4096, 8192, 16384),
        lambda n: _gpt(4, 64, n, 64, chunk=16),
        1,
        1,
    ),
    "points": Axis("points of a sweep, one MLP of width 256 each", (4, 8, 16, 32), _points, 1, 1),
    "devices": Axis(
        "devices that split batch and state of an MLP of width 1024 and share the same cores",
        (1, 2, 4, 8),
        lambda n: _mlp(64, *[1024] * 4, 1024),
        0,
        -1,
        devices=True,
    ),
}


def point(axis: Axis, size: int, steps: int = STEPS) -> tuple[float, int, int]:
    """Seconds of a step, bytes on a device, and operations, at one point."""
    import jax

    from jdl.train.jaxprs import flops

    learner, batch = axis.make(size)
    mesh = f"fsdp:{size}" if axis.devices else "data:1"
    program, first = program_of(learner, lambda i: batch, mesh=mesh)
    trace, _ = program.traces["train"]
    traced = trace()
    layout = traced.lower().compile().memory_analysis()
    memory = layout.argument_size_in_bytes + layout.output_size_in_bytes + layout.temp_size_in_bytes
    memory -= layout.alias_size_in_bytes
    state, times = program.init(), []
    for i in range(steps + 1):
        start = time.perf_counter()
        state, _, _ = program.advance(state, program.zeros, first, i, i + 1)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    # The first compiles; the shortest of the others is the one least disturbed.
    return min(times[1:]), int(memory), int(sum(flops(traced.jaxpr.jaxpr).values()))


def curve(name: str, axis: Axis | None = None, steps: int = STEPS) -> Curve:
    """All points of an axis."""
    axis = axis or AXES[name]
    seconds, memory, operations = zip(*(point(axis, size, steps) for size in axis.sizes), strict=True)
    return Curve(name, list(axis.sizes), list(seconds), list(memory), list(operations))


def measure(names: Sequence[str] = ()) -> list[Curve]:
    """The curves of all axes, or of those named, each in a process of its own.

    Raises:
        RuntimeError: if one fails.
    """
    curves = []
    for name in names or AXES:
        environment = dict(os.environ)
        if AXES[name].devices:
            count = max(AXES[name].sizes)
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
        curves.append(Curve(**apart("experiments.benchmarks.growth", name, environment=environment)))
    return curves


def label(curve: Curve) -> str:
    """What grows, and from where to where."""
    return f"{AXES[curve.name].title}: {curve.sizes[0]} to {curve.sizes[-1]}"


def exponents(curve: Curve) -> dict[str, float]:
    """What is known beside the fitted exponent of time: by name, the other exponents and those expected."""
    axis, fitted = AXES[curve.name], curve.exponents
    return {
        "expected of time": axis.seconds,
        "memory": fitted["memory"],
        "expected of memory": axis.memory,
        "operations": fitted["flops"],
    }


def table(curves: Sequence[Curve]) -> str:
    """The exponents, fitted beside expected."""
    lines = [f"{'':22}{'time':>8}{'expected':>10}{'memory':>8}{'expected':>10}{'operations':>12}  what grows"]
    for each in curves:
        axis, fitted = AXES[each.name], each.exponents
        lines.append(
            f"{each.name:22}{fitted['seconds']:8.2f}{axis.seconds:10g}{fitted['memory']:8.2f}"
            f"{axis.memory:10g}{fitted['flops']:12.2f}  {label(each)}"
        )
    return "\n".join(lines) + "\n"


def write(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Writes the curves and their exponents as JSON, and draws them.

    Returns:
        The files' paths.
    """
    from matplotlib.figure import Figure

    from experiments import ledger

    folder.mkdir(parents=True, exist_ok=True)
    told = {
        each.name: {
            **each._asdict(),
            "title": AXES[each.name].title,
            "fitted": each.exponents,
            "expected": {"seconds": AXES[each.name].seconds, "memory": AXES[each.name].memory},
        }
        for each in curves
    }
    text = json.dumps({"device": ledger.device_description(), "curves": told}, indent=2)
    (folder / "growth.json").write_text(text + "\n", encoding="utf-8")
    figure = Figure(figsize=(3 * len(curves), 5.5), layout="constrained")
    grid = figure.subplots(2, len(curves), squeeze=False)
    for column, each in enumerate(curves):
        axis, fitted = AXES[each.name], each.exponents
        rows = (("seconds", 1e3, "ms a step", axis.seconds), ("memory", 2**-20, "MiB", axis.memory))
        for row, (what, unit, label, expected) in enumerate(rows):
            axes, values = grid[row, column], np.asarray(getattr(each, what)) * unit
            axes.loglog(each.sizes, values, "o-", label=f"fitted {fitted[what]:.2f}")
            line = values[-1] * (np.asarray(each.sizes) / each.sizes[-1]) ** expected
            axes.loglog(each.sizes, line, "--", color="gray", label=f"expected {expected:g}")
            axes.set_xticks(each.sizes, [str(size) for size in each.sizes])
            axes.set_xticks([], minor=True)
            axes.set_ylabel(label)
            axes.legend(fontsize=8)
        grid[0, column].set_title(each.name.replace("_", " "))
    figure.savefig(folder / "growth.png", dpi=120)
    return [folder / "growth.json", folder / "growth.png"]


if __name__ == "__main__":
    from jdl import train

    train.prepare()
    print(json.dumps(curve(sys.argv[1])._asdict()))
