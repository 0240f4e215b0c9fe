"""The recipe of `experiments.shakespeare` in PyTorch: the figure that ours must agree with.

Same network and initialisation, optimiser, rates, windows and ways to measure; the noise is PyTorch's own.
The defaults are the setting for a CPU.

    python -m experiments.torch_shakespeare --seeds 0 1 2 --record
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import ledger, peers, shakespeare, torch_gpt, torch_models
from jdl import data

PUBLISHED = "none: the reference for the same recipe in jdl"


def gpt(config: shakespeare.Config, vocab_size: int) -> Any:
    """The network of `experiments.shakespeare`, as a PyTorch module from tokens to logits."""
    return torch_gpt.gpt(
        vocab_size,
        config.context,
        config.width,
        config.depth,
        config.num_heads,
        bias=False,
        dropout=config.dropout,
        approximate="none",
    )


def rate(step: int, config: shakespeare.Config) -> float:
    """The learning rate of a step, as a share of its peak."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    gone = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * gone))


def main(config: shakespeare.Config = shakespeare.Config()) -> dict[str, float]:  # noqa: B008
    """Trains the GPT in PyTorch.

    Args:
        config: the settings.

    Returns:
        "loss", nats a character on the whole validation text after the last step; "sampled", the same on
        random batches; and the lowest of each over the evaluations, "best" and "best_sampled".
    """
    import torch

    torch.manual_seed(config.seed)
    device = torch_models.device()
    text = data.load_text(config.dataset)
    tokenizer = data.character_tokenizer(text.train + text.validation)
    learnt = torch.tensor(tokenizer.encode(text.train)).long()
    validation = tokenizer.encode(text.validation)
    sets = {
        "loss": data.windows_in_order(validation, config.context, 16 * config.batch_size, resident=False),
        "sampled": shakespeare.estimate(validation, config, (0, 1)),
    }
    model = gpt(config, tokenizer.vocab_size).to(device)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.99),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))

    def losses(inputs: Any, labels: Any) -> torch.Tensor:
        logits = model(inputs.to(device))
        return torch.nn.functional.cross_entropy(logits.mT, labels.to(device), reduction="none")

    def evaluate() -> dict[str, float]:
        model.eval()
        found = {}
        with torch.no_grad():
            for name, batches in sets.items():
                total = weight = 0.0
                for i in range(len(batches)):
                    batch = {key: torch.tensor(np.asarray(x)) for key, x in batches(i).items()}
                    weights = batch["weights"].reshape(len(batch["weights"]), -1).to(device)
                    values = losses(batch["inputs"].long(), batch["labels"].long())
                    total += float((values * weights).sum())
                    weight += float(weights.expand_as(values).sum())
                found[name] = total / weight
        model.train()
        return found

    history = []
    for step in range(config.steps):
        starts = torch.randint(len(learnt) - config.context, (config.batch_size,))
        windows = learnt[starts[:, None] + torch.arange(config.context + 1)]
        optimizer.zero_grad(set_to_none=True)
        losses(windows[:, :-1], windows[:, 1:]).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
            history.append(evaluate())
            print(f"step {step + 1}: {history[-1]}", flush=True)
    best = {name: min(found[name] for found in history) for name in sets}
    return {**history[-1], "best": best["loss"], "best_sampled": best["sampled"]}


def record(seeds: Sequence[int], *, busy: bool = False) -> ledger.Result:
    """Measures the seeds, for the ledger."""

    def sampled(found: Sequence[Any]) -> str:
        return ", ".join(f"{each['sampled']:.3f}" for each in found)

    found, fields = peers.timed(
        lambda seed: main(shakespeare.Config(seed=seed)),
        seeds,
        busy=busy,
        note=lambda found: f"The peer of shakespeare_cpu. On 20 random batches: {sampled(found)}.",
        words=str,
    )
    return ledger.Result(
        name="shakespeare_cpu_torch",
        title="GPT of 0.8 million parameters on Tiny Shakespeare, in PyTorch",
        group="Text",
        metric="validation loss",
        unit="nats/character",
        values=tuple(each["loss"] for each in found),
        dataset=shakespeare.SPLIT,
        fingerprint=data.load_text("tiny_shakespeare").fingerprint,
        config={},
        command=f"python -m experiments.torch_shakespeare --seeds {' '.join(map(str, seeds))}",
        **fields,
    )


if __name__ == "__main__":
    peers.command("torch_shakespeare", __doc__, record, (0, 1, 2))
