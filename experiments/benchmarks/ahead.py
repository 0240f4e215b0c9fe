"""The benchmark's training steps compiled ahead of time for a TPU: work, traffic and memory beside the least.

    python -m experiments.benchmarks.ahead                       # every workload that trains
    python -m experiments.benchmarks.ahead gpt resnet18 --record

Nothing is run and no TPU is needed, only libtpu (the ``tpu`` extra). Traffic is set beside what any step must
move, the state read and written and the batch read once; and, where plain Flax has the same network, beside
that of its program: a formulation for CPUs that leaked into an accelerator's program would show as a
difference between the two.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import cli, ledger
from experiments.benchmarks import linen_peer
from experiments.benchmarks.predicted import MEBIBYTE
from experiments.benchmarks.workloads import FOR_ACCELERATORS, WORKLOADS, Given, draw

TOPOLOGY = "v5e:1x1"
NAMES = tuple(name for name, each in WORKLOADS.items() if each.kind != "inference")
COLUMNS = (
    "GFLOP of products a step",
    "Traffic (MiB)",
    "at the least (MiB)",
    "traffic in plain Flax (MiB)",
    "Memory (MiB)",
    "of which temporaries (MiB)",
    "memory in plain Flax (MiB)",
    "Step at least (ms)",
    "Utilisation at most (%)",
)


class Compiled(NamedTuple):
    """What two programs of one step cost, each a `jdl.train.cost.Cost`, and the least bytes that it moves."""

    ours: Any
    plain: Any
    least: int


def ours(given: Given, devices: Sequence[Any]) -> Any:
    """The cost of the program that `jdl.train.fit` makes of a workload for devices."""
    from jdl import data, train
    from jdl.train.planning import planning

    batches = data.shuffled(given.arrays, given.workload.batch_size, resident=False)
    with planning(devices) as plan:
        train.fit(given.workload.learner(), batches, steps=1, mesh="data:1")
    return plan.costs["train"]


def plain(given: Given, devices: Sequence[Any]) -> Any:
    """The cost of the same in plain Flax, or None where there is no network of its."""
    from jax.sharding import NamedSharding, PartitionSpec

    from jdl.train import make_mesh
    from jdl.train.cost import cost

    if "linen" not in given.workload.peers:
        return None
    step, state, batch = linen_peer.train_step(given)
    mesh = make_mesh("data:1", devices)
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(x: Any) -> Any:
        return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=whole)

    state, batch = jax.tree.map(placed, (state, batch))
    return cost(step.trace(state, *batch), state, mesh)


def compiled(name: str, devices: Sequence[Any]) -> Compiled:
    """A workload's programs for devices."""
    given = draw(WORKLOADS[name])
    found = ours(given, devices)
    memory = found.memory
    least = 2 * (memory.parameters + memory.optimizer + memory.other) + memory.data
    return Compiled(found, plain(given, devices), least)


def row(found: Compiled) -> tuple[float | None, ...]:
    """The figures of a workload."""
    cost, other = found.ours, found.plain
    return (
        sum(cost.flops.values()) / 1e9,
        cost.traffic / MEBIBYTE,
        found.least / MEBIBYTE,
        None if other is None else other.traffic / MEBIBYTE,
        cost.memory.total / MEBIBYTE,
        cost.memory.temporaries / MEBIBYTE,
        None if other is None else other.memory.total / MEBIBYTE,
        1e3 * cost.seconds,
        100 * cost.utilisation,
    )


def estimate(names: Sequence[str], command: str) -> ledger.Estimate:
    """The table of some workloads, for the ledger."""
    from jdl import train
    from jdl.compile import versions
    from jdl.train.cost import ASSUMPTIONS

    devices = train.topology(TOPOLOGY)
    rows, source = {}, ""
    for name in names:
        found = compiled(name, devices)
        rows[WORKLOADS[name].title], source = row(found), found.ours.chip.source
        told = (f"{c} {ledger.figure(x)}" for c, x in zip(COLUMNS, row(found), strict=True) if x is not None)
        print(f"{name}: {', '.join(told)}", flush=True)
    return ledger.Estimate(
        name="estimate_steps_v5e",
        title="The benchmark's training steps on one TPU v5e",
        group="Speed",
        columns=COLUMNS,
        rows=rows,
        notes={},
        assumptions=ASSUMPTIONS,
        command=command,
        compiler=versions(),
        date=datetime.date.today().isoformat(),
        note="The least traffic is the state read and written, and the batch read. In a step jdl also "
        f"measures accuracy and gradient norm and checks that all is finite. Peak rates: {source}.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles the workloads that the arguments name."""
    parser = cli.parser("experiments.benchmarks.ahead", __doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(NAMES)}; all when none is named")
    parser.add_argument("--record", action="store_true", help="write the table into the ledger")
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.workloads) - set(NAMES)):
        parser.error(f"no workload {', '.join(unknown)} trains: there are {', '.join(NAMES)}")
    # Nothing here is to be asked for but processors: the programs are for devices that are elsewhere.
    jax.config.update("jax_platforms", "cpu")
    words = ["python -m experiments.benchmarks.ahead", *(arguments or sys.argv[1:])]
    names = asked.workloads or [name for name in NAMES if name not in FOR_ACCELERATORS]
    try:
        entry = estimate(names, " ".join(words))
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if asked.record:
        print(f"recorded in {ledger.record(entry)}; python -m experiments.ledger renders it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
