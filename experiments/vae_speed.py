"""How fast a step of a VAE is: jdl and PyTorch in turns, in one process, on the same network and batch.

    python -m experiments.vae_speed

Both have the batch in memory, binary already; jdl's step also measures both terms and checks that all is
finite.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from experiments import cli, ledger, separable, study, torch_vae, vae

PUBLISHED = "none: PyTorch is measured beside it, in turns"

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1)}


@dataclass(frozen=True)
class Config(vae.Config):
    """Settings of the comparison, beside those of the network."""

    blocks: int = 10
    """How often each has its turn."""
    block: float = 1.0
    """About how long a turn takes, seconds."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the study is run."""


def ours(config: Config, bits: np.ndarray) -> Callable[[], Any]:
    """A function that takes a step, and gives arrays to wait for."""
    learner = vae.recipe(config, SHAPES[config.dataset])
    batch = {"inputs": jax.device_put(bits)}
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    step = jax.jit(learner.step, donate_argnums=0)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return call


def theirs(config: Config, bits: np.ndarray) -> Callable[[], Any]:
    """The same step in PyTorch."""
    import torch

    x = torch.tensor(bits.reshape(len(bits), -1)).float()
    _, step = torch_vae.match(config, x.shape[1])

    def call() -> Any:
        step(x)
        return ()

    return call


def main(config: Config) -> dict[str, list[float]]:
    """Times both.

    Returns:
        Milliseconds of a step in each block, by framework.
    """
    folder = study.begin("vae_speed", config)
    shape = (config.batch_size, *SHAPES[config.dataset])
    bits = np.random.default_rng(0).random(shape) < 0.2
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load not known"
    calls = {"jdl": ours(config, bits), "PyTorch, eager": theirs(config, bits)}
    found = separable.take_turns(calls, config.blocks, config.block)
    study.offer(
        folder, "vae_speed", config,
        name="vae_step",
        title=f"One training step of a VAE {shape[1] * shape[2]}-{'-'.join(map(str, config.hidden))}-"
        f"{config.latent}, batch {config.batch_size}, Adam, float32",
        group="Speed", metric="time of a step", goal="min", unit="ms",
        rows=tuple(ledger.Row(name, tuple(each)) for name, each in found.items()),
        subject="jdl", note=f"Measured under {load}.",
    )  # fmt: skip
    if not config.execution.quiet:
        rows = [[name, f"{np.median(each):.2f} ms"] for name, each in found.items()]
        print(study.table(["a step", "median"], rows))
        print(f"measured under {load}; study folder {folder}")
    return found


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
