"""Learning to paint in what is hidden of an image.

Axes: B batch, T patches, V values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import Array, Batch, Mean, Metrics, Task, Variables
from jdl.nn.distributions import gaussian
from jdl.nn.patches import from_patches, patches
from jdl.tasks.module import functions, with_losses
from jdl.tasks.reconstruction import check_data, data_of, row_weights


def masked_reconstruction(module: Any, *, normalized: bool = True) -> Task:
    """A masked autoencoder: the squared error of the patches that the encoder did not see.

    Each image's patches are put in a random order, of which the first are seen; the key draws it in training
    and evaluation alike. Inputs may bring an order of their own, {"data": images, "order": int [B, T]}, and
    then nothing is drawn.

    Args:
        module: a module such as `jdl.models.MaskedAutoencoder`.
        normalized: paint each patch with its own mean taken off and divided by its deviation.

    Returns:
        A task with the metric "loss", the mean over hidden values of the squared error, monitored by "min
        loss". ``predict`` gives images all of whose patches are the decoder's, seen or hidden, by the order
        that inputs have. A model that learned normalised patches gives normalised ones.

    Raises:
        ValueError: from the task's ``check``, for a batch without inputs, or with an order that does not have
            each patch once.

    Example:
        >>> from jdl.models import MaskedAutoencoder
        >>> task = masked_reconstruction(MaskedAutoencoder(2, 8, 1, 2, 4, 1, 2, visible=0.5))
        >>> batch = {"inputs": jnp.ones((3, 4, 4, 1))}
        >>> variables = jax.eval_shape(task.init, jax.random.key(0), batch)
        >>> jax.eval_shape(task.predict, variables, batch["inputs"]).shape
        (3, 4, 4, 1)

    Reference:
        He, Chen, Xie, Li, Dollar and Girshick, "Masked autoencoders are scalable vision learners", 2022,
        section 3, "Reconstruction target".
    """
    model = functions(module)

    def ordered(inputs: Any, key: Array) -> dict[str, Array]:
        images = data_of(inputs)
        if isinstance(inputs, Mapping) and "order" in inputs:
            return {**inputs, "data": images}
        B, T = images.shape[0], _count(images, module.patch)
        return {"data": images, "order": jnp.argsort(jax.random.uniform(key, (B, T)), 1)}

    def score(outputs_BTV: Array, inputs: dict[str, Array], batch: Batch) -> Metrics:
        target_BTV = patches(inputs["data"].astype(jnp.float32), module.patch)
        if normalized:
            mean = target_BTV.mean(-1, keepdims=True)
            target_BTV = (target_BTV - mean) / jnp.sqrt(target_BTV.var(-1, keepdims=True) + 1e-6)
        error_BT = jnp.square(outputs_BTV.astype(jnp.float32) - target_BTV).mean(-1)
        # Entry t of the inverse order is patch t's place in the order.
        hidden_BT = jnp.argsort(inputs["order"], 1) >= module.count_visible(error_BT.shape[1])
        weights_BT = row_weights(batch).reshape(-1, 1) * hidden_BT
        return {"loss": Mean((error_BT * weights_BT).sum(), weights_BT.sum())}

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        order_key, noise_key = jax.random.split(key)
        inputs = ordered(batch["inputs"], order_key)
        outputs, changed, losses = model.train(variables, inputs, noise_key)
        total, weight = score(outputs, inputs, batch)["loss"]
        total, metrics = with_losses(total, weight, {}, losses)
        return total, (weight, changed, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        inputs = ordered(batch["inputs"], key)
        return score(model.predict(variables, inputs), inputs, batch)

    def predict(variables: Variables, inputs: Any) -> Array:
        images = data_of(inputs)
        return from_patches(model.predict(variables, inputs), images.shape[1:], module.patch)

    def check(batch: Batch) -> None:
        check_data(gaussian(), batch)
        inputs = batch["inputs"]
        if isinstance(inputs, Mapping) and "order" in inputs:
            T, order = _count(data_of(inputs), module.patch), np.asarray(inputs["order"])
            if order.shape[1:] != (T,) or (np.sort(order, 1) != np.arange(T)).any():
                raise ValueError(
                    f"an order has each of the {T} patches once, int [B, {T}]; got shape {order.shape}"
                )

    return Task(model.init, loss, evaluate, predict, check=check)


def _count(images: Array, side: int) -> int:
    """T, patches of an image."""
    return (images.shape[1] // side) * (images.shape[2] // side)
