"""Variational autoencoders: bounds on the likelihood of data, and the trained model as pure functions.

Axes: S samples of a code, B batch, Z code, D values of an example.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import FAULTS, Array, Batch, Mean, Metrics, Task, Variables, psum, weighted
from jdl.nn.distributions import Likelihood, bernoulli, normal_kl, normal_log_prob
from jdl.tasks.module import functions, with_losses
from jdl.tasks.reconstruction import check_data, data_of, outside, row_weights

SCHEDULE = "schedule"
"""Collection that counts how often the loss was computed, where ``beta`` is a schedule."""


class Drawn(NamedTuple):
    """Codes of a batch, and what they say about it.

    Attributes:
        mean_BZ: of the posterior q(z | x).
        log_std_BZ: the logarithm of its standard deviation.
        z_SBZ: codes drawn from it.
        log_px_SB: log p(x | z), nats.
        changed: the module's collections that changed.
        losses: those that the module sowed.
    """

    mean_BZ: Array
    log_std_BZ: Array
    z_SBZ: Array
    log_px_SB: Array
    changed: Variables
    losses: dict[str, Array]


def elbo(
    module: Any,
    likelihood: Likelihood | None = None,
    *,
    beta: float | Callable[[Array], Any] = 1.0,
    free_bits: float = 0.0,
    samples: int = 1,
) -> Task:
    """The evidence lower bound, E_q[log p(x | z)] - KL(q(z | x) || p(z)), with p(z) standard normal.

    The loss of an example is ``reconstruction + beta * kl``, nats, with the divergence in closed form.

    Args:
        module: a module with the methods ``encode``, to a posterior's means and logarithms of standard
            deviations [B, Z], and ``decode``, such as `jdl.models.VAE`.
        likelihood: p(x | z); `jdl.nn.bernoulli` when None.
        beta: weight of the divergence in training: a number, or a function of the number of times that the
            loss was computed, such as ``optax.linear_schedule(0, 1, 10_000)``: once a step, and n times
            where a learner accumulates n parts.
        free_bits: nats that each unit of the code may spend, on average over the batch, before its divergence
            is lowered any further: it counts at least so much.
        samples: codes drawn for each example in the expectation. 0 takes the posterior's mean instead, which
            bounds nothing and has no noise.

    Returns:
        A task with the metrics "reconstruction" (-E_q[log p(x | z)]) and "kl", both nats an example,
        "bits_per_dimension" ((reconstruction + kl) / (D log 2); bits of a code where the likelihood is of
        levels, of a density otherwise), in evaluation "loss" (reconstruction + kl,
        whatever ``beta``) and "kl_of_unit" [Z]. In training "loss" is what is lowered, and "beta" is reported
        where it is a schedule. Monitored by "min loss". ``predict`` gives the likelihood's mean at the
        posterior's.

    Raises:
        ValueError: for numbers out of range; and, from the task's ``check``, for data that the likelihood
            cannot have.

    Example:
        >>> from jdl.models import VAE
        >>> task = elbo(VAE((4,), latent=2, hidden=(8,)))
        >>> batch, key = {"inputs": jnp.ones((5, 4))}, jax.random.key(0)
        >>> variables = jax.eval_shape(task.init, key, batch)
        >>> sorted(jax.eval_shape(task.evaluate, variables, batch, key))
        ['bits_per_dimension', 'faults', 'kl', 'kl_of_unit', 'loss', 'reconstruction']

    Reference:
        Kingma and Welling, "Auto-encoding variational Bayes", 2014, equation 10. beta: Higgins et al.,
        "beta-VAE: learning basic visual concepts with a constrained variational framework", 2017; its
        annealing: Bowman et al., "Generating sentences from a continuous space", 2016. Free bits: Kingma et
        al., "Improved variational inference with inverse autoregressive flow", 2016, equation 15.
    """
    if (not callable(beta) and not beta >= 0) or not free_bits >= 0 or samples < 0:
        raise ValueError(
            f"beta, free_bits and samples must be at least 0; got {beta}, {free_bits} and {samples}"
        )
    likelihood = likelihood or bernoulli()
    draw, model = _drawing(module, likelihood), functions(module)

    def init(key: Array, batch: Batch) -> Variables:
        variables = model.init(key, batch)
        return {**variables, SCHEDULE: {"step": jnp.zeros((), jnp.int32)}} if callable(beta) else variables

    def parts(drawn: Drawn, batch: Batch) -> tuple[Array, Array, Array, Metrics]:
        """Reconstruction [B], divergence [B, Z], weights [B], and what both ways of measuring report."""
        x, weights = data_of(batch["inputs"]), row_weights(batch)
        kl_BZ = normal_kl(drawn.mean_BZ, drawn.log_std_BZ)
        reconstruction_B = -drawn.log_px_SB.mean(0)
        bits = (reconstruction_B + kl_BZ.sum(-1)) / (x[0].size * math.log(2))
        metrics = {
            "reconstruction": weighted(reconstruction_B, weights),
            "kl": weighted(kl_BZ.sum(-1), weights),
            "bits_per_dimension": weighted(bits, weights),
            FAULTS: outside(likelihood, x, weights),
        }
        return reconstruction_B, kl_BZ, weights, metrics

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        variables = dict(variables)
        schedule = variables.pop(SCHEDULE, None)
        drawn = draw(variables, batch["inputs"], key, samples, train=True)
        reconstruction_B, kl_BZ, weights, metrics = parts(drawn, batch)
        weight, changed = weights.sum(), drawn.changed
        kl = (kl_BZ.sum(-1) * weights).sum()
        if free_bits:
            total_Z, all_weight = psum(((kl_BZ * weights.reshape(-1, 1)).sum(0), weight))
            mean_Z = total_Z / jnp.maximum(all_weight, 1e-9)
            kl = weight * jnp.maximum(mean_Z, free_bits).sum()
        factor: Any = beta
        if callable(beta):
            assert schedule is not None
            factor = jnp.asarray(beta(schedule["step"]), jnp.float32)
            changed = {**changed, SCHEDULE: {"step": schedule["step"] + 1}}
            metrics["beta"] = Mean(factor * weight, weight)
        total = (reconstruction_B * weights).sum() + factor * kl
        total, metrics = with_losses(total, weight, metrics, drawn.losses)
        return total, (weight, changed, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        drawn = draw(variables, batch["inputs"], key, samples, train=False)
        reconstruction_B, kl_BZ, weights, metrics = parts(drawn, batch)
        of_unit = Mean((kl_BZ * weights.reshape(-1, 1)).sum(0), weights.sum())
        loss = weighted(reconstruction_B + kl_BZ.sum(-1), weights)
        return {"loss": loss, **metrics, "kl_of_unit": of_unit}

    return _task(module, likelihood, init, loss, evaluate)


def importance_weighted(module: Any, likelihood: Likelihood | None = None, *, samples: int = 5) -> Task:
    """The importance-weighted bound, E[log 1/S sum_s p(x, z_s) / q(z_s | x)]: tighter the larger S.

    With one sample it is the evidence lower bound, with its divergence estimated; as S grows it goes to log
    p(x). It scores a model better, and lets its posterior be less exact.

    Args:
        module: as in `elbo`.
        likelihood: as in `elbo`.
        samples: S.

    Returns:
        A task with the metrics "loss" (minus the bound), "bits_per_dimension", and for comparison
        "reconstruction" and "kl" as in `elbo`, monitored by "min loss".

    Raises:
        ValueError: for fewer than one sample; and as `elbo`.

    Example:
        >>> from jdl.models import VAE
        >>> task = importance_weighted(VAE((4,), latent=2, hidden=(8,)), samples=3)
        >>> batch, key = {"inputs": jnp.ones((5, 4))}, jax.random.key(0)
        >>> variables = jax.eval_shape(task.init, key, batch)
        >>> sorted(jax.eval_shape(task.evaluate, variables, batch, key))
        ['bits_per_dimension', 'faults', 'kl', 'loss', 'reconstruction']

    Reference:
        Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, equation 8.
    """
    if samples < 1:
        raise ValueError(f"the importance-weighted bound needs at least one sample; got {samples}")
    likelihood = likelihood or bernoulli()
    draw = _drawing(module, likelihood)

    def score(drawn: Drawn, batch: Batch) -> Metrics:
        x, weights = data_of(batch["inputs"]), row_weights(batch)
        log_q_SB = normal_log_prob(drawn.z_SBZ, drawn.mean_BZ[None], drawn.log_std_BZ[None]).sum(-1)
        log_w_SB = drawn.log_px_SB + normal_log_prob(drawn.z_SBZ).sum(-1) - log_q_SB
        bound_B = jax.nn.logsumexp(log_w_SB, 0) - math.log(samples)
        return {
            "loss": weighted(-bound_B, weights),
            "bits_per_dimension": weighted(-bound_B / (x[0].size * math.log(2)), weights),
            "reconstruction": weighted(-drawn.log_px_SB.mean(0), weights),
            "kl": weighted(normal_kl(drawn.mean_BZ, drawn.log_std_BZ).sum(-1), weights),
            FAULTS: outside(likelihood, x, weights),
        }

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        drawn = draw(variables, batch["inputs"], key, samples, train=True)
        metrics = score(drawn, batch)
        total, weight = metrics.pop("loss")
        total, metrics = with_losses(total, weight, metrics, drawn.losses)
        return total, (weight, drawn.changed, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        return score(draw(variables, batch["inputs"], key, samples, train=False), batch)

    return _task(module, likelihood, functions(module).init, loss, evaluate)


class LatentModel(NamedTuple):
    """A trained model of data by codes, p(x, z) with its posterior, as pure functions.

    The fields are `jax.tree_util.Partial`, so that the model is a pytree of its weights and goes through
    `jax.jit` as an argument. Where the model has a condition, inputs are {"data": ..., "condition": ...}
    and so are codes.

    Attributes:
        posterior: ``inputs -> means [B, Z], logarithms of standard deviations [B, Z]``.
        log_joint: ``z [B, Z], inputs -> log p(x, z) [B]``, nats; the condition is that of the inputs.
        decode: ``codes -> the likelihood's mean``.
        sample: ``key, codes -> x``, drawn from the likelihood.
    """

    posterior: Callable[[Any], tuple[Array, Array]]
    log_joint: Callable[[Array, Any], Array]
    decode: Callable[[Any], Array]
    sample: Callable[[Array, Any], Array]


def latent_model(module: Any, variables: Variables, likelihood: Likelihood | None = None) -> LatentModel:
    """The trained module of `elbo` or `importance_weighted` as a `LatentModel`.

    Args:
        module: as in `elbo`.
        variables: trained ones.
        likelihood: as in `elbo`, and the one that was trained with.

    Example:
        >>> from jdl.models import VAE
        >>> module, x = VAE((4,), latent=2, hidden=(8,)), jnp.ones((5, 4))
        >>> variables = jax.eval_shape(module.init, jax.random.key(0), x)
        >>> make = lambda variables: latent_model(module, variables).decode(jnp.zeros((5, 2)))
        >>> jax.eval_shape(make, variables).shape
        (5, 4)
    """
    likelihood = likelihood or bernoulli()
    encode, decode = functions(module, "encode").predict, functions(module, "decode").predict

    def posterior(variables: Variables, inputs: Any) -> tuple[Array, Array]:
        mean, log_std = encode(variables, inputs)
        return mean.astype(jnp.float32), log_std.astype(jnp.float32)

    def log_joint(variables: Variables, z_BZ: Array, inputs: Any) -> Array:
        outputs = decode(variables, _with_data(inputs, z_BZ))
        return _log_px(likelihood, outputs, data_of(inputs), 1)[0] + normal_log_prob(z_BZ).sum(-1)

    def mean(variables: Variables, codes: Any) -> Array:
        return likelihood.mean(decode(variables, codes))

    def sample(variables: Variables, key: Array, codes: Any) -> Array:
        return likelihood.sample(key, decode(variables, codes))

    bound = (jax.tree_util.Partial(f, variables) for f in (posterior, log_joint, mean, sample))
    return LatentModel(*bound)


def _with_data(inputs: Any, data: Array) -> Any:
    """The inputs, with other data and their own condition."""
    return {**inputs, "data": data} if isinstance(inputs, Mapping) else data


def _log_px(likelihood: Likelihood, outputs: Array, x: Array, S: int) -> Array:
    """log p(x | z) [S, B] of outputs [S * B, ...]."""
    each = likelihood.log_prob(outputs, jnp.broadcast_to(x, (S, *x.shape)).reshape(-1, *x.shape[1:]))
    return each.reshape(S, x.shape[0], -1).sum(-1)


def _drawing(module: Any, likelihood: Likelihood) -> Callable[..., Drawn]:
    """``variables, inputs, key, samples, train -> Drawn``."""
    encoder, decoder = functions(module, "encode"), functions(module, "decode")

    def draw(variables: Variables, inputs: Any, key: Array, samples: int, *, train: bool) -> Drawn:
        noise_key, encoder_key, decoder_key = jax.random.split(key, 3)
        changed: Variables = {}
        losses: dict[str, Array] = {}
        if train:
            (mean, log_std), changed, losses = encoder.train(variables, inputs, encoder_key)
        else:
            mean, log_std = encoder.predict(variables, inputs)
        mean_BZ, log_std_BZ = mean.astype(jnp.float32), log_std.astype(jnp.float32)
        z_SBZ = mean_BZ[None]
        if samples:
            noise = jax.random.normal(noise_key, (samples, *mean_BZ.shape))
            z_SBZ = z_SBZ + jnp.exp(log_std_BZ)[None] * noise
        S, (B, Z) = len(z_SBZ), mean_BZ.shape
        codes = z_SBZ.reshape(S * B, Z).astype(mean.dtype)
        repeated = jax.tree.map(lambda x: jnp.tile(x, (S,) + (1,) * (x.ndim - 1)), _without_data(inputs))
        codes = {**repeated, "data": codes} if isinstance(inputs, Mapping) else codes
        if train:
            outputs, changed, more = decoder.train({**variables, **changed}, codes, decoder_key)
            losses = {**losses, **more}
        else:
            outputs = decoder.predict(variables, codes)
        return Drawn(
            mean_BZ, log_std_BZ, z_SBZ, _log_px(likelihood, outputs, data_of(inputs), S), changed, losses
        )

    return draw


def _without_data(inputs: Any) -> dict[str, Any]:
    """What is known beside the data."""
    return {name: x for name, x in inputs.items() if name != "data"} if isinstance(inputs, Mapping) else {}


def _task(module: Any, likelihood: Likelihood, init: Any, loss: Any, evaluate: Any) -> Task:
    model = functions(module)

    def predict(variables: Variables, inputs: Any) -> Array:
        return likelihood.mean(model.predict(variables, inputs))

    check = functools.partial(check_data, likelihood, classes=getattr(module, "classes", 0))
    return Task(init, loss, evaluate, predict, "min loss", check)
