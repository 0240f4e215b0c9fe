"""Learning to give back what came in: plain, denoising, sparse and contractive autoencoders.

Axes: B batch, Z code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import FAULTS, Array, Batch, Mean, Metrics, Task, Variables, example_weights, weighted
from jdl.nn.distributions import Likelihood, gaussian
from jdl.tasks.module import _require_classes, functions, with_losses

Corruption = Callable[[Array, Array], Array]
"""``key, data -> data`` as the encoder is to see them."""

Penalty = Callable[[Callable[[Array], Array], Any, Array, Array], Array]
"""``encode, inputs, codes [B, Z], weights [B] -> total`` over the examples."""


def data_of(inputs: Any) -> Array:
    """What is to be given back: inputs, or their "data"."""
    return jnp.asarray(inputs["data"] if isinstance(inputs, Mapping) else inputs)


def reconstruction(
    module: Any,
    likelihood: Likelihood | None = None,
    *,
    corrupt: Corruption | None = None,
    penalty: Penalty | None = None,
) -> Task:
    """An autoencoder: the decoder's outputs of an input's code should make that input likely.

    The loss of an example is -log p(x | decode(encode(x))), summed over its values, nats: half the squared
    error and a constant with `jdl.nn.gaussian`, cross-entropy with `jdl.nn.bernoulli`. The batch's inputs
    are also what is wanted; no labels are used.

    Args:
        module: a module with the methods ``encode`` and ``decode``.
        likelihood: p; `jdl.nn.gaussian` with scale 1 when None.
        corrupt: what is done to the encoder's inputs in training, and there alone, such as `masking_noise`:
            a denoising autoencoder.
        penalty: on codes, added in training: `l1_sparsity`, `kl_sparsity` or `contraction`.

    Returns:
        A task with the metrics "loss" and "mse" (of the likelihood's mean, each value), and "penalty" in
        training where there is one, monitored by "min loss". ``predict`` gives reconstructions.

    Raises:
        ValueError: from the task's ``check``, for data that the likelihood cannot have.

    Example:
        >>> from jdl.models import Autoencoder
        >>> from jdl.tasks import masking_noise
        >>> task = reconstruction(Autoencoder((3,), (8, 2)), corrupt=masking_noise(0.3))
        >>> batch = {"inputs": jnp.ones((5, 3))}
        >>> variables = jax.eval_shape(task.init, jax.random.key(0), batch)
        >>> jax.eval_shape(task.predict, variables, batch["inputs"]).shape
        (5, 3)

    Reference:
        Denoising: Vincent et al., "Stacked denoising autoencoders", 2010. Contractive: Rifai et al.,
        "Contractive auto-encoders: explicit invariance during feature extraction", 2011.
    """
    likelihood = likelihood or gaussian()
    encoder, decoder = functions(module, "encode"), functions(module, "decode")

    def score(outputs: Array, batch: Batch) -> Metrics:
        x, weights = data_of(batch["inputs"]), row_weights(batch)
        error = jnp.square(likelihood.mean(outputs) - x.astype(jnp.float32))
        return {
            "loss": weighted(-of_each_example(likelihood.log_prob(outputs, x)), weights),
            "mse": weighted(of_each_example(error) / x[0].size, weights),
            FAULTS: outside(likelihood, x, weights),
        }

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        noise_key, encoder_key, decoder_key = jax.random.split(key, 3)
        inputs = batch["inputs"]
        if corrupt is not None:
            noisy = corrupt(noise_key, data_of(inputs))
            inputs = {**inputs, "data": noisy} if isinstance(inputs, Mapping) else noisy
        code, changed, losses = encoder.train(variables, inputs, encoder_key)
        outputs, changed, more = decoder.train({**variables, **changed}, code, decoder_key)
        metrics = score(outputs, batch)
        total, weight = metrics.pop("loss")
        if penalty is not None:
            encode = functools.partial(encoder.predict, variables)
            extra = penalty(encode, inputs, code.astype(jnp.float32), row_weights(batch))
            total, metrics["penalty"] = total + extra, Mean(extra, weight)
        total, metrics = with_losses(total, weight, metrics, {**losses, **more})
        return total, (weight, changed, metrics)

    def outputs(variables: Variables, inputs: Any) -> Array:
        return decoder.predict(variables, encoder.predict(variables, inputs))

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        del key
        return score(outputs(variables, batch["inputs"]), batch)

    def predict(variables: Variables, inputs: Any) -> Array:
        return likelihood.mean(outputs(variables, inputs))

    check = functools.partial(check_data, likelihood)
    return Task(functions(module).init, loss, evaluate, predict, "min loss", check)


def of_each_example(values: Array) -> Array:
    """Sums over all but the first axis, [B, ...] to [B]."""
    return values.reshape(values.shape[0], -1).sum(-1)


def row_weights(batch: Batch) -> Array:
    """The batch's weights [B].

    Raises:
        ValueError: if they are of something smaller than an example.
    """
    weights = example_weights(batch)
    if weights.ndim != 1:
        raise ValueError(f"an autoencoder's weights are of examples, [B]; got shape {weights.shape}")
    return weights


def outside(likelihood: Likelihood, x: Array, weights: Array) -> dict[str, Array]:
    """The fault that counts values which the likelihood cannot have; none where it has all."""
    least, largest = likelihood.support
    if math.isinf(least) and math.isinf(largest):
        return {}
    wrong = of_each_example(~((x >= least) & (x <= largest)))  # of NaN too
    return {f"data outside {least:g}..{largest:g}": (wrong * (weights > 0)).sum(dtype=jnp.int32)}


def check_data(likelihood: Likelihood, batch: Batch, classes: int = 0) -> None:
    """Raises ValueError, in words, for a concrete batch that cannot be learned from.

    Args:
        likelihood: what the data are to be drawn from.
        batch: a batch.
        classes: number of classes that a condition may be; 0 where it is not known.
    """
    if "inputs" not in batch:
        raise ValueError(f'an autoencoder needs a batch with "inputs"; it has {sorted(batch)}')
    inputs = batch["inputs"]
    if isinstance(inputs, Mapping) and "data" not in inputs:
        raise ValueError(f'inputs with names need "data" among them; they have {sorted(inputs)}')
    if classes and isinstance(inputs, Mapping) and "condition" in inputs:
        _require_classes("conditions", inputs["condition"], classes)
    x = np.asarray(data_of(inputs))
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ValueError(f"{(~np.isfinite(x)).sum()} values of the data are not finite")
    for name, count in outside(likelihood, jnp.asarray(x), row_weights(batch)).items():
        if count:
            raise ValueError(
                f"{count} values are {name}, which is all that the likelihood can have: the least is "
                f"{x.min():g}, the largest {x.max():g}. Scale the data, or choose another likelihood"
            )
