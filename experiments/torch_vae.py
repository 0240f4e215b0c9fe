"""The recipe of `experiments.vae` in PyTorch: the figure that ours must agree with.

Same network, bits, bound, optimiser and number of images as ``python -m experiments.vae``; initial weights
(drawn from the same distribution), the order of the images and the noise are PyTorch's own.

    python -m experiments.torch_vae --seeds 0 1 2 --record
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from experiments import ledger, peers, vae
from jdl import data

PUBLISHED = "none: the reference for the same recipe in jdl"
NAME = "vae_mnist_torch"


def match(config: vae.Config, D: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The network of a recipe for images of D pixels.

    Returns:
        Minus the bound of a batch, a mean; and a function that takes an optimiser's step on it.

    Raises:
        ValueError: for a recipe of another kind.
    """
    import torch
    from torch import nn

    if config.bound != "elbo" or config.binarize != "once" or config.anneal or config.free_bits:
        raise ValueError("the peer is of the plain bound on images that are binarised once")

    def network(*widths: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            dense = nn.Linear(a, b)
            # Flax's: normal within two deviations, and then of variance 1 / a; biases are 0.
            nn.init.trunc_normal_(dense.weight, 0.0, 1.0, -2.0, 2.0)
            dense.weight.data.mul_(1 / (0.87962566103423978 * a**0.5))
            nn.init.zeros_(dense.bias)
            layers += [dense, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    encoder = network(D, *config.hidden, 2 * config.latent)
    decoder = network(config.latent, *config.hidden[::-1], D)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, config.learning_rate, fused=True)

    def minus_bound(x: Any) -> Any:
        mean, log_std = encoder(x).chunk(2, -1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = 0.5 * (mean**2 + torch.expm1(2 * log_std)) - log_std
        return (reconstruction + config.beta * kl.sum()) / len(x)

    def step(x: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = minus_bound(x)
        loss.backward()
        optimizer.step()
        return loss

    return minus_bound, step


def main(seed: int = 0, config: vae.Config = vae.Config()) -> float:  # noqa: B008
    """Trains the VAE in PyTorch.

    Args:
        seed: of weights, order and noise.
        config: the recipe; its bound is the evidence lower bound, of images that are binarised once.

    Returns:
        Minus the bound on the test images, nats.

    Raises:
        ValueError: for a recipe of another kind.
    """
    import torch

    torch.manual_seed(seed)
    train, test = (
        torch.tensor(x["inputs"].reshape(len(x["inputs"]), -1)).float()
        for x in vae.prepared(config, data.load(config.dataset))
    )
    minus_bound, step = match(config, train.shape[1])
    rows, at = torch.randperm(len(train)), 0
    for _ in range(config.steps):
        if at + config.batch_size > len(rows):
            # What is left of one pass, and the start of the next.
            rows, at = torch.cat([rows[at:], torch.randperm(len(train))]), 0
        step(train[rows[at : at + config.batch_size]])
        at += config.batch_size
    with torch.no_grad():
        parts = [(float(minus_bound(x)), len(x)) for x in test.split(1000)]
    return sum(loss * n for loss, n in parts) / len(test)


def record(seeds: Sequence[int], *, busy: bool = False) -> ledger.Result:
    """Measures the seeds, and makes the ledger's entry."""
    config = vae.Config()
    losses, fields = peers.timed(
        lambda seed: main(seed, config),
        seeds,
        busy=busy,
        note=lambda _: "The peer of vae_mnist.",
        words=lambda loss: f"{loss:.2f} nats",
    )
    return ledger.Result(
        name=NAME,
        title="VAE of 20 codes on binary MNIST, in PyTorch",
        group="Autoencoders",
        metric="minus the bound",
        unit="nats",
        values=tuple(losses),
        dataset="MNIST, binarised once, 50,000 training and 10,000 test images",
        fingerprint=data.load(config.dataset).fingerprint,
        config={"steps": config.steps, "batch_size": config.batch_size},
        command=f"python -m experiments.torch_vae --seeds {' '.join(map(str, seeds))}",
        **fields,
    )


if __name__ == "__main__":
    peers.command("torch_vae", __doc__, record, (0, 1, 2))
