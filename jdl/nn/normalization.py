"""Normalisation layers.

Axes: C channels; statistics are taken over all other axes, and over every device's part of the batch.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jdl import core

LayerNorm = functools.partial(linen.LayerNorm, epsilon=1e-6, use_fast_variance=False)
"""Linen's, by the exact variance: the fast one is a difference of two large numbers where a mean is large."""


class BatchNorm(linen.Module):
    """Batch normalisation whose statistics are those of the whole batch in every device mode.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias, with the batch's statistics in training and
    running ones otherwise. Where the batch is split by hand (`shard_map`, `pmap`) the sums are added over
    `core.AXIS`; under `jit` they are global already. Statistics are computed in float32; the variance
    that is remembered is the batch's own, as in Linen (PyTorch remembers n / (n - 1) times it). Names follow
    Linen's: parameters ``scale``, ``bias``, collection ``batch_stats`` with ``mean``, ``var``.

    Attributes:
        momentum: the share of the old running statistic kept at each step.
        epsilon: added to the variance.
        dtype: of the result; the input's when None.
        use_bias: whether to add ``bias``.
        use_scale: whether to multiply by ``scale``.
        scale_init: initialises ``scale``; zeros make a residual branch start as nothing.

    Example:
        >>> layer = BatchNorm()
        >>> x = jax.random.normal(jax.random.key(0), (64, 3)) * 5 + 2
        >>> variables = layer.init(jax.random.key(1), x, train=True)
        >>> y, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        >>> bool(jnp.allclose(y.mean(0), 0, atol=1e-5) & jnp.allclose(y.std(0), 1, atol=1e-3))
        True

    Reference:
        Ioffe and Szegedy, "Batch normalization", 2015, algorithms 1 and 2.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None
    use_bias: bool = True
    use_scale: bool = True
    scale_init: Any = linen.initializers.ones

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Normalises x [..., C].

        Args:
            x: [..., C].
            train: use, and remember, the batch's statistics.
            mask: weights of the positions, broadcastable to x without its last axis; positions of
                weight 0 do not count in the statistics.

        Returns:
            Array of x's shape.
        """
        C = x.shape[-1]
        mean_C = self.variable("batch_stats", "mean", jnp.zeros, (C,), jnp.float32)
        var_C = self.variable("batch_stats", "var", jnp.ones, (C,), jnp.float32)
        if train:
            mean, var, count = self._batch_statistics(x, mask)
            if not self.is_initializing():
                # A batch that is all masked teaches nothing.
                kept = jnp.where(count > 0, self.momentum, 1.0)
                mean_C.value = kept * mean_C.value + (1 - kept) * mean
                var_C.value = kept * var_C.value + (1 - kept) * var
        else:
            mean, var = mean_C.value, var_C.value
        # One multiply and one add for each element: the rest is done on C numbers.
        a = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            a = a * self.param("scale", self.scale_init, (C,), jnp.float32)
        b = -mean * a
        if self.use_bias:
            b = b + self.param("bias", linen.initializers.zeros, (C,), jnp.float32)
        dtype = self.dtype or x.dtype
        ones = (1,) * (x.ndim - 1)
        return (x * a.reshape(*ones, C) + b.reshape(*ones, C)).astype(dtype)

    @staticmethod
    def _batch_statistics(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mean and (biased) variance [C] over all axes but the last and all devices, and their weight."""
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        if mask is None:
            weights, count = (
                jnp.ones((1,) * x.ndim, jnp.float32),
                jnp.asarray(x.size / x.shape[-1], jnp.float32),
            )
        else:
            weights = jnp.broadcast_to(mask.astype(jnp.float32), x.shape[:-1])[..., None]
            count = weights.sum()
        count = core.psum(count)
        divisor = jnp.maximum(count, 1e-9)
        mean = core.psum((x * weights).sum(axes)) / divisor
        centred = x - mean.reshape((1,) * (x.ndim - 1) + (-1,))
        var = core.psum((jnp.square(centred) * weights).sum(axes)) / divisor
        return mean, var, count
