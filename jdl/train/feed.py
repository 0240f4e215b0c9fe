"""Batches on their way to the devices.

Batches are a function of the step. Where they are a pytree with arrays (data that live on the device) the
compiled step calls the function itself; otherwise the host calls it, a few steps ahead, on threads of its
own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from jdl.train.planning import put
from jdl.train.sharding import batch_shardings


def is_resident(batches: Any) -> bool:
    """Whether batches live on the device: a pytree whose leaves are the data."""
    return not jax.tree_util.all_leaves([batches])


def place(batch: Any, mesh: Mesh) -> Any:
    """A host batch as global arrays split over the mesh; with several processes, each gives its own rows."""
    batch = dict(batch)
    shardings = batch_shardings(batch, mesh)
    if jax.process_count() == 1:
        return jax.tree.map(put, batch, shardings)
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch, shardings
    )


class Feed:
    """Host batches computed and placed ahead of their use, in order, on two threads.

    An error raised by the function comes out of `get` for the step that it belongs to.
    """

    def __init__(
        self, batches: Callable[[int], Any], mesh: Mesh, start: int, stop: int, ahead: int = 4
    ) -> None:
        """Starts computing the batches from step ``start``, ``ahead`` of them at a time."""
        self._batches, self._mesh = batches, mesh
        self._next, self._stop = start, stop
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="feed")
        self._queue: deque[tuple[int, Future[Any]]] = deque()
        for _ in range(ahead):
            self._enqueue()

    def _enqueue(self) -> None:
        if self._next < self._stop:
            self._queue.append((self._next, self._pool.submit(self._make, self._next)))
            self._next += 1

    def _make(self, step: int) -> Any:
        try:
            return place(self._batches(step), self._mesh)
        except Exception as error:
            error.add_note(f"while making the batch of step {step + 1}, batches({step})")
            raise

    def get(self, step: int) -> Any:
        """The batch of a step, on the devices. Steps come one after another.

        Raises:
            RuntimeError: if ``step`` is not the next one.
        """
        if not self._queue or self._queue[0][0] != step:
            raise RuntimeError(f"batches come in order and end with step {self._stop - 1}; got {step}")
        _, future = self._queue.popleft()
        self._enqueue()
        return future.result()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the threads, once they are done with the batches they are at."""
        self._pool.shutdown(cancel_futures=True)
