"""Constraints on parameters, kept after every step."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdl.core import PyTree
from jdl.learners.groups import path_name


def max_norm(limit: float, pattern: str = "kernel$") -> optax.GradientTransformation:
    """Keeps the weights that go into a unit within a ball: w becomes w min(1, limit / |w|).

    The weights of a unit are a kernel's [..., features] along all axes but the last. Put last in a chain, so
    that it sees the whole step.

    Args:
        limit: largest norm of the weights of a unit.
        pattern: regular expression searched in the paths of parameters; others are not constrained.

    Returns:
        An Optax transformation, which needs the parameters.

    Raises:
        ValueError: if ``limit`` is not positive; and, from its functions, if no parameter's path has the
            pattern, or there are no parameters.

    Example:
        >>> tx = optax.chain(optax.sgd(1.0), max_norm(1.0))
        >>> params = {"head": {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.1]])}}
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> jnp.round(optax.apply_updates(params, updates)["head"]["kernel"], 3).tolist()
        [[0.6000000238418579, 0.10000000149011612], [0.800000011920929, 0.10000000149011612]]

    Reference:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014, section
        5.1; Srebro and Shraibman, "Rank, trace-norm and max-norm", 2005.
    """
    if limit <= 0:
        raise ValueError(f"limit, the largest norm of a unit's weights, must be positive; got {limit}")
    compiled = re.compile(pattern)

    def init(params: PyTree) -> Any:
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if not any(map(compiled.search, paths)):
            raise ValueError(f"no parameter's path has {pattern!r}; there are {', '.join(paths)}")
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("max_norm needs the parameters: update(updates, state, params)")

        def constrained(path: Any, update: Any, param: Any) -> Any:
            if not compiled.search(path_name(path)):
                return update
            new = param + update
            norm = jnp.sqrt(jnp.square(new).sum(tuple(range(new.ndim - 1)), keepdims=True))
            return jnp.where(norm > limit, new * (limit / jnp.maximum(norm, limit)) - param, update)

        return jax.tree_util.tree_map_with_path(constrained, updates, params), state

    return optax.GradientTransformation(init, update)
