"""Samples among data: whether they are like data, all of the data, new, and of every mode.

Like the scores of `jdl.audit.generative`, in features that are given, float64 on the host. Axes: N data, M
samples, F features, K modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jdl.audit.anomaly import auroc
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
        copied: share of samples nearer to the training data than all but one in a hundred held-out examples:
            0.01 for samples that are like held-out data, more where some are copies.
        z: mean over cells of Mann and Whitney's z: near 0 when samples are as far from the training data as
            held-out data are, far below 0 (-3, say) when they are nearer. Copies do that, and so do samples
            that keep to the middle of the data; bad samples raise it.
        z_by_cell: of each cell, NaN where there are too few [cells]: copies in one place show here.
        nearest: index of the training example nearest to each sample [M].
        distances: to it [M].
    """

    copied: float
    z: float
    z_by_cell: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray


def memorization(train_NF: Any, held_out_NF: Any, samples_MF: Any, cells: int = 10) -> Memorization:
    """The test of data copying: are samples nearer to the training data than held-out data are?

    Distances to the nearest training example, of samples and of held-out data, are compared within each of
    several cells, which k-means finds in the training data, so that samples are not taken for copies because
    there are more of them where data are dense. z is the mean of Mann and Whitney's statistics of the cells,
    ties counting half, each weighed by how much of the held-out data it has; cells with less than two of
    either are left out.

    Args:
        train_NF: features of all that the model was trained on.
        held_out_NF: features of data like it that the model has not seen.
        samples_MF: features of samples.
        cells: number of cells; with 1 all is compared with all.

    Raises:
        ValueError: for fewer than two rows, features that differ in number or are not finite, or fewer
            training examples than cells.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> train, held_out = rng.normal(size=(2, 500, 3))
        >>> memorization(train, held_out, train + 1e-3).z < -3
        True
        >>> abs(memorization(train, held_out, rng.normal(size=(500, 3))).z) < 1
        True

    Reference:
        Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative models",
        2020; Mann and Whitney, "On a test of whether one of two random variables is stochastically larger
        than the other", 1947.
    """
    train, samples = both(train_NF, samples_MF, 2)
    _, held_out = both(train_NF, held_out_NF, 2)
    if not 1 <= cells <= len(train):
        raise ValueError(f"cells must be from 1 to the {len(train)} training examples; got {cells}")
    nearest, distances = _to_nearest(samples, train)
    _, reference = _to_nearest(held_out, train)
    centres = _centres(train, cells)
    of_samples, of_held_out = _closest(samples, centres), _closest(held_out, centres)
    z_by_cell, weights = np.full(cells, np.nan), np.bincount(of_held_out, minlength=cells)
    for cell in range(cells):
        a, b = distances[of_samples == cell], reference[of_held_out == cell]
        if min(len(a), len(b)) >= 2:
            z_by_cell[cell] = _mann_whitney(a, b)
    there = np.isfinite(z_by_cell)
    z = float(np.average(z_by_cell[there], weights=weights[there])) if there.any() else 0.0
    copied = float((distances < np.quantile(reference, 0.01)).mean())
    return Memorization(copied, z, z_by_cell, nearest, distances)


def _closest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The index of the nearest row of b for each row of a."""
    return np.concatenate([squares.argmin(1) for _, squares in squared_distances(a, b)])


def _to_nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, and the distance."""
    nearest = _closest(a, b)
    # Anew, so that equal distances are equal to the last bit.
    return nearest, np.linalg.norm(a - b[nearest], axis=1)


def _centres(x: np.ndarray, k: int, rounds: int = 20) -> np.ndarray:
    """The centres [k, F] of Lloyd's k-means, from k rows drawn at random."""
    centres = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
    for _ in range(rounds):
        which = _closest(x, centres)
        centres = np.stack([x[which == i].mean(0) if (which == i).any() else centres[i] for i in range(k)])
    return centres


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> float:
    """How far a's values lie above b's, standard normal where both are drawn alike."""
    n, m = len(a), len(b)
    together = np.concatenate([a, b])
    larger = auroc(together, np.arange(n + m) < n)
    counts = np.unique(together, return_counts=True)[1].astype(float)
    ties = (counts**3 - counts).sum() / ((n + m) * (n + m - 1))
    deviation = np.sqrt(n * m / 12 * (n + m + 1 - ties))
    return float(n * m * (larger - 0.5) / deviation) if deviation > 0 else 0.0


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
        ValueError: for modes outside -1..K-1, or that are not whole numbers [M].

    Example:
        >>> found = count_modes([0, 0, 2, -1], 4)
        >>> found.covered, found.missing, found.assigned
        (2, [1, 3], 0.75)
    """
    modes = np.asarray(modes_M)
    if modes.ndim != 1 or not np.issubdtype(modes.dtype, np.integer):
        raise ValueError(f"modes must be whole numbers [M]; got {modes.dtype} of shape {modes.shape}")
    if not modes.size or modes.min() < -1 or modes.max() >= K:
        raise ValueError(f"modes must be numbers from 0 to {K - 1}, or -1 for none, and there must be some")
    counts = np.bincount(modes[modes >= 0], minlength=K)
    missing = np.flatnonzero(counts < at_least).tolist()
    return Modes(K - len(missing), counts, missing, float((modes >= 0).mean()))


def nearest_mode(samples_MF: Any, centres_KF: Any, radius: float) -> np.ndarray:
    """The nearest centre of each sample [M], -1 where it is more than ``radius`` away.

    Args:
        samples_MF: samples, or their features.
        centres_KF: the modes' centres.
        radius: as above, at least 0.

    Raises:
        ValueError: for a negative radius, numbers that are not finite, or features that differ in number.

    Example:
        >>> nearest_mode([[0.1, 0.0], [5.0, 5.0]], [[0.0, 0.0], [1.0, 0.0]], 0.5)
        array([ 0, -1])
    """
    if not radius >= 0:
        raise ValueError(f"the radius of a mode must be at least 0; got {radius}")
    samples, centres = both(samples_MF, centres_KF, 1)
    squares = np.concatenate([squares for _, squares in squared_distances(samples, centres)])
    return np.where(squares.min(1) <= radius**2, squares.argmin(1), -1)


def _nearest(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Squared distances from each row of a to its k nearest rows of b, in order [len(a), k]."""
    return np.concatenate(
        [np.sort(np.partition(squares, k - 1, 1)[:, :k], 1) for _, squares in squared_distances(a, b)]
    )
