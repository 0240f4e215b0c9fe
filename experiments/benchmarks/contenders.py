"""What competes: jdl through its public names, and the table of all contenders.

``python -m experiments.benchmarks.contenders WORKLOAD CONTENDER FOLDER`` is a contender's process; the folder
holds the weights and the data. Only what a contender is made of is imported in its process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.benchmarks import equinox_peer, keras_peer, levers, linen_peer, torch_peer
from experiments.benchmarks.harness import Contender, first_losses, jax_memory, serve
from experiments.benchmarks.steps import Run
from experiments.benchmarks.workloads import OVERHEADS, RATES, WORKLOADS, Given, read

TWO = 2
"""Devices that JAX is told a CPU has, where it is to work on two halves of a batch at once."""


def _batches(given: Given) -> Any:
    from jdl import data

    return data.shuffled(given.arrays, given.workload.batch_size, resident=True)


def jdl_steps(
    given: Given,
    several: bool | None = None,
    *,
    bare: bool = False,
    mesh: str = "data:1",
    mode: Literal["jit", "shard_map"] = "jit",
    label: str = "",
) -> Contender:
    """The compiled step of `jdl.train.fit`, called as `fit` calls it.

    Args:
        given: weights and data.
        several: whether a dispatch holds several steps; None as `fit` chooses, False or True.
        bare: as many steps a dispatch as `fit` has between two records.
        mesh: the devices, and what they share.
        mode: who splits the work between them.
        label: what tables call it, where that does not follow from the others.
    """
    from jdl import train

    train.prepare()
    if given.workload.kind == "inference":
        return jdl_predict(given, label or _named("jdl"))
    run = Run(given.workload.learner(), _batches(given), several, mesh, mode)
    least = run.least() if given.workload.flops else 0.0
    losses, first_step = first_losses(run.first)
    how = "several steps a dispatch" if run.program.steps_at_once else "one step a dispatch"
    found = "jdl" if several is None else f"jdl, {how}"
    if bare:
        found = f"its compiled step alone, {how}"
    parameters = sum(x.size for name, x in given.weights.items() if not _is_statistic(name))
    return Contender(
        label or _named(found),
        parameters,
        losses,
        lambda steps: run.run(steps, bare=bare),
        first_step,
        jax_memory(),
        least,
    )


def _named(label: str) -> str:
    from jdl.train.runtime import PLAIN

    return "jdl without prepare()" if os.environ.get(PLAIN) else label


def _is_statistic(name: str) -> bool:
    """Whether a tensor of PyTorch's is no parameter but a running statistic."""
    return name.endswith(("running_mean", "running_var"))


def jdl_predict(given: Given, label: str) -> Contender:
    """A trained model as a pure function whose weights are leaves of a pytree, compiled."""
    import jax

    from jdl import interop, tasks

    module = given.workload.module()
    inputs = [jax.device_put(inputs) for inputs, _ in given.batches]
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs[0])
    variables = jax.device_put(interop.load_weights(shapes, given.weights, given.workload.rules))
    predict = jax.tree_util.Partial(tasks.classification(module).predict, variables)
    # Called with the function as an argument, so that the weights are no constants of the program.
    answer = jax.jit(lambda predict, x: predict(x))

    def first(step: int) -> list[float]:
        return [float(np.square(answer(predict, inputs[step])).mean())]

    losses, first_step = first_losses(first)

    def run(steps: int) -> float:
        start, before = time.perf_counter(), None
        for i in range(steps):
            now = answer(predict, inputs[i % len(inputs)])
            jax.block_until_ready(before)
            before = now
        jax.block_until_ready(before)
        return time.perf_counter() - start

    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return Contender(label, parameters, losses, run, first_step, jax_memory())


def jdl_fit(given: Given, several: bool | None = None) -> Contender:
    """`jdl.train.fit` itself, timed between its first and its last record, after compilation."""
    from jdl import train

    train.prepare()
    learner, batches = given.workload.learner(), _batches(given)

    def run(steps: int) -> float:
        ticks: list[tuple[int, float]] = []

        def logger(record: Any) -> None:
            if record["split"] == "train":
                ticks.append((record["step"], time.perf_counter()))

        total = max(steps, 200)
        train.fit(learner, batches, total, loggers=[logger], mesh="data:1", several_steps=several)
        (first, start), (last, end) = ticks[0], ticks[-1]
        return (end - start) / (last - first) * steps

    how = "one step a dispatch" if several is False else "several steps a dispatch"
    return Contender(
        f"fit, {how}", sum(x.size for x in given.weights.values()), [], run, time.time(), jax_memory()
    )


def jdl_runs(given: Given) -> Contender:
    """The points of a sweep as runs of their own, one after another, each compiled for itself."""
    from jdl import learners, tasks, train

    train.prepare()
    task, batches = tasks.classification(given.workload.module()), _batches(given)
    runs = [Run(learners.gradient(task, given.workload.tx(rate)), batches, None) for rate in RATES]

    def first(step: int) -> list[float]:
        return [float(np.mean([run.first(step)[0] for run in runs]))]

    losses, first_step = first_losses(first)
    parameters = sum(x.size for x in given.weights.values())
    return Contender(
        f"jdl, {len(runs)} runs",
        parameters,
        losses,
        lambda n: sum(run.run(n) for run in runs),
        first_step,
        jax_memory(),
    )


CONTENDERS: dict[str, Callable[[Given], Contender]] = {
    "jdl": jdl_steps,
    "jdl-one": lambda given: jdl_steps(given, False),
    "jdl-several": lambda given: jdl_steps(given, True),
    "jdl-devices": lambda given: jdl_steps(
        given, mesh=f"data:{TWO}", mode="shard_map", label=f"jdl, {TWO} devices"
    ),
    "jdl-runs": jdl_runs,
    "bare-one": lambda given: jdl_steps(given, False, bare=True),
    "bare-several": lambda given: jdl_steps(given, True, bare=True),
    "fit-one": lambda given: jdl_fit(given, False),
    "fit-several": lambda given: jdl_fit(given, True),
    "linen": linen_peer.linen,
    "equinox": equinox_peer.equinox,
    "keras": keras_peer.keras,
    "torch": torch_peer.pytorch,
    "torch-compile": lambda given: torch_peer.pytorch(given, compiled=True),
}


def contender(name: str, given: Given) -> Contender:
    """A contender by name: "jdl-without-LEVER" is jdl without one of `levers`, "mesh-SPEC" jdl on a mesh."""
    _, is_mesh, mesh = name.partition("mesh-")
    if is_mesh:
        return jdl_steps(given, mesh=mesh, label="jdl" if mesh == "data:1" else f"jdl, {mesh}")
    _, without, lever = name.partition("jdl-without-")
    if not without:
        return CONTENDERS[name](given)
    levers.LEVERS[lever].off()
    several = False if lever == levers.SEVERAL else None
    return jdl_steps(given, several, label=f"jdl without {levers.LEVERS[lever].title}")


def command(workload: str, name: str, folder: Path) -> list[str]:
    """Arguments of ``python -m`` for a contender's process."""
    return ["experiments.benchmarks.contenders", workload, name, str(folder)]


if __name__ == "__main__":
    workload, name, folder = sys.argv[1:]
    of = {**WORKLOADS, **OVERHEADS}[workload]
    serve(contender(name, read(of, Path(folder))))
