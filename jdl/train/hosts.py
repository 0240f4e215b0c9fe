"""Several processes that train as one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

import jax

from jdl.train.checkpoint import CheckpointError
from jdl.train.run import ResumeError
from jdl.train.stopping import Fault

LOST = 75
"""Exit status of a process that lost another one: sysexits.h's EX_TEMPFAIL, "try again"."""

HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process counts as lost."""

SHUTDOWN_SECONDS = 60
"""How long a process that is done waits for the others."""


def connect(address: str | None = None, index: int | None = None, count: int | None = None) -> None:
    """Makes this process one of several that train as one; call it before anything else of JAX.

    Start the same script ``count`` times. On a TPU pod or under Slurm no argument is needed.

    Args:
        address: "host:port" of process 0, on a free port.
        index: which of the processes this is, 0 to count - 1.
        count: how many there are.

    Raises:
        RuntimeError: if JAX computes already, or the others do not come.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        count,
        index,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
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
    print(
        f"process {jax.process_index()} of {jax.process_count()}: another process is gone ({reason}). "
        "Start all of them again: the run goes on from its last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
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
