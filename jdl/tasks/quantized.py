"""Learning a code of discrete entries.

Axes: B batch, K entries of the codebook.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jdl.core import FAULTS, Array, Batch, Mean, Metrics, Task, Variables, psum, weighted
from jdl.nn.distributions import Likelihood, gaussian
from jdl.nn.quantization import perplexity
from jdl.tasks.module import functions, with_losses
from jdl.tasks.reconstruction import check_data, data_of, of_each_example, outside, row_weights


def vector_quantized(module: Any, likelihood: Likelihood | None = None, *, commitment: float = 0.25) -> Task:
    """A VQ-VAE: the encoder's vectors z are replaced by the nearest entries e of a codebook.

    The loss of an example is -log p(x | decode(e)) + commitment sum |z - stop(e)|^2, nats, and where the
    codebook is learned by gradients sum |stop(z) - e|^2 as well; the sums go over positions. The decoder's
    gradient passes from e to z as if they were one.

    Args:
        module: a module with the methods ``encode``, ``quantize`` and ``decode``, such as `jdl.models.VQVAE`.
        likelihood: p; `jdl.nn.gaussian` with scale 1 when None.
        commitment: as above, at least 0.

    Returns:
        A task with the metrics "loss", "reconstruction" (nats), "mse", "commitment" (the sum of squares) and
        "perplexity": the exponential of the entropy with which entries of the codebook are used in a batch,
        between 1 and their number. Monitored by "min reconstruction": in training, all of the loss need not
        fall, for as the codebook comes into use its distances grow.

    Raises:
        ValueError: for a negative ``commitment``; and as `reconstruction`.

    Example:
        >>> from jdl import models
        >>> task = vector_quantized(models.VQVAE((8, 8, 3), width=4, entries=16, size=2))
        >>> batch = {"inputs": jnp.ones((2, 8, 8, 3))}
        >>> variables = jax.eval_shape(task.init, jax.random.key(0), batch)
        >>> jax.eval_shape(task.predict, variables, batch["inputs"]).shape
        (2, 8, 8, 3)

    Reference:
        Van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", 2017, equation 3.
    """
    if not commitment >= 0:
        raise ValueError(f"commitment must be at least 0; got {commitment}")
    likelihood = likelihood or gaussian()
    encoder, decoder = functions(module, "encode"), functions(module, "decode")
    quantizer = functions(module, "quantize")

    def score(z: Array, quantized: Any, outputs: Array, batch: Batch) -> tuple[Array, Metrics]:
        x, weights = data_of(batch["inputs"]), row_weights(batch)
        error = jnp.square(likelihood.mean(outputs) - x.astype(jnp.float32))
        reconstruction = -of_each_example(likelihood.log_prob(outputs, x))
        stop = jax.lax.stop_gradient
        distance = of_each_example(jnp.square(z - stop(quantized.values)))
        each = reconstruction + commitment * distance
        if quantized.learned:
            each = each + of_each_example(jnp.square(stop(z) - quantized.values))
        usage = psum((quantized.usage * weights.reshape(-1, 1)).sum(0))
        return each, {
            "loss": weighted(each, weights),
            "reconstruction": weighted(reconstruction, weights),
            "mse": weighted(of_each_example(error) / x[0].size, weights),
            "commitment": weighted(distance, weights),
            "perplexity": Mean(perplexity(usage) * weights.sum(), weights.sum()),
            FAULTS: outside(likelihood, x, weights),
        }

    def straight_through(z: Array, values: Array) -> Array:
        return z + jax.lax.stop_gradient(values - z)

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        keys = jax.random.split(key, 3)
        z, changed, losses = encoder.train(variables, batch["inputs"], keys[0])
        z = z.astype(jnp.float32)
        vectors = {"vectors": z, "weights": row_weights(batch)}
        quantized, changed, _ = quantizer.train({**variables, **changed}, vectors, keys[1])
        e = straight_through(z, quantized.values)
        outputs, changed, more = decoder.train({**variables, **changed}, e, keys[2])
        _, metrics = score(z, quantized, outputs, batch)
        total, weight = metrics.pop("loss")
        total, metrics = with_losses(total, weight, metrics, {**losses, **more})
        return total, (weight, changed, metrics)

    def parts(variables: Variables, inputs: Any) -> tuple[Array, Any, Array]:
        z = encoder.predict(variables, inputs).astype(jnp.float32)
        quantized = quantizer.predict(variables, {"vectors": z})
        return z, quantized, decoder.predict(variables, quantized.values)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        del key
        return score(*parts(variables, batch["inputs"]), batch)[1]

    def predict(variables: Variables, inputs: Any) -> Array:
        return likelihood.mean(parts(variables, inputs)[2])

    check = functools.partial(check_data, likelihood)
    return Task(functions(module).init, loss, evaluate, predict, "min reconstruction", check)
