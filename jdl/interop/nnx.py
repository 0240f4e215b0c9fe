"""NNX models in the library of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdl.core import Array, PyTree

COLLECTIONS = ("params", "batch_stats", "state")
"""Collections of an NNX model: `nnx.Param`, `nnx.BatchStat`, and all other variables."""


class NnxModule(NamedTuple):
    """An NNX model with the two methods of a Linen module; `from_nnx` makes it.

    Attributes:
        make: ``nnx.Rngs -> model``.
        graph: the model's structure, without arrays.
        noise: shapes of the model's random streams.
        shapes: shapes of its other arrays, by collection.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    graph: Any
    noise: Any
    shapes: Mapping[str, Any]

    def init(self, rngs: Mapping[str, Array], inputs: Any, *, train: bool = False) -> dict[str, PyTree]:
        """A variables tree initialised from the key ``rngs["params"]``."""
        del inputs, train
        return _variables(_split(self.make(nnx.Rngs(rngs["params"])))[2])

    def apply(
        self,
        variables: Mapping[str, PyTree],
        inputs: Any,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
        mutable: Sequence[str] = (),
    ) -> tuple[Any, dict[str, PyTree]]:
        """The model's outputs, and those of its collections in ``mutable`` as the call left them."""
        states = []
        for name, shapes in self.shapes.items():
            # A copy of the structure: nnx.merge takes hold of the variables that it is given.
            state = jax.tree.map(lambda x: x, shapes)
            nnx.replace_by_pure_dict(state, dict(variables.get(name, {})))
            states.append(state)
        key = rngs["dropout"] if rngs else jax.random.key(0)
        model = nnx.merge(self.graph, _seeded(self.noise, key), *states)
        (model.train if train else model.eval)()
        outputs = model(inputs)
        changed = _variables(_split(model)[2])
        return outputs, {name: tree for name, tree in changed.items() if name in mutable}


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> NnxModule:
    """An NNX model as a module that every task takes.

    Its parameters, running statistics and other variables become the collections "params", "batch_stats" and
    "state" of a variables tree; its random streams (dropout) are seeded anew from the key of each step. The
    model is switched to ``train()`` and ``eval()`` mode as the task needs.

    Args:
        make: function of `nnx.Rngs` that builds the model, such as ``lambda rngs: Net(10, rngs=rngs)``. It is
            called once a key, so that ensembles and sweeps start differently.

    Returns:
        A module with the two methods of a Linen module.

    Example:
        >>> from jdl.tasks import classification
        >>> task = classification(from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs)))
        >>> variables = task.init(jax.random.key(0), {"inputs": jnp.ones((2, 4))})
        >>> task.predict(variables, jnp.ones((5, 4))).shape
        (5, 3)
    """
    graph, noise, shapes = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return NnxModule(make, graph, noise, shapes)


def _split(model: nnx.Module) -> tuple[Any, Any, dict[str, Any]]:
    graph, noise, *states = nnx.split(model, nnx.RngState, nnx.Param, nnx.BatchStat, ...)
    return graph, noise, dict(zip(COLLECTIONS, states, strict=True))


def _variables(states: Mapping[str, Any]) -> dict[str, PyTree]:
    """States as plain dictionaries, without the collections that hold nothing."""
    trees = {name: nnx.to_pure_dict(state) for name, state in states.items()}
    return {name: tree for name, tree in trees.items() if tree or name == "params"}


def _seeded(noise: Any, key: Array) -> Any:
    """Random streams that start from ``key``, each with a key of its own."""
    leaves, structure = jax.tree.flatten(noise)

    def start(i: int, x: Any) -> Array:
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jnp.zeros(x.shape, x.dtype)
        own = jax.random.fold_in(key, i)
        return jax.random.split(own, x.shape) if x.shape else own

    return jax.tree.unflatten(structure, [start(i, x) for i, x in enumerate(leaves)])
