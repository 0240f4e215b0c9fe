"""Compiles an experiment's real training and evaluation step ahead of time, and says what they cost.

    python -m jdl.compile shakespeare --topology v5e:2x4 --batch-size 64 --dtype bfloat16

needs libtpu (the ``tpu`` extra) and no TPU. ``--topology local`` takes the devices that are here, runs some
steps too, and puts what was measured beside what was predicted. The experiment is a module with ``main`` and
``Config``, under ``experiments`` or by its full name; its flags follow. Its data are loaded, not placed.

Where a TPU's memory does not hold the step, the experiment's own settings that save memory are tried one by
one and then together, each by compiling.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jdl import train
from jdl.train.cost import duration, gib

LOCAL = "local"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: instead of those of the process.

    Returns:
        The exit status: 0 if the step fits, 1 if it does not or something was wrong, said in a sentence.
    """
    parser = argparse.ArgumentParser(
        "python -m jdl.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("experiment", help="a module with main and Config, such as shakespeare")
    parser.add_argument("--topology", default=LOCAL, help="such as v5e:2x4, or local (the default)")
    parser.add_argument("--json", type=Path, help="a file to write the report to as well")
    parser.add_argument("--measure", type=int, default=20, help="steps to run, with local devices (20)")
    parser.add_argument("--no-search", action="store_true", help="try no other settings if it does not fit")
    own, flags = parser.parse_known_args(arguments)
    try:
        report = run(own.experiment, own.topology, flags, measure=own.measure, search=not own.no_search)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text(report))
    if own.json:
        own.json.parent.mkdir(parents=True, exist_ok=True)
        own.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwritten to {own.json}")
    return 0 if report["fits"] else 1


def run(
    experiment: str, topology: str, flags: Sequence[str] = (), *, measure: int = 20, search: bool = True
) -> dict[str, Any]:
    """Compiles an experiment's steps for a topology.

    Args:
        experiment: a module with ``main`` and ``Config``, under ``experiments`` or by its full name.
        topology: of TPUs, such as "v5e:2x4", or "local" for the devices that are here.
        flags: the experiment's.
        measure: steps to run on local devices.
        search: whether to try settings that save memory if the step does not fit.

    Returns:
        What the report holds, as JSON takes it: ``fits``, and ``programs`` by name, or ``problem`` and what
        was ``tried``.

    Raises:
        ValueError: for an experiment, flags or a topology that there is not.
        ImportError: without libtpu, for a topology of TPUs.
    """
    module = find(experiment)
    devices = None
    if topology != LOCAL:
        # Nothing here is to be asked for but processors: the program is for devices that are elsewhere.
        jax.config.update("jax_platforms", "cpu")
        devices = train.topology(topology)
    else:
        train.prepare()
    config = parse(module, flags)
    report: dict[str, Any] = {
        "experiment": module.__name__,
        "flags": list(flags),
        "topology": topology,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "estimate": "the compiler's memory and a roofline's time; nothing was run",
    }
    try:
        plan = planned(module.main, config, devices, 0 if devices else measure)
    except train.DoesNotFit as error:
        report |= {"fits": False, "problem": str(error), "needed": error.needed, "tried": []}
        if search:
            count = len(devices or jax.devices())
            report["tried"] = list(searched(module.main, config, devices, count, error.parts))
        return report
    programs = {name: cost.to_json() for name, cost in plan.costs.items()}
    report |= {"fits": True, "programs": programs, "table": {n: str(c) for n, c in plan.costs.items()}}
    if plan.seconds is not None:
        report["measured"] = {"seconds": plan.seconds, "steps": plan.measure}
        # A GPU and a TPU say what they used; a CPU does not.
        used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        report["measured"] |= {} if used is None else {"memory": used}
    return report


def find(experiment: str) -> ModuleType:
    """The module of an experiment.

    Raises:
        ValueError: if there is none, or it has no ``main`` or ``Config``.
    """
    names = (
        [experiment] if experiment.startswith("experiments.") else [f"experiments.{experiment}", experiment]
    )
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # What a module that is there needs and lacks is another matter.
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise
        if not callable(getattr(module, "main", None)) or not dataclasses.is_dataclass(
            getattr(module, "Config", None)
        ):
            raise ValueError(f"{name} is no experiment: it needs a function main and a dataclass Config")
        return module
    raise ValueError(f"no experiment is called {experiment!r}: give a module, such as experiments.lenet")


def parse(module: ModuleType, flags: Sequence[str]) -> Any:
    """The experiment's configuration."""
    try:
        import tyro
    except ImportError:
        raise ImportError('the command line needs tyro: pip install -e ".[experiments]"') from None
    return tyro.cli(
        module.Config,
        prog=f"python -m jdl.compile {module.__name__}",
        args=list(flags),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def planned(
    main: Callable[[Any], Any], config: Any, devices: Any, measure: int = 0, evaluation: bool = True
) -> train.Plan:
    """What the first step that an experiment trains costs on devices, and its evaluation.

    Raises:
        ValueError: if it trains nothing, or its settings are wrong.
        jdl.train.DoesNotFit: if it does not fit in the devices' memory.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        train.planning(devices, measure=measure, evaluation=evaluation) as plan,
    ):
        main(_with(config, run=folder, quiet=True))
    if not plan.costs:
        raise ValueError("the experiment trained nothing with jdl.train.fit, so there is no step to compile")
    return plan


def _with(config: Any, **execution: Any) -> Any:
    """A configuration with other options of execution, those that it has."""
    where: Any = getattr(config, "execution", None)
    known = {name: value for name, value in execution.items() if hasattr(where, name)}
    return dataclasses.replace(config, execution=dataclasses.replace(where, **known)) if known else config


Change = tuple[str, Callable[[Any], Any]]


def savings(config: Any, devices: int, least: int = 1) -> list[Change]:
    """The experiment's settings that save memory and are not used yet: the flag, and how to set it.

    Of a batch's parts those that are no less than half of ``least`` times as many.
    """

    def setting(name: str, value: Any) -> Callable[[Any], Any]:
        return lambda config: dataclasses.replace(config, **{name: value})

    found: list[Change] = []
    if getattr(config, "dtype", "") == "float32":
        found.append(("--dtype bfloat16", setting("dtype", "bfloat16")))
    remat = getattr(config, "remat", None)
    if remat in ("", "none", None) and hasattr(config, "remat"):
        found.append(("--remat full", setting("remat", "full")))
    elif remat is False:
        found.append(("--remat", setting("remat", True)))
    mesh = getattr(getattr(config, "execution", None), "mesh", None)
    if mesh is not None and "fsdp" not in mesh and devices > 1:
        found.append((f"--mesh fsdp:{devices}", lambda config: _with(config, mesh=f"fsdp:{devices}")))
    parts, size = getattr(config, "accumulate", 0), getattr(config, "batch_size", 0)
    enough = parts * least / 2
    while parts and size and size % (2 * parts * devices) == 0:
        parts *= 2
        if parts < enough:
            continue
        found.append((f"--accumulate {parts}", setting("accumulate", parts)))
    return found


def searched(
    main: Callable[[Any], Any], config: Any, devices: Any, count: int, parts: int = 1
) -> Iterator[dict[str, Any]]:
    """What compiling with other settings came to: one by one, then all up to one together, until one fits.

    Args:
        main: the experiment.
        config: its configuration, which does not fit.
        devices: those to compile for; those that are here when None.
        count: how many they are.
        parts: in how many times as many parts a batch is estimated to fit; far fewer are not tried.
    """
    changes = savings(config, count, parts)
    attempts = [[change] for change in changes]
    attempts += [changes[:n] for n in range(2, len(changes) + 1)]
    for attempt in attempts:
        changed = config
        for _, change in attempt:
            changed = change(changed)
        flags = " ".join({flag.split()[0]: flag for flag, _ in attempt}.values())
        print(f"it does not fit; trying {flags}", file=sys.stderr)
        try:
            plan = planned(main, changed, devices)
        except train.DoesNotFit as error:
            yield {"flags": flags, "fits": False, "needed": error.needed}
            continue
        yield {"flags": flags, "fits": True, "needed": plan.costs["train"].memory.total}
        return


def told(tried: Sequence[dict[str, Any]]) -> list[str]:
    """What was tried so that a step fits, in words."""
    lines = []
    for attempt in tried:
        room = "fits" if attempt["fits"] else "does not fit"
        lines.append(f"tried by compiling: {attempt['flags']:<40} {gib(attempt['needed']):>12}  {room}")
    if not any(attempt["fits"] for attempt in tried):
        lines.append("no setting of the experiment was found that makes it fit")
    return lines


def text(report: dict[str, Any]) -> str:
    """A report in words."""
    lines = [f"{report['experiment']} {' '.join(report['flags'])}".rstrip() + f" on {report['topology']}"]
    if not report["fits"]:
        lines += ["", f"does not fit: {report['problem']}", ""]
        lines += told(report["tried"])
        return "\n".join(lines)
    for name, table in report["table"].items():
        lines += ["", f"--- {name}, compiled in {report['programs'][name]['compiled_in']:.1f} s ---", table]
    if measured := report.get("measured"):
        expected = report["programs"]["train"]["roofline"]
        reached = 100 * expected["parts"]["products"] / measured["seconds"]
        lines += [
            "",
            f"measured: {duration(measured['seconds'])} a step over {measured['steps']} steps; predicted: at "
            f"least {duration(expected['seconds'])}, {duration(expected['without_overlap'])} if nothing "
            f"overlaps; {reached:.0f} % of the peak reached",
        ]
        if "memory" in measured:
            needed = report["programs"]["train"]["memory"]["total"]
            lines += [f"memory: {gib(measured['memory'])} at its peak; predicted: {gib(needed)}"]
    else:
        lines += ["", f"an estimate: {report['estimate']}. It assumes:"]
        lines += [f"- {assumption}" for assumption in report["programs"]["train"]["roofline"]["assumptions"]]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """The versions of what compiles, by package; none of what is not installed."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


if __name__ == "__main__":
    sys.exit(main())
