"""The step of a large model, for finding out where it fits and how fast it can be before there is a machine.

GPT at 124 million (GPT-2 small), 1.5 billion (GPT-2 XL) and 6.7 billion parameters (the size of GPT-3 called
6.7B), on windows of Tiny Shakespeare with GPT-2's vocabulary, and ResNet-50 on random pixels: what is learnt
means nothing, what a step costs does. ``--dry-run`` says it of the devices here, and

    python -m jdl.compile scaling --topology v5e:16x16 --size 7B --batch-size 4096 --mesh data:8,fsdp:32

of a TPU pod that is not there. `experiments.scaling_tables` makes the tables of the ledger from it.

Radford et al., "Language models are unsupervised multitask learners", 2019, table 2; Brown et al., "Language
models are few-shot learners", 2020, table 2.1; He et al., "Deep residual learning", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, running
from jdl import data, learners, models, tasks, train
from jdl.core import Learner

PUBLISHED = "none: what is measured is the machine"

Size = Literal["124M", "1.5B", "7B", "resnet50"]
SHAPES: dict[str, dict[str, Any]] = {
    "124M": {"width": 768, "depth": 12, "num_heads": 12},
    "1.5B": {"width": 1600, "depth": 48, "num_heads": 25},
    "7B": {"width": 4096, "depth": 32, "num_heads": 32},
}


@dataclass(frozen=True)
class Config:
    """Settings of a large model's training step."""

    size: Size = "124M"
    """A GPT by its parameters, or resnet50."""
    batch_size: int = 8
    """Windows, or images, in a batch."""
    context: int = 1024
    """Tokens in a window."""
    side: int = 224
    """Side of an image, pixels."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type that the model computes in; parameters are float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """What blocks compute again for the gradient rather than keep: nothing, all but the results of a GPT's
    matrix products, or all."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory."""
    chunk: int = 128
    """Positions whose logits are held at a time; all when 0."""
    learning_rate: float = 6e-4
    """Rate of AdamW."""
    steps: int = 20
    """Training steps."""
    seed: int = 0
    """Seed of the weights and the data."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def recipe(config: Config) -> Learner:
    """How the configuration trains its model."""
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    if config.size == "resnet50":
        if config.remat == "dots":
            raise ValueError("a ResNet's blocks have no products to keep: remat is none or full")
        task = tasks.classification(models.resnet(50, remat=config.remat == "full"))
        if dtype is not None:
            task = tasks.mixed_precision(task, dtype)
        tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
    else:
        model = models.gpt(
            **SHAPES[config.size],
            context=config.context,
            scan=True,
            remat=None if config.remat == "none" else config.remat,
            dtype=dtype,
        )
        task = tasks.next_token(model, chunk=config.chunk or None)
        tx = optax.adamw(config.learning_rate, 0.9, 0.95, weight_decay=0.1, mask=learners.decays)
    return learners.gradient(
        task, optax.chain(optax.clip_by_global_norm(1.0), tx), accumulate=config.accumulate
    )


def batches(config: Config) -> tuple[Any, str]:
    """The batches, and the fingerprint of the data they are from."""
    shard = jax.process_index(), jax.process_count()
    if config.size == "resnet50":
        return Pixels(config, shard), f"random pixels of seed {config.seed}"
    text = data.load_text("tiny_shakespeare")
    tokens = data.character_tokenizer(text.train).encode(text.train)
    shuffled = data.windows(
        tokens, config.context, config.batch_size, config.seed, shard=shard, anywhere=True
    )
    return shuffled, text.fingerprint


class Pixels:
    """Random images and labels: batches by step, on the host."""

    def __init__(self, config: Config, shard: tuple[int, int]) -> None:
        self.config, self.shard = config, shard

    def __call__(self, step: Any) -> dict[str, np.ndarray]:
        """This process's rows of the batch of a step."""
        index, count = self.shard
        n, side = self.config.batch_size // count, self.config.side
        rng = np.random.default_rng((self.config.seed, int(step), index))
        return {
            "inputs": rng.standard_normal((n, side, side, 3), np.float32),
            "labels": rng.integers(0, 1000, n).astype(np.int32),
        }


def main(config: Config) -> train.Fitted:
    """Trains for a few steps, and says what was predicted of them and what they took."""
    source, fingerprint = batches(config)
    folder = running.folder_of("scaling", config)
    where = config.execution
    fitted = train.fit(
        recipe(config),
        source,
        config.steps,
        key=config.seed,
        run=train.Run(folder, config=cli.settings("scaling", config), data=fingerprint),
        mesh=where.mesh or None,
        mode=where.mode,
        profile=cli.profile(where, folder),
    )
    if jax.process_index() == 0 and not where.quiet:
        rate = fitted.history.last("train")["steps_per_second"]
        print(f"{config.size}: predicted at least {fitted.cost.seconds:.4g} s a step, took {1 / rate:.4g} s")
    return fitted


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
