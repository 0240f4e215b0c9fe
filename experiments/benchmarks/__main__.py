"""Measures how fast jdl trains beside plain Flax and PyTorch, what its loop costs, and how soon it starts.

    python -m experiments.benchmarks                          # everything, as tables
    python -m experiments.benchmarks lenet --seconds 30 --record

Workloads: mlp, lenet, resnet18, resnet20, mobilenet_v2, lstm, gru, gpt (a training step beside the peers),
decoding (a GPT that writes with a cache, one row and many at once), overhead (the loop of `fit` over its
compiled step), feeding (whether reading photographs keeps up with training on them), startup (process start
to first step, with a cold and a warm cache, and peak memory).
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from experiments import ledger
from experiments.benchmarks import decoding, feeding, startup
from experiments.benchmarks.harness import check_equal, started, take_turns
from experiments.benchmarks.workloads import TWO, WORKLOADS, command, write

PUBLISHED = "none: PyTorch and plain Flax are measured beside it, in turns"
GROUP = "Speed"
Commands = list[tuple[list[str], dict[str, str]]]
MEBIBYTE = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the arguments name, prints tables, and records them if asked to."""
    options = _parse(arguments)
    for name in options.workloads or [*WORKLOADS, *OTHERS]:
        if name in OTHERS:
            entries = OTHERS[name](options)
        elif name == "overhead":
            entries = measure_overhead(options)
        else:
            entries = measure_steps(name, options)
        for entry in entries:
            print(table(entry), flush=True)
            if options.record:
                print(f"recorded in {ledger.record(entry)}; python -m experiments.ledger renders it")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m experiments.benchmarks",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", help="which to measure; all when none is named")
    parser.add_argument(
        "--peers", default="torch,torch-compile,linen", help="peers to measure beside, or nothing"
    )
    parser.add_argument("--seconds", type=float, default=20, help="time to measure each contender")
    parser.add_argument(
        "--tolerate",
        type=float,
        default=0.1,
        help="keep blocks in which other programs took up to this share of the machine",
    )
    parser.add_argument("--record", action="store_true", help="write the result into the ledger")
    options = parser.parse_args(arguments)
    if unknown := set(options.workloads) - {*WORKLOADS, *OTHERS}:
        parser.error(
            f"no workload {', '.join(sorted(unknown))}: there are {', '.join([*WORKLOADS, *OTHERS])}"
        )
    options.peers = [peer for peer in options.peers.split(",") if peer]
    if unknown := set(options.peers) - {"torch", "torch-compile", "linen"}:
        parser.error(f"no peer {', '.join(sorted(unknown))}: there are torch, torch-compile and linen")
    options.command = " ".join(["python -m experiments.benchmarks", *(arguments or sys.argv[1:])])
    return options


def measure_steps(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """A training step of a workload in jdl and the peers; and the memory of their processes."""
    workload = WORKLOADS[name]
    plain = {"JDL_PLAIN": "1"}
    with tempfile.TemporaryDirectory() as folder:
        write(workload, Path(folder))
        # On a CPU, fit never puts convolutions of large networks into a loop of several steps.
        ways = ["jdl", "jdl-one", "jdl-several"] if workload.kernels else ["jdl"]
        peers = [peer for peer in workload.peers if peer in options.peers]
        commands: Commands = [(command(name, contender, Path(folder)), {}) for contender in ways + peers]
        commands.insert(len(ways), (command(name, "jdl", Path(folder)), plain))
        if len(workload.image) < 3 and jax.default_backend() == "cpu":
            # A step of time is too small a piece of work to share, half of a batch is not.
            flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={TWO}"}
            commands.insert(len(ways), (command(name, "jdl-devices", Path(folder)), flags))
        with started(commands) as workers:
            check_equal(workers)
            seconds = take_turns(workers, options.seconds, tolerate=options.tolerate)
            memory = {worker.label: [worker.memory / MEBIBYTE] for worker in workers}
    note = _kept(options) + (
        " In its step jdl also gathers the batch, measures accuracy and gradient norm and checks that all is "
        "finite; the peers do not."
    )
    step = _entry(f"{name}_step", workload.title, "time of a step", "ms", _times(seconds, 1e3), options, note)
    peak = _entry(
        f"{name}_memory", f"{workload.title}: its process", "peak memory", "MiB", memory, options, ""
    )
    return [step, peak]


def measure_overhead(options: argparse.Namespace) -> list[ledger.Benchmark]:
    """What the loop of `fit` adds to its compiled step, with several steps and with one step a dispatch."""
    workload = WORKLOADS["overhead"]
    entries = []
    for how in ("several", "one"):
        with tempfile.TemporaryDirectory() as folder:
            write(workload, Path(folder))
            commands: Commands = [
                (command("overhead", f"{what}-{how}", Path(folder)), {}) for what in ("bare", "fit")
            ]
            with started(commands) as workers:
                seconds = take_turns(workers, options.seconds, tolerate=options.tolerate)
                bare, fit = (statistics.median(seconds[worker.label]) for worker in workers)
                subject = workers[1].label
        cost = f"{1e6 * (fit - bare):.1f} us a step ({100 * (fit / bare - 1):.1f} %)"
        print(f"{subject}: {cost} over the step alone")
        note = _kept(options)
        times = _times(seconds, 1e6)
        entries.append(
            _entry(f"fit_overhead_{how}", workload.title, "time of a step", "us", times, options, note)
        )
    return entries


def measure_startup(options: argparse.Namespace, repeats: int = 3) -> list[ledger.Benchmark]:
    """Process start to first step of the digits experiment, and its memory."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(startup.start(Path(cache)))
            warm.append(startup.start(Path(cache)))
    seconds = {"cold cache": [s.seconds for s in cold], "warm cache": [s.seconds for s in warm]}
    memory = {
        "cold cache": [s.memory / MEBIBYTE for s in cold],
        "warm cache": [s.memory / MEBIBYTE for s in warm],
    }
    title = "LeNet-5 on the digits: process start to first step"
    return [
        _entry("lenet_start", title, "time to the first step", "s", seconds, options, ""),
        _entry(
            "lenet_start_memory",
            "LeNet-5 on the digits: its process",
            "peak memory",
            "MiB",
            memory,
            options,
            "",
        ),
    ]


def measure_feeding(options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Time of reading a batch of photographs, and of training steps with and without it."""
    seconds = feeding.measure()
    reading, step, fed = (statistics.median(samples) for samples in seconds.values())
    print(
        f"reading takes {reading / step:.3f} of a step; fed so, a step takes {fed / step:.3f} times as long"
    )
    return [_entry("feeding", feeding.TITLE, "time", "ms", _times(seconds, 1e3), options, "")]


def measure_decoding(options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Time of writing with a GPT and its cache, for one row and for many."""
    entries = []
    for rows in decoding.BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            decoding.write(rows, Path(folder))
            contenders = ["jdl", "jdl-scan", *(["torch"] if "torch" in options.peers else [])]
            commands: Commands = [(decoding.command(name, Path(folder)), {}) for name in contenders]
            with started(commands) as workers:
                check_equal(workers)
                seconds = take_turns(workers, options.seconds, tolerate=options.tolerate)
        title, times = f"{decoding.TITLE}, {rows} at once", _times(seconds, 1e3)
        entries.append(
            _entry(f"decoding_{rows}", title, "time of all tokens", "ms", times, options, _kept(options))
        )
    return entries


OTHERS = {"startup": measure_startup, "feeding": measure_feeding, "decoding": measure_decoding}


def _kept(options: argparse.Namespace) -> str:
    return f"Blocks are kept in which other programs took up to {options.tolerate:.0%} of the machine."


def _times(seconds: Mapping[str, Sequence[float]], unit: float) -> dict[str, list[float]]:
    return {label: [unit * s for s in samples] for label, samples in seconds.items()}


def _entry(
    name: str,
    title: str,
    metric: str,
    unit: str,
    samples: Mapping[str, Sequence[float]],
    options: argparse.Namespace,
    note: str,
) -> ledger.Benchmark:
    return ledger.Benchmark(
        name=name,
        title=title,
        group=GROUP,
        metric=metric,
        goal="min",
        unit=unit,
        subject="jdl" if "jdl" in samples else None,
        rows=tuple(
            ledger.Row(label, tuple(round(s, 4) for s in values)) for label, values in samples.items()
        ),
        command=options.command,
        device=ledger.device_description(),
        date=datetime.date.today().isoformat(),
        note=note,
    )


def table(entry: ledger.Benchmark) -> str:
    """A benchmark as text: median, quartiles, and how many times as good the subject is."""
    lines = [
        f"{entry.title}: {entry.metric}, {entry.unit}",
        f"{'':42}{'median':>10}{'quartiles':>20}{'ratio':>8}",
    ]
    for row in entry.rows:
        first, third = (ledger.figure(q) for q in row.quartiles)
        ratio = entry.ratio(row)
        said = "" if ratio is None else f"{ratio:8.2f}"
        lines.append(f"{row.label:42}{ledger.figure(row.median):>10}{f'{first} to {third}':>20}{said}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
