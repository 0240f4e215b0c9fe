"""Parameter groups by path: which parameters an optimiser treats how.

A parameter's *path* is its keys joined by slashes, ``"Dense_0/kernel"``; patterns are regular expressions
searched in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdl.core import PyTree


def path_name(path: Any) -> str:
    """A `jax.tree_util` key path as text: ``"Dense_0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def label_by_path(patterns: Mapping[str, str]) -> Callable[[PyTree], PyTree]:
    """Labels for `optax.multi_transform`: the label of the first pattern found in a parameter's path.

    Args:
        patterns: labels to regular expressions, in order of precedence; end with ``".*"`` for the rest.

    Returns:
        A function from parameters to a tree of labels.

    Raises:
        ValueError: (from that function) naming the parameters that no pattern finds.

    Example:
        >>> labels = label_by_path({"head": "^head/", "frozen": ".*"})
        >>> labels({"head": {"kernel": 1.0}, "body": {"kernel": 2.0}})
        {'body': {'kernel': 'frozen'}, 'head': {'kernel': 'head'}}
        >>> tx = optax.multi_transform({"head": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels)
    """
    compiled = {label: re.compile(pattern) for label, pattern in patterns.items()}

    def labels(params: PyTree) -> PyTree:
        def label(path: Any, _: Any) -> str | None:
            return next((label for label, p in compiled.items() if p.search(path_name(path))), None)

        tree = jax.tree_util.tree_map_with_path(label, params)
        unmatched = [
            path_name(path)
            for path, label in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
            if label is None
        ]
        if unmatched:
            raise ValueError(f"no pattern of {list(patterns.values())} is found in: {', '.join(unmatched)}")
        return tree

    return labels


def mask_by_path(pattern: str) -> Callable[[PyTree], PyTree]:
    """A mask for Optax: True for the parameters in whose path the pattern is found.

    Example:
        >>> mask_by_path("kernel$")({"Dense_0": {"kernel": 1.0, "bias": 2.0}})
        {'Dense_0': {'bias': False, 'kernel': True}}
        >>> tx = optax.adamw(1e-3, mask=mask_by_path("kernel$"))
    """
    compiled = re.compile(pattern)

    def mask(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(compiled.search(path_name(path))), params
        )

    return mask


def decays(params: PyTree) -> PyTree:
    """The usual mask for weight decay: products and convolutions, not biases, norms or embeddings.

    That is, parameters of two axes or more (beside none that ends in "embedding", "bias" or "scale").

    Example:
        >>> import jax.numpy as jnp
        >>> decays({"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
        {'Dense_0': {'bias': False, 'kernel': True}}
        >>> tx = optax.adamw(1e-3, mask=decays)
    """

    def decay(path: Any, x: Any) -> bool:
        return x.ndim > 1 and not re.search("(embedding|bias|scale)$", path_name(path))

    return jax.tree_util.tree_map_with_path(decay, params)


def scale_by_path(scales: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies each update by the scale of the first pattern found in its path; 0 freezes, others keep 1.

    Put after an optimiser, it is a learning rate for each layer.

    Raises:
        ValueError: (from its ``init``) naming a pattern that is found in no path.

    Example:
        >>> tx = optax.chain(optax.adam(1e-3), scale_by_path({"^Dense_0/": 0.0, "^Dense_1/": 0.1}))

    Reference:
        Howard and Ruder, "Universal language model fine-tuning", 2018, section 3.2 (discriminative rates).
    """
    compiled = [(re.compile(pattern), scale) for pattern, scale in scales.items()]

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params

        def scaled(path: Any, update: Any) -> Any:
            name = path_name(path)
            scale = next((scale for pattern, scale in compiled if pattern.search(name)), 1.0)
            return jnp.zeros_like(update) if scale == 0 else update * scale

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    def init(params: PyTree) -> Any:
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in compiled:
            if not any(map(pattern.search, names)):
                raise ValueError(f"no parameter's path has {pattern.pattern!r}; there are {', '.join(names)}")
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)
