"""PyTorch at its best: fused optimiser, channels last, all cores or a GPU; eager, or by `torch.compile`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Contender, cores, first_losses, peak_memory
from experiments.benchmarks.workloads import LEARNING_RATE, RATES, WEIGHT_DECAY, Given
from experiments.torch_models import device


def pytorch(given: Given, *, compiled: bool = False) -> Contender:
    """The workload in PyTorch.

    Args:
        given: weights and data.
        compiled: by `torch.compile`, not eagerly.
    """
    import torch

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    if device() == "cuda":
        torch.set_float32_matmul_precision("high")  # as JAX multiplies there by default
        torch.backends.cudnn.benchmark = True
    batches = [_arranged(given, *batch) for batch in given.batches]
    step, parameters = {"gan": _gan, "sweep": _sweep, "inference": _inference}.get(
        given.workload.kind, _supervised
    )(given, compiled)

    def first(i: int) -> list[float]:
        return [float(loss) for loss in step(*batches[i])]

    losses, first_step = first_losses(first)

    def run(steps: int) -> float:
        start = time.perf_counter()
        for i in range(steps):
            step(*batches[i % len(batches)])
        if device() == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    label = "PyTorch, compiled" if compiled else "PyTorch, eager"
    memory = torch.cuda.max_memory_allocated if device() == "cuda" else peak_memory
    return Contender(label, parameters, losses, run, first_step, memory)


Step = Callable[[Any, Any], tuple[Any, ...]]
"""Inputs and labels to the losses of a step."""


def _arranged(given: Given, inputs: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """A batch in memory as PyTorch is fastest with it."""
    import torch

    x = torch.tensor(inputs)
    if given.workload.kind == "gan":
        x = x.float() / 127.5 - 1
    x = x.long() if given.workload.reads_tokens else x.float()
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return x.to(device()), torch.tensor(labels).long().to(device())


def _loaded(network: Any, weights: dict[str, np.ndarray]) -> Any:
    """A network with the weights, channels last."""
    import torch

    found = network.load_state_dict({name: torch.tensor(x) for name, x in weights.items()}, strict=False)
    own = {*dict(network.named_parameters()), *dict(network.named_buffers())}
    missing = [name for name in found.missing_keys if name in own and "num_batches" not in name]
    if found.unexpected_keys or missing:
        raise ValueError(f"the weights are not those of the network: {found}")
    return network.to(device(), memory_format=torch.channels_last)


def _count(*networks: Any) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


def _optimizer(given: Given, network: Any, rate: float = LEARNING_RATE) -> Any:
    import torch

    parameters = network.parameters()
    if given.workload.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, fused=True)
    if given.workload.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=WEIGHT_DECAY, fused=True)
    return torch.optim.SGD(parameters, rate, momentum=0.9, fused=True)


def _trains(given: Given, network: Any, optimizer: Any, compiled: bool) -> Step:
    import torch
    from torch.nn.functional import cross_entropy

    kind, dtype = given.workload.kind, getattr(torch, given.workload.dtype)

    def loss_of(inputs: Any, labels: Any) -> Any:
        with torch.autocast(device(), dtype, enabled=dtype != torch.float32):
            output = network(inputs)
            if kind == "elbo":
                return output
            if kind == "segmentation":
                return cross_entropy(output, labels)
            return cross_entropy(output.flatten(0, -2), labels.flatten())

    if compiled:
        loss_of = torch.compile(loss_of)

    def step(inputs: Any, labels: Any) -> tuple[Any, ...]:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(inputs, labels)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return step


def _supervised(given: Given, compiled: bool) -> tuple[Step, int]:
    network = _loaded(given.workload.network(), given.weights)
    return _trains(given, network, _optimizer(given, network), compiled), _count(network)


def _sweep(given: Given, compiled: bool) -> tuple[Step, int]:
    """A network a point, one after another."""
    steps, parameters = [], 0
    for rate in RATES:
        network = _loaded(given.workload.network(), given.weights)
        parameters = _count(network)
        steps.append(_trains(given, network, _optimizer(given, network, rate), compiled))

    def step(inputs: Any, labels: Any) -> tuple[Any, ...]:
        return (sum(each(inputs, labels)[0] for each in steps) / len(steps),)

    return step, parameters


def _inference(given: Given, compiled: bool) -> tuple[Step, int]:
    import torch

    network = _loaded(given.workload.network(), given.weights).eval()
    forward = torch.compile(network) if compiled else network
    parameters = _count(network)

    class Answer:
        """The mean square of the logits, only computed where it is asked for."""

        def __init__(self, logits: Any) -> None:
            self.logits = logits

        def __float__(self) -> float:
            return float(self.logits.square().mean())

    @torch.inference_mode()
    def step(inputs: Any, labels: Any) -> tuple[Any, ...]:
        del labels
        return (Answer(forward(inputs)),)

    return step, parameters


def _gan(given: Given, compiled: bool) -> tuple[Step, int]:
    """One update of the discriminator, one of the generator, as in `experiments.torch_gan`."""
    import torch

    from experiments import gan, torch_gan

    if compiled:
        raise ValueError("the players are measured eagerly")
    config = given.workload.module()
    recipe = gan.RECIPES[config.recipe]
    make, judge = (
        _loaded(
            network,
            {
                name.removeprefix(f"{player}."): x
                for name, x in given.weights.items()
                if name.startswith(f"{player}.")
            },
        )
        for player, network in given.workload.network().items()
    )
    optimizers = (
        torch.optim.Adam(net.parameters(), recipe.learning_rate, recipe.betas, fused=True)
        for net in (make, judge)
    )
    players = torch_gan.Players(make, judge, *optimizers)

    def step(real: Any, labels: Any) -> tuple[Any, ...]:
        del labels
        return torch_gan.take_turn(players, recipe, [real], config.latents)

    return step, _count(make, judge)
