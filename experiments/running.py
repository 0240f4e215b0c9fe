"""A run on the host: its folder, what is told on the way, the loop, the curves."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import cli
from jdl import train
from jdl.core import Learner


class Outcome(NamedTuple):
    """What an experiment comes to.

    Attributes:
        fitted: what `jdl.train.fit` gives.
        test: the metrics that are reported.
        folder: the run's folder.
        seconds: wall-clock time.
    """

    fitted: train.Fitted
    test: dict[str, Any]
    folder: Path
    seconds: float


def folder_of(experiment: str, config: Any) -> Path:
    """The folder of a run: that of its settings, or a new one."""
    where: cli.Execution = config.execution
    return Path(where.run) if where.run else cli.new_folder(experiment, config)


def run(
    experiment: str,
    config: Any,
    folder: Path,
    learner: Learner,
    batches: Any,
    evaluation: Mapping[str, Any],
    *,
    steps: int,
    evaluate_every: int,
    fingerprint: str,
    about: str,
    extra: Mapping[str, Any] | None = None,
    evaluators: Sequence[Any] = (),
    loggers: Sequence[train.Logger] = (),
    patience: int | None = None,
) -> Outcome:
    """Trains as `jdl.train.fit` does, in a folder of the experiment's.

    Args:
        experiment: its name.
        config: its settings, with ``seed`` and ``execution``.
        folder: the run's, from `folder_of`.
        learner: how to learn.
        batches: ``step -> batch``.
        evaluation: batches by the name of a set; the first is monitored.
        steps: training steps.
        evaluate_every: steps between evaluations; a fortieth of all when 0.
        fingerprint: of the data.
        about: a sentence for the user, said at the start.
        extra: what is kept beside the weights.
        evaluators: as in `jdl.train.fit`.
        loggers: as in `jdl.train.fit`, told on the first process alone.
        patience: as in `jdl.train.fit`.

    Returns:
        The outcome, with the metrics of the last set after the last step, or at the best by the first set
        where ``patience`` is given.
    """
    start = time.perf_counter()
    where: cli.Execution = config.execution
    is_first = jax.process_index() == 0
    is_told = is_first and not where.quiet
    if is_told:
        print(f"{experiment}: {about}; run folder {folder}")
    told = list(loggers) if is_first else []
    with contextlib.ExitStack() as stack:
        if is_told:
            told.append(stack.enter_context(train.ProgressBar(steps)))
        if where.tensorboard and is_first:
            told.append(stack.enter_context(train.TensorBoard(str(folder / "tensorboard"))))
        fitted = train.fit(
            learner,
            batches,
            steps,
            key=config.seed,
            evaluation=evaluation,
            evaluators=evaluators,
            evaluate_every=evaluate_every or math.ceil(steps / 40),
            patience=patience,
            run=train.Run(
                folder, config=cli.settings(experiment, config), data=fingerprint, extra=dict(extra or {})
            ),
            loggers=told,
            mesh=where.mesh or None,
            mode=where.mode,
            profile=cli.profile(where, folder),
        )
    if is_first:
        train.save_history(fitted.history, folder / train.run.CURVES, title=experiment)
    name = list(evaluation)[-1]
    at = fitted.step if patience is None else fitted.best["step"]
    test = next(r for r in reversed(fitted.history) if r["split"] == name and r["step"] == at)
    return Outcome(fitted, test, folder, time.perf_counter() - start)


def report(found: str, outcome: Outcome, experiment: str, *, also: str = "", flags: str = "") -> str:
    """What is printed at the end: the figure, where everything is, and how to go on.

    Args:
        found: the figure.
        outcome: what `run` gave.
        experiment: its name.
        also: a line on what else to do.
        flags: for the command that goes on.
    """
    folder = outcome.folder
    return f"""
{found}, after {outcome.fitted.step} steps in {outcome.seconds:.0f} s

  curves         {folder / train.run.CURVES}
  metrics        {folder / train.run.METRICS}
  checkpoints    {folder / train.run.CHECKPOINTS}
  configuration  {folder / train.run.CONFIG}
{also}
go on, had it been stopped before its end: python -m experiments.{experiment} --resume {folder}{flags}"""
