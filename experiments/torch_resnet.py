"""The recipe of `experiments.resnet`, shortened, in PyTorch: the figure that ours must agree with.

Same network, initialisation, optimiser, rates, augmentation and number of images as
``python -m experiments.resnet --steps 1170``; the order of the images and the noise are PyTorch's own.

    python -m experiments.torch_resnet --seeds 0 1 2 --record
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments import ledger, peers, resnet, torch_models
from jdl import data

PUBLISHED = "none: the reference for the same shortened recipe in jdl"
NAME = "resnet20_cifar10_short_torch"


def main(seed: int = 0, config: resnet.Config = resnet.Config(steps=1170)) -> float:  # noqa: B008
    """Trains ResNet-20 in PyTorch.

    Args:
        seed: of weights, order and augmentation.
        config: steps, batch size, rate and decay.

    Returns:
        Test error, per cent.
    """
    import torch
    from torch import nn

    torch.manual_seed(seed)
    device = torch_models.device()
    dataset = data.load(config.dataset)
    mean, deviation = (
        getattr(dataset.train["inputs"].astype(np.float64) / 255, how)((0, 1, 2)).astype(np.float32)
        for how in ("mean", "std")
    )

    def images(x: np.ndarray) -> torch.Tensor:
        return torch.tensor(((x / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2).copy())

    train, labels = images(dataset.train["inputs"]), torch.tensor(dataset.train["labels"]).long()
    padded = nn.functional.pad(train, (config.shift,) * 4)
    blocks = (config.depth - 2) // 6
    model = torch_models.resnet((blocks,) * 3, (16, 32, 64), padding_shortcut=True)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, momentum=0.9, weight_decay=config.weight_decay
    )
    falls = torch.optim.lr_scheduler.MultiStepLR(optimizer, [config.steps // 2, 3 * config.steps // 4])
    size, step = train.shape[-1], 0
    while step < config.steps:
        for rows in torch.randperm(len(train)).split(config.batch_size):
            if step == config.steps or len(rows) < config.batch_size:
                break
            corners = torch.randint(0, 2 * config.shift + 1, (len(rows), 2))
            places = zip(rows.tolist(), corners.tolist(), strict=True)
            batch = torch.stack([padded[r, :, i : i + size, j : j + size] for r, (i, j) in places])
            mirrored = torch.rand(len(rows)) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(
                model(batch.to(device, memory_format=torch.channels_last)), labels[rows].to(device)
            )
            loss.backward()
            optimizer.step()
            falls.step()
            step += 1
    model.eval()
    with torch.no_grad():
        parts = images(dataset.test["inputs"]).split(1000)
        predicted = torch.cat([model(x.to(device)).argmax(1) for x in parts])
    return 100 * float((predicted.cpu().numpy() != dataset.test["labels"]).mean())


def record(seeds: Sequence[int], *, busy: bool = False) -> ledger.Result:
    """Measures the seeds, and enters them into the ledger."""
    config = resnet.Config(steps=1170)
    errors, fields = peers.timed(
        lambda seed: main(seed, config),
        seeds,
        busy=busy,
        note=lambda _: "The peer of resnet20_cifar10_short.",
        words=lambda error: f"{error:.2f} % test error",
    )
    return ledger.Result(
        name=NAME,
        title="ResNet-20 on CIFAR-10, recipe shortened to 1,170 steps, in PyTorch",
        group="Images",
        metric="test error",
        unit="%",
        values=tuple(errors),
        dataset="CIFAR-10, 50,000 training and 10,000 test images",
        fingerprint=data.load(config.dataset).fingerprint,
        config={"steps": config.steps, "batch_size": config.batch_size},
        command=f"python -m experiments.torch_resnet --seeds {' '.join(map(str, seeds))}",
        **fields,
    )


if __name__ == "__main__":
    peers.command("torch_resnet", __doc__, record, (0, 1, 2))
