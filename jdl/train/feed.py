"""Batches on their way to the devices.

Batches are a function of the step. Where they are a pytree with arrays (data that live on the device) the
compiled step calls the function itself; otherwise the host calls it, a few steps ahead, on threads of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jdl.train.mesh import batch_sharding


def is_resident(batches: Any) -> bool:
    """Whether batches live on the device: a pytree whose leaves are the data."""
    return not jax.tree_util.all_leaves([batches])


def place(batch: Any, mesh: Mesh) -> Any:
    """A host batch as global arrays split over the mesh; with several processes, each gives its own rows."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), dict(batch)
    )


class Feed:
    """Host batches computed and placed ahead of their use, in order.

    An error raised by the function comes out of `get` for the step that it belongs to.
    """

    def __init__(self, batches: Callable[[int], Any], mesh: Mesh, start: int, stop: int, ahead: int = 4) -> None:
        """Starts computing the batches from step ``start``, ``ahead`` of them at a time."""
        self._batches, self._mesh = batches, mesh
        self._next, self._stop = start, stop
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="feed")
        self._queue: deque[tuple[int, Future[Any]]] = deque()
        for _ in range(ahead):
            self._enqueue()

    def _enqueue(self) -> None:
        if self._next < self._stop:
            self._queue.append((self._next, self._pool.submit(self._batches, self._next)))
            self._next += 1

    def get(self, step: int) -> Any:
        """The batch of a step, on the devices. Steps come one after another.

        Raises:
            RuntimeError: if ``step`` is not the next one.
        """
        expected, future = self._queue.popleft()
        if expected != step:
            raise RuntimeError(f"batches come in order: expected step {expected}, got {step}")
        self._enqueue()
        return place(future.result(), self._mesh)

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
