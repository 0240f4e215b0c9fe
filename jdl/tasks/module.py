"""From a module to the functions that tasks are made of: the only one to know Linen's calls.

A module is anything with Linen's two methods, ``init(rngs, inputs, train=...)`` and ``apply(variables,
inputs, train=..., rngs=..., mutable=...)``; `jdl.interop.from_nnx` gives them to an NNX model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import CARRY, LOSSES, Array, Batch, Mean, Metrics, Variables

Losses = dict[str, Array]


class Functions(NamedTuple):
    """A module as pure functions.

    Attributes:
        init: ``key, batch -> variables``.
        train: ``variables, inputs, key -> outputs, changed collections, losses``, with noise. The losses
            are those that the module sowed into `jdl.core.LOSSES`, summed by name; `with_losses` adds them.
        predict: ``variables, inputs -> outputs``, without noise.
    """

    init: Callable[[Array, Batch], Variables]
    train: Callable[[Variables, Any, Array], tuple[Any, Variables, Losses]]
    predict: Callable[[Variables, Any], Any]


def _streams(key: Array) -> dict[str, Array]:
    """Keys of the random streams that a module may draw from in training."""
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "sample"))}


def _require_classes(what: str, values: Any, classes: int) -> None:
    """Raises ValueError for concrete integers that are no class of a model's."""
    found = np.asarray(values)
    if found.size and not (found.min() >= 0 and found.max() < classes):
        raise ValueError(f"{what} must be from 0 to {classes - 1}; they are {found.min()} to {found.max()}")


def functions(module: Any, method: str = "__call__") -> Functions:
    """The three functions that every task needs of a module.

    Args:
        module: the module.
        method: the method that ``train`` and ``predict`` call, with the arguments of ``__call__``.
    """
    # Not every module that is called as Linen's are knows of methods by name.
    call = {} if method == "__call__" else {"method": method}

    def init(key: Array, batch: Batch) -> Variables:
        params_key, noise_key = jax.random.split(key)
        variables = module.init({"params": params_key, **_streams(noise_key)}, batch["inputs"], train=False)
        return {"params": variables.get("params", {}), **_kept(variables)}

    def train(variables: Variables, inputs: Any, key: Array) -> tuple[Any, Variables, Losses]:
        mutable = [name for name in variables if name != "params"] + [LOSSES]
        outputs, changed = module.apply(
            variables, inputs, train=True, rngs=_streams(key), mutable=mutable, **call
        )
        return outputs, _kept(changed), _summed(changed.get(LOSSES, {}))

    def predict(variables: Variables, inputs: Any) -> Any:
        # A recurrent module may start a carry of its own here; what it becomes is nobody's.
        outputs, _ = module.apply(variables, inputs, train=False, mutable=[CARRY], **call)
        return outputs

    return Functions(init, train, predict)


def head(module: Any, method: str = "logits") -> Callable[[Variables, Array], Array]:
    """``variables, hidden states -> outputs``, of a module that has such a method."""
    return lambda variables, h: module.apply(variables, h, method=method)


def with_losses(total: Array, weight: Array, metrics: Metrics, losses: Losses) -> tuple[Array, Metrics]:
    """A task's total and metrics with the losses that its module sowed.

    Each is a mean over the batch: ``weight`` times it is added to the total, and it appears among the metrics
    under the name it was sown by, "balance" as "balance_loss".
    """
    for name, loss in losses.items():
        total = total + weight * loss
        metrics = {**metrics, f"{name}_loss": Mean(weight * loss, weight)}
    return total, metrics


def _summed(sown: Variables) -> Losses:
    """Sown losses by name, each the sum over the layers that sowed it (stacked, where layers are scanned)."""
    losses: Losses = {}
    for path, loss in jax.tree_util.tree_leaves_with_path(sown):
        name = [step.key for step in path if isinstance(step, jax.tree_util.DictKey)][-1]
        losses[name] = losses.get(name, jnp.zeros(())) + loss.astype(jnp.float32).sum()
    return losses


def _kept(variables: Variables) -> Variables:
    """The collections that last from step to step."""
    passing = ("params", "intermediates", LOSSES)
    return {name: tree for name, tree in variables.items() if name not in passing}
