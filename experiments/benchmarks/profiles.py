"""Where the time of a step goes: kinds of operations and the longest ones, by jdl's and PyTorch's profilers.

``python -m experiments.benchmarks.profiles WORKLOAD CONTENDER FOLDER`` is a process that profiles one
contender; ``python -m experiments.benchmarks gpt --profile`` sets jdl beside PyTorch.

All is measured on one core: there operations run one after another, and their times add up to that of the
step. On several, XLA:CPU hands convolutions to other threads and its profiler sees only the handing over.
"""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import decoding
from experiments.benchmarks.contenders import contender
from experiments.benchmarks.harness import Contender, apart
from experiments.benchmarks.workloads import WORKLOADS, read
from experiments.torch_models import device
from jdl.train import hlo

CONVOLUTIONS, GRADIENTS = "convolutions", "gradients of convolutions"
PRODUCTS = "products, attention's included"
SUMS = "sums and maxima over axes, normalisation"
COPIES = "copies and transpositions"
ELSE = "elementwise, and all else"
OUTSIDE = "outside the model: optimiser, checks, metrics, choice of tokens"
KINDS = (CONVOLUTIONS, GRADIENTS, PRODUCTS, SUMS, COPIES, ELSE, OUTSIDE)

WHOLE = "the whole step on one core, without the profiler"
NOTE = (
    "On one core, where operations run one after another. Rows of kinds are sums over operations; below them "
    "the longest operations of each. An operation's time is its own, without those that it calls."
)
SECONDS, ROUNDS, LONGEST = 2.0, 3, 8
"""How long a contender is profiled, how often, and how many of its operations are named."""

TRIED = {
    "gpt": "Products alone, 2048 tokens, width 192, GFLOP/s on an Intel Xeon: XLA 234 to 298 "
    "forward, 237 to 313 for inputs, 172 to 243 for kernels; PyTorch 359 to 380, 353 to "
    "397, 322 to 339. Tried and no faster: XLA's other products for dots, its other "
    "schedule, vectors of 512 bits, huge pages, two devices (the same time).",
    "vit": "Its products are those of the GPT's width: see gpt_profile for what was tried of "
    "them. GELU keeps its input alone (less memory, the same time); residual sums are "
    "computed once (528 to 450 ms).",
    "bert": "Products alone; residual sums computed once change nothing here.",
    "decoding": "Attention's products of one query are computed row by row on one thread. Tried and "
    "no faster: sums of products (455 us against 148), keys transposed (169), rows split "
    "over two devices.",
    "resnet20": "Tried: see resnet20_convolutions; convolutions through oneDNN's custom call (jaxlib "
    "has no target for it), residual sums computed once (287 to 324 ms, not adopted). "
    "Adopted: what comes before a convolution is computed once (370 to 300 ms).",
    "resnet18": "Tried: see resnet18_convolutions; residual sums computed once (491 to 524 ms, not adopted).",
    "unet": "Its convolutions are XLA's own, where PyTorch's are oneDNN's, which XLA cannot call: see "
    "resnet20_convolutions for what was tried of them.",
    "mobilenet_v2": "Tried: residual sums computed once (297 to 423 ms, not adopted). Adopted: depthwise "
    "convolutions as sums of shifted images, 1x1 ones as products.",
}
"""What was tried of workloads that a peer is faster at."""


class Found(NamedTuple):
    """What a profile came to.

    Attributes:
        step: milliseconds of a step without the profiler, by round.
        kinds: by kind, milliseconds in a step, by round.
        operations: the longest operations by name, likewise.
        counts: how often each of those runs in a step.
    """

    step: list[float]
    kinds: dict[str, list[float]]
    operations: dict[str, list[float]]
    counts: dict[str, float]


class Spent(NamedTuple):
    """An operation: what it is called, its kind, milliseconds of its own, and how often it ran."""

    name: str
    kind: str
    milliseconds: float
    times: int


def own_times(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Microseconds of each operation without those inside it, and how often it ran.

    Args:
        events: complete events of Chrome's trace format, with ``ts``, ``dur``, ``tid`` and, where they are an
            operation's, ``args["hlo_op"]``.

    Example:
        >>> def event(name, ts, dur):
        ...     return {"ph": "X", "tid": 1, "ts": ts, "dur": dur, "args": {"hlo_op": name}}
        >>> own_times([event("while.1", 0, 10), event("dot.2", 1, 3), event("dot.2", 5, 4)])
        {'while.1': (3.0, 1), 'dot.2': (7.0, 2)}
    """
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            threads[event.get("pid"), event["tid"]].append(event)
    own: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, int] = collections.Counter()
    for found in threads.values():
        inside: list[tuple[float, str]] = []
        # Of two that begin together, the longer holds the other.
        for event in sorted(found, key=lambda e: (e["ts"], -e["dur"])):
            name, start, duration = event["args"]["hlo_op"], event["ts"], event["dur"]
            while inside and inside[-1][0] <= start:
                inside.pop()
            if inside:
                own[inside[-1][1]] -= duration
            own[name] += duration
            counts[name] += 1
            inside.append((start + duration, name))
    return {name: (float(own[name]), counts[name]) for name in own}


def instructions(text: str) -> dict[str, tuple[str, str]]:
    """By operation of a compiled program: its kind, and where in the model it comes from.

    Args:
        text: the program, as XLA prints it.
    """
    computations, _ = hlo.parse(text)
    found = {}
    for operation in itertools.chain.from_iterable(each.values() for each in computations.values()):
        fused = computations.get(operation.called("calls") or "", {})
        place = re.search(r'op_name="([^"]*)"', operation.attributes)
        path = place[1] if place else ""
        kinds = {operation.kind, *(inside.kind for inside in fused.values())}
        found[operation.name] = _kind_of_hlo(operation.name, kinds, path), path
    return found


def _kind_of_hlo(name: str, kinds: set[str], path: str) -> str:
    """The kind of an operation in which those of XLA's kinds are."""
    if "convolution" in kinds:
        return GRADIENTS if "transpose(" in path else CONVOLUTIONS
    if "dot" in kinds:
        return PRODUCTS
    if path and not any(part[:1].isupper() for part in re.split(r"[/()]", path)):
        return OUTSIDE  # no Linen module, whose names begin with a capital
    if kinds & {"reduce", "reduce-window", "sort", "custom-call"}:
        return SUMS
    if name.startswith(("copy", "transpose", "bitcast", "pad", "concatenate", "slice")):
        return COPIES
    return ELSE


def readable(name: str, path: str) -> str:
    """An operation's name with the place that it comes from.

    Example:
        >>> readable("fusion.3", "jit(single)/transpose(jvp(UNet))/up1/cond/branch_0_fun/dot_general")
        'fusion.3 (gradient of UNet/up1/dot_general)'
    """
    short = re.sub(r"^jit\(\w+\)/", "", path)
    is_gradient = "transpose(" in short
    wrappers = (
        r"\b(transpose|jvp|jit|while|body|closed_call|checkpoint|remat|cond|branch_\d+_fun)\b[/(]*|[()]"
    )
    short = re.sub(wrappers, "", short)
    if not short:
        return name
    return f"{name} ({'gradient of ' * is_gradient}{short})"


def jdl(run: Callable[[int], float], steps: int, programs: Path) -> list[Spent]:
    """The operations of so many steps of JAX; ``programs`` is where XLA writes what it compiles."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(steps)
        (file,) = Path(folder).glob("**/*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    known: dict[str, tuple[str, str]] = {}
    # Of operations of the same name, those of the largest program count: it is the step.
    for path in sorted(programs.glob("*after_optimizations.txt"), key=lambda path: path.stat().st_size):
        known |= instructions(path.read_text())
    spent = []
    for name, (microseconds, count) in own_times(events).items():
        kind, place = known.get(name, (ELSE, ""))
        spent.append(Spent(readable(name, place), kind, microseconds / 1e3, count))
    return spent


def pytorch(run: Callable[[int], float], steps: int) -> list[Spent]:
    """The operations of so many steps of PyTorch."""
    from torch.profiler import ProfilerActivity, profile

    on_card = device() == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_card]) as found:
        run(steps)
    what = "self_device_time_total" if on_card else "self_cpu_time_total"
    return [
        Spent(each.key, _kind_of_torch(each.key), getattr(each, what) / 1e3, each.count)
        for each in found.key_averages()
    ]


def _kind_of_torch(name: str) -> str:
    kinds = (
        (OUTSIDE, "optimizer|_fused_adam|_fused_sgd|_foreach"),
        (GRADIENTS, "convolution_backward|slow_conv.*backward"),
        (CONVOLUTIONS, "conv"),
        (PRODUCTS, r"\b(addmm|mm|bmm|baddbmm|matmul|linear)\b|dot_product|attention|rnn|lstm|gru"),
        (SUMS, r"norm|softmax|\b(sum|mean|max|amax|argmax|var)\b|pool|nll_loss|cross_entropy|logsumexp"),
        (COPIES, r"copy|clone|contiguous|\bcat\b|\bto\b|_to_copy|transpose|permute|stack"),
    )
    return next((kind for kind, pattern in kinds if re.search(pattern, name.lower())), ELSE)


def measure(name: str, who: str, folder: Path) -> Found:
    """Profiles a contender in a process of its own.

    Args:
        name: a workload, or "decoding".
        who: "jdl" or "torch".
        folder: holds weights and data.

    Raises:
        RuntimeError: if it fails.
    """
    with tempfile.TemporaryDirectory() as place:
        programs, cache = Path(place) / "programs", Path(place) / "cache"
        # An empty cache, since XLA writes only programs that it compiles.
        flags = f"--xla_dump_to={programs} --xla_dump_hlo_as_text"
        environment = {
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
            "JDL_CACHE": str(cache),
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        arguments = ("experiments.benchmarks.profiles", name, who, str(folder), str(programs))
        return Found(**apart(*arguments, environment=environment))


def profiled(made: Contender, profile: Callable[[int], list[Spent]], seconds: float) -> Found:
    """A warm contender's steps, and by turns its profile.

    Args:
        made: the contender.
        profile: so many of its steps, profiled.
        seconds: about how long each round takes.
    """
    made.run(2)
    steps = max(1, round(seconds / (made.run(2) / 2)))
    step = []
    kinds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    operations: dict[str, list[float]] = collections.defaultdict(list)
    counts: dict[str, float] = {}
    for _ in range(ROUNDS):
        step.append(1e3 * made.run(steps) / steps)
        spent = profile(steps)
        for kind in KINDS:
            kinds[kind].append(sum(each.milliseconds for each in spent if each.kind == kind) / steps)
        for each in spent:
            operations[each.name].append(each.milliseconds / steps)
            counts[each.name] = each.times / steps
    longest = sorted(operations, key=lambda name: -sum(operations[name]))[:LONGEST]
    return Found(
        step,
        {kind: found for kind, found in kinds.items() if any(found)},
        {name: operations[name] for name in longest},
        {name: counts[name] for name in longest},
    )


def main(name: str, who: str, folder: str, programs: str) -> None:
    """Profiles a contender on one core, and prints what it came to."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if name == "decoding":
        made = decoding.CONTENDERS[who](Path(folder))
    else:
        made = contender(who, read(WORKLOADS[name], Path(folder)))

    def profile(steps: int) -> list[Spent]:
        return pytorch(made.run, steps) if who == "torch" else jdl(made.run, steps, Path(programs))

    print(json.dumps(profiled(made, profile, SECONDS)._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
