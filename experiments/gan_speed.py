"""How fast a turn of two players is: jdl and PyTorch in turns, in one process, on the same networks.

    python -m experiments.gan_speed --recipe dcgan

A turn is all updates of the discriminator and one of the generator; both frameworks have the batch in memory.
The second figure is what the host spends to send off a turn of two networks that are nearly nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from experiments import cli, gan, ledger, separable, study, torch_gan
from jdl.core import Learner

PUBLISHED = "none: PyTorch is measured beside it, in turns"

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@dataclass(frozen=True)
class Config(gan.Config):
    """Settings of the comparison, beside those of the networks."""

    blocks: int = 10
    """How often each has its turn."""
    block: float = 1.0
    """About how long a turn takes, seconds."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the study is run."""


def ours(learner: Learner, batch: Any) -> Callable[[], Any]:
    """A function that takes a turn, and gives arrays to wait for."""
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    step = jax.jit(learner.step, donate_argnums=0)

    def turn() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return turn


def batch_of(config: Config) -> dict[str, Any]:
    """Noise in the place of images."""
    size = config.batch_size * gan.updates(config)
    rng = np.random.default_rng(0)
    return {
        "inputs": jax.device_put(rng.integers(0, 256, (size, *SHAPES[config.dataset]), dtype=np.uint8)),
        "labels": jax.device_put(rng.integers(0, 10, size).astype(np.int32)),
    }


def theirs(config: Config) -> Callable[[], Any]:
    """The same turn in PyTorch."""
    import torch

    shape = SHAPES[config.dataset]
    x = torch.rand(config.batch_size, shape[2], shape[0], shape[1]) * 2 - 1
    _, turn = torch_gan.match(config, shape)

    def call() -> Any:
        turn(lambda: x)
        return ()

    return call


def sending(config: Config) -> list[float]:
    """Milliseconds of the host a turn, of networks of width 1 on 8x8 images, sent and not waited for."""
    import time

    small = Config(dataset="digits", recipe=config.recipe, width=1, latents=1, batch_size=1)
    turn = ours(gan.learner(small, SHAPES["digits"]), batch_of(small))
    jax.block_until_ready(turn())
    found = []
    for _ in range(config.blocks):
        start = time.perf_counter()
        for _ in range(20):
            last = turn()
        found.append(1000 * (time.perf_counter() - start) / 20)
        jax.block_until_ready(last)
    return found


def main(config: Config) -> dict[str, list[float]]:
    """Times both.

    Returns:
        Milliseconds of a turn in each block, by framework, and of the host to send one.
    """
    folder = study.begin("gan_speed", config)
    turn = ours(gan.learner(config, SHAPES[config.dataset]), batch_of(config))
    calls = {"jdl": turn, "PyTorch, eager": theirs(config)}
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load not known"
    found = separable.take_turns(calls, config.blocks, config.block)
    host = sending(config)
    study.offer(
        folder, "gan_speed", config,
        name=f"gan_{config.recipe}_step",
        title=f"One turn of {config.recipe} on {config.dataset}-sized images, width {config.width}, "
        f"{gan.updates(config)} to 1, batch {config.batch_size}",
        group="Speed", metric="time of a turn", goal="min", unit="ms",
        rows=tuple(ledger.Row(name, tuple(each)) for name, each in found.items()),
        subject="jdl", note=f"Measured under {load}. The host alone: {np.median(host):.2f} ms a turn.",
    )  # fmt: skip
    if not config.execution.quiet:
        rows = [[name, f"{np.median(each):.1f} ms"] for name, each in found.items()]
        print(study.table(["a turn", "median"], [*rows, ["host, to send one", f"{np.median(host):.2f} ms"]]))
        print(f"measured under {load}; study folder {folder}")
    return {**found, "host": host}


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
