"""Alarms for a generator in training: they say what they saw, and stop nothing.

`collapse_alarm` looks at samples whenever `jdl.train.fit` evaluates, `saturation_alarm` at its records.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jdl.audit.generative import checked, squared_distances
from jdl.audit.neighbours import count_modes


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def collapse_alarm(
    latents: Any,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    spread: float = 0.5,
    duplicates: float = 0.1,
    modes: Callable[[np.ndarray], Any] | None = None,
    tell: Callable[[str], object] = _to_stderr,
) -> Callable[[Callable[[Any], Any], Any], dict[str, Any]]:
    """An evaluator for `jdl.train.fit` that looks for signs of collapse in samples, and names them.

    It compares samples with as many examples of the evaluation set, both as they are or as ``modes`` sees
    them:

    - "sample_spread": mean distance between two samples over that between two examples. Below ``spread`` the
      samples are too much alike.
    - "duplicates": share of samples that have another one nearer than a tenth of the median distance from an
      example to the next. Above ``duplicates`` (and above the data's own share) the generator repeats itself.
    - "modes": of the modes that the examples reach, how many samples do; fewer is a sign, and those missing
      are named.
    - Samples that are not finite.

    At the first look nothing else is told: what an untrained generator makes is no collapse.

    Args:
        latents: what the generator samples from, always the same: latents, or what `predict` takes.
        preprocess: function of an example's ``inputs`` that makes them what the generator makes.
        spread: least ratio that is no sign.
        duplicates: largest share that is no sign.
        modes: ``samples [M, ...] -> mode of each``, -1 for none: a classifier, or `nearest_mode`.
        tell: takes the sentence, when there is one; prints it to stderr when not given.

    Returns:
        ``predict, batches -> {"sample_spread", "duplicates", "modes", "signs"}``, with the number of signs.

    Raises:
        ValueError: for thresholds out of range, or samples of another shape than the data.

    Example:
        >>> data = {"inputs": np.random.default_rng(0).normal(size=(50, 2))}
        >>> alarm = collapse_alarm(np.arange(50), tell=print)
        >>> collapsed = lambda z: np.ones((50, 2)) + z[:, None] / 1000
        >>> _, found = (alarm(collapsed, lambda i: data) for _ in range(2))
        collapse: samples vary 1 % as much as the data; 100 % of the samples nearly repeat another
        >>> found["signs"]
        2

    Reference:
        The failure is described in Goodfellow, "NIPS 2016 tutorial: Generative adversarial networks", 2016.
    """
    if spread < 0 or not 0 <= duplicates <= 1:
        raise ValueError(f"spread is a ratio and duplicates a share; got {spread} and {duplicates}")

    is_first = True

    def evaluator(predict: Callable[[Any], Any], batches: Any) -> dict[str, Any]:
        nonlocal is_first
        samples = np.asarray(predict(latents), np.float64)
        if not np.isfinite(samples).all():
            tell("collapse: samples are not finite")
            return {"signs": 1}
        inputs = _examples(batches, len(samples))
        data = np.asarray(preprocess(inputs) if preprocess else inputs, np.float64)
        samples = samples[: len(data)]
        if samples.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"samples of shape {samples.shape[1:]} cannot be compared with data of shape {data.shape[1:]}"
            )
        (x, x_nearest), (y, y_nearest) = _distances(data), _distances(samples)
        near = 0.1 * float(np.median(x_nearest))
        found: dict[str, Any] = {
            "sample_spread": y / x if x > 0 else 1.0,
            "duplicates": float((y_nearest < near).mean()),
        }
        signs = []
        if found["sample_spread"] < spread:
            signs.append(f"samples vary {100 * found['sample_spread']:.0f} % as much as the data")
        if found["duplicates"] > max(duplicates, float((x_nearest < near).mean())):
            signs.append(f"{100 * found['duplicates']:.0f} % of the samples nearly repeat another")
        if modes is not None:
            there, reached = np.asarray(modes(data)), np.asarray(modes(samples))
            K = int(max(there.max(), reached.max(), 0)) + 1
            wanted = set(there[there >= 0].tolist())
            missing = sorted(wanted & set(count_modes(reached, K).missing))
            found["modes"] = len(wanted) - len(missing)
            if missing:
                which = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
                signs.append(f"{len(missing)} of {len(wanted)} modes have no sample: {which}")
        if signs and not is_first:
            tell(f"collapse: {'; '.join(signs)}")
        is_first = False
        return {**found, "signs": len(signs)}

    return evaluator


def saturation_alarm(
    *, least: float = 0.995, slope: float = 0.1, tell: Callable[[str], object] = _to_stderr
) -> Callable[[Mapping[str, Any]], None]:
    """A logger for `jdl.train.fit` that says when the discriminator teaches the generator nothing any more.

    That is when of ``least`` or more of the pairs of a real and a generated example it scores the real one
    higher ("real_above_fake" of the training records), and the generator's gradient ("generator_grad_norm")
    has fallen to ``slope`` of the largest so far or below: with losses that do not saturate, such as
    Wasserstein's, a discriminator may be right about every pair and still teach. It speaks once, and again
    when it was otherwise in between.

    Args:
        least: the share of pairs.
        slope: the share of the largest gradient; 1 to go by the pairs alone.
        tell: takes the sentence.

    Returns:
        A logger.

    Raises:
        ValueError: for shares that are not from 0 to 1.

    Example:
        >>> log = saturation_alarm(tell=print)
        >>> log({"step": 100, "split": "train", "real_above_fake": 1.0, "generator_grad_norm": 0.5})
        >>> log({"step": 200, "split": "train", "real_above_fake": 1.0, "generator_grad_norm": 1e-4})
        step 200: the discriminator tells 100.0 % of real from generated examples (gradient of the generator
        0.0001): it may have no more to teach; a lower rate for it, a penalty or noise are the usual cures

    Reference:
        Arjovsky and Bottou, "Towards principled methods for training generative adversarial networks", 2017,
        section 2.2.
    """
    if not (0 <= least <= 1 and 0 <= slope <= 1):
        raise ValueError(f"least and slope are shares from 0 to 1; got {least} and {slope}")
    was_saturated, largest = False, 0.0

    def log(record: Mapping[str, Any]) -> None:
        nonlocal was_saturated, largest
        if record["split"] != "train" or "real_above_fake" not in record:
            return
        share = float(np.mean(record["real_above_fake"]))
        gradient = record.get("generator_grad_norm")
        norm = math.nan if gradient is None else float(np.mean(gradient))
        largest = max(largest, norm) if norm == norm else largest
        is_saturated = share >= least and not norm > slope * largest
        if is_saturated and not was_saturated:
            seen = "" if gradient is None else f" (gradient of the generator {norm:.2g})"
            tell(
                f"step {record['step']}: the discriminator tells {100 * share:.1f} % of real from generated "
                f"examples{seen}: it may have no more to teach; a lower rate for it, a penalty or noise are "
                "the usual cures"
            )
        was_saturated = is_saturated

    return log


def _examples(batches: Any, count: int) -> np.ndarray:
    """The first ``inputs`` of an evaluation set, at most so many."""
    found: list[np.ndarray] = []
    for i in range(len(batches) if hasattr(batches, "__len__") else 1):
        batch = batches(i)
        inputs = np.asarray(batch["inputs"])
        # The last batch is filled up with rows that weigh nothing.
        found.append(inputs[np.asarray(batch["weights"]) > 0] if "weights" in batch else inputs)
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def _distances(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean distance between two rows, and from each to the nearest other."""
    x = checked(x.reshape(len(x), -1), "samples", 2)
    total, nearest = 0.0, np.zeros(len(x))
    for rows, squares in squared_distances(x, x):
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = 0
        total += np.sqrt(squares).sum()
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = np.inf
        nearest[rows] = np.sqrt(squares.min(1))
    return total / (len(x) * (len(x) - 1)), nearest
