"""What recurrent networks and a Transformer remember, and over how many steps.

Two problems made for the question. *Adding*: each of T steps has a number between 0 and 1 and a mark; two
steps are marked, one in each half, and the answer is the sum of their numbers. Who knows nothing answers 1
and has a mean squared error of 0.167; a sequence counts as solved with an error below 0.04, as in the paper
that the problem is from. *Copy*: ten symbols of eight, T - 1 blanks, a sign, and then the ten symbols are to
be written; who knows nothing gets one in eight right. Sequences are drawn anew at every step, so there is
nothing to overfit.

Hochreiter and Schmidhuber report that LSTM solves adding over up to 1000 steps, where the recurrent networks
of the time failed from about 100. Networks here have about the same number of parameters.

Hochreiter and Schmidhuber, "Long short-term memory", 1997, sections 5.4 and 5.5; the copy problem in this
form: Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", 2016.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import cli, ledger, study
from jdl import data, learners, models, tasks, train
from jdl.core import Batch, Task
from jdl.models.transformer import Transformer
from jdl.nn.transformer import BlockConfig

PUBLISHED = (
    "LSTM solves the adding problem over 100 to 1000 steps (Hochreiter and Schmidhuber 1997, section 5.4)"
)

Problem = Literal["adding", "copy"]
Network = Literal["rnn", "lstm", "gru", "transformer"]
NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU", "transformer": "Transformer"}

SYMBOLS, COPIED = 8, 10
BLANK, SIGN = SYMBOLS, SYMBOLS + 1
SOLVED = 0.04
"""Largest error of a sum that counts as right."""


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    problems: tuple[Problem, ...] = ("adding", "copy")
    """What is to be remembered."""
    lengths: tuple[int, ...] = (50, 100, 200, 400)
    """T of each problem."""
    networks: tuple[Network, ...] = ("rnn", "lstm", "gru", "transformer")
    """What is to remember it."""
    parameters: int = 50_000
    """About how many parameters each network has."""
    steps: int = 3000
    """Training steps of each network."""
    batch_size: int = 50
    """Sequences in a batch."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate, which then falls along a cosine to 0."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    test: int = 1000
    """Sequences that a network is tested on."""
    repeats: int = 1
    """Seeds of each network: the first is ``seed``."""
    seed: int = 0
    """Seed of the initial weights and of the sequences."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


def adding(rng: np.random.Generator, count: int, length: int) -> Batch:
    """Sequences [count, length, 2] of a number and a mark, and the sums [count, 1].

    Example:
        >>> batch = adding(np.random.default_rng(0), 3, 10)
        >>> numbers, marks = np.moveaxis(batch["inputs"], -1, 0)
        >>> bool(np.allclose((numbers * marks).sum(1), batch["labels"][:, 0])), marks.sum(1).tolist()
        (True, [2.0, 2.0, 2.0])
    """
    numbers = rng.uniform(size=(count, length)).astype(np.float32)
    marks = np.zeros_like(numbers)
    rows, half = np.arange(count), length // 2
    marks[rows, rng.integers(0, half, count)] = 1
    marks[rows, rng.integers(half, length, count)] = 1
    return {"inputs": np.stack([numbers, marks], -1), "labels": (numbers * marks).sum(1, keepdims=True)}


def copying(rng: np.random.Generator, count: int, length: int) -> Batch:
    """Tokens [count, length + 20] and the symbols to write at the end, the only labels that weigh anything.

    Example:
        >>> batch = copying(np.random.default_rng(0), 1, 5)
        >>> batch["inputs"][0, 10:].tolist(), float(batch["weights"].sum())
        ([8, 8, 8, 8, 9, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8], 10.0)
        >>> bool((batch["inputs"][0, :10] == batch["labels"][0, -10:]).all())
        True
    """
    symbols = rng.integers(0, SYMBOLS, (count, COPIED)).astype(np.int32)
    inputs = np.full((count, length + 2 * COPIED), BLANK, np.int32)
    labels, weights = inputs.copy(), np.zeros(inputs.shape, np.float32)
    inputs[:, :COPIED], labels[:, -COPIED:], weights[:, -COPIED:] = symbols, symbols, 1
    inputs[:, -COPIED - 1] = SIGN
    return {"inputs": inputs, "labels": labels, "weights": weights}


DRAWN = {"adding": adding, "copy": copying}


def drawn(problem: Problem, count: int, length: int, seed: int) -> Callable[[int], Batch]:
    """Training batches drawn anew: batch i follows from the seed and from i."""
    # From 1 on: numpy's generator of (seed, 0) is that of the seed alone, which draws the test sequences.
    return lambda i: DRAWN[problem](np.random.default_rng((seed, i + 1)), count, length)


def network(kind: Network, problem: Problem, width: int) -> Any:
    """A network of one layer of ``width``, or two blocks of a Transformer, for a problem."""
    is_copy = problem == "copy"
    vocabulary, outputs = (SIGN + 1, SIGN) if is_copy else (None, 1)
    if kind == "transformer":
        return Transformer(
            vocabulary,
            width,
            2,
            BlockConfig(4, 4 * width, causal=is_copy),
            positions="sinusoidal",
            head=outputs,
            pool=None if is_copy else "mean",
        )
    pool: Literal["none", "last"] = "none" if is_copy else "last"
    return models.Recurrent(outputs, (width,), kind, pool=pool, vocab_size=vocabulary, width=SIGN + 1)


def size_of(module: Any, batch: Batch) -> int:
    """The number of a network's parameters."""
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), batch["inputs"])
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def fitting(kind: Network, problem: Problem, parameters: int) -> Any:
    """The network of a kind, of those whose width is a multiple of 4, that is nearest to a size."""
    batch = DRAWN[problem](np.random.default_rng(0), 1, 20)
    few = (4, 8, 12)
    sizes = [size_of(network(kind, problem, width), batch) for width in few]
    # Kernels grow with the square of the width, biases and what knows the problem with the width.
    widths = np.arange(4, 4 * math.isqrt(parameters) + 8, 4)
    distances = np.abs(np.log(np.polyval(np.polyfit(few, sizes, 2), widths) / parameters))
    return network(kind, problem, int(widths[distances.argmin()]))


def measure(config: Config, problem: Problem, length: int, kind: Network, seed: int) -> dict[str, Any]:
    """Trains one network, without checkpoints: a network takes minutes.

    Returns:
        ``error`` on the test sequences, a mean square (adding) or the share of wrong symbols (copy);
        ``solved``, the share of sequences with no error to speak of; ``parameters``; ``seconds``; and
        ``curve``, the error by step.
    """
    module = fitting(kind, problem, config.parameters)
    task: Task = tasks.regression(module) if problem == "adding" else tasks.classification(module)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(
            optax.warmup_cosine_decay_schedule(
                0.0, config.learning_rate, max(1, round(config.warmup * config.steps)), config.steps
            )
        ),
    )
    test = DRAWN[problem](np.random.default_rng(seed), config.test, length)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        quiet = config.execution.quiet
        fitted = train.fit(
            learners.gradient(task, tx),
            drawn(problem, config.batch_size, length, seed),
            config.steps,
            key=seed,
            evaluation={"test": data.in_order(test, min(250, config.test))},
            evaluate_every=math.ceil(config.steps / 30),
            loggers=[] if quiet else [stack.enter_context(train.ProgressBar(config.steps))],
            mesh=config.execution.mesh or None,
            mode=config.execution.mode,
        )
    outputs = np.asarray(jax.jit(fitted.predict)(test["inputs"]))
    if problem == "adding":
        solved = np.abs(outputs - test["labels"]).max(-1) < SOLVED
        steps, errors = fitted.history.series("test", "mse")
    else:
        right = outputs.argmax(-1) == test["labels"]
        solved = right[:, -COPIED:].all(-1)
        steps, accuracies = fitted.history.series("test", "accuracy")
        errors = [1 - accuracy for accuracy in accuracies]
    return {
        "error": errors[-1],
        "solved": float(solved.mean()),
        "parameters": size_of(module, test),
        "seconds": time.perf_counter() - start,
        "curve": {"steps": steps, "errors": errors},
    }


def main(config: Config) -> dict[str, Any]:
    """Trains and tests every network on every problem and length.

    Returns:
        By problem, length (as text) and network, a list of what `measure` gives, one a seed; also in
        ``memory.json`` of the study's folder, with a picture.

    Raises:
        ValueError: if there is nothing to train, or a length below 4.
    """
    if not (config.problems and config.lengths and config.networks) or min(config.lengths) < 4:
        raise ValueError("give problems, networks, and lengths of at least 4 steps")
    study.figure(1, 1)  # what is missing for it is missed now, not after the training
    folder = study.begin("memory", config)
    found: dict[str, Any] = {}
    for problem in config.problems:
        for length in config.lengths:
            for kind in config.networks:
                for seed in study.seeds(config):
                    if not config.execution.quiet:
                        print(f"\n{problem}, {length} steps, {NAMES[kind]}, seed {seed}")
                    outcome = study.once(
                        folder / f"{problem}-{length}-{kind}-{seed}.json",
                        lambda a=(problem, length, kind, seed): measure(config, *a),  # type: ignore[misc]
                    )
                    of_length = found.setdefault(problem, {}).setdefault(str(length), {})
                    of_length.setdefault(kind, []).append(outcome)
    (folder / "memory.json").unlink(missing_ok=True)
    study.once(folder / "memory.json", lambda: found)
    _offer(folder, config, found)
    picture = folder / "memory.png"
    plot(found).savefig(picture, dpi=120)
    if not config.execution.quiet:
        print(f"\n{report(found)}\n\n  picture  {picture}\n  numbers  {folder / 'memory.json'}")
    return found


def report(found: Mapping[str, Any]) -> str:
    """A row a problem, length and network: means over the seeds."""
    rows = []
    for problem, of_problem in found.items():
        for length, of_length in of_problem.items():
            for kind, outcomes in of_length.items():
                error, solved, seconds = (
                    np.mean([one[name] for one in outcomes]) for name in ("error", "solved", "seconds")
                )
                figure = f"{error:.5f}" if problem == "adding" else f"{100 * error:.2f} %"
                rows.append([problem, length, NAMES[kind], f"{outcomes[0]['parameters']:,}", figure,
                             f"{100 * solved:.1f} %", f"{seconds:.0f}"])  # fmt: skip
    header = ["problem", "steps", "network", "parameters", "error", "sequences solved", "seconds"]
    return study.table(header, rows)


def _offer(folder: Path, config: Config, found: Mapping[str, Any]) -> None:
    for problem, of_problem in found.items():
        rows = tuple(
            ledger.Row(f"{NAMES[kind]}, {length} steps", tuple(100 * one["solved"] for one in outcomes))
            for length, of_length in of_problem.items()
            for kind, outcomes in of_length.items()
        )
        sizes = [
            one["parameters"]
            for of_length in of_problem.values()
            for many in of_length.values()
            for one in many
        ]
        study.offer(
            folder,
            "memory",
            config,
            name=f"memory_{problem}",
            title=f"The {problem} problem over more and more steps",
            group="Sequences",
            metric="sequences solved",
            goal="max",
            unit="%",
            subject=None,
            rows=rows,
            note=f"Each network has {min(sizes):,} to {max(sizes):,} parameters and is trained for "
            f"{config.steps:,} steps of {config.batch_size} sequences. A sample is a seed.",
        )


def plot(found: Mapping[str, Any]) -> Any:
    """The test error by step, a panel a problem and length.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
    """
    columns = max(map(len, found.values()))
    figure = study.figure(4.2 * columns, 3.2 * len(found))
    grid = figure.subplots(len(found), columns, squeeze=False)
    for row, (problem, of_problem) in zip(grid, found.items(), strict=True):
        for axes, (length, of_length) in zip(row, of_problem.items(), strict=False):
            for number, (kind, outcomes) in enumerate(of_length.items()):
                for i, one in enumerate(outcomes):
                    curve = one["curve"]
                    label = NAMES[kind] if i == 0 else None
                    errors = np.maximum(curve["errors"], 1e-5)
                    axes.plot(curve["steps"], errors, color=f"C{number}", lw=1.3, label=label)
            axes.set(title=f"{problem}, {length} steps", xlabel="step", yscale="log")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("mean squared error" if problem == "adding" else "share of symbols wrong")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
