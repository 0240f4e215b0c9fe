"""Principal components: the linear autoencoder whose optimum is known.

Axes: N examples, D values of an example, K components.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "components", "variances"],
    meta_fields=["shape"],
)
@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components of data, a pytree.

    Attributes:
        mean: [D].
        components: [K, D], orthonormal, in the order of the variance along them; the largest entry of each is
            positive.
        variances: [K], along the components (divided by N - 1).
        shape: of one example, before it was flattened.
    """

    mean: Array
    components: Array
    variances: Array
    shape: tuple[int, ...]

    def transform(self, x: Any) -> Array:
        """Data [N, ...] to codes [N, K]."""
        x_ND = jnp.asarray(x, jnp.float32).reshape(len(x), -1)
        return (x_ND - self.mean.reshape(1, -1)) @ self.components.T

    def inverse(self, codes_NK: Array) -> Array:
        """Codes [N, K] to data [N, ...]."""
        x_ND = codes_NK @ self.components + self.mean.reshape(1, -1)
        return x_ND.reshape(-1, *self.shape)


def pca(x: Any, components: int) -> PCA:
    """The components of data, by the singular values of what is left when the mean is taken off.

    Args:
        x: [N, ...]; an example is flattened.
        components: K, at most the smaller of N and D.

    Returns:
        The `PCA`: no other linear code of K numbers gives the data back with a smaller squared error.

    Raises:
        ValueError: for K out of range.

    Example:
        >>> line = jnp.outer(jnp.arange(5.0), jnp.array([3.0, 4.0]))
        >>> found = pca(line, 1)
        >>> jnp.round(found.components, 3).tolist()
        [[0.6..., 0.8...]]
        >>> bool(jnp.allclose(found.inverse(found.transform(line)), line, atol=1e-5))
        True

    Reference:
        Pearson, "On lines and planes of closest fit to systems of points in space", 1901; Baldi and Hornik,
        "Neural networks and principal component analysis: learning from examples without local minima", 1989.
    """
    x = jnp.asarray(x, jnp.float32)
    x_ND = x.reshape(x.shape[0], -1)
    N, D = x_ND.shape
    if not 1 <= components <= min(N, D):
        raise ValueError(
            f"{N} examples of {D} values have 1 to {min(N, D)} components; got components={components}"
        )
    mean_D = x_ND.mean(0)
    centred = x_ND - mean_D.reshape(1, D)
    # A rotation of the examples changes neither, and leaves no more of them than values.
    centred = jnp.linalg.qr(centred, mode="r") if N > D else centred
    _, singular, rows = jnp.linalg.svd(centred, full_matrices=False)
    rows_KD = rows[:components]
    largest = jnp.take_along_axis(rows_KD, jnp.abs(rows_KD).argmax(1)[:, None], 1)
    return PCA(
        mean_D, rows_KD * jnp.sign(largest), jnp.square(singular[:components]) / max(1, N - 1), x.shape[1:]
    )
