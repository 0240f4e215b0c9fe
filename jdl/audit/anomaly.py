"""What is unlike the data that a model was trained on.

Axes: B batch, N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def reconstruction_errors(predict: Callable[[Any], jax.Array], inputs: Any) -> jax.Array:
    """The mean squared difference of each example and what an autoencoder makes of it.

    Args:
        predict: ``inputs -> reconstructions`` of the same shape.
        inputs: [B, ...], floats as ``predict`` was trained on them.

    Returns:
        [B], the larger the less the model knows the example.

    Raises:
        ValueError: if what ``predict`` gives has another shape, or inputs are whole numbers: bytes and
            reconstructions in 0..1 would be compared as they are.

    Example:
        >>> reconstruction_errors(lambda x: 0 * x, jnp.array([[1.0, 1.0], [0.0, 2.0]])).tolist()
        [1.0, 2.0]
    """
    x = jnp.asarray(inputs)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"inputs must be floats in the range of the reconstructions; got {x.dtype}")
    x, made = x.astype(jnp.float32), predict(inputs)
    if made.shape != x.shape:
        raise ValueError(f"inputs of shape {x.shape} were reconstructed as {made.shape}")
    return jnp.square(x - made).reshape(x.shape[0], -1).mean(-1)


def auroc(scores: Any, labels: Any) -> float:
    """The area under the ROC curve: the chance that a positive scores higher than a negative.

    Ties count half. It is the Mann-Whitney statistic over the number of pairs, computed from ranks.

    Args:
        scores: [N].
        labels: [N], true or 1 for positives.

    Returns:
        Between 0 and 1; 0.5 for scores that say nothing.

    Raises:
        ValueError: if the shapes differ, a score is not a number, a label is neither 0 nor 1, or one of the
            kinds is missing.

    Example:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75

    Reference:
        Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
        curve", 1982.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1; got {np.unique(labels)[:5].tolist()}")
    labels = labels.astype(bool)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores and labels must both be [N]; got {scores.shape} and {labels.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of the scores are not a number")
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise ValueError(f"auroc compares positives with negatives; got {positives} and {negatives}")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # The mean rank, from 1, of all that have the same score.
    ranks = np.cumsum(counts) - (counts - 1) / 2
    wins = ranks[place][labels].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))
