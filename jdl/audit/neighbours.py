"""Samples among data: whether they are like data, all of the data, new, and of every mode.

Like the scores of `jdl.audit.generative`, in features that are given, float64 on the host. Axes: N data, M
samples, F features, K modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jdl.audit.generative import both, squared_distances


class Support(NamedTuple):
    """How two supports overlap, each a share of examples.

    Attributes:
        precision: samples that lie within the data's neighbourhoods: quality.
        recall: data that lie within the samples' neighbourhoods: variety.
        density: how many neighbourhoods of data a sample lies in, over k; may exceed 1.
        coverage: data that have a sample in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def support(x_NF: Any, y_MF: Any, k: int = 5) -> Support:
    """Precision, recall, density and coverage: whether samples are like data, and all of the data.

    The neighbourhood of a row is the ball that reaches to its k-th nearest neighbour among its own kind.

    Args:
        x_NF: features of the data.
        y_MF: features of the samples.
        k: 3 in the first paper below, 5 in the second.

    Returns:
        The four shares.

    Raises:
        ValueError: if there are no more than k rows of either, features differ in number or are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = rng.normal(size=(200, 2))
        >>> found = support(data, 0.01 * rng.normal(size=(200, 2)))
        >>> found.precision, found.recall < 0.1
        (1.0, True)

    Reference:
        Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models", 2019;
        Naeem et al., "Reliable fidelity and diversity metrics for generative models", 2020.
    """
    if k < 1:
        raise ValueError(f"k, the neighbours that a ball reaches to, must be at least 1; got {k}")
    x, y = both(x_NF, y_MF, k + 1)
    # The nearest row of all is the row itself.
    radius_x, radius_y = _nearest(x, x, k + 1)[:, -1], _nearest(y, y, k + 1)[:, -1]
    inside_data, inside_samples = np.zeros(len(y)), np.zeros(len(x), bool)
    covered = np.zeros(len(x), bool)
    for rows, squares in squared_distances(x, y):
        within = squares <= radius_x[rows, None]
        inside_data += within.sum(0)
        covered[rows] = within.any(1)
        inside_samples[rows] = (squares <= radius_y[None]).any(1)
    return Support(
        float((inside_data > 0).mean()), float(inside_samples.mean()),
        float(inside_data.mean() / k), float(covered.mean()),
    )  # fmt: skip


class Memorization(NamedTuple):
    """Whether samples are copies of training data.

    Attributes:
        z: standard normal when samples are as far from the training data as held-out data are; far below 0
            (-5, say) when they are nearer, as copies would be.
        copied: share of samples nearer to the training data than all but one in a hundred held-out examples.
        nearest: index of the training example nearest to each sample [M].
        distances: to it [M].
    """

    z: float
    copied: float
    nearest: np.ndarray
    distances: np.ndarray


def memorization(train_NF: Any, held_out_NF: Any, samples_MF: Any) -> Memorization:
    """The test of data copying: are samples nearer to the training data than held-out data are?

    z is Mann and Whitney's statistic of the distances to the nearest training example, of samples and of
    held-out data, ties counting half.

    Args:
        train_NF: features of what the model was trained on.
        held_out_NF: features of data like it that the model has not seen.
        samples_MF: features of samples.

    Raises:
        ValueError: for fewer than two rows, features that differ in number or are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> train, held_out = rng.normal(size=(2, 100, 3))
        >>> memorization(train, held_out, train + 1e-3).z < -5
        True
        >>> abs(memorization(train, held_out, rng.normal(size=(100, 3))).z) < 3
        True

    Reference:
        Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative models",
        2020; Mann and Whitney, "On a test of whether one of two random variables is stochastically larger
        than the other", 1947.
    """
    train, samples = both(train_NF, samples_MF, 2)
    _, held_out = both(train_NF, held_out_NF, 2)

    def to_nearest(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nearest = np.concatenate([squares.argmin(1) for _, squares in squared_distances(a, train)])
        # Anew, so that equal distances are equal to the last bit.
        return nearest, np.linalg.norm(a - train[nearest], axis=1)

    nearest, distances = to_nearest(samples)
    _, reference = to_nearest(held_out)
    n, m = len(distances), len(reference)
    together = np.concatenate([distances, reference])
    _, which, counts = np.unique(together, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which.reshape(-1)]
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = (counts**3 - counts).sum() / ((n + m) * (n + m - 1))
    deviation = np.sqrt(n * m / 12 * (n + m + 1 - ties))
    z = (u - n * m / 2) / deviation if deviation > 0 else 0.0
    return Memorization(
        float(z), float((distances < np.quantile(reference, 0.01)).mean()), nearest, distances
    )


class Modes(NamedTuple):
    """Which of several modes samples reach.

    Attributes:
        covered: number of modes that have samples enough.
        counts: samples of each mode [K].
        missing: indices of the modes not covered.
        assigned: share of samples that belong to a mode.
    """

    covered: int
    counts: np.ndarray
    missing: list[int]
    assigned: float


def count_modes(modes_M: Any, K: int, at_least: int = 1) -> Modes:
    """Counts the modes that samples reach.

    Args:
        modes_M: the mode of each sample, 0..K-1, or -1 for none: `nearest_mode`, or a classifier's answers.
        K: number of modes.
        at_least: samples that make a mode covered.

    Raises:
        ValueError: for modes outside -1..K-1.

    Example:
        >>> found = count_modes([0, 0, 2, -1], 4)
        >>> found.covered, found.missing, found.assigned
        (2, [1, 3], 0.75)
    """
    modes = np.asarray(modes_M)
    if not modes.size or modes.min() < -1 or modes.max() >= K:
        raise ValueError(f"modes must be numbers from 0 to {K - 1}, or -1 for none, and there must be some")
    counts = np.bincount(modes[modes >= 0], minlength=K)
    missing = np.flatnonzero(counts < at_least).tolist()
    return Modes(K - len(missing), counts, missing, float((modes >= 0).mean()))


def nearest_mode(samples_MF: Any, centres_KF: Any, radius: float) -> np.ndarray:
    """The nearest centre of each sample [M], -1 where it is more than ``radius`` away.

    Example:
        >>> nearest_mode([[0.1, 0.0], [5.0, 5.0]], [[0.0, 0.0], [1.0, 0.0]], 0.5)
        array([ 0, -1])
    """
    samples, centres = both(samples_MF, centres_KF, 1)
    squares = np.concatenate([squares for _, squares in squared_distances(samples, centres)])
    return np.where(squares.min(1) <= radius**2, squares.argmin(1), -1)


def _nearest(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Squared distances from each row of a to its k nearest rows of b, in order [len(a), k]."""
    return np.concatenate(
        [np.sort(np.partition(squares, k - 1, 1)[:, :k], 1) for _, squares in squared_distances(a, b)]
    )
