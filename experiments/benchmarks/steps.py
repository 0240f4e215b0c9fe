"""The compiled step of `jdl.train.fit`, and how `fit` calls it."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np


def program_of(
    learner: Any,
    batches: Any,
    several: bool | None = None,
    mesh: str = "data:1",
    mode: Literal["jit", "shard_map"] = "jit",
) -> tuple[Any, Any]:
    """The program that `fit` makes of a learner, not yet compiled.

    Args:
        learner: what to run.
        batches: batches by step; those that live on the device are put there.
        several: whether a dispatch holds several steps; None as `fit` chooses.
        mesh: the devices, and what they share.
        mode: who splits the work between them.

    Returns:
        The `jdl.train.program.Program`, and what its ``advance`` takes: the batches, or the first of them.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from jdl.train import make_mesh
    from jdl.train.feed import is_resident, place
    from jdl.train.program import build, first_batch

    devices = make_mesh(mesh)
    if is_resident(batches):
        batches = jax.device_put(batches, NamedSharding(devices, PartitionSpec()))
    first = place(first_batch(batches), devices)
    program = build(learner, jax.random.key(0), batches, first, {}, devices, mode, several)
    return program, batches if is_resident(batches) else first


class Run:
    """A learner of jdl's, from its initial state on, a dispatch at a time as `fit` does it.

    Args:
        learner: what to run.
        batches: resident batches.
        several: whether a dispatch holds several steps; None as `fit` chooses.
        mesh: the devices, and what they share.
        mode: who splits the work between them.
    """

    def __init__(
        self,
        learner: Any,
        batches: Any,
        several: bool | None = None,
        mesh: str = "data:1",
        mode: Literal["jit", "shard_map"] = "jit",
    ) -> None:
        import jax

        self.program, self.batches = program_of(learner, batches, several, mesh, mode)
        self.state = jax.block_until_ready(self.program.init())
        self.position, self.seconds_a_step, self.mesh = 0, 1.0, mesh

    def first(self, step: int) -> list[float]:
        """The losses of one of the first steps: of a GAN two."""
        import jax

        from jdl.core import summarize

        program = self.program
        self.state, sums, found = jax.block_until_ready(
            program.advance(self.state, program.zeros, self.batches, step, step + 1)
        )
        _check(found)
        self.position = step + 1
        means = summarize(sums)
        names = ["loss"] if "loss" in means else ["discriminator_loss", "generator_loss"]
        return [float(np.mean(means[name])) for name in names]

    def least(self) -> float:
        """Seconds of a step at the device's peak rates; asked first, the first step compiles no more."""
        from jdl.train import make_mesh
        from jdl.train.cost import cost

        trace, state = self.program.traces["train"]
        return cost(trace(), state, make_mesh(self.mesh)).seconds

    def run(self, steps: int, *, bare: bool = False) -> float:
        """Seconds that the next steps take, each sent while the one before is computed.

        With ``bare``, as many a dispatch as `fit` has between two records.

        Raises:
            RuntimeError: if a step was at fault; a dispatch ends at it, and would seem fast.
        """
        import jax

        from jdl.train.loop import DISPATCH_SECONDS

        program, at_once = self.program, 1
        if program.steps_at_once:
            at_once = max(1, int(DISPATCH_SECONDS / self.seconds_a_step))
            if bare:  # fit comes up for a record every hundredth of its steps
                at_once = max(1, min(at_once, steps // 100))
        sums, before = program.zeros, None
        start, stop = time.perf_counter(), self.position + steps
        while self.position < stop:
            end = min(self.position + at_once, stop)
            self.state, sums, found = program.advance(self.state, sums, self.batches, self.position, end)
            if program.in_turn:
                jax.block_until_ready(found)  # on every device
                _check(found)
            elif before is not None:
                # Without waiting for it, steps that wait in line slow down those that run.
                _check(before)
            before, self.position = found, end
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        if before is not None:
            _check(before)
        self.seconds_a_step = seconds / steps
        return seconds


def _check(found: Any) -> None:
    """Waits for a dispatch, and raises RuntimeError if one of its steps was at fault."""
    if (step := int(found.step)) >= 0:
        faults = ", ".join(name for name, count in found.faults.items() if np.any(count))
        raise RuntimeError(f"step {step + 1} was at fault, so its time means nothing: {faults}")
