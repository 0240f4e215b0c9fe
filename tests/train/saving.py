"""Saves a state every few milliseconds until killed: ``python saving.py DIRECTORY``."""

import sys

import jax.numpy as jnp

from jdl.train.checkpoint import Checkpoints


def state(step: int) -> dict:
    """A state that says of which step it is in every element, of 8 MB so that a kill lands inside."""
    return {f"layer{i}": jnp.full((500, 500), step * 10 + i, jnp.float32) for i in range(8)}


def main(directory: str) -> None:
    with Checkpoints(directory) as checkpoints:
        first = (checkpoints.latest() or 0) + 1
        for step in range(first, first + 10_000):
            checkpoints.save(step, state(step), {"step": step}, score=step % 7)
            print(step, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
