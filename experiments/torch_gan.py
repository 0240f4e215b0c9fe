"""The recipes of `experiments.gan` in PyTorch: the scores that ours must agree with.

Same convolutional networks and initialisation, losses, optimisers and numbers of images; the order of the
images and the latents are PyTorch's own. Samples are scored by the same judge, in the same features.

    python -m experiments.torch_gan --dataset mnist --recipe dcgan
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import cli, gan, generated, running
from jdl import data, models

PUBLISHED = "none: the reference for the same recipes in jdl"

Config = gan.Config


def generator(size: tuple[int, int], channels: int, width: int, latents: int) -> Any:
    """`jdl.models.DCGANGenerator` as a PyTorch module, latents [B, Z] to images [B, C, H, W] in -1..1."""
    from torch import nn

    n = models.gan.doublings(size)
    features = [width * 2**i for i in reversed(range(n))]
    first = (features[0], size[0] // 2**n, size[1] // 2**n)
    layers: list[Any] = [
        nn.Linear(latents, int(np.prod(first)), bias=False),
        nn.Unflatten(1, (first[1], first[2], first[0])),
        _permuted(0, 3, 1, 2),
    ]
    for inputs, outputs in itertools.pairwise(features):
        doubled = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), doubled]
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh()]
    return _initialised(nn.Sequential(*layers))


def discriminator(size: tuple[int, int], channels: int, width: int, normalization: str) -> Any:
    """`jdl.models.DCGANDiscriminator` as a PyTorch module, images [B, C, H, W] to logits [B, 1]."""
    from torch import nn

    n = models.gan.doublings(size)
    layers: list[Any] = []
    for i in range(n):
        normed = normalization == "batch" and i > 0
        layers.append(nn.Conv2d(channels, width * 2**i, 4, 2, 1, bias=not normed))
        layers += [nn.BatchNorm2d(width * 2**i)] if normed else []
        layers.append(nn.LeakyReLU(0.2))
        channels = width * 2**i
    rest = channels * (size[0] // 2**n) * (size[1] // 2**n)
    network = _initialised(nn.Sequential(*layers, _permuted(0, 2, 3, 1), nn.Flatten(), nn.Linear(rest, 1)))
    if normalization == "spectral":
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.utils.parametrizations.spectral_norm(layer)
    return network


def _permuted(*axes: int) -> Any:
    from torch import nn

    class Permute(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.permute(*axes)

    return Permute()


def _initialised(network: Any) -> Any:
    from torch import nn

    for layer in network:
        if getattr(layer, "weight", None) is not None:
            nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02)
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    return network


def losses(name: str, real: Any, fake: Any) -> tuple[Any, Any]:
    """The loss of the discriminator and that of the generator, from logits."""
    from torch.nn.functional import relu, softplus

    if name == "non_saturating":
        return (softplus(-real) + softplus(fake)).mean(), softplus(-fake).mean()
    if name == "wasserstein":
        return (fake - real).mean(), -fake.mean()
    if name != "hinge":
        raise ValueError(f"the peer has no loss {name!r}")
    return (relu(1 - real) + relu(1 + fake)).mean(), -fake.mean()


def penalty(judge: Any, real: Any, fake: Any) -> Any:
    """The gradient penalty, without its weight."""
    import torch

    share = torch.rand(len(real), 1, 1, 1)
    x = (share * real + (1 - share) * fake).requires_grad_()
    slope = torch.autograd.grad(judge(x).sum(), x, create_graph=True)[0]
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


class Players(NamedTuple):
    """The generator and the discriminator, and the optimisers of their parameters."""

    make: Any
    judge: Any
    of_make: Any
    of_judge: Any


def take_turn(players: Players, recipe: gan.Recipe, reals: Sequence[Any], latents: int) -> tuple[Any, Any]:
    """One update of the discriminator for each batch [B, C, H, W], and one of the generator.

    With one batch the generator learns from the images that the discriminator has just judged, as in jdl.

    Returns:
        The last losses of the discriminator and of the generator.
    """
    import torch

    make, judge, of_make, of_judge = players
    is_even = len(reals) == 1
    for real in reals:
        with torch.set_grad_enabled(is_even):
            fake = make(torch.randn(len(real), latents, device=real.device))
        judged, _ = losses(recipe.loss, judge(real), judge(fake.detach()))
        if recipe.penalty:
            judged = judged + recipe.penalty * penalty(judge, real, fake.detach())
        of_judge.zero_grad(set_to_none=True)
        judged.backward()
        of_judge.step()
    judge.requires_grad_(False)  # Its weights learn nothing from the generator's update.
    logits = judge(fake if is_even else make(torch.randn(len(real), latents, device=real.device)))
    _, made = losses(recipe.loss, logits, logits)
    of_make.zero_grad(set_to_none=True)
    made.backward()
    of_make.step()
    judge.requires_grad_(True)
    return judged.detach(), made.detach()


def match(config: Config, shape: tuple[int, ...]) -> tuple[Any, Callable[[Callable[[], Any]], None]]:
    """The generator, and a function that takes both players through a turn.

    Args:
        config: the settings.
        shape: of an image, (H, W, C).

    Returns:
        The generator's module, and ``next batch -> None``; what it is given makes batches [B, C, H, W].

    Raises:
        ValueError: for settings that have no peer.
    """
    import torch

    extras = config.conditional or config.augment or config.r1 or config.averaging
    if config.architecture != "convolutional" or extras:
        raise ValueError(
            "the peer has the convolutional networks, without labels, augmentation, r1 or averaging"
        )
    torch.manual_seed(config.seed)
    recipe, judges, size = gan.RECIPES[config.recipe], gan.updates(config), (shape[0], shape[1])
    make = generator(size, shape[2], config.width, config.latents)
    judge = discriminator(size, shape[2], config.width, recipe.normalization)
    rate = config.learning_rate or recipe.learning_rate
    of_make, of_judge = (torch.optim.Adam(net.parameters(), rate, recipe.betas) for net in (make, judge))
    players = Players(make, judge, of_make, of_judge)

    def turn(batch: Callable[[], Any]) -> None:
        take_turn(players, recipe, [batch() for _ in range(judges)], config.latents)

    return make, turn


def train(config: Config) -> tuple[np.ndarray, float]:
    """Trains a GAN in PyTorch.

    Returns:
        Samples as uint8 images [M, H, W, C], and the seconds that a turn took.
    """
    import torch

    images = data.load(config.dataset).train["inputs"]
    x = torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    make, turn = match(config, images.shape[1:])

    def rows() -> Iterator[Any]:
        while True:
            order = torch.randperm(len(x))
            yield from order[: len(order) // config.batch_size * config.batch_size].split(config.batch_size)

    batches, start = rows(), time.perf_counter()
    for _ in range(config.steps):
        turn(lambda: x[next(batches)])
    seconds = (time.perf_counter() - start) / config.steps
    make.eval()
    with torch.no_grad():
        made = [make(torch.randn(n, config.latents)).numpy() for n in _sizes(config.samples, 500)]
    return generated.to_bytes(np.concatenate(made).transpose(0, 2, 3, 1)), seconds


def _sizes(total: int, at_once: int) -> list[int]:
    return [min(at_once, total - i) for i in range(0, total, at_once)]


def main(config: Config) -> dict[str, Any]:
    """Trains and scores; the scores are also in ``scores.json`` of the run's folder."""
    folder = running.folder_of("torch_gan", config)
    judge = generated.judge(
        data.load(config.dataset), config.features, steps=config.judge_steps, quiet=config.execution.quiet
    )
    samples, seconds = train(config)
    scores = {**judge.scores(samples), "seconds_per_step": seconds}
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    if not config.execution.quiet:
        print(f"{generated.told(scores)}; {1000 * seconds:.0f} ms a step; {folder}")
    return scores


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
