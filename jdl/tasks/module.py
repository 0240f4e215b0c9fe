"""From a module to the functions that tasks are made of: the only one to know Linen's calls.

A module is anything with Linen's two methods, ``init(rngs, inputs, train=...)`` and ``apply(variables,
inputs, train=..., rngs=..., mutable=...)``; `jdl.interop.from_nnx` gives them to an NNX model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jdl.core import CARRY, Array, Batch, Variables


class Functions(NamedTuple):
    """A module as pure functions.

    Attributes:
        init: ``key, batch -> variables``.
        train: ``variables, inputs, key -> outputs, changed collections``, with noise.
        predict: ``variables, inputs -> outputs``, without noise.
    """

    init: Callable[[Array, Batch], Variables]
    train: Callable[[Variables, Any, Array], tuple[Any, Variables]]
    predict: Callable[[Variables, Any], Any]


def _streams(key: Array) -> dict[str, Array]:
    """Keys of the random streams that a module may draw from in training."""
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "sample"))}


def functions(module: Any) -> Functions:
    """The three functions that every task needs of a module."""

    def init(key: Array, batch: Batch) -> Variables:
        params_key, noise_key = jax.random.split(key)
        variables = module.init({"params": params_key, **_streams(noise_key)}, batch["inputs"], train=False)
        return {"params": variables.get("params", {}), **_kept(variables)}

    def train(variables: Variables, inputs: Any, key: Array) -> tuple[Any, Variables]:
        mutable = [name for name in variables if name != "params"]
        outputs, changed = module.apply(variables, inputs, train=True, rngs=_streams(key), mutable=mutable)
        return outputs, _kept(changed)

    def predict(variables: Variables, inputs: Any) -> Any:
        # A recurrent module may start a carry of its own here; what it becomes is nobody's.
        outputs, _ = module.apply(variables, inputs, train=False, mutable=[CARRY])
        return outputs

    return Functions(init, train, predict)


def _kept(variables: Variables) -> Variables:
    """The collections that last from step to step."""
    return {name: tree for name, tree in variables.items() if name not in ("params", "intermediates")}
