"""Several processes that train as one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Turns the loss of another process into a sentence and an exit.

    The coordination service aborts a process that lingers after a peer is lost, so it leaves at once.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"process {jax.process_index()} of {jax.process_count()}: another process is gone "
            f"({str(error).splitlines()[0][:200]}). Start all of them again: the run goes on from its last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(75)
