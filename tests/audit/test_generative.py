"""Scores of samples beside independent computations on the same features."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from jdl.audit import generative
from jdl.audit.generative import (
    Moments,
    classifier_score,
    featurize,
    frechet_distance,
    kernel_distance,
    moments,
)
from jdl.audit.neighbours import count_modes, memorization, nearest_mode, support

RNG = np.random.default_rng(0)


def of(x):
    return moments(lambda x: x, [x])


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_moments_of_any_batches_are_those_of_numpy(sizes, seed):
    x = np.random.default_rng(seed).normal(1e3, 1, size=(sum(sizes), 3))
    found = moments(lambda x: x, np.split(x, np.cumsum(sizes)[:-1]))
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(x.T), atol=1e-8)
    assert found.examples == len(x)


@pytest.mark.parametrize(("n", "features"), [(60, 5), (300, 40), (12, 30)])
def test_the_frechet_distance_is_that_of_scipys_root(n, features):
    mix = RNG.normal(size=(features, features))
    a, b = of(RNG.normal(size=(n, features)) @ mix), of(0.3 + 1.5 * RNG.normal(size=(n + 9, features)))
    # The usual remedy for what has no root: a little of the identity, as far as rounding allows.
    jitter = 1e-10 * np.eye(features) if n < features else 0
    root = scipy.linalg.sqrtm((a.covariance + jitter) @ (b.covariance + jitter)).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-4)
    assert frechet_distance(a, a) < 1e-6 * np.trace(a.covariance)


def test_the_kernel_distance_is_the_mean_over_pairs(monkeypatch):
    x, y = RNG.normal(size=(9, 3)), RNG.normal(0.5, 1, size=(7, 3))
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3

    def by_hand(x, y):
        within = [np.mean([kernel(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
        return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])

    def jackknife(values):
        return (len(values) - 1) * np.var(values)

    monkeypatch.setattr(generative, "BLOCK", 20)
    found = kernel_distance(x, y)
    np.testing.assert_allclose(found.value, by_hand(x, y), rtol=1e-10)
    variance = jackknife([by_hand(np.delete(x, i, 0), y) for i in range(9)])
    variance += jackknife([by_hand(x, np.delete(y, i, 0)) for i in range(7)])
    np.testing.assert_allclose(found.error, np.sqrt(variance), rtol=1e-8)


def test_the_error_of_the_kernel_distance_is_its_deviation_over_draws():
    draws = [kernel_distance(RNG.normal(size=(60, 4)), RNG.normal(0.5, 1, size=(60, 4))) for _ in range(200)]
    values, errors = np.array(draws).T
    np.testing.assert_allclose(np.median(errors), values.std(), rtol=0.25)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_supports_are_those_of_scikit_learn(k, monkeypatch):
    monkeypatch.setattr(generative, "BLOCK", 100)
    x, y = RNG.normal(size=(40, 3)) + 50, 0.6 * RNG.normal(size=(35, 3)) + 50

    def radius(z):
        return NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, -1]

    distances = cdist(x, y)
    in_data, in_samples = distances <= radius(x)[:, None], distances <= radius(y)[None]
    found = support(x, y, k)
    expected = (
        in_data.any(0).mean(),
        in_samples.any(1).mean(),
        in_data.sum(0).mean() / k,
        in_data.any(1).mean(),
    )
    np.testing.assert_allclose(found, expected)


def test_the_classifier_score_is_the_divergence_of_scipy():
    p = RNG.dirichlet(np.ones(5), 30)
    expected = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    np.testing.assert_allclose(classifier_score(p), expected)
    with pytest.raises(ValueError, match="each row of them must have the sum 1"):
        classifier_score(2 * p)


def test_memorization_is_the_test_of_mann_and_whitney():
    train, held_out, samples = RNG.integers(0, 4, (3, 40, 3)).astype(float)
    found = memorization(train, held_out, samples[:30], cells=1)
    near = [cdist(z, train).min(1) for z in (samples[:30], held_out)]
    u = scipy.stats.mannwhitneyu(*near, method="asymptotic", use_continuity=False)
    np.testing.assert_allclose(2 * scipy.stats.norm.sf(abs(found.z)), u.pvalue, rtol=1e-8)
    assert (found.z > 0) == (u.statistic > 30 * 40 / 2)
    np.testing.assert_allclose(found.distances, near[0])
    copies = memorization(
        train + RNG.normal(size=train.shape), held_out + RNG.normal(size=train.shape), samples
    )
    assert copies.copied == 0
    noise = RNG.normal(size=train.shape)
    assert memorization(noise, RNG.normal(size=train.shape), noise[::2]).copied == 1
    assert memorization(noise, RNG.normal(size=train.shape), noise[::2]).nearest.tolist() == [
        *range(0, 40, 2)
    ]


def test_copies_show_in_their_cell_and_not_by_where_samples_lie():
    """Two clusters, one much denser: more samples in the dense one are no copies, true copies show."""
    centres, spread = np.array([[0.0, 0, 0], [50, 0, 0]]), np.array([[0.1], [3.0]])

    def drawn(share, n=400):
        which = (RNG.random(n) < share).astype(int)
        return centres[which] + spread[which] * RNG.normal(size=(n, 3))

    train, held_out, fair = drawn(0.5), drawn(0.5), drawn(0.2)
    assert memorization(train, held_out, fair, cells=1).z < -5
    assert abs(memorization(train, held_out, fair, cells=2).z) < 2.5
    loose = train[train[:, 0] > 25]
    copies = np.concatenate([drawn(0.0, 200), loose + 1e-6])
    found = memorization(train, held_out, copies, cells=2)
    assert min(found.z_by_cell) < -10
    assert max(found.z_by_cell) > -3
    with pytest.raises(ValueError, match="cells must be from 1 to the 400"):
        memorization(train, held_out, fair, cells=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments(lambda x: x, np.ones((4, 2))), "one array of shape"),
        (lambda: featurize(lambda x: x, np.ones((4, 2))), "one array of shape"),
        (lambda: moments(lambda x: x, [np.ones((4, 1)), np.ones((4, 3))]), "3 features where those before"),
        (
            lambda: frechet_distance(
                Moments(2, np.full(1, np.nan), np.eye(1)), Moments(2, np.ones(1), np.eye(1))
            ),
            "not finite",
        ),
        (lambda: count_modes(np.eye(3, dtype=int), 3), "whole numbers"),
        (lambda: count_modes([0.5], 3), "whole numbers"),
        (lambda: nearest_mode(np.ones((1, 2)), np.ones((1, 2)), -0.5), "at least 0"),
    ],
)
def test_what_would_be_a_silent_wrong_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_modes_are_counted():
    centres = np.array([[0, 0], [4, 0], [0, 4.0]])
    samples = np.concatenate([centres[[0] * 5 + [1]] + 0.1, [[2, 2]]])
    found = count_modes(nearest_mode(samples, centres, 0.5), 3, at_least=2)
    assert (found.covered, found.missing, found.counts.tolist()) == (1, [1, 2], [5, 1, 0])
    assert found.assigned == 6 / 7
    with pytest.raises(ValueError, match="from 0 to 2"):
        count_modes([3], 3)


def test_refuses_in_words_too_few_examples_and_what_is_not_finite():
    x, bad = RNG.normal(size=(4, 2)), np.array([[1, np.nan], [0, 0]])
    with pytest.raises(ValueError, match="features of 1 of 2 examples are not finite"):
        featurize(lambda x: x, [bad])
    with pytest.raises(ValueError, match="no batches"):
        featurize(lambda x: x, [])
    with pytest.raises(ValueError, match="at least two examples; got 1"):
        moments(lambda x: x, [x[:1]])
    with pytest.raises(ValueError, match="of 2 and of 3 features cannot be compared"):
        frechet_distance(of(x), Moments(5, np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="at least 3 examples are needed; got 2"):
        kernel_distance(x, x[:2])
    with pytest.raises(ValueError, match="at least 6 examples are needed; got 4"):
        support(x, x)
    with pytest.raises(ValueError, match="k, the neighbours"):
        support(x, x, 0)
    with pytest.raises(ValueError, match="2 features and 1 cannot be compared"):
        memorization(x, x, x[:, :1])
    with pytest.raises(ValueError, match=r"one row an example; got shape \(4,\)"):
        kernel_distance(x[:, 0], x)
