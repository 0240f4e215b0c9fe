"""From the command line to an experiment's ``main(config)``, and from an error to a sentence."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from jdl import compile as ahead
from jdl import train

C = TypeVar("C")

TRACEBACK = "JDL_TRACEBACK"
"""Environment variable that, set to anything, shows where an error came from."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How an experiment is run. What it measures does not depend on it."""

    run: str = ""
    """Folder of the run: made if missing, gone on with if it holds a run with the same settings. A new one
    under runs/ when empty."""
    mesh: str = ""
    """Devices, such as "data:4" or "data:2,fsdp:2,tensor:2" (also "sequence"); all along data when empty."""
    mode: train.Mode = "jit"
    """How the devices share the work: jit (the compiler splits it), shard_map or pmap."""
    tensorboard: bool = False
    """Also write TensorBoard files into the folder."""
    quiet: bool = False
    """No progress bar."""
    dry_run: bool = False
    """Only say what a step costs on these devices (parameters, operations, memory, the least time, and what a
    few steps took): nothing is kept or written. Of a study of many networks, the first."""
    profile: bool = False
    """Trace a few steps for TensorBoard (XProf) or Perfetto, into the folder, and say where the time went;
    not in a study of many networks."""
    hosts: str = ""
    """Machines with one process each that train as one, such as "a:1234,b" or "gpu[01-16].lab". Not needed
    under Open MPI, Slurm, Cloud TPU or a Kubernetes job; "alone" for one process in spite of them. All share
    the folder, which must be given."""
    coordinator: str = ""
    """Instead of hosts, where process 0 listens, "host:port"."""
    process: int | None = None
    """Which of the processes this is, from 0, where its host does not say."""
    processes: int | None = None
    """How many processes there are, where hosts do not say."""


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a module's command line, for what is no experiment with a configuration.

    Args:
        module: such as "experiments.benchmarks".
        description: its docstring, whose first paragraph stands before the options, and the rest after them.
    """
    first, _, rest = (description or "").partition("\n\n")
    return argparse.ArgumentParser(
        f"python -m {module}",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command(
    main: Callable[[C], Any], config: type[C], description: str | None, defaults: C | None = None
) -> None:
    """Runs ``main`` with a configuration read from the command line.

    ``--resume FOLDER`` takes the configuration from a run's folder, and goes on with it. An error that is the
    user's to mend ends in one sentence and exit status 1.

    Args:
        main: the experiment.
        config: its configuration, a frozen dataclass with a field ``execution``.
        description: what ``--help`` says first.
        defaults: other defaults than those of the class.
    """
    train.prepare()
    with sentences():
        settings = parse(config, sys.argv[1:], description, defaults)
        where: Execution = settings.execution  # type: ignore[attr-defined]
        train.connect(where.coordinator or None, where.process, where.processes, hosts=where.hosts or None)
        if jax.distributed.is_initialized() and jax.process_count() > 1 and not where.run:
            raise ValueError("several processes need one folder for all: give it with --run")
        if where.dry_run:
            print(dry_run(main, settings))
        else:
            main(settings)


MEASURED = 20
"""Steps that a dry run takes the time of, at most."""


def dry_run(main: Callable[[C], Any], config: C) -> str:
    """What a step of an experiment costs here, and takes by a few that are run; nothing is written.

    Raises:
        ValueError: if the experiment trains nothing, or its step does not fit in the devices' memory; then
            its own settings that save memory are tried, and said which makes it fit.
    """
    try:
        plan = ahead.planned(main, config, None, MEASURED, evaluation=False)
    except train.DoesNotFit as error:
        tried = list(ahead.searched(main, config, None, jax.device_count(), error.parts))
        raise ValueError("\n".join([str(error), *ahead.told(tried)])) from None
    predicted = plan.costs["train"]
    told = f"{predicted}\n\n{predicted.sentence(plan.steps)}"
    if plan.seconds is None:
        return told
    took, whole = (train.cost.duration(n * plan.seconds) for n in (1, plan.steps))
    return f"{told}\nexpected: {took} a step, as {plan.measure} took here; {plan.steps:,} steps {whole}"


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Ends the process with one sentence for an error that is the user's to mend."""
    try:
        yield
    except (ValueError, OSError, ImportError, train.CheckpointError, train.Fault) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"error: {error}\n({TRACEBACK}=1 in the environment shows where)", file=sys.stderr)
        raise SystemExit(1) from None


def parse(
    config: type[C], arguments: list[str], description: str | None = None, defaults: C | None = None
) -> C:
    """A configuration from command-line arguments.

    Raises:
        ValueError: for a folder given to ``--resume`` that holds no run, or flags beside it.
        SystemExit: after ``--help``, and for arguments that tyro cannot read.
    """
    if "--resume" in arguments:
        return resumed(config, arguments)
    tyro = _tyro()
    more = (
        "\n\n--resume FOLDER goes on with a run that was stopped, with the settings it was started with; "
        "the execution options may follow."
    )
    return tyro.cli(
        config,
        default=defaults or config(),
        prog=f"python -m {config.__module__ if config.__module__ != '__main__' else _script()}",
        args=arguments,
        description=(description or "") + more,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _tyro() -> Any:
    try:
        import tyro
    except ImportError:
        raise ImportError('the command line needs tyro: pip install -e ".[experiments]"') from None
    return tyro


def _script() -> str:
    """The module that ``python -m`` runs."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    return specification.name if specification else Path(sys.argv[0]).stem


def resumed(config: type[C], arguments: list[str]) -> C:
    """The configuration of a run that was stopped, from ``["--resume", FOLDER, flags of Execution...]``."""
    if len(arguments) < 2 or arguments[0] != "--resume":
        raise ValueError("--resume comes first, with a folder: a run goes on with the settings it has")
    execution = Execution()
    if arguments[2:]:
        execution = _tyro().cli(Execution, prog="... --resume FOLDER", args=arguments[2:])
    values = read_config(arguments[1])
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"{arguments[1]} holds a run of another experiment: it sets {', '.join(unknown)}")
    return dataclasses.replace(config(**values), execution=dataclasses.replace(execution, run=arguments[1]))  # type: ignore[type-var]


def read_config(folder: str | Path) -> dict[str, Any]:
    """The settings in a run's folder, lists as tuples, without the experiment's name.

    Raises:
        ValueError: if the folder holds no run.
    """
    path = Path(folder) / train.run.CONFIG
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no run: {path} cannot be read ({error})") from None
    values.pop("experiment", None)
    return {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}


def settings(experiment: str, config: Any) -> dict[str, Any]:
    """What a run's folder keeps of a configuration: all that its result depends on."""
    values = dataclasses.asdict(config)
    del values["execution"]
    return {"experiment": experiment, **values}


def flags(config: Any) -> list[str]:
    """The command-line flags that give a configuration: those that differ from the defaults.

    Example:
        >>> from experiments import lenet
        >>> flags(lenet.Config(dataset="mnist", batch_size=128))
        ['--dataset mnist', '--batch-size 128']
    """
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "execution" or value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found.append(f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return found


def profile(execution: Execution, folder: Path) -> Path | None:
    """Where the trace of a run in a folder goes, if one is wanted."""
    return folder / "profile" if execution.profile else None


def new_folder(experiment: str, config: Any) -> Path:
    """A folder that is not there yet: ``runs/EXPERIMENT-DATASET-N``."""
    stem = "-".join(filter(None, [experiment, getattr(config, "dataset", "")]))
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder
