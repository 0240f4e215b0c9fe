"""Principal components, and areas under ROC curves, are scikit-learn's."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from jdl import audit

X = np.random.default_rng(0).normal(size=(30, 2, 4)).astype(np.float32) * np.arange(1, 9).reshape(2, 4)


def test_principal_components_are_those_of_scikit_learn():
    ours, reference = audit.pca(X, 3), PCA(3, svd_solver="full").fit(X.reshape(30, 8))
    np.testing.assert_allclose(ours.components, reference.components_, atol=1e-4)
    np.testing.assert_allclose(ours.variances, reference.explained_variance_, rtol=1e-4)
    codes = jax.jit(lambda pca, x: pca.transform(x))(ours, X[:5])
    np.testing.assert_allclose(codes, reference.transform(X[:5].reshape(5, 8)), atol=1e-3)
    back = ours.inverse(codes)
    assert back.shape == (5, 2, 4)
    np.testing.assert_allclose(back.reshape(5, 8), reference.inverse_transform(codes), atol=1e-3)
    errors = np.asarray(audit.reconstruction_errors(lambda x: ours.inverse(ours.transform(x)), X))
    left = PCA(8).fit(X.reshape(30, 8)).explained_variance_[3:].sum() * 29 / 30
    assert errors.mean() * 8 == pytest.approx(left, rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_scikit_learns_ties_included(pairs):
    scores, labels = (np.array(x) for x in zip(*pairs, strict=True))
    if labels.all() or not labels.any():
        with pytest.raises(ValueError, match="compares positives with negatives"):
            audit.auroc(scores, labels)
    else:
        assert audit.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="30 examples of 8 values have 1 to 8 components; got components=9"):
        audit.pca(X, 9)
    with pytest.raises(ValueError, match=r"both be \[N\]"):
        audit.auroc(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="1 of the scores are not a number"):
        audit.auroc([np.nan, 1], [0, 1])
    with pytest.raises(ValueError, match="were reconstructed as"):
        audit.reconstruction_errors(lambda x: x[:, 0], X)
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        audit.auroc([1.0, 2, 3], [0, 1, 2])
    with pytest.raises(ValueError, match="floats in the range of the reconstructions; got uint8"):
        audit.reconstruction_errors(lambda x: x / 255, np.full((2, 3), 200, np.uint8))
