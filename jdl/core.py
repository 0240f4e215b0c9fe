"""The types everything else is made of: `Task`, `Learner`, `State`, `Decoder`, and metrics that add up.

A *variables tree* is what Flax calls one: ``{"params": ..., **collections}``, where a collection is
anything a model keeps beside its parameters ("batch_stats", "carry", ...). A *batch* is a dictionary
with the same few names everywhere: ``inputs``, ``labels``, ``weights`` (missing means one for each
example) and whatever a field needs beside them; the leading axis of every entry is the example.

One piece of code serves every device mode. `AXIS` names the batch axis, and `psum`, `all_gather` and
`local_key` act where that axis is bound (inside `jax.shard_map` and `jax.pmap`) and do nothing under
`jax.jit`, where values are global already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Any]
Variables = Mapping[str, PyTree]
Metrics = dict[str, PyTree]

AXIS = "data"
"""Name of the batch axis, in every mesh, `shard_map` and `pmap` of the library."""

TENSOR, SEQUENCE = WITHIN = ("tensor", "sequence")
"""Names of the mesh axes that one example may be split over: the heads, hidden features and experts of a
layer, and the vocabulary; and the second axis of a batch. Its examples are split over all others."""

CARRY = "carry"
"""Collection of recurrent state that passes from batch to batch: one row an example, sharded like the
batch, never averaged, and left out of what is evaluated, saved for use, or exported."""

LOSSES = "losses"
"""Collection into which a module may sow losses of its own (the balance of a mixture of experts): scalars,
each the mean over a batch. Tasks add their sum, times the batch's weight, to the total, and keep nothing."""

FAULTS = "faults"
"""Reserved metric: a dictionary from a few words to a count. A nonzero count stops training, and the
words tell the user what was found ("loss not finite", "labels outside 0..9")."""


def accept(batch: Batch) -> None:
    """The check of a task that takes any batch."""


class Task(NamedTuple):
    """What to learn: pure functions of a variables tree.

    Attributes:
        init: ``key, batch -> variables``.
        loss: ``variables, batch, key -> total, (weight, collections, metrics)``. The total is a sum over
            examples (or tokens) and ``weight`` what it stands for; the learner divides by the weight of
            the whole batch, so that masks, padding, uneven shards and accumulation are exact.
            ``collections`` holds only those that changed, already synchronised over `AXIS`.
        evaluate: ``variables, batch, key -> metrics``, without noise.
        predict: ``variables, inputs -> outputs``, without noise.
        monitor: the metric of `evaluate` that says how good a model is, and the way it should go:
            ``"min loss"`` or ``"max accuracy"``.
        check: ``batch -> None``, on the host with concrete arrays, raises ValueError in words for a batch
            that this task cannot take.
    """

    init: Callable[[Array, Batch], Variables]
    loss: Callable[[Variables, Batch, Array], tuple[Array, tuple[Array, Variables, Metrics]]]
    evaluate: Callable[[Variables, Batch, Array], Metrics]
    predict: Callable[[Variables, Any], Any]
    monitor: str = "min loss"
    check: Callable[[Batch], None] = accept


class Learner(NamedTuple):
    """How to learn: a state machine of pure functions.

    Attributes:
        init: ``key, batch -> state``.
        step: ``state, batch -> state, metrics``. The metrics are of the whole batch on every device.
        variables: ``state -> variables``, those to evaluate, save and export.
        evaluate: ``variables, batch, key -> metrics`` of the whole batch.
        predict: ``variables, inputs -> outputs``.
        monitor: as in `Task`.
        check: as in `Task`.
    """

    init: Callable[[Array, Batch], PyTree]
    step: Callable[[PyTree, Batch], tuple[PyTree, Metrics]]
    variables: Callable[[PyTree], Variables]
    evaluate: Callable[[Variables, Batch, Array], Metrics]
    predict: Callable[[Variables, Any], Any]
    monitor: str = "min loss"
    check: Callable[[Batch], None] = accept


class State(NamedTuple):
    """What a gradient learner knows between two steps.

    Attributes:
        step: int32 scalar, the number of steps done.
        key: the run's PRNG key; step i draws from ``fold_in(key, i)``, so nothing is ever drawn twice.
        params: the parameters.
        collections: the model's other collections.
        opt_state: what the optimiser remembers.
    """

    step: Array
    key: Array
    params: PyTree
    collections: Variables
    opt_state: PyTree


class Decoder(NamedTuple):
    """A trained model of sequences as pure functions: what generation needs of it.

    Its fields are `jax.tree_util.Partial`, so a decoder is a pytree whose leaves are the weights, and goes
    through `jax.jit` as an argument. Axes: B rows, T new positions, V vocabulary.

    Attributes:
        init_cache: ``batch_size, length -> cache`` with room for ``length`` positions in each row. The first
            axis of every leaf is the row.
        extend: ``cache, tokens, lengths -> logits, cache``: reads int32 ``tokens`` [B, T] after what the
            cache knows, and gives float32 logits [B, T, V] of the token after each. Of row b only the first
            ``lengths[b]`` tokens are real (all T where ``lengths`` is None): the others leave no trace, and
            their logits mean nothing. So rows may differ in length.
        rewind: ``cache, lengths -> cache`` as it was when each row b had its first ``lengths[b]`` positions;
            None for a model that cannot forget.
    """

    init_cache: Callable[[int, int], PyTree]
    extend: Callable[..., tuple[Array, PyTree]]
    rewind: Callable[[PyTree, Array], PyTree] | None = None


class Mean(NamedTuple):
    """A metric that adds up: a weighted sum and the weight it stands for.

    Example:
        >>> batches = [Mean(jnp.array(6.0), jnp.array(3.0)), Mean(jnp.array(4.0), jnp.array(1.0))]
        >>> float(jax.tree.map(lambda *x: sum(x), *batches).value())
        2.5
    """

    total: Any
    weight: Any

    def value(self) -> Any:
        """The mean, and NaN where nothing was weighed."""
        weight = jnp.asarray(self.weight, jnp.float32)
        return jnp.where(weight > 0, self.total / jnp.where(weight > 0, weight, 1), jnp.nan)


class Perplexity(Mean):
    """The exponential of a mean surprise, exp(sum w (-log p) / sum w): it adds up as the mean does.

    Example:
        >>> batches = [Perplexity(jnp.log(16.0), jnp.array(1.0)), Perplexity(jnp.array(0.0), jnp.array(3.0))]
        >>> round(float(jax.tree.map(lambda *x: sum(x), *batches).value()), 4)
        2.0
    """

    def value(self) -> Any:
        """The exponential of the mean, and NaN where nothing was weighed."""
        return jnp.exp(super().value())


def weighted(values: Array, weights: Array | None = None) -> Mean:
    """The `Mean` of one value an example (or token): ``values`` [...], ``weights`` of the same shape."""
    values = values.astype(jnp.float32)
    if weights is None:
        return Mean(values.sum(), jnp.asarray(values.size, jnp.float32))
    return Mean((values * weights).sum(), weights.astype(jnp.float32).sum())


def example_weights(batch: Batch) -> Array:
    """The batch's ``weights`` [B] in float32, ones where it has none."""
    weights = batch.get("weights")
    if weights is None:
        return jnp.ones(jax.tree.leaves(batch["inputs"])[0].shape[:1], jnp.float32)
    return jnp.asarray(weights, jnp.float32)


def summarize(metrics: Metrics) -> dict[str, Any]:
    """What added-up metrics come to, on the host: floats, and arrays where a metric has several values.

    Faults are left out.

    Example:
        >>> loss = Mean(jnp.array(6.0), jnp.array(4.0))
        >>> summarize({"loss": loss, FAULTS: {"loss not finite": jnp.array(0)}})
        {'loss': 1.5}
    """
    fetched = jax.device_get({name: metric for name, metric in metrics.items() if name != FAULTS})

    def number(metric: Any) -> Any:
        if isinstance(metric, Mean):
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                mean = np.divide(metric.total, metric.weight, dtype=np.float64)
                metric = np.exp(mean) if isinstance(metric, Perplexity) else mean
        metric = np.asarray(metric)
        return metric.item() if metric.ndim == 0 else metric

    return jax.tree.map(number, fetched, is_leaf=lambda metric: isinstance(metric, Mean))


def add(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of two batches as those of one."""
    return jax.tree.map(jnp.add, a, b)


def axis_is_bound() -> bool:
    """Whether the code being traced runs once a shard, with `AXIS` to communicate over."""
    try:
        jax.lax.axis_index(AXIS)
    except NameError:
        return False
    return True


def psum(tree: PyTree) -> PyTree:
    """The sum over shards where the batch is split by hand, and ``tree`` itself where it is not."""
    return jax.lax.psum(tree, AXIS) if axis_is_bound() else tree


def pmean(tree: PyTree) -> PyTree:
    """The mean over shards where the batch is split by hand, and ``tree`` itself where it is not."""
    return jax.lax.pmean(tree, AXIS) if axis_is_bound() else tree


def all_gather(tree: PyTree) -> PyTree:
    """The shards' rows one after another, [B / D, ...] to [B, ...], where the batch is split by hand."""
    if not axis_is_bound():
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def local_key(key: Array) -> Array:
    """``key`` folded with the shard's index where the batch is split by hand, so that noise differs."""
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS)) if axis_is_bound() else key


def batch_axes(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """The axes that the examples of a batch are split over: all but ``tensor`` and ``sequence``."""
    return tuple(name for name in mesh.axis_names if name not in WITHIN)


def by_example(x: Array) -> Array:
    """x [B, ...], with the word to the compiler that its examples lie where the batch's do.

    For the few values between layers from which the compiler works out the rest. Left alone, it may split the
    features of a gradient's way back as the parameters are, and exchange it at every layer. Where no mesh is
    known (`jdl.train.distributed` makes it so), or the batch is split by hand, it is ``x`` itself.

    Args:
        x: any array whose first axis is the batch.

    Returns:
        x, split on its first axis where that divides evenly, and on others as the compiler likes.

    Example:
        >>> x = jnp.ones((4, 2))
        >>> by_example(x) is x
        True

    Reference:
        Xu et al., "GSPMD: General and scalable parallelization for ML computation graphs", 2021, section 3.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = batch_axes(mesh)
    parts = math.prod(mesh.shape[name] for name in axes)
    if parts == 1 or x.shape[0] % parts or axis_is_bound():
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))


def objective(monitor: str) -> tuple[str, str]:
    """Splits ``"max accuracy"`` into ``("max", "accuracy")``.

    Raises:
        ValueError: if the text does not have that form.
    """
    way, _, name = monitor.partition(" ")
    if way not in ("min", "max") or not name:
        raise ValueError(
            f'monitor must read "min NAME" or "max NAME", such as "max accuracy"; got {monitor!r}'
        )
    return way, name
