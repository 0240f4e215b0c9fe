"""Contenders as processes: starting them, checking that they compute the same, and taking turns."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.catalogue import ROOT

MOST_APART = 0.1
"""How far losses may be apart at most, relative, however many steps have amplified rounding."""

BLOCK_SECONDS = 1.5
"""Time of a block: long beside a step, short beside the minutes in which a shared machine changes."""

FIRST_STEPS = 3
"""Steps whose losses show that contenders compute the same."""

WARM_SECONDS = 0.3
"""Time to run before a block counts: the one before has taken the caches, and its threads may still spin."""


def peak_memory(process: int | str = "self") -> int:
    """The most memory that a process has had resident, bytes.

    Linux's ``getrusage`` would count, for a process, what the one that started it held then.

    Args:
        process: its number, where there is /proc; this one's by default.

    Raises:
        OSError: if there is no such process, or no /proc to ask.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        if process != "self":
            raise
        status = ""
    if peak := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return 1024 * int(peak[1])
    if process != "self":
        return 0  # One that has ended has no memory left to tell of.
    import resource

    return most_resident(resource.getrusage(resource.RUSAGE_SELF))


def most_resident(usage: Any) -> int:
    """The most memory resident by a ``resource.struct_rusage``, bytes; its unit depends on the system."""
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def jax_memory() -> Callable[[], int]:
    """Tells the most memory that JAX has held, bytes: the device's own, or this process's on a CPU."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu" or device.memory_stats() is None:
        return peak_memory
    return lambda: int(device.memory_stats()["peak_bytes_in_use"])


class Contender(NamedTuple):
    """What competes, inside its process.

    Attributes:
        label: what tables call it.
        parameters: how many the model has.
        losses: of the first steps, from the given weights on the given batches; as many a step. Of one that
            writes, its tokens.
        run: ``steps -> seconds`` that they took, everything finished.
        first_step: when the first step was done, seconds since the epoch.
        memory: the most that it has held, bytes: of the processor's memory, or of the accelerator's if it
            computes there.
        least: seconds of a step at the device's peak rates (`jdl.train.cost`), where they were asked for.
    """

    label: str
    parameters: int
    losses: list[float]
    run: Callable[[int], float]
    first_step: float
    memory: Callable[[], int] = peak_memory
    least: float = 0.0


class Block(NamedTuple):
    """What a block of steps came to.

    Attributes:
        seconds: of one step.
        utilisation: the process's time on a processor as a share of all cores, 0 to 1. A thread that spins
            while it waits counts as busy.
    """

    seconds: float
    utilisation: float


def first_losses(step: Callable[[int], list[float]]) -> tuple[list[float], float]:
    """The losses of the first steps, and when the first of them was done.

    All are on the first batch, whose loss tells what the steps before have learnt: on new ones, with random
    labels, another optimiser would hardly show.

    Args:
        step: takes a batch's number, steps on it, and gives its losses once they are computed.

    Example:
        >>> first_losses(lambda i: [float(i)])[0]
        [0.0, 0.0, 0.0]
    """
    losses = step(0)
    done = time.time()
    for _ in range(1, FIRST_STEPS):
        losses = losses + step(0)
    return losses, done


def cores() -> int:
    """Processor cores that this process may use."""
    allowed = _allowed()
    return os.cpu_count() or 1 if allowed is None else len(allowed)


def _allowed() -> set[int] | None:
    """Their numbers; None where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def serve(contender: Contender) -> None:
    """Answers the lines on stdin, each a JSON number of steps, until there are no more.

    The first line of output describes the contender; each further one has the seconds that the steps took,
    the processor time as a share of the cores, and the peak of memory.
    """
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(**{name: value for name, value in contender._asdict().items() if not callable(value)})
    for line in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        seconds = contender.run(json.loads(line))
        # Of the whole call, whatever part of it counts as the steps' time.
        share = (time.process_time() - busy) / (time.perf_counter() - start) / cores()
        answer(seconds=seconds, utilisation=share, memory=contender.memory())


class Worker:
    """A contender's process, seen from outside.

    Attributes:
        label: what tables call it.
        parameters: how many the model has.
        losses: of the first steps.
        started: seconds from the start of the process to the end of its first step, once it is ready.
        memory: peak of memory so far, bytes.
        least: seconds that a step takes at the device's peak rates, or 0 if it was not asked for.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts ``python -m arguments...``, a program that ends in `serve`, and does not wait for it.

        Args:
            arguments: what to run.
            environment: variables to change; one that is empty is taken away.
        """
        variables = {name: x for name, x in {**os.environ, **(environment or {})}.items() if x}
        self._begin = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=variables,
        )
        self._name = " ".join(arguments[1:3])
        self.memory = 0

    def ready(self) -> Worker:
        """Waits until it has taken its first steps.

        Raises:
            RuntimeError: if it ends before that.
        """
        ready = self._read()
        self.label: str = ready["label"]
        self.parameters: int = ready["parameters"]
        self.losses: list[float] = ready["losses"]
        self.started: float = ready["first_step"] - self._begin
        self.least: float = ready["least"]
        print(f"  {self.label}: first step after {self.started:.0f} s", file=sys.stderr, flush=True)
        return self

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def run(self, steps: int) -> Block:
        """Has so many steps taken."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._read()
        self.memory = answer["memory"]
        return Block(answer["seconds"] / steps, answer["utilisation"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the contender {self._name} ended with status {self._process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process: it leaves when there is no more to read."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def started(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], *, at_once: bool = False
) -> Iterator[list[Worker]]:
    """Workers for (arguments, environment) each, ready, and ended with the ``with``.

    They start one after another, or at once: sooner, but it takes each of them longer.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for arguments, environment in commands:
            workers.append(Worker(arguments, environment))
            stack.callback(workers[-1].close)
            if not at_once:
                workers[-1].ready()
        if at_once:
            for worker in workers:
                worker.ready()
        yield workers


def check_sizes(workers: Sequence[Worker | Contender]) -> None:
    """Checks that all have a model of the same size.

    Raises:
        ValueError: naming the first that differs, and the numbers.
    """
    first = workers[0]
    for other in workers[1:]:
        if other.parameters != first.parameters:
            raise ValueError(
                f"{other.label} has {other.parameters:,} parameters, {first.label} has {first.parameters:,}"
            )


def check_equal(workers: Sequence[Worker | Contender], tolerance: float = 1e-4) -> None:
    """Checks that all have the same model: its size, and the first losses from the same weights and batches.

    The losses of the first step must agree within ``tolerance``, relative; each step may amplify rounding
    ten times, up to `MOST_APART`.

    Raises:
        ValueError: naming the first that differs, and the numbers.
    """
    check_sizes(workers)
    first = workers[0]
    for other in workers[1:]:
        a_step = max(1, len(first.losses) // FIRST_STEPS)
        pairs = enumerate(zip(first.losses, other.losses, strict=True))
        if not all(
            math.isclose(a, b, rel_tol=min(tolerance * 10 ** (i // a_step), MOST_APART))
            for i, (a, b) in pairs
        ):
            raise ValueError(
                f"{other.label} starts with the losses {other.losses} where {first.label} has {first.losses}"
            )


def apart(*arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """What ``python -m arguments...`` prints as JSON in its last line, computed in a process of its own.

    Args:
        *arguments: what to run.
        environment: all of its variables; this process's when None.

    Raises:
        RuntimeError: if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


class OtherLoad:
    """How busy the cores that this process may use are with anything but a worker and this process.

    Time that a virtual machine's host gave to others ("steal") counts too.

    Example:
        >>> load = OtherLoad(os.getpid())
        >>> load.share() >= 0
        True
    """

    def __init__(self, pid: int) -> None:
        """Starts counting."""
        import psutil

        self._processes = [psutil.Process(pid), psutil.Process()]
        self._cores = cores()
        self._start = self._read()

    def _read(self) -> tuple[float, float]:
        """The time, and the processor seconds of everybody else so far."""
        import psutil

        times = psutil.cpu_times(percpu=True)
        if (allowed := _allowed()) is not None and max(allowed) < len(times):
            times = [times[core] for core in allowed]
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        busy = sum(getattr(each, kind, 0.0) for each in times for kind in kinds)
        ours = sum(sum(process.cpu_times()[:2]) for process in set(self._processes))
        return time.perf_counter(), busy - ours

    def share(self) -> float:
        """Their share of all cores since the start, 0 to 1."""
        (start, before), (end, after) = self._start, self._read()
        return max(0.0, (after - before) / max(end - start, 1e-9) / self._cores)


def take_turns(
    workers: Sequence[Worker], seconds: float, *, tolerate: float = 0.1, block: float = BLOCK_SECONDS
) -> dict[str, list[Block]]:
    """Lets the workers run in turns, a short block each, in an order drawn anew each round.

    Args:
        workers: the contenders.
        seconds: time to measure each of them.
        tolerate: a block is thrown away if other programs had a larger share of the machine.
        block: seconds of a block.

    Returns:
        By label, the blocks that were kept.

    Raises:
        RuntimeError: if other programs ran in nearly all blocks.
    """
    lengths = [_steps_in(worker, block) for worker in workers]
    rounds = max(1, math.ceil(seconds / block))
    kept: dict[str, list[Block]] = {worker.label: [] for worker in workers}
    rng = random.Random(0)
    for _ in range(3 * rounds):
        for worker, steps in rng.sample(list(zip(workers, lengths, strict=True)), len(workers)):
            worker.run(max(1, int(steps * WARM_SECONDS / block)))
            load = OtherLoad(worker.pid)
            found = worker.run(steps)
            if load.share() <= tolerate:
                kept[worker.label].append(found)
        if min(map(len, kept.values())) >= rounds:
            break
    if min(map(len, kept.values())) < min(3, rounds):
        raise RuntimeError(
            f"other programs took more than {tolerate:.0%} of the machine in nearly all blocks: "
            f"measure when it is idle, or allow more with --tolerate"
        )
    return kept


def _steps_in(worker: Worker, seconds: float) -> int:
    """How many steps a worker, then warm, does in a time."""
    steps = 2
    while (each := worker.run(steps).seconds) * steps < seconds / 8:
        steps *= 2
    return max(1, round(seconds / each))
