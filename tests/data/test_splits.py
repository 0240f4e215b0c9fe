"""Splits: disjoint, deterministic, in proportion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data import k_fold, split


def arrays(class_sizes, seed=0):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(class_sizes)), class_sizes))
    return {"inputs": np.arange(len(labels)), "labels": labels.astype(np.int32)}


class_sizes = st.lists(st.integers(4, 60), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(class_sizes, st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(0, 2**32))
def test_each_class_within_one_of_its_share(sizes, fractions, seed):
    data = arrays(sizes)
    total = len(data["labels"])
    fractions = [fraction / sum(fractions) for fraction in fractions]
    parts = split(data, fractions, seed=seed)
    seen = np.concatenate([part["inputs"] for part in parts])
    np.testing.assert_array_equal(np.sort(seen), np.arange(total))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part["labels"]) - fraction * total) < 1
        shares = np.array(sizes) * len(part["labels"]) / total
        assert np.abs(np.bincount(part["labels"], minlength=len(sizes)) - shares).max() <= 1
        np.testing.assert_array_equal(data["labels"][part["inputs"]], part["labels"])


@settings(max_examples=30, deadline=None)
@given(class_sizes, st.integers(2, 4), st.integers(0, 2**32))
def test_folds(sizes, k, seed):
    labels = arrays(sizes)["labels"]
    folds = k_fold(len(labels), k, seed, labels)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([test for _, test in folds])), np.arange(len(labels))
    )
    for train, test in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
        shares = np.array(sizes) * len(test) / len(labels)
        assert np.abs(np.bincount(labels[test], minlength=len(sizes)) - shares).max() <= 1
    assert max(len(test) for _, test in folds) - min(len(test) for _, test in folds) <= 1


def test_as_stratified_as_scikit_learn():
    selection = pytest.importorskip("sklearn.model_selection")
    data = arrays([13, 50, 101, 7, 29])
    _, test = split(data, (150, 50), seed=1)
    _, reference = selection.train_test_split(
        data["labels"], test_size=50, stratify=data["labels"], random_state=0
    )
    shares = np.array([13, 50, 101, 7, 29]) / 4
    ours, theirs = np.bincount(test["labels"]), np.bincount(reference)
    assert np.abs(ours - shares).max() <= np.abs(theirs - shares).max() + 1e-9
    folds = k_fold(200, 5, 0, data["labels"])
    reference_folds = selection.StratifiedKFold(5, shuffle=True, random_state=0).split(
        data["labels"], data["labels"]
    )
    for (_, test_rows), (_, reference_rows) in zip(folds, reference_folds, strict=True):
        difference = np.bincount(data["labels"][test_rows]) - np.bincount(data["labels"][reference_rows])
        assert np.abs(difference).max() <= 1


def test_deterministic_and_seeded():
    data = arrays([40, 60])
    one, again, other = (split(data, (0.5, 0.5), seed=seed)[0]["inputs"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert set(one.tolist()) != set(other.tolist())
    assert one.tolist() != list(range(50))
    np.testing.assert_array_equal(one, np.sort(one))


def test_counts_leave_the_rest_out_and_labels_may_be_words():
    data = {"x": {"y": np.arange(30)}, "kind": np.array(["a", "b", "c"] * 10)}
    train, test = split(data, (12, 6), seed=0, stratify="kind")
    assert np.unique(train["kind"], return_counts=True)[1].tolist() == [4, 4, 4]
    assert len(np.intersect1d(train["x"]["y"], test["x"]["y"])) == 0
    assert len(split(data, (0.25,), seed=0, stratify=None)[0]["kind"]) == 8


def test_each_example_is_as_likely_in_each_part():
    data = arrays([10, 30])
    times = np.zeros(40)
    for seed in range(400):
        times[split(data, (0.25,), seed=seed)[0]["inputs"]] += 1
    assert times.min() > 65
    assert times.max() < 135


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ((0.8, 0.3), {}, "add up to 1.1, more than 1"),
        ((20, 9), {}, "add up to 29, more than the 28 examples"),
        ((), {}, "one or more"),
        ((-0.1, 0.5), {}, "none negative"),
        ((0.4, 0.3, 0.3), {}, "class 1 has 2 examples, too few for 3 parts"),
        ((0.5,), {"stratify": "kind"}, "no entry 'kind' .* among inputs, labels"),
        ((0.5,), {"seed": -1}, "seed must lie"),
    ],
)
def test_errors(parts, options, message):
    with pytest.raises(ValueError, match=message):
        split(arrays([26, 2]), parts, **{"seed": 0, **options})


def test_fold_errors():
    with pytest.raises(ValueError, match=r"k must lie in \[2, 5\]"):
        k_fold(5, 6, 0)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        k_fold(5, 2, 0, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="class 1 has 1 examples"):
        k_fold(5, 2, 0, [0, 0, 0, 0, 1])
