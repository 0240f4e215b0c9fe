"""Several processes that train as one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jdl.train import cluster
from jdl.train.checkpoint import CheckpointError
from jdl.train.planning import processes
from jdl.train.run import ResumeError
from jdl.train.stopping import Fault

LOST = 75
"""Exit status of a process that lost another, or waited in vain: sysexits.h's EX_TEMPFAIL, "try again"."""

HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process counts as lost."""

ARRIVAL_SECONDS = 300
"""How long a process that has started waits for the others to start."""

SHUTDOWN_SECONDS = 60
"""How long a process that is done waits for the others."""


def connect(
    address: str | None = None,
    index: int | None = None,
    count: int | None = None,
    *,
    hosts: str | Sequence[str] | None = None,
) -> None:
    """Makes this process one of several that train as one; call it before anything else of JAX.

    Start the same script in each process. Where Open MPI, Slurm, Cloud TPU or a Kubernetes job started it,
    no argument is needed, and where nothing says that there are several, nothing is done. The environment
    variable JDL_HOSTS stands in for ``hosts``.

    Args:
        address: "host:port" of process 0, on a free port.
        index: which of the processes this is, 0 to count - 1.
        count: how many there are.
        hosts: instead of these, the machines with one process each, such as "a:1234,b" or
            "gpu[01-16].lab": the first has process 0, and each process finds its own place by the machine's
            name and addresses, or is told its ``index``. "alone" for a process by itself, whatever the
            environment says.

    Raises:
        ValueError: if the arguments or the environment contradict each other, or say too little.
        RuntimeError: if JAX computes already, or the others do not come.

    Example:
        >>> connect(hosts="alone")
        >>> jax.process_count()
        1
    """
    if jax.distributed.is_initialized() and (address, index, count, hosts) == (None,) * 4:
        return
    launch = cluster.find(address, index, count, hosts)
    if launch is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with _on_abort(_alone_too_long):
            jax.distributed.initialize(
                **launch.arguments,
                initialization_timeout=ARRIVAL_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except (ValueError, OSError, ImportError) as error:
        if launch.is_certain:
            raise
        print(f"no other process is known of ({error}): this one trains by itself", file=sys.stderr)


def _alone_too_long() -> None:
    _exit_lost(
        f"not all processes came within {ARRIVAL_SECONDS} s; what the runtime said is above. Start them all, "
        "with the same list of hosts or address of process 0, whose port must be free and open to the others."
    )


def check_part(what: str, batches: Any, mesh: Mesh) -> None:
    """Checks that each of several processes reads its own part of every batch, and has devices for it.

    Args:
        what: what the batches are for, as it is called in the error.
        batches: as in `jdl.train.fit`; where they do not know their ``shard``, nothing is known of them.
        mesh: the devices.

    Raises:
        ValueError: if all would read the same, or a part that is another's, or a process has no device.
    """
    index, count = jax.process_index(), jax.process_count()
    hosts, owners = processes(), len({device.process_index for device in mesh.devices.flat})
    if owners < hosts:
        raise ValueError(
            f"{hosts} processes train, and the mesh has devices of {owners}: it must have some of each"
        )
    if count == 1:
        return
    shard = tuple(getattr(batches, "shard", (index, count)))
    if shard != (index, count):
        raise ValueError(
            f"process {index} of {count} would read part {shard[0]} of {shard[1]} of the batches of {what}: "
            "make them with shard=(jax.process_index(), jax.process_count())"
        )


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Turns the loss of another process into a sentence and an exit.

    Where a process fails alone the others wait for it, so it leaves at once; they then learn of it from their
    next collective, or from the coordination service, which aborts them.
    """
    if jax.process_count() == 1:
        yield
        return
    with _on_abort(_leave):
        try:
            yield
        except Exception as error:
            if _is_loss(error):
                _leave(str(error).splitlines()[0][:200])
            if isinstance(error, (Fault, CheckpointError, ResumeError)):
                # Every process comes to the same.
                raise
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def _is_loss(error: BaseException) -> bool:
    """Whether an error comes from a collective or a barrier that another process left."""
    words = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "unhealthy")
    return any(word in str(error) for word in words) or (
        error.__cause__ is not None and _is_loss(error.__cause__)
    )


def _leave(reason: str = "the runtime aborted this one; what it said is above") -> None:
    _exit_lost(
        f"process {jax.process_index()} of {jax.process_count()}: another process is gone ({reason}). "
        "Start all of them again: the run goes on from its last checkpoint."
    )


def _exit_lost(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(LOST)


@contextlib.contextmanager
def _on_abort(function: Callable[[], None]) -> Iterator[None]:
    """Calls ``function`` where the C library would abort the process.

    The coordination service's client aborts from a thread of its own, and Python's own signal handlers run
    in the main thread alone.
    """
    libc = ctypes.CDLL(None)
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    handler = handler_type(lambda number: function())
    old = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, old)
