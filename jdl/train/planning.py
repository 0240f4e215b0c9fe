"""Planning: everything that `jdl.train.fit` does up to its first step, on devices that need not be here."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from jdl.core import PyTree
from jdl.train.cost import Cost, cost

if TYPE_CHECKING:
    from jdl.train.program import Program


class Planned(BaseException):
    """Leaves `jdl.train.fit`, and whatever called it, once the plan is made."""


@dataclass
class Plan:
    """What `jdl.train.fit` would run.

    Attributes:
        devices: those to plan for; those that are here when None.
        measure: most steps to run after that, to compare, 0 for none; then those that were run.
        evaluation: whether to compile the evaluation sets' programs too.
        costs: by program, "train" and the names of evaluation sets, what one step costs.
        steps: how many were asked for.
        seconds: what a step was measured to take.
    """

    devices: Sequence[Any] | None = None
    measure: int = 0
    evaluation: bool = False
    costs: dict[str, Cost] = field(default_factory=dict)
    steps: int = 0
    seconds: float | None = None

    def make(self, program: Program, source: Any, mesh: Mesh, steps: int, examples: int) -> None:
        """Fills it in, for a batch of so many examples a device.

        Raises:
            Planned: always, at the end.
            jdl.train.DoesNotFit: if the devices' memory does not hold the training step.
        """
        self.steps = steps
        with warnings.catch_warnings():
            # A program for devices that are elsewhere cannot be taken from the compilation cache.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            for name, (trace, first) in program.traces.items():
                if name == "train" or self.evaluation:
                    self.costs[name] = cost(trace(), first, mesh, examples)
        if self.measure:
            self.seconds, self.measure = _measured(program, source, self.measure)
        raise Planned


_current: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def planning(
    devices: Sequence[Any] | None = None, *, measure: int = 0, evaluation: bool = False
) -> Iterator[Plan]:
    """Inside, the first call of `jdl.train.fit` only says what a step would cost, and ends the block.

    Nothing is placed on the devices, unless steps are to be measured.

    Args:
        devices: those to plan for, such as `jdl.train.topology` gives; those that are here when None.
        measure: most steps to run, to compare with what is predicted, as far as `PATIENCE` reaches; needs
            devices that are here.
        evaluation: whether to compile the evaluation sets' programs too.

    Yields:
        The plan, to be read after the block. Its ``costs`` are empty if nothing was to be trained.

    Raises:
        ValueError: if steps are to be measured on devices that are elsewhere.
        jdl.train.DoesNotFit: if the devices' memory does not hold the training step.

    Example:
        >>> import optax
        >>> from jdl import data, learners, models, tasks, train
        >>> digits = data.load("digits")
        >>> learner = learners.gradient(tasks.classification(models.MLP((64, 10))), optax.adam(3e-3))
        >>> with planning() as plan:
        ...     train.fit(learner, data.shuffled(digits.train, 64), steps=10_000, mesh="data:1")
        >>> plan.costs["train"].params, sum(plan.costs["train"].flops.values())
        (4810, 1294336)
    """
    if measure and devices is not None:
        raise ValueError("only steps on devices that are here can be measured")
    plan = Plan(devices, measure, evaluation)
    token = _current.set(plan)
    try:
        yield plan
    except Planned:
        pass
    finally:
        _current.reset(token)


def current() -> Plan | None:
    """The plan that is being made, if one is."""
    return _current.get()


def processes() -> int:
    """How many processes train, or will train what is planned: one a host of the devices."""
    devices = plan.devices if (plan := current()) else None
    return len({device.process_index for device in devices}) if devices else jax.process_count()


def put(tree: PyTree, sharding: Any) -> PyTree:
    """`jax.device_put`, or where a plan is made the shapes alone."""
    plan = current()
    if plan is None or plan.measure:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(lambda x: x, tree)
    )


PATIENCE = 10.0
"""Seconds that measured steps may take, but for two to begin with."""


def _measured(program: Program, source: Any, steps: int) -> tuple[float, int]:
    """Seconds of a training step, over at most so many after the first, and over how many."""
    state, sums = program.init(), program.zeros
    done = 0

    def run(several: int) -> float:
        nonlocal state, sums, done
        start, stop = time.perf_counter(), done + several
        while done < stop:
            after = stop if program.steps_at_once else done + 1
            state, sums, found = program.advance(state, sums, source, done, after)
            done = after
            if program.in_turn:
                jax.block_until_ready(found)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    run(1)
    several = max(1, min(steps, int(PATIENCE / run(1))))
    return run(several) / several, several
