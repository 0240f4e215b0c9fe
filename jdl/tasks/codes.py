"""What is asked of an autoencoder beside giving back its inputs: noise to undo, codes of a certain kind.

Axes: B batch, Z code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jdl.core import Array, psum
from jdl.tasks.reconstruction import Corruption, Penalty, data_of, of_each_example


def masking_noise(rate: float) -> Corruption:
    """Sets each value to zero with probability ``rate``, for `jdl.tasks.reconstruction`.

    Raises:
        ValueError: for a rate out of [0, 1], as for the other kinds.

    Example:
        >>> float(masking_noise(1.0)(jax.random.key(0), jnp.ones((2, 3))).sum())
        0.0

    Reference:
        Vincent et al., "Stacked denoising autoencoders", 2010, section 3.3, like the other two.
    """
    _require_rate(rate)
    return lambda key, x: jnp.where(jax.random.bernoulli(key, rate, x.shape), jnp.zeros_like(x), x)


def salt_and_pepper(rate: float, least: float = 0.0, largest: float = 1.0) -> Corruption:
    """Sets each value to ``least`` or ``largest``, with probability ``rate / 2`` each.

    The two are in the data's own unit: 0 and 255 for bytes.

    Example:
        >>> noisy = salt_and_pepper(1.0)(jax.random.key(0), jnp.full((100,), 0.5))
        >>> sorted(set(noisy.tolist()))
        [0.0, 1.0]
    """
    _require_rate(rate)

    def corrupt(key: Array, x: Array) -> Array:
        u = jax.random.uniform(key, x.shape)
        extreme = jnp.where(u < rate / 2, least, largest)
        return jnp.where(u < rate, extreme, x).astype(x.dtype)

    return corrupt


def gaussian_noise(std: float) -> Corruption:
    """Adds normal noise of standard deviation ``std`` to data that are floats.

    Raises:
        ValueError: for a negative deviation, and from the function for data that are not floats.

    Example:
        >>> gaussian_noise(0.1)(jax.random.key(0), jnp.zeros((2, 3))).shape
        (2, 3)
    """
    if not std >= 0:
        raise ValueError(f"a standard deviation must be at least 0; got {std}")

    def corrupt(key: Array, x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"normal noise can be added to floats; the data are {x.dtype}")
        return x + (std * jax.random.normal(key, x.shape)).astype(x.dtype)

    return corrupt


def l1_sparsity(strength: float) -> Penalty:
    """``strength`` times the sum of a code's absolute values, nats an example.

    Raises:
        ValueError: for a negative strength, as for the other penalties.

    Example:
        >>> codes = jnp.array([[1.0, -2.0], [0.0, 4.0]])
        >>> float(l1_sparsity(0.5)(None, None, codes, jnp.array([1.0, 2.0])))
        5.5
    """
    _require_strength(strength)

    def penalty(encode: Callable[[Any], Array], inputs: Any, code_BZ: Array, weights_B: Array) -> Array:
        del encode, inputs
        return strength * (weights_B * of_each_example(jnp.abs(code_BZ))).sum()

    return penalty


def kl_sparsity(strength: float, rate: float = 0.05) -> Penalty:
    """``strength`` times sum_z KL(rate || mean of unit z over the batch), for codes between 0 and 1.

    The divergence is that of two Bernoulli distributions, rho log(rho / m) + (1 - rho) log((1 - rho) / (1 -
    m)); the mean goes over the whole batch, on all devices. A mean outside 0..1, which a code without a
    sigmoid may have, gives NaN.

    Args:
        strength: weight of the penalty.
        rate: rho, how often a unit should be on.

    Raises:
        ValueError: for a rate that is not between 0 and 1.

    Example:
        >>> codes = jnp.array([[0.05], [0.05]])
        >>> float(kl_sparsity(1.0, 0.05)(None, None, codes, jnp.ones(2)))
        0.0

    Reference:
        Ng, "Sparse autoencoder", CS294A lecture notes, 2011.
    """
    _require_strength(strength)
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1; got {rate}")

    def penalty(encode: Callable[[Any], Array], inputs: Any, code_BZ: Array, weights_B: Array) -> Array:
        del encode, inputs
        total_Z, weight = psum(((code_BZ * weights_B.reshape(-1, 1)).sum(0), weights_B.sum()))
        mean_Z = total_Z / jnp.maximum(weight, 1e-9)
        is_share = (mean_Z >= 0) & (mean_Z <= 1)
        mean_Z = jnp.where(is_share, jnp.clip(mean_Z, 1e-6, 1 - 1e-6), jnp.nan)
        kl_Z = rate * jnp.log(rate / mean_Z) + (1 - rate) * jnp.log((1 - rate) / (1 - mean_Z))
        return strength * weights_B.sum() * kl_Z.sum()

    return penalty


def contraction(strength: float) -> Penalty:
    """``strength`` times |d code / d input|^2, the squared Frobenius norm of the encoder's Jacobian.

    The norm is exact: one backward pass for each of the Z units. The encoder's noise is left out, and where
    there is a condition the derivative is with respect to the data alone.

    Raises:
        ValueError: for a negative strength, and from the penalty for data that are not floats.

    Example:
        >>> matrix = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> x = jnp.ones((5, 2))
        >>> float(contraction(1.0)(lambda x: x @ matrix, x, x @ matrix, jnp.ones(5)))  # 5 times 14
        70.0

    Reference:
        Rifai et al., "Contractive auto-encoders: explicit invariance during feature extraction", 2011,
        equation 2.
    """

    _require_strength(strength)

    def penalty(encode: Callable[[Any], Array], inputs: Any, code_BZ: Array, weights_B: Array) -> Array:
        x = data_of(inputs)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"only codes of floats have a derivative; the data are {x.dtype}")
        named = isinstance(inputs, Mapping)
        code_BZ, pull = jax.vjp(lambda x: encode({**inputs, "data": x} if named else x), x)
        Z = code_BZ.shape[-1]

        def of_unit(unit_Z: Array) -> Array:
            # Examples do not see one another, so that one pass gives this unit's gradient for each of them.
            (gradient,) = pull(jnp.broadcast_to(unit_Z, code_BZ.shape).astype(code_BZ.dtype))
            return of_each_example(jnp.square(gradient.astype(jnp.float32)))

        norms_ZB = jax.vmap(of_unit)(jnp.eye(Z))
        return strength * (weights_B * norms_ZB.sum(0)).sum()

    return penalty


def _require_strength(strength: float) -> None:
    if not strength >= 0:
        raise ValueError(f"the strength of a penalty must be at least 0; got {strength}")


def _require_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"a share of the values must lie in 0..1; got {rate}")
