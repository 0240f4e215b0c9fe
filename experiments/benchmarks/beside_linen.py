"""A quick look beside plain Flax, in one process and in seconds: for every run of the tests, as a report.

    python -m experiments.benchmarks.beside_linen

It is too coarse to compare machines or releases by; it shows a loss of tens of per cent on the day that it
happens. What `jdl.train.prepare` does for the process serves plain Flax too.
"""

from __future__ import annotations

import random
import statistics

from experiments.benchmarks import workloads
from experiments.benchmarks.contenders import contender
from jdl import train

QUICK = {
    "mlp": workloads.mlp(64, 784, 256, 10),
    "lenet": workloads.WORKLOADS["lenet"]._replace(batch_size=32),
    "gpt": workloads.gpt(width=64, depth=1, num_heads=4, context=64, batch_size=4),
}
"""Small versions of workloads that plain Flax has too."""


def ratio(workload: workloads.Workload, blocks: int = 5, steps: int = 10) -> float:
    """How many times as fast jdl's step is as plain Flax's, the median of blocks in turns.

    Args:
        workload: one that plain Flax has.
        blocks: of each.
        steps: in a block.
    """
    given = workloads.draw(workload)
    both = [contender(name, given) for name in ("jdl", "linen")]
    times: list[list[float]] = [[], []]
    rng = random.Random(0)
    for _ in range(blocks):
        for i in rng.sample([0, 1], 2):
            both[i].run(2)
            times[i].append(both[i].run(steps))
    ours, theirs = map(statistics.median, times)
    return theirs / ours


def main() -> None:
    """Prints a sentence for each of them."""
    train.prepare()
    for name, workload in QUICK.items():
        print(f"{name}: jdl's step is {ratio(workload):.2f} times as fast as plain Flax's", flush=True)


if __name__ == "__main__":
    main()
