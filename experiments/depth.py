"""Why a plain network of 56 layers is worse than one of 20, and a residual one is not.

Trains plain and residual networks on CIFAR-10 with the recipe of the paper, shortened: batches of 128,
momentum 0.9, weight decay 0.0001, a learning rate of 0.1 divided by 10 at half and at three quarters of the
steps, images padded, cropped and mirrored. Before the first step and at several moments of training it
measures every layer on the same training images: the standard deviation of its response (after normalisation,
before the shortcut and the ReLU, as in the paper's figure 7) and the norm of the loss's gradient with respect
to its kernel. So one sees whether the deep plain network is worse on the training images too, which rules out
overfitting, and whether signals or gradients vanish on the way, which the paper argues they do not: before
the first step the gradients of the deep plain network grow towards the first layer instead, as Yang et al.
derive for batch normalisation.

The paper's whole recipe is ``--steps 64000``; it reports 8.75 % test error for ResNet-20 and 6.97 % for
ResNet-56, and in figure 6 a training error of plain-56 above that of plain-20 throughout.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, section 4.2, figures 6 and 7;
Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz, "A mean field theory of batch normalization", 2019.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import cli, images, ledger, resnet, study
from jdl import data, train
from jdl.audit import signal_report
from jdl.core import Array, Batch

PUBLISHED = (
    "plain-56 has a higher training and test error than plain-20, ResNet-56 a lower one than ResNet-20 "
    "(6.97 %, 8.75 %; He et al. 2016, figure 6 and table 6)"
)

Shortcut = Literal["none", "padding", "projection"]


@dataclass(frozen=True)
class Config:
    """Settings of the comparison; what it does not name is as in `experiments.resnet`."""

    dataset: images.DatasetName = "cifar10"
    """Images to learn."""
    depths: tuple[int, ...] = (20, 56)
    """Layers of the networks, 6n + 2 each."""
    shortcuts: tuple[Shortcut, ...] = ("none", "padding")
    """Shortcuts of the networks: none for plain ones, padding for the paper's residual ones (option A), or
    projection (option B)."""
    steps: int = 2000
    """Training steps of each network; the paper has 64,000."""
    batch_size: int = 128
    """Images in a batch."""
    learning_rate: float = 0.1
    """First learning rate, divided by 10 at half and at three quarters of the steps."""
    moments: int = 4
    """Equal parts of training, after each of which the layers are measured."""
    measured: int = 128
    """Training images that the layers are measured on."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the images."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def label(depth: int, shortcut: Shortcut) -> str:
    """What a network is called.

    Example:
        >>> label(56, "none"), label(56, "padding"), label(20, "projection")
        ('plain-56', 'ResNet-56', 'ResNet-20 (projection)')
    """
    name = f"{'plain' if shortcut == 'none' else 'ResNet'}-{depth}"
    return f"{name} (projection)" if shortcut == "projection" else name


def layers(depth: int) -> list[str]:
    """The names of a network's 3x3 convolutions, in order.

    Example:
        >>> layers(8)[:4]
        ['stem', 'stage1/block1/conv1', 'stage1/block1/conv2', 'stage2/block1/conv1']
        >>> len(layers(56))
        55
    """
    blocks = range(1, (depth - 2) // 6 + 1)
    return ["stem"] + [f"stage{s}/block{b}/conv{c}" for s in (1, 2, 3) for b in blocks for c in (1, 2)]


def signals(module: Any, variables: Any, batch: Batch, names: Sequence[str]) -> dict[str, list[float]]:
    """The layers' ``response``, a standard deviation, and ``gradient``, a norm, on a batch."""

    def loss(logits: Array, batch: Batch) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    report = signal_report(module, variables, batch, loss, jax.random.key(0))
    found = {layer.name: layer for layer in report.layers}
    gradients = [found[f"{name}/conv"].parameter_gradient for name in names]
    return {
        "response": [found[f"{name}/norm"].std for name in names],
        "gradient": [float(g) for g in gradients if g is not None],
    }


def measure(
    config: Config, dataset: data.Dataset, depth: int, shortcut: Shortcut, folder: Path
) -> dict[str, Any]:
    """Trains one network, in a run of its own, and measures it.

    Returns:
        ``layers``, and by moment: ``steps``, ``test_error`` and ``training_error`` in per cent, ``response``
        and ``gradient`` [moments][layers]; the training error is that of the (augmented) images trained on
        since the moment before, and None before the first step. ``curve``: training error by step.
    """
    recipe = resnet.Config(
        dataset=config.dataset,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        depth=depth,
        shortcut=shortcut,
        seed=config.seed,
    )
    module, names = resnet.model(recipe), layers(depth)
    preprocess = data.fit_preprocess(dataset.train["inputs"], size=None)
    inputs = np.asarray(preprocess(dataset.train["inputs"][: config.measured]))
    batch = {"inputs": inputs, "labels": dataset.train["labels"][: config.measured]}

    def evaluator(predict: Any, _: Any) -> dict[str, list[float]]:
        return signals(module, jax.device_get(predict.args[0]), batch, names)

    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        quiet = config.execution.quiet
        fitted = train.fit(
            images.recipe(module, preprocess, recipe, len(dataset.class_names)),
            data.shuffled(dataset.train, config.batch_size, seed=config.seed),
            config.steps,
            key=config.seed,
            evaluation={"test": data.in_order(dataset.test, min(1000, len(dataset.test["labels"])))},
            evaluators=[evaluator],
            evaluate_every=math.ceil(config.steps / config.moments),
            run=train.Run(folder, config=cli.settings("resnet", recipe), data=dataset.fingerprint),
            loggers=[] if quiet else [stack.enter_context(train.ProgressBar(config.steps))],
            mesh=config.execution.mesh or None,
            mode=config.execution.mode,
            profile=cli.profile(config.execution, folder),
        )
    history = fitted.history
    steps, accuracies = history.series("test", "accuracy")
    logged, seen = history.series("train", "accuracy")
    return {
        "layers": names,
        "steps": steps,
        "test_error": [100 * (1 - accuracy) for accuracy in accuracies],
        "training_error": [
            100 * (1 - float(np.mean(since))) if since else None
            for since in (
                [x for step, x in zip(logged, seen, strict=True) if before < step <= now]
                for before, now in zip([0, *steps], steps, strict=False)
            )
        ],
        **{name: history.series("test", name)[1] for name in ("response", "gradient")},
        "curve": {"steps": logged, "training_error": [100 * (1 - x) for x in seen]},
        "seconds": time.perf_counter() - start,
    }


def main(config: Config) -> dict[str, Any]:
    """Trains and measures every network.

    Returns:
        By the network's `label`, what `measure` gives; also in ``depth.json`` of the study's folder, with a
        picture.

    Raises:
        ValueError: for a depth that is no 6n + 2, or numbers that are not positive.
    """
    for name in ("moments", "measured", "steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    if not config.depths or not config.shortcuts:
        raise ValueError("there is nothing to train: give depths and shortcuts")
    for depth in config.depths:
        resnet.model(resnet.Config(depth=depth))
    study.figure(1, 1)  # what is missing for it is missed now, not after the training
    folder = study.begin("depth", config)
    dataset = data.load(config.dataset)
    found: dict[str, Any] = {}
    for shortcut in config.shortcuts:
        for depth in config.depths:
            run = folder / f"{shortcut}-{depth}"
            name = label(depth, shortcut)
            found[name] = study.once(
                run / "outcome.json",
                lambda a=(depth, shortcut, run): measure(config, dataset, *a),  # type: ignore[misc]
            )
            if not config.execution.quiet:
                print(f"\n{name}, by layer: response (standard deviation) and gradient (norm) after steps "
                      f"{', '.join(map(str, found[name]['steps']))}\n{by_layer(found[name])}")  # fmt: skip
    (folder / "depth.json").unlink(missing_ok=True)
    study.once(folder / "depth.json", lambda: found)
    picture = folder / "depth.png"
    plot(found, f"{config.dataset}, {config.steps:,} steps").savefig(picture, dpi=120)
    _offer(folder, config, found)
    if not config.execution.quiet:
        print(f"\n{report(found)}\n\n  picture  {picture}\n  numbers  {folder / 'depth.json'}")
    return found


def by_layer(one: Mapping[str, Any]) -> str:
    """A row a layer: its response, then its gradient, at each moment."""
    header = ["layer", *(f"std {step}" for step in one["steps"]), *(f"grad {step}" for step in one["steps"])]
    columns = [*one["response"], *one["gradient"]]
    rows = [[name, *(f"{column[i]:.3g}" for column in columns)] for i, name in enumerate(one["layers"])]
    return study.table(header, rows)


def report(found: Mapping[str, Any]) -> str:
    """A row a network and moment: errors, and how signals and gradients change along the depth."""
    rows = []
    for name, one in found.items():
        for step, test, training, response, gradient in zip(
            *(one[key] for key in ("steps", "test_error", "training_error", "response", "gradient")),
            strict=True,
        ):
            rows.append([
                name, step, "" if training is None else f"{training:.2f}", f"{test:.2f}",
                f"{np.median(response):.3g}", *(f"{gradient[i]:.3g}" for i in (0, len(gradient) // 2, -1)),
            ])  # fmt: skip
    header = ["network", "step", "training error %", "test error %", "median response",
              "gradient: first layer", "middle", "last"]  # fmt: skip
    return study.table(header, rows)


def _offer(folder: Path, config: Config, found: Mapping[str, Any]) -> None:
    study.offer(
        folder,
        "depth",
        config,
        name=f"depth_{config.dataset}",
        title=f"Plain and residual networks on {config.dataset} after {config.steps:,} steps",
        group="Images",
        metric="test error",
        goal="min",
        unit="%",
        subject=None,
        rows=tuple(
            ledger.Row(
                name,
                (one["test_error"][-1],),
                {
                    "training error since the last moment, %": one["training_error"][-1],
                    "first kernel's gradient before training": one["gradient"][0][0],
                    "last kernel's gradient before training": one["gradient"][0][-1],
                    "first kernel's gradient at the end": one["gradient"][-1][0],
                    "last kernel's gradient at the end": one["gradient"][-1][-1],
                },
            )
            for name, one in found.items()
        ),
        note="One seed. Gradients are norms. He et al. 2016, after 64,000 steps: 8.75 % with ResNet-20, 6.97 "
        "% with ResNet-56 (table 6).",
    )


def plot(found: Mapping[str, Any], title: str = "") -> Any:
    """Errors over the steps; responses and gradients by depth before, halfway through and after training.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
    """
    figure = study.figure(15, 6.4)
    grid = figure.subplots(2, 4)
    for number, (name, one) in enumerate(found.items()):
        style = {"color": f"C{number}", "lw": 1.3, "ls": "--" if name.startswith("plain") else "-"}
        grid[0, 0].plot(one["curve"]["steps"], one["curve"]["training_error"], label=name, **style)
        grid[1, 0].plot(one["steps"], one["test_error"], marker="o", ms=3, **style)
        last = len(one["steps"]) - 1
        for column, moment in enumerate((0, (last + 1) // 2, last), 1):
            depth = np.arange(1, len(one["layers"]) + 1)
            grid[0, column].plot(depth, one["gradient"][moment], **style)
            grid[1, column].plot(depth, one["response"][moment], **style)
            grid[0, column].set_title(f"step {one['steps'][moment]}", fontsize=9)
    for row, (error, signal) in enumerate(
        (("training error, %", "norm of the kernel's gradient"), ("test error, %", "response's deviation"))
    ):
        grid[row, 0].set(xlabel="step", ylabel=error)
        for axes in grid[row, 1:]:
            axes.set(xlabel="layer", yscale="log")
        grid[row, 1].set_ylabel(signal)
    for axes in grid[1, 1:]:  # where all are one, rounding is not to be seen
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.5), max(high, 2.0))
    for axes in grid.ravel():
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
