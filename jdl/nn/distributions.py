"""Likelihoods: what a decoder's outputs say about data, and the divergence of Gaussian codes.

Axes: ... the data's own, B batch first; P parameters of one value; K components of a mixture; Z code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import Array


class Likelihood(NamedTuple):
    """p(x | outputs), each value of x on its own given the outputs.

    Outputs have the shape of x, or one axis more, [..., P], where a value has several parameters.

    Attributes:
        log_prob: ``outputs, x -> log p`` of each value, float32 of x's shape, nats. A density where x is
            continuous.
        mean: ``outputs -> E[x]``, of x's shape.
        sample: ``key, outputs -> x``.
        parameters: P, numbers that a decoder gives for each value.
        support: least and largest value that x may have.
    """

    log_prob: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    sample: Callable[[Array, Array], Array]
    parameters: int = 1
    support: tuple[float, float] = (-math.inf, math.inf)


def bernoulli() -> Likelihood:
    """Values 0 or 1 with probability sigmoid(output) of 1: log p = x log s + (1 - x) log(1 - s).

    Values between, such as grey levels, are taken as probabilities of 1: log p is then an expectation, and
    no log-likelihood of the grey levels.

    Example:
        >>> float(bernoulli().log_prob(jnp.array([0.0]), jnp.array([1.0]))[0])  # log(1/2)
        -0.693...
    """

    def log_prob(logits: Array, x: Array) -> Array:
        logits, x = _floats(logits, x, 1)
        return x * logits - jax.nn.softplus(logits)

    def mean(logits: Array) -> Array:
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def sample(key: Array, logits: Array) -> Array:
        return jax.random.bernoulli(key, mean(logits)).astype(jnp.float32)

    return Likelihood(log_prob, mean, sample, support=(0.0, 1.0))


def gaussian(scale: float | None = 1.0, *, smallest: float = 1e-3) -> Likelihood:
    """Normal values: log p = -((x - m) / s)^2 / 2 - log s - log(2 pi) / 2.

    Args:
        scale: s, one for all values; the outputs are m. With None every value has its own, learned: its two
            outputs are m and log s.
        smallest: least scale that is learned. Without a limit the density of a value that is always the same
            grows for ever.

    Returns:
        The likelihood.

    Raises:
        ValueError: if ``scale`` or ``smallest`` is not positive.

    Example:
        >>> float(gaussian(2.0).log_prob(jnp.array([1.0]), jnp.array([1.0]))[0])  # -log(2 sqrt(2 pi))
        -1.612...
    """
    if (scale is not None and not scale > 0) or not smallest > 0:
        raise ValueError(f"a Gaussian's scale must be positive; got {scale}, at least {smallest}")
    parameters = 1 if scale is not None else 2

    def parts(outputs: Array) -> tuple[Array, Array]:
        outputs = outputs.astype(jnp.float32)
        if scale is not None:
            return outputs, jnp.full_like(outputs, math.log(scale))
        return outputs[..., 0], jnp.maximum(outputs[..., 1], math.log(smallest))

    def log_prob(outputs: Array, x: Array) -> Array:
        outputs, x = _floats(outputs, x, parameters)
        return normal_log_prob(x, *parts(outputs))

    def sample(key: Array, outputs: Array) -> Array:
        mean, log_scale = parts(outputs)
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)

    return Likelihood(log_prob, lambda outputs: parts(outputs)[0], sample, parameters)


def discretized_logistic(levels: int = 256, mixtures: int = 1) -> Likelihood:
    """Grey levels 0, 1/(L-1), ..., 1: a mixture of logistic densities, integrated over each level's interval.

    p(x) = sum_k w_k [sigmoid((x + h - m_k) / s_k) - sigmoid((x - h - m_k) / s_k)] with h half the distance of
    two levels; the first level's interval reaches down to -infinity and the last one's up to infinity, so
    that the probabilities of all levels add up to one. Bits of it compare with those of any lossless coder.

    Args:
        levels: L; 256 for bytes.
        mixtures: K. One component has the outputs m and log s; more have [K] logits of w, [K] m, [K] log s.
            m = 0 is mid-grey and -1 and 1 are black and white; s has the same unit, and log s is held within
            -7 and 7.

    Returns:
        The likelihood. Values of x are rounded to their nearest level; its mean is that before rounding,
        of a variable held within black and white: s / 2 [softplus((1 + m) / s) - softplus((m - 1) / s)].

    Raises:
        ValueError: for fewer than 2 levels or 1 component.

    Example:
        >>> levels = jnp.arange(256) / 255
        >>> outputs = jnp.broadcast_to(jnp.array([0.3, -1.0]), (256, 2))
        >>> round(float(jnp.exp(discretized_logistic().log_prob(outputs, levels)).sum()), 5)
        1.0

    Reference:
        Salimans, Karpathy, Chen and Kingma, "PixelCNN++: improving the PixelCNN with discretized logistic
        mixture likelihood", 2017, equations 1 and 2.
    """
    if levels < 2 or mixtures < 1:
        raise ValueError(f"discretized_logistic needs 2 levels and 1 component; got {levels} and {mixtures}")
    K, parameters = mixtures, 2 if mixtures == 1 else 3 * mixtures
    half = 1 / (levels - 1)  # of the distance of two levels, from -1 to 1

    def parts(outputs: Array) -> tuple[Array, Array, Array]:
        """Logarithms of weights, means and logarithms of scales [..., K]."""
        outputs = outputs.astype(jnp.float32)
        if K == 1:
            mean, log_scale = outputs[..., :1], outputs[..., 1:]
            return jnp.zeros_like(mean), mean, jnp.clip(log_scale, -7.0, 7.0)
        logits, mean, log_scale = jnp.split(outputs, 3, -1)
        return jax.nn.log_softmax(logits), mean, jnp.clip(log_scale, -7.0, 7.0)

    def log_prob(outputs: Array, x: Array) -> Array:
        outputs, x = _floats(outputs, x, parameters)
        level = jnp.round(x * (levels - 1))[..., None]
        log_weight, mean, log_scale = parts(outputs)
        x = level * (2 * half) - 1
        above = (x + half - mean) * jnp.exp(-log_scale)
        below = (x - half - mean) * jnp.exp(-log_scale)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without a difference of equals.
        between = jnp.log(-jnp.expm1(-2 * half * jnp.exp(-log_scale)))
        from_below = jnp.where(level <= 0, 0.0, jax.nn.log_sigmoid(-below))
        from_above = jnp.where(level >= levels - 1, 0.0, jax.nn.log_sigmoid(above))
        is_inner = (level > 0) & (level < levels - 1)
        each = from_below + from_above + jnp.where(is_inner, between, 0.0)
        return jax.nn.logsumexp(log_weight + each, -1)

    def mean(outputs: Array) -> Array:
        log_weight, means, log_scale = parts(outputs)
        s = jnp.exp(log_scale)
        # The integral of P(X > t) from black to white.
        each = s / 2 * (jax.nn.softplus((1 + means) / s) - jax.nn.softplus((means - 1) / s))
        return (jnp.exp(log_weight) * each).sum(-1)

    def sample(key: Array, outputs: Array) -> Array:
        choice_key, noise_key = jax.random.split(key)
        log_weight, means, log_scale = parts(outputs)
        chosen = jax.random.categorical(choice_key, log_weight)[..., None]
        m, log_s = (jnp.take_along_axis(x, chosen, -1)[..., 0] for x in (means, log_scale))
        x = m + jnp.exp(log_s) * jax.random.logistic(noise_key, m.shape)
        return jnp.round((jnp.clip(x, -1, 1) + 1) / (2 * half)) * half

    return Likelihood(log_prob, mean, sample, parameters, (0.0, 1.0))


def normal_log_prob(x: Array, mean: Array | float = 0.0, log_std: Array | float = 0.0) -> Array:
    """The log-density of each value under a normal distribution, nats.

    Example:
        >>> float(normal_log_prob(jnp.array(0.0)))
        -0.918...
    """
    return -0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * math.log(2 * math.pi)


def normal_kl(mean_BZ: Array, log_std_BZ: Array) -> Array:
    """The divergence of each unit's N(mean, std^2) from N(0, 1): (mean^2 + std^2 - 1) / 2 - log std, nats.

    Args:
        mean_BZ: means.
        log_std_BZ: logarithms of standard deviations.

    Returns:
        [B, Z].

    Example:
        >>> normal_kl(jnp.array([[0.0, 2.0]]), jnp.zeros((1, 2))).tolist()
        [[0.0, 2.0]]

    Reference:
        Kingma and Welling, "Auto-encoding variational Bayes", 2014, appendix B.
    """
    return 0.5 * (jnp.square(mean_BZ) + jnp.expm1(2 * log_std_BZ)) - log_std_BZ


def _floats(outputs: Array, x: Array, parameters: int) -> tuple[Array, Array]:
    """Both in float32, once they are known to fit."""
    expected = x.shape if parameters == 1 else (*x.shape, parameters)
    if outputs.shape != expected:
        raise ValueError(
            f"outputs of shape {outputs.shape} do not fit data of shape {x.shape}: this likelihood needs "
            f"{expected}, {parameters} for each value; the decoder's field is parameters={parameters}"
        )
    return outputs.astype(jnp.float32), x.astype(jnp.float32)
