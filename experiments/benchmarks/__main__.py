"""Measures how fast jdl is beside PyTorch, Flax, Keras and Equinox, what its loop costs, and how it grows.

    python -m experiments.benchmarks                          # everything, as tables
    python -m experiments.benchmarks lenet gpt --minutes 3 --record
    python -m experiments.benchmarks gpt --levers             # what each part of jdl's speed contributes
    python -m experiments.benchmarks gpt --profile            # where the time of a step goes, beside PyTorch

Workloads: mlp, lenet, resnet18, resnet20, mobilenet_v2, vit, unet, lstm, gru, gpt, bert, vae, dcgan, sweep (a
step beside the peers), gpt2, resnet50 (the same in bfloat16, for accelerators); decoding (a GPT that writes
with a cache, one row and many at once), overhead (the loop of fit over its compiled step), feeding (whether
reading photographs keeps up with training on them), startup (process start to first step of an experiment),
lenet_job, cifar_job, gpt_job (seconds to a target of quality, each run once a seed), convolutions (where the
steps of convolutional networks lose time), growth (time and memory as the work grows), meshes (a GPT's step
on one device and on eight made of the same cores), predicted (what is said of steps before the first, and
what they take).

Peers that are not installed are left out, and said so. Each contender is a warm process of its own; they take
turns in short blocks, and blocks in which other programs ran are thrown away.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import cli, ledger
from experiments.benchmarks import (
    convolutions,
    decoding,
    feeding,
    growth,
    jobs,
    levers,
    predicted,
    profiles,
    report,
    startup,
)
from experiments.benchmarks.contenders import TWO, command
from experiments.benchmarks.harness import Block, Worker, check_equal, started, take_turns
from experiments.benchmarks.predicted import MEBIBYTE
from experiments.benchmarks.workloads import FOR_ACCELERATORS, OVERHEADS, WORKLOADS, Workload, draw, write
from jdl.train.chips import chip_of

PUBLISHED = "none: PyTorch, Flax, Keras and Equinox are measured beside it, in turns"
PEERS = {
    "torch": "torch",
    "torch-compile": "torch",
    "linen": "flax",
    "keras": "keras",
    "equinox": "equinox",
}
"""Peers, and the packages that they need."""
FAKE, ONE = 8, "data:1"
MESHES = ("data:8", "fsdp:8", "data:4,fsdp:2", "data:4,tensor:2", "data:2,fsdp:2,tensor:2", "sequence:8")
"""How eight devices split a step."""
Commands = list[tuple[list[str], dict[str, str]]]
Check = Callable[[Sequence[Worker]], None]
"""Raises ValueError where contenders do not compute the same."""
JAX_PEERS = {"linen", "keras", "equinox"}
"""Peers to which a cache of compiled programs is given: jdl and PyTorch bring their own."""
STARTS = 3
"""How often each contender is started without compiled programs, and with them."""
FIRST_COLD, FIRST_WARM = "first step, cold, s", "first step, warm, s"
BUSY, LEAST = "processor time with spinning, share of cores", "at least, ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the arguments name, prints tables, writes them, and records them if asked to.

    Returns:
        The exit status: 1 if something could not be measured, which does not keep the others from it.
    """
    # Contenders share an accelerator, so none of them may take all of its memory when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = _parse(arguments)
    ledger.commit()  # of what is measured, whatever becomes of the code meanwhile
    failed = False
    named = options.workloads or [
        name for name in (*WORKLOADS, *OTHERS) if name not in FOR_ACCELERATORS or not _on_cpu()
    ]
    for name in named:
        try:
            measure = measure_profile if options.profile else OTHERS.get(name, measure_steps)
            entries = measure(name, options)
        except (RuntimeError, ValueError) as error:
            print(f"{name} is not measured: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        for each in entries:
            print(report.table(each), flush=True)
            if options.record:
                print(f"recorded in {ledger.record(each)}; python -m experiments.ledger renders it")
        if entries:
            print("written:", *report.write(entries, Path(options.out)), flush=True)
    return int(failed)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser("experiments.benchmarks", __doc__)
    parser.add_argument("workloads", nargs="*", help="which to measure; all when none is named")
    parser.add_argument(
        "--peers",
        default="torch,torch-compile,linen,keras,equinox",
        help="peers to measure beside, or nothing",
    )
    parser.add_argument(
        "--minutes",
        type=_positive,
        default=2,
        help="time to measure each workload, shared by its contenders; starting them comes to it",
    )
    parser.add_argument(
        "--tolerate",
        type=_positive,
        default=0.1,
        help="keep blocks in which other programs took up to this share of the machine",
    )
    parser.add_argument(
        "--levers", action="store_true", help="measure jdl beside itself without each part of its speed"
    )
    parser.add_argument(
        "--profile", action="store_true", help="measure where the time of a step goes, in jdl and PyTorch"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="start contenders once only, at the same time: sooner, but their starts are not measured",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of jobs")
    parser.add_argument("--out", default="runs/benchmarks", help="folder for JSON and the picture")
    parser.add_argument("--record", action="store_true", help="write the result into the ledger")
    options = parser.parse_args(arguments)
    if unknown := set(options.workloads) - {*WORKLOADS, *OTHERS}:
        parser.error(
            f"no workload {', '.join(sorted(unknown))}: there are {', '.join([*WORKLOADS, *OTHERS])}"
        )
    options.peers = [peer for peer in options.peers.split(",") if peer]
    if unknown := set(options.peers) - PEERS.keys():
        parser.error(f"no peer {', '.join(sorted(unknown))}: there are {', '.join(PEERS)}")
    options.peers = [peer for peer in options.peers if _is_there(peer)]
    for package in ("psutil", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            parser.error(f'{package} is missing: pip install -e ".[bench]" installs it')
    try:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror or error}")
    options.command = " ".join(["python -m experiments.benchmarks", *(arguments or sys.argv[1:])])
    return options


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def _is_there(peer: str) -> bool:
    """Whether a peer can be measured; says why not."""
    if importlib.util.find_spec(PEERS[peer]) is None:
        print(f'{peer} is left out: pip install -e ".[bench]" installs it')
        return False
    if peer == "torch-compile" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        print(f"{peer} is left out: it needs a C++ compiler")
        return False
    return True


def measure_steps(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """A step of a workload in jdl and the peers, or in jdl without each of its levers."""
    workload = WORKLOADS[name]
    peers = [peer for peer in workload.peers if peer in options.peers or peer not in PEERS]
    if missing := [peer for peer in options.peers if peer not in workload.peers]:
        print(f"{name}: no network to compare with in {', '.join(missing)}")
    if workload.kind == "inference" and importlib.util.find_spec("transformers") is None:
        print(f"{name}: PyTorch's network is that of transformers, which is not installed")
        peers = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = draw(workload)
        write(given, folder)
        plain = (command(name, "jdl", folder), {"JDL_PLAIN": "1"})
        if options.levers:
            names = ["jdl", *(f"jdl-without-{lever}" for lever in levers.used(given))]
            commands: Commands = [(command(name, each, folder), {}) for each in names]
            commands.append(plain)
        else:
            # On a CPU, fit never puts convolutions of large networks into a loop of several steps.
            ways = ["jdl", "jdl-one", "jdl-several"] if workload.kernels else ["jdl"]
            commands = [(command(name, each, folder), {}) for each in ways]
            if workload.kind in ("classification", "next_token", "elbo") and len(workload.shape) < 3:
                commands += _on_two_devices(name, folder)
            if _on_cpu():  # elsewhere nothing is prepared
                commands.append(plain)
            commands += [(command(name, peer, folder), {}) for peer in peers]
        seconds, more = _measured(commands, options, _same_losses(workload))
    _add_rates(workload, seconds, more)
    note = _kept(options) + (
        " In a training step jdl also gathers the batch, measures accuracy and gradient norm and checks that "
        "all is finite; the peers do not."
    )
    if not options.once:
        note += f" Starts are medians of {STARTS}. Peers on JAX keep compiled programs as jdl does."
    kind = "levers" if options.levers else "step"
    return [
        report.entry(
            f"{name}_{kind}",
            workload.title,
            "time of a step",
            "ms",
            seconds,
            options.command,
            note,
            more=more,
        )
    ]


def _on_two_devices(name: str, folder: Path) -> Commands:
    """jdl on two halves of a batch at once, for which a CPU has to be told that it is two devices."""
    if not _on_cpu():
        return []
    return [(command(name, "jdl-devices", folder), _playing(TWO))]


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _add_rates(
    workload: Workload, milliseconds: Mapping[str, Sequence[float]], more: Mapping[str, dict[str, float]]
) -> None:
    """Adds what is done in a second, and the share of the device's peak rate that this is (MFU)."""
    if not workload.flops:
        return
    each, what = (workload.shape[0], "tokens/s") if workload.reads_tokens else (1, "images/s")
    peak = chip_of(jax.devices()[0]).peak(workload.dtype)
    for label, found in milliseconds.items():
        seconds = statistics.median(found) / 1e3
        more[label] |= {
            what: workload.batch_size * each / seconds,
            "MFU, %": 100 * workload.flops / seconds / peak,
        }


def _playing(devices: int) -> dict[str, str]:
    """Variables by which a CPU is several devices."""
    flags = (os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={devices}")
    return {"XLA_FLAGS": " ".join(filter(None, flags))}


def _same_losses(workload: Workload) -> Check:
    return functools.partial(check_equal, tolerance=workload.tolerance)


def _measured(
    commands: Commands, options: argparse.Namespace, check: Check
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Milliseconds a step by label, and what is known of each beside them.

    Every contender is started several times with an empty cache of compiled programs, and as often with one
    of its own that is full, and the medians are kept; or once, all of them together, and then nothing is said
    of their starts.
    """
    with tempfile.TemporaryDirectory() as caches:
        commands = [
            (arguments, {**environment, **_cached(arguments, Path(caches) / str(i))})
            for i, (arguments, environment) in enumerate(commands)
        ]
        starts = [] if options.once else [_starts(*each) for each in commands]
        with started(commands, at_once=options.once) as workers:
            check(workers)
            blocks = take_turns(workers, 60 * options.minutes / len(workers), tolerate=options.tolerate)
    more = {
        worker.label: {
            ledger.MEMORY: worker.memory / MEBIBYTE,
            BUSY: statistics.median(block.utilisation for block in blocks[worker.label]),
        }
        for worker in workers
    }
    for worker in workers:
        if worker.least:
            more[worker.label][LEAST] = 1e3 * worker.least
    if not options.once:
        for worker, (cold, warm) in zip(workers, starts, strict=True):
            more[worker.label] |= {
                FIRST_COLD: statistics.median(cold),
                FIRST_WARM: statistics.median([*warm, worker.started]),
            }
    return _times(blocks, 1e3), more


def _starts(arguments: list[str], environment: dict[str, str]) -> tuple[list[float], list[float]]:
    """Seconds to the first step with empty caches and with full ones, these once less: one start follows."""
    cold = []
    for i in range(STARTS):
        with tempfile.TemporaryDirectory() as other:
            # The last fills the contender's own cache.
            caches = _cached(arguments, Path(other)) if i < STARTS - 1 else {}
            cold.append(_seconds_to_start(arguments, {**environment, **caches}))
    return cold, [_seconds_to_start(arguments, environment) for _ in range(STARTS - 1)]


def _seconds_to_start(arguments: list[str], environment: dict[str, str]) -> float:
    worker = Worker(arguments, environment)
    try:
        return worker.ready().started
    finally:
        worker.close()


def _cached(arguments: Sequence[str], folder: Path) -> dict[str, str]:
    """Variables that put every cache of compiled programs that a contender has into a folder."""
    variables = {"JDL_CACHE": str(folder / "jdl"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
    if not JAX_PEERS.intersection(arguments):
        return {**variables, "JAX_COMPILATION_CACHE_DIR": ""}
    return {
        **variables,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        # As jdl sets them for itself.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def measure_overhead(_: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """What the loop of `fit` adds to its compiled step, with several steps and with one step a dispatch."""
    entries = []
    for name, how in (("overhead", "several"), ("overhead", "one"), ("overhead_players", "one")):
        with tempfile.TemporaryDirectory() as folder:
            write(draw(OVERHEADS[name]), Path(folder))
            commands: Commands = [
                (command(name, f"{what}-{how}", Path(folder)), {}) for what in ("bare", "fit")
            ]
            with started(commands) as workers:
                blocks = take_turns(workers, 30 * options.minutes, tolerate=options.tolerate)
                base = workers[0].label
        entries.append(
            report.entry(
                f"fit_{name}_{how}",
                f"{OVERHEADS[name].title}, {how} step{'s' * (how == 'several')} a dispatch",
                "time of a step",
                "us",
                _times(blocks, 1e6),
                options.command,
                _kept(options),
                base=base,
            )
        )
    return entries


def measure_startup(name: str, options: argparse.Namespace, repeats: int = 3) -> list[ledger.Benchmark]:
    """Process start to first step of the digits experiment, and its memory."""
    del name
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(startup.start(Path(cache)))
            warm.append(startup.start(Path(cache)))
    starts = {"cold cache": cold, "warm cache": warm}
    seconds = {label: [each.seconds for each in found] for label, found in starts.items()}
    memory = {
        label: {ledger.MEMORY: statistics.median(each.memory for each in found) / MEBIBYTE}
        for label, found in starts.items()
    }
    title = "LeNet-5 on the digits: process start to first step"
    return [
        report.entry(
            "lenet_start", title, "time to the first step", "s", seconds, options.command, more=memory
        )
    ]


def measure_feeding(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Time of reading a batch of photographs, and of training steps with and without it."""
    seconds = feeding.measure()
    reading, step, fed = (statistics.median(samples) for samples in seconds.values())
    print(
        f"reading takes {reading / step:.3f} of a step; fed so, a step takes {fed / step:.3f} times as long"
    )
    times = {label: [1e3 * s for s in samples] for label, samples in seconds.items()}
    return [report.entry(name, feeding.TITLE, "time", "ms", times, options.command)]


def measure_decoding(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Time of writing with a GPT and its cache, for one row and for many."""
    entries = []
    for rows in decoding.BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            decoding.write(rows, Path(folder))
            contenders = ["jdl", "jdl-scan", *(["torch"] if "torch" in options.peers else [])]
            commands: Commands = [(decoding.command(each, Path(folder)), {}) for each in contenders]
            times, more = _measured(commands, options, decoding.check_same)
        title = f"{decoding.TITLE}, {rows} at once"
        entries.append(
            report.entry(
                f"{name}_{rows}",
                title,
                "time of all tokens",
                "ms",
                times,
                options.command,
                _kept(options),
                more=more,
            )
        )
    return entries


def measure_job(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Seconds to a target, from the start of the process, one after another for each seed.

    Raises:
        RuntimeError: if a run does not come to the target.
    """
    job = jobs.JOBS[name]
    contenders = ["jdl", *(["torch"] if "torch" in options.peers else [])]
    found: dict[str, list[jobs.Done]] = {}
    for seed in options.seeds:
        for contender in contenders:
            done = jobs.start(name, contender, seed)
            found.setdefault(done.label, []).append(done)
            print(f"{name}, {done.label}, seed {seed}: {done.sentence(job)}", flush=True)
    if any(done.seconds is None for each in found.values() for done in each):
        raise RuntimeError("not every run came to the target, and a median of the others would flatter")
    seconds = {label: [done.seconds for done in each if done.seconds] for label, each in found.items()}
    reached = {
        label: {f"{job.metric} there": statistics.median(done.quality for done in each)}
        for label, each in found.items()
    }
    note = f"{job.recipe} From the start of the process, compiling and evaluating included: each run begins "
    note += "with an empty cache of compiled programs."
    return [
        report.entry(name, job.title, "time to the target", "s", seconds, options.command, note, more=reached)
    ]


def measure_meshes(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """What it costs that the same cores play several devices, by how those split the work."""
    workload = WORKLOADS["gpt"]
    flags = _playing(FAKE)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(draw(workload), folder)
        commands: Commands = [
            (command("gpt", f"mesh-{mesh}", folder), {} if mesh == ONE else flags) for mesh in (ONE, *MESHES)
        ]
        seconds, more = _measured(commands, options, _same_losses(workload))
    note = (
        f"{FAKE} devices that XLA makes of the same cores, which share them: what the splitting costs. "
        "Programs of several devices are compiled anew in each process: their warm start is a cold one. "
    )
    return [
        report.entry(
            "gpt_meshes",
            f"{workload.title}: one device, and {FAKE} on the same cores",
            "time of a step",
            "ms",
            seconds,
            options.command,
            note + _kept(options),
            more=more,
        )
    ]


def measure_predicted(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """What a step was predicted to cost on this machine, and what it took."""
    found = {label: predicted.measure(each) for each, label in predicted.SUBJECTS.items()}
    times = {label: milliseconds for label, (milliseconds, _) in found.items()}
    more = {label: figures for label, (_, figures) in found.items()}
    note = (
        "Predicted: the figures beside the time. The least time is that of the operations and the traffic of "
        "memory at rates measured here by one large product and one copy; memory is the compiler's."
    )
    return [
        report.entry(
            f"{name}_steps", predicted.TITLE, "time of a step", "ms", times, options.command, note, more=more
        )
    ]


def measure_convolutions(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """The convolutions of networks one by one, in jdl and in PyTorch: where a step loses time."""
    if "torch" not in options.peers:
        print(f"{name}: nothing to compare with: PyTorch is not asked for or not installed")
        return []
    entries = []
    for network in convolutions.NETWORKS:
        rows = convolutions.measure(network)[: 1 + convolutions.SHOWN]
        more = {
            row.label: {
                "PyTorch, ms": statistics.median(row.peer),
                "GFLOP/s": 1e3 * row.gflop / statistics.median(row.milliseconds),
                "PyTorch, GFLOP/s": 1e3 * row.gflop / statistics.median(row.peer),
            }
            for row in rows
        }
        title = WORKLOADS[network].title
        entries.append(
            report.entry(
                f"{network}_convolutions",
                f"{title}: its convolutions one by one",
                "time in a step",
                "ms",
                {row.label: row.milliseconds for row in rows},
                options.command,
                convolutions.NOTE,
                more=more,
            )
        )
    return entries


def measure_profile(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Where the time of a step goes, in jdl and in PyTorch.

    Raises:
        ValueError: for what has no steps, or no peer in PyTorch.
    """
    if name != "decoding" and (name not in WORKLOADS or "torch" not in WORKLOADS[name].peers):
        raise ValueError("it has no steps that PyTorch takes too, to be profiled")
    cases = [(f"{name}_{rows}", rows) for rows in decoding.BATCHES] if name == "decoding" else [(name, 0)]
    entries = []
    for case, rows in cases:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if rows:
                decoding.write(rows, folder)
                title = f"{decoding.TITLE}, {rows} at once"
            else:
                write(draw(WORKLOADS[name]), folder)
                title = WORKLOADS[name].title
            whos = ["jdl", *(["torch"] if "torch" in options.peers else [])]
            found = {who: profiles.measure(name, who, folder) for who in whos}
        ours, theirs = found["jdl"], found.get("torch")
        samples = {profiles.WHOLE: ours.step, **ours.kinds}
        beside = {} if theirs is None else {profiles.WHOLE: theirs.step, **theirs.kinds}
        more = {label: {"PyTorch, ms": statistics.median(times)} for label, times in beside.items()}
        for label in sorted(beside.keys() - samples.keys()):
            samples[label] = [0.0]
        for who, each in found.items():
            for operation, times in each.operations.items():
                label = f"{'in jdl' if who == 'jdl' else 'in PyTorch'}: {operation}"
                samples[label] = times
                more[label] = {"times in a step": each.counts[operation]}
        note = " ".join(filter(None, [profiles.NOTE, profiles.TRIED.get(name)]))
        entries.append(
            report.entry(
                f"{case}_profile",
                f"{title}: where the time goes",
                "time in a step",
                "ms",
                samples,
                options.command,
                note,
                more=more,
            )
        )
    return entries


def measure_growth(name: str, options: argparse.Namespace) -> list[ledger.Benchmark]:
    """Time and memory of a step against what makes it larger, with fitted and expected exponents."""
    curves = growth.measure()
    print(growth.table(curves))
    print("written:", *growth.write(curves, Path(options.out)))
    return [
        report.entry(
            name,
            growth.TITLE,
            "growth of the time of a step",
            "(exponent)",
            {growth.label(each): [each.exponents["seconds"]] for each in curves},
            options.command,
            growth.NOTE,
            more={growth.label(each): growth.exponents(each) for each in curves},
        )
    ]


def _kept(options: argparse.Namespace) -> str:
    return f"Blocks are kept in which other programs took up to {options.tolerate:.0%} of the machine."


def _times(blocks: Mapping[str, Sequence[Block]], unit: float) -> dict[str, list[float]]:
    return {label: [unit * block.seconds for block in found] for label, found in blocks.items()}


OTHERS: dict[str, Any] = {
    "decoding": measure_decoding,
    "overhead": measure_overhead,
    "feeding": measure_feeding,
    "startup": measure_startup,
    **dict.fromkeys(jobs.JOBS, measure_job),
    "convolutions": measure_convolutions,
    "growth": measure_growth,
    "meshes": measure_meshes,
    "predicted": measure_predicted,
}

if __name__ == "__main__":
    sys.exit(main())
