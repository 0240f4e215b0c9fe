"""How close samples are to data, in the features of any function.

Every score is a statement about features, so the function that computes them is always given: a classifier
trained on the same kind of data, for instance. Scores in other features (those published for images are in an
Inception network's) are other numbers. They also depend on how many samples there are: compare equal numbers.

All of it is float64 on the host. Axes: N data, M samples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

BLOCK = 2**22
"""Entries of a matrix of pairs that are held at once."""


class Moments(NamedTuple):
    """What a normal distribution is fitted by.

    Attributes:
        examples: number of rows.
        mean: [F].
        covariance: [F, F], the unbiased estimate, as in `numpy.cov`.
    """

    examples: int
    mean: np.ndarray
    covariance: np.ndarray


def featurize(features: Callable[[Any], Any], batches: Iterable[Any]) -> np.ndarray:
    """The features of batches, one row an example.

    Args:
        features: ``inputs -> [B, ...]``, such as a compiled function of a trained network.
        batches: inputs.

    Returns:
        float64 [N, F].

    Raises:
        ValueError: if there are no batches, one array is given instead, or a feature is not finite.

    Example:
        >>> featurize(np.sqrt, [np.ones((2, 3)), np.full((1, 3), 4.0)]).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    _require_batches(batches)
    found = [np.asarray(features(batch), np.float64) for batch in batches]
    if not found:
        raise ValueError("there is nothing to take features of: no batches")
    return checked(np.concatenate([x.reshape(len(x), -1) for x in found]), "features", 1)


def moments(features: Callable[[Any], Any], batches: Iterable[Any]) -> Moments:
    """Mean and covariance of the features of batches, which are read one after another and not kept.

    Args:
        features: ``inputs -> [B, ...]``.
        batches: inputs; at least two examples in all.

    Returns:
        The moments, in float64.

    Raises:
        ValueError: for fewer than two examples, one array instead of batches, features that are not finite
            or whose number changes from batch to batch.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> found = moments(lambda x: 2 * x, [x[:30], x[30:]])
        >>> bool(np.allclose(found.covariance, np.cov(2 * x.T)))
        True

    Reference:
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        1979.
    """
    _require_batches(batches)
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        x = np.asarray(features(batch), np.float64)
        x = checked(x.reshape(len(x), -1), "features", 1)
        if count and x.shape[1] != len(mean):
            raise ValueError(f"a batch has {x.shape[1]} features where those before had {len(mean)}")
        own, total = x.mean(0), count + len(x)
        centred, shift = x - own, own - mean
        scatter = scatter + centred.T @ centred + np.outer(shift, shift) * (count * len(x) / total)
        mean, count = mean + shift * (len(x) / total), total
    if count < 2:
        raise ValueError(f"a covariance needs at least two examples; got {count}")
    return Moments(count, mean, scatter / (count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two normal distributions: |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of S^(1/2) S' S^(1/2), which is
    symmetric: nothing complex arises, and a covariance of fewer examples than features needs no correction.

    Args:
        a: moments of the data.
        b: moments of the samples.

    Returns:
        The distance, at least 0; 0 for equal moments. With few examples it is too large, by about as much for
        every model that is given as many.

    Raises:
        ValueError: if the numbers of features differ, or moments are not finite.

    Example:
        >>> a = Moments(10, np.zeros(2), np.eye(2))
        >>> b = Moments(10, np.array([3.0, 0.0]), 4 * np.eye(2))
        >>> round(frechet_distance(a, b), 6)
        11.0

    Reference:
        Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982; Heusel et
        al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {a.mean.size} and of {b.mean.size} features cannot be compared")
    if not all(np.isfinite(x).all() for each in (a, b) for x in each[1:]):
        raise ValueError("moments are not finite")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ b.covariance @ root)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    distance = np.square(a.mean - b.mean).sum() + traces - 2 * np.sqrt(np.maximum(inner, 0)).sum()
    return float(max(distance, 0.0))


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def kernel_distance(x_NF: Any, y_MF: Any) -> Estimate:
    """Squared maximum mean discrepancy with the kernel k(a, b) = (a . b / F + 1)^3, without bias.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    It may be below zero, and is zero on average where both come from one distribution, whatever the numbers
    of examples: unlike the Frechet distance it is not too large for few. The error is a jackknife's, which
    leaves out one row of each at a time.

    Args:
        x_NF: features of the data.
        y_MF: features of the samples.

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: for fewer than three rows, features that differ in number or are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = kernel_distance(rng.normal(size=(200, 4)), rng.normal(size=(150, 4)))
        >>> abs(found.value) < 4 * found.error
        True

    Reference:
        Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", 2018, section 4; Gretton et al., "A
        kernel two-sample test", 2012, lemma 6.
    """
    x, y = both(x_NF, y_MF, 3)
    n, m = len(x), len(y)
    xx, yy, xy, yx = _kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y), _kernel_sums(y, x)
    xx, yy = xx - _cubic((x * x).sum(1), x.shape[1]), yy - _cubic((y * y).sum(1), y.shape[1])
    within_x, within_y, between = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1)), xy.sum() / (n * m)
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (xy.sum() - xy) / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (yx.sum() - yx) / ((m - 1) * n)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return Estimate(float(within_x + within_y - 2 * between), float(np.sqrt(variance)))


def classifier_score(probabilities_MC: Any) -> float:
    """exp(E_x KL(p(y|x) | p(y))), the inception score with any classifier: from 1 to the number of classes.

    It is high where each sample is surely of some class and the classes are equally frequent; it does not see
    whether samples of a class differ, nor the data.

    Args:
        probabilities_MC: the classifier's probabilities of samples, rows of sum 1.

    Raises:
        ValueError: for values that are no probabilities.

    Example:
        >>> round(classifier_score(np.eye(4)), 6), classifier_score(np.full((8, 4), 0.25))
        (4.0, 1.0)

    Reference:
        Salimans et al., "Improved techniques for training GANs", 2016, section 4.
    """
    p = checked(np.asarray(probabilities_MC, np.float64), "probabilities", 1)
    if p.min() < 0 or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError("probabilities must be at least 0, and each row of them must have the sum 1")
    marginal = p.mean(0, keepdims=True)
    ratio = np.where(p > 0, p / np.where(marginal > 0, marginal, 1), 1)
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))


def _require_batches(batches: Any) -> None:
    """Says so if there is one array, whose rows would be taken for batches."""
    if hasattr(batches, "shape"):
        raise ValueError(
            f"batches are wanted, and one array of shape {batches.shape} was given: put it into [ ]"
        )


def checked(x: np.ndarray, name: str, least: int) -> np.ndarray:
    """x, once it is known to be a finite matrix of rows enough."""
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"{name} must be a matrix, one row an example; got shape {x.shape}")
    if len(x) < least:
        raise ValueError(f"at least {least} examples are needed; got {len(x)}")
    if not (finite := np.isfinite(x).all(1)).all():
        raise ValueError(f"{name} of {(~finite).sum()} of {len(x)} examples are not finite")
    return x


def both(a: Any, b: Any, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of two kinds in float64, once they are known to be finite, enough and equally many."""
    x, y = (checked(np.asarray(each, np.float64), "features", least) for each in (a, b))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} features and {y.shape[1]} cannot be compared")
    return x, y


def _cubic(products: np.ndarray, F: int) -> np.ndarray:
    return (products / F + 1) ** 3


def _kernel_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums over b of k(a_i, b_j), for each i."""
    rows = max(1, BLOCK // len(b))
    return np.concatenate([_cubic(a[i : i + rows] @ b.T, a.shape[1]).sum(1) for i in range(0, len(a), rows)])


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterable[tuple[slice, np.ndarray]]:
    """|a_i - b_j|^2, some rows at a time: which, and [rows, len(b)]."""
    rows = max(1, BLOCK // len(b))
    # About a common centre, where the squares that cancel are small.
    centre = b.mean(0)
    a, b = a - centre, b - centre
    squares_b = np.square(b).sum(1)
    for i in range(0, len(a), rows):
        part = a[i : i + rows]
        squares = np.square(part).sum(1)[:, None] + squares_b[None] - 2 * part @ b.T
        yield slice(i, i + len(part)), np.maximum(squares, 0)
