"""Depthwise-separable against full convolutions in small networks of several widths.

All networks have a full 3x3 convolution that halves the image, then six convolutions of w, 2w, 2w, 4w, 4w and
4w channels, two of which halve it again, each normalised and activated; the mean over the image, and a linear
layer. In some they are full 3x3 convolutions, in others depthwise 3x3 convolutions, each followed by a 1x1
convolution. The table sets test accuracy over seeds beside parameters, multiply-adds and what they promise,
but need not keep: the time of a prediction of one image and of 64, on this device. Beside each separable
network stands what a full one of the same accuracy would cost, interpolated between those measured.

On ImageNet the paper reports 71.7 % top-1 accuracy with full convolutions, 4,866 million multiply-adds and
29.3 million parameters, and 70.6 % with separable ones, 569 million and 4.2 million.

Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017,
sections 3.1 and 3.2, table 4.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen

from experiments import cli, images, ledger, study
from jdl import data, train
from jdl.models.mobilenet import SeparableConv
from jdl.nn import ConvNorm, Dense, as_float, global_mean
from jdl.nn.blocks import require_images

PUBLISHED = (
    "ImageNet top-1 of 71.7 % full, 70.6 % separable, an eighth of the work (Howard et al. 2017, table 4)"
)

KINDS = {"full": ConvNorm, "separable": SeparableConv}
"""What each of the six convolutions is."""

LAYERS = ((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (4, 1))
"""Channels over the width, and stride, of each."""


@dataclass(frozen=True)
class Config(images.Config):
    """Settings of the comparison."""

    dataset: images.DatasetName = "fashion_mnist"
    """Images to learn."""
    steps: int = 3000
    """Training steps of each network, each on one batch."""
    batch_size: int = 128
    """Images in a batch."""
    shift: int = 0
    """Largest random shift of a training image, pixels each way; 0 for the images as they are."""
    evaluate_every: int = 500
    """Steps between two evaluations on the test set; a fortieth of all when 0."""
    learning_rate: float = 1.5e-2
    """Peak of the learning rate. Separable networks learn least at low ones."""
    full_widths: tuple[int, ...] = (8, 12, 16)
    """Channels w of the networks with full convolutions."""
    separable_widths: tuple[int, ...] = (16, 24, 40)
    """Channels w of the networks with separable convolutions."""
    repeats: int = 3
    """Seeds, counted from --seed."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Images in a batch whose prediction is timed."""
    blocks: int = 20
    """Blocks that each network is timed for, in turn."""
    block: float = 0.3
    """Seconds of a block."""


class Network(linen.Module):
    """A stem and six convolutions of one kind.

    Attributes:
        kind: "full" or "separable".
        width: channels w of the stem and the first of the six.
        num_classes: number of logits.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> for kind in "full", "separable":
        ...     model = Network(kind, 16)
        ...     params = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))["params"]
        ...     print(kind, sum(x.size for x in jax.tree.leaves(params)))
        full 109658
        separable 15866
    """

    kind: str
    width: int
    num_classes: int = 10
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "Network", smallest=8)
        convolution = KINDS[self.kind]
        x = as_float(inputs, self.dtype)
        x = ConvNorm(self.width, 3, 2, dtype=self.dtype, name="stem")(x, train)
        for i, (times, stride) in enumerate(LAYERS, 1):
            x = convolution(times * self.width, 3, stride, dtype=self.dtype, name=f"layer{i}")(x, train)
        return Dense(self.num_classes, dtype=self.dtype, name="head")(global_mean(x))


def networks(config: Config) -> dict[str, Network]:
    """The contenders, by kind and width: ``"full-16"``.

    Raises:
        ValueError: for a width that is not positive, or one kind without any.
    """
    widths = {"full": config.full_widths, "separable": config.separable_widths}
    if not all(each and min(each) >= 1 for each in widths.values()):
        raise ValueError(f"each kind needs widths of at least 1; got {widths}")
    return {f"{kind}-{w}": Network(kind, w) for kind, each in widths.items() for w in each}


def take_turns(calls: Mapping[str, Callable[[], Any]], blocks: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a call, the contenders taking turns in short blocks in an order drawn anew each round.

    Args:
        calls: by name, what to time; it gives arrays, which are waited for.
        blocks: how many of each.
        seconds: about how long a block takes.

    Returns:
        By name, the mean time of a call in each block.

    Raises:
        ValueError: if there are no blocks.
    """
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1; got {blocks}")

    def run(call: Callable[[], Any], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            jax.block_until_ready(call())
        return time.perf_counter() - start

    times = {}
    for name, call in calls.items():
        run(call, 1)
        times[name] = max(1, round(seconds / max(run(call, 3) / 3, 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    rng = random.Random(0)
    for _ in range(blocks):
        for name in rng.sample(list(calls), len(calls)):
            # The contender before has taken the caches.
            run(calls[name], max(1, times[name] // 10))
            found[name].append(1000 * run(calls[name], times[name]) / times[name])
    return found


def cost(config: Config, network: Network, dataset: data.Dataset) -> dict[str, int]:
    """Parameters, and multiply-adds of the prediction of one image."""
    preprocess = data.fit_preprocess(dataset.train["inputs"], size=None)
    task = images.classification_task(network, preprocess, config)
    batch = {name: x[:1] for name, x in dataset.test.items()}
    found = train.summary(task, batch)
    return {"parameters": found.params, "multiply_adds": found.multiply_adds}


def latencies(config: Config, dataset: data.Dataset) -> dict[str, dict[str, list[float]]]:
    """By batch size and contender, milliseconds of a prediction on one device, in blocks.

    The weights are as initialised: what a prediction costs does not depend on them.
    """
    found = {}
    for size in config.batch_sizes:
        rows = np.arange(size) % len(dataset.test["labels"])
        x = jax.device_put(np.asarray(dataset.test["inputs"][rows], np.float32) / 255)
        calls = {}
        for name, network in networks(config).items():
            variables = jax.jit(network.init)(jax.random.key(0), x)
            calls[name] = functools.partial(jax.jit(network.apply), variables, x)
        found[str(size)] = take_turns(calls, config.blocks, config.block)
    return found


def main(config: Config) -> dict[str, Any]:
    """Trains each network on each seed, counts and times them.

    Returns:
        By contender: ``kind``, ``width``, ``errors`` of the seeds in per cent, ``parameters``,
        ``multiply_adds`` and ``milliseconds`` by batch size; also in the study's ``comparison.json``.
    """
    contenders, seeds = networks(config), study.seeds(config)
    if not config.batch_sizes or min(config.batch_sizes) < 1:
        raise ValueError(f"batch_sizes must be positive numbers; got {config.batch_sizes}")
    folder = study.begin("separable", config)
    dataset = data.load(config.dataset)
    errors: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in seeds:
        for name, network in contenders.items():
            run = folder / f"{name}-{seed}"
            execution = dataclasses.replace(config.execution, run=str(run), quiet=True)
            settings = dataclasses.replace(config, seed=seed, execution=execution)

            def measure(network: Network = network, settings: Config = settings) -> dict[str, float]:
                outcome = images.classify("separable", network, settings)
                return {"error": 100 * (1 - outcome.test["accuracy"]), "seconds": outcome.seconds}

            point = study.once(run / "outcome.json", measure)
            errors[name].append(point["error"])
            if not config.execution.quiet:
                print(f"{name}, seed {seed}: {point['error']:.2f} % test error in {point['seconds']:.0f} s",
                      flush=True)  # fmt: skip
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load not known"
    timed = study.once(folder / "latency.json", lambda: {**latencies(config, dataset), "load": load})
    found = {
        name: {
            "kind": network.kind,
            "width": network.width,
            "errors": errors[name],
            **cost(config, network, dataset),
            "milliseconds": {str(size): timed[str(size)][name] for size in config.batch_sizes},
        }
        for name, network in contenders.items()
    }
    (folder / "comparison.json").unlink(missing_ok=True)
    study.once(folder / "comparison.json", lambda: found)
    _offer(folder, config, found, timed["load"])
    if not config.execution.quiet:
        print(f"\n{report(config, found)}\n\nlatency measured under {timed['load']}; study folder {folder}")
    return found


def as_accurate(found: Mapping[str, Any], name: str, cost_of: Callable[[Any], float]) -> float | None:
    """What a full network of the mean error of another would cost.

    The logarithm of the cost is interpolated between the full networks in order of their errors.

    Args:
        found: what `main` gives.
        name: the other network.
        cost_of: one network's cost.

    Returns:
        The cost, or None where the error lies outside theirs.

    Example:
        >>> one = lambda kind, error, n: {"kind": kind, "errors": [error], "parameters": n}
        >>> found = {"a": one("full", 9.0, 100), "b": one("full", 8.0, 400), "c": one("separable", 8.5, 50)}
        >>> round(as_accurate(found, "c", lambda each: each["parameters"]))
        200
    """
    full = sorted(
        (np.mean(each["errors"]), cost_of(each)) for each in found.values() if each["kind"] == "full"
    )
    errors, costs = np.transpose(full)
    error = np.mean(found[name]["errors"])
    if not errors[0] <= error <= errors[-1]:
        return None
    return float(np.exp(np.interp(error, errors, np.log(costs))))


def _median(size: str, each: Any) -> float:
    return float(np.median(each["milliseconds"][size]))


def report(config: Config, found: Mapping[str, Any]) -> str:
    """The table; in brackets what a full network as accurate would cost."""
    costs: dict[str, tuple[Callable[[Any], float], str]] = {
        "parameters": (lambda each: each["parameters"], "{:,.0f}"),
        "multiply-adds": (lambda each: each["multiply_adds"], "{:,.0f}"),
        **{
            f"{size} at once": (functools.partial(_median, str(size)), "{:.3g} ms")
            for size in config.batch_sizes
        },
    }
    rows = []
    for name, each in found.items():
        spread = f" ± {np.std(each['errors'], ddof=1):.2f}" if len(each["errors"]) > 1 else ""
        row = [each["kind"], each["width"], f"{100 - np.mean(each['errors']):.2f}{spread} %"]
        for cost_of, form in costs.values():
            other = as_accurate(found, name, cost_of) if each["kind"] != "full" else None
            row.append(form.format(cost_of(each)) + (f" ({form.format(other)})" if other is not None else ""))
        rows.append(row)
    return study.table(["convolutions", "width", "test accuracy", *costs], rows)


def _offer(folder: Path, config: Config, found: Mapping[str, Any], load: str) -> None:
    labels = {
        name: f"{each['kind']} 3x3 convolutions, {each['parameters']:,} parameters, "
        f"{each['multiply_adds']:,} multiply-adds an image"
        for name, each in found.items()
    }

    def offer(name: str, title: str, metric: str, unit: str, samples: Mapping[str, Any], **more: Any) -> None:
        rows = tuple(ledger.Row(labels[name], tuple(samples[name])) for name in found)
        study.offer(
            folder, "separable", config, name=name, title=title, group="Images", metric=metric, goal="min",
            unit=unit, rows=rows, subject=None, **more,
        )  # fmt: skip

    offer(
        f"separable_{config.dataset}",
        f"Separable and full convolutions on {config.dataset}",
        "test error",
        "%",
        {name: each["errors"] for name, each in found.items()},
        note="A sample is a seed. Howard et al. 2017, table 4, on ImageNet: 28.3 % top-1 error with full "
        "convolutions, 29.4 % with separable ones and an eighth of the multiply-adds (recalled).",
    )
    for size in config.batch_sizes:
        offer(
            f"separable_latency_{size}",
            f"Prediction of {size} image{'s' if size > 1 else ''} with the networks of "
            f"separable_{config.dataset}",
            "time of a prediction",
            "ms",
            {name: each["milliseconds"][str(size)] for name, each in found.items()},
            note=f"Measured under {load}.",
        )


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
