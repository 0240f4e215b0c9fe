"""From Task to Task: what is done to batches and to numbers on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdl.core import Array, Batch, Metrics, PyTree, Task, Variables


def preprocessed(task: Task, function: Callable[[Any], Any]) -> Task:
    """The task on ``function(inputs)``: in training, evaluation and prediction alike.

    So that data stay as they came (bytes, say), inside the compiled step and in the exported model.

    Args:
        task: a task.
        function: pure function of a batch's ``inputs``.

    Returns:
        A task that takes raw inputs.

    Example:
        >>> from jdl.models import MLP
        >>> from jdl.tasks import classification
        >>> task = preprocessed(classification(MLP((3,))), lambda images: images / 255)
        >>> variables = task.init(jax.random.key(0), {"inputs": jnp.zeros((2, 4), jnp.uint8)})
        >>> task.predict(variables, jnp.zeros((5, 4), jnp.uint8)).shape
        (5, 3)
    """

    def ready(batch: Batch) -> Batch:
        return {**batch, "inputs": function(batch["inputs"])}

    return task._replace(
        init=lambda key, batch: task.init(key, ready(batch)),
        loss=lambda variables, batch, key: task.loss(variables, ready(batch), key),
        evaluate=lambda variables, batch, key: task.evaluate(variables, ready(batch), key),
        predict=lambda variables, inputs: task.predict(variables, function(inputs)),
        check=lambda batch: task.check(ready(batch)),
    )


def augmented(task: Task, transform: Callable[[Array, Batch], Batch]) -> Task:
    """The task whose training batches pass through a random ``transform``; nothing else changes.

    Args:
        task: a task.
        transform: pure function ``key, batch -> batch``, such as those of `jdl.data`.

    Returns:
        A task with the same variables.

    Example:
        >>> from jdl.models import MLP
        >>> from jdl.tasks import classification
        >>> def noise(key, batch):
        ...     x = batch["inputs"]
        ...     return {**batch, "inputs": x + 0.1 * jax.random.normal(key, x.shape)}
        >>> task = augmented(classification(MLP((3,))), noise)
    """

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        augment_key, loss_key = jax.random.split(key)
        return task.loss(variables, transform(augment_key, batch), loss_key)

    return task._replace(loss=loss)


def mixed_precision(task: Task, dtype: Any = jnp.bfloat16) -> Task:
    """The task computed in ``dtype``, with float32 parameters, gradients, statistics, losses and outputs.

    Floating parameters and inputs are cast on the way in, inside the differentiated function, so that
    gradients come back in float32; other collections (running statistics) keep their own types. bfloat16
    has float32's exponent and needs no loss scaling. On a mesh the compiler may sum the gradients of weights
    over the devices in ``dtype``, as the products that they come from give them, which halves what is
    exchanged.

    Args:
        task: a task whose module computes in the type of its inputs (``dtype=None`` or ``dtype``). Raw bytes
            have no type to compute in, so `preprocessed` goes around it, not inside.
        dtype: the type to compute in.

    Returns:
        A task with the same variables.

    Example:
        >>> from jdl.models import MLP
        >>> from jdl.tasks import classification
        >>> task = mixed_precision(classification(MLP((8, 3))))
        >>> batch = {"inputs": jnp.ones((2, 5)), "labels": jnp.array([0, 2])}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> gradient = jax.grad(lambda v: task.loss(v, batch, jax.random.key(1))[0])(variables)
        >>> {x.dtype.name for x in jax.tree.leaves((variables, gradient))}
        {'float32'}

    Reference:
        Micikevicius et al., "Mixed precision training", 2018; Kalamkar et al., "A study of BFLOAT16 for deep
        learning training", 2019.
    """

    def low(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(dtype) if _is_float(x) else x, tree)

    def low_variables(variables: Variables) -> Variables:
        return {**variables, "params": low(variables["params"])}

    def low_batch(batch: Batch) -> Batch:
        return {**batch, "inputs": low(batch["inputs"])}

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        total, (weight, collections, metrics) = task.loss(low_variables(variables), low_batch(batch), key)
        old = {name: variables[name] for name in collections}
        collections = jax.tree.map(lambda new, old: new.astype(old.dtype), collections, old)
        return total.astype(jnp.float32), (weight, collections, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        return task.evaluate(low_variables(variables), low_batch(batch), key)

    def predict(variables: Variables, inputs: Any) -> Any:
        outputs = task.predict(low_variables(variables), low(inputs))
        return jax.tree.map(lambda x: x.astype(jnp.float32) if _is_float(x) else x, outputs)

    return task._replace(loss=loss, evaluate=evaluate, predict=predict)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
