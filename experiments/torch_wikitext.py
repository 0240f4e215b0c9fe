"""The short recipes of `experiments.wikitext` in PyTorch: the figures that ours must agree with.

Same network and initialisation, rows, phases, dropout of all kinds, losses, optimiser, rates, and way to
measure; the noise is PyTorch's own.

    python -m experiments.torch_wikitext --seeds 0 1 --record
    python -m experiments.torch_wikitext --recipe plain --record
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import ledger, peers, torch_models, wikitext
from jdl import data

PUBLISHED = "none: the reference for the same shortened recipe in jdl"
RECIPES = {
    "short": ("AWD-LSTM", wikitext.SHORT, "wikitext2_short"),
    "plain": ("LSTM", wikitext.PLAIN, "wikitext2_short_plain"),
}
"""What each trains, with which settings, and the entry of ours that it is the peer of."""


def network(config: wikitext.Config, vocab_size: int) -> Any:
    """The network of `experiments.wikitext`: a PyTorch module from tokens and state to three things.

    They are logits, the dropped outputs and the outputs of the last layer, and the new state.
    """
    import torch
    from torch import nn

    sizes = (config.width, *config.hidden, config.width)

    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Embedding(vocab_size, config.width)
            nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
            self.bias = nn.Parameter(torch.zeros(vocab_size))
            pairs = itertools.pairwise(sizes)
            self.rnns = nn.ModuleList(nn.LSTM(i, o, batch_first=True) for i, o in pairs)

        def locked(self, x: Any, rate: float) -> Any:
            if not self.training or not rate:
                return x
            kept = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - rate) / (1 - rate)
            return x * kept

        def forward(self, tokens: Any, state: Any) -> Any:
            table = self.encoder.weight
            if self.training and config.token_dropout:
                kept = table.new_empty(len(table), 1).bernoulli_(1 - config.token_dropout)
                table = table * kept / (1 - config.token_dropout)
            x = self.locked(nn.functional.embedding(tokens, table), config.input_dropout)
            after = []
            for i, rnn in enumerate(self.rnns):
                if i:
                    x = self.locked(x, config.hidden_dropout)
                weights = dict(rnn.named_parameters())
                kernel = nn.functional.dropout(weights["weight_hh_l0"], config.weight_drop, self.training)
                dropped = {**weights, "weight_hh_l0": kernel}
                x, last = torch.func.functional_call(rnn, dropped, (x, state[i] if state else None))
                after.append(tuple(s.detach() for s in last))
            h = self.locked(x, config.dropout)
            return nn.functional.linear(h, self.encoder.weight, self.bias), h, x, after

    return LanguageModel()


def main(config: wikitext.Config = wikitext.SHORT) -> dict[str, float]:
    """Trains the language model in PyTorch.

    Args:
        config: the settings, with adam, and without averaging or chunks.

    Returns:
        Perplexity on the "validation" and the "test" text.

    Raises:
        ValueError: for settings that this peer does not have.
    """
    import torch
    from torch import nn

    if config.optimizer != "adam" or config.averaging or config.cell != "lstm" or config.dtype != "float32":
        raise ValueError("the peer in PyTorch has LSTMs in float32 and adam, and averages no weights")
    torch.manual_seed(config.seed)
    device = torch_models.device()
    words, tokenizer, _ = wikitext.texts(config)
    model = network(config, tokenizer.vocab_size).to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    batches = data.continuing_rows(
        words["train"], config.context, config.batch_size, config.seed, resident=False
    )
    steps = round(config.epochs * len(batches))
    falls = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
    )

    def tensors(batch: Any) -> tuple[Any, Any]:
        inputs, labels = (torch.tensor(np.asarray(batch[name])).long() for name in ("inputs", "labels"))
        return inputs.to(device), labels.to(device)

    state: Any = None
    for step in range(steps):
        inputs, labels = tensors(batches(step))
        optimizer.zero_grad(set_to_none=True)
        logits, dropped, outputs, state = model(inputs, state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss = loss + config.activation_loss * dropped.square().mean()
        loss = loss + config.change_loss * (outputs[:, 1:] - outputs[:, :-1]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        falls.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)

    model.eval()
    found = {}
    for name in ("validation", "test"):
        rows = data.continuing_rows(words[name], config.context, 10, seed=None, resident=False)
        total, weight, state = 0.0, 0.0, None
        with torch.no_grad():
            for i in range(len(rows)):
                batch = rows(i)
                inputs, labels = tensors(batch)
                logits, _, _, state = model(inputs, state)
                losses = nn.functional.cross_entropy(logits.mT, labels, reduction="none")
                weights = torch.tensor(np.asarray(batch["weights"])).to(device)
                total, weight = total + float((losses * weights).sum()), weight + float(weights.sum())
        found[name] = math.exp(total / weight)
    return found


def record(seeds: Sequence[int], *, busy: bool = False, recipe: str = "short") -> ledger.Result:
    """Measures the seeds of a recipe, for the ledger."""
    what, config, ours = RECIPES[recipe]
    perplexities, fields = peers.timed(
        lambda seed: main(dataclasses.replace(config, seed=seed)),
        seeds,
        busy=busy,
        note=lambda _: f"The peer of {ours}.",
        words=lambda found: f"perplexity {found}",
    )
    return ledger.Result(
        name=f"{ours}_torch",
        title=f"{what} on WikiText-2, recipe shortened to one pass, in PyTorch",
        group="Text",
        metric="test perplexity",
        unit="per word",
        values=tuple(found["test"] for found in perplexities),
        dataset=wikitext.SPLIT,
        fingerprint=data.load_text(config.dataset).fingerprint,
        config={},
        command=f"python -m experiments.torch_wikitext{'' if recipe == 'short' else f' --recipe {recipe}'} "
        f"--seeds {' '.join(map(str, seeds))}",
        **fields,
    )


if __name__ == "__main__":
    peers.command("torch_wikitext", __doc__, record, (0, 1), tuple(RECIPES))
