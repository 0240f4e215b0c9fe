"""What lies where on a mesh: rules over paths and shapes, outside the models.

A mesh has up to four axes. The batch is split over ``data`` and ``fsdp``. Along ``data`` parameters are
copied; along ``fsdp`` they are shared out, and with them gradients and optimiser state. Along ``tensor`` the
layers themselves are split, by `RULES`. Along ``sequence`` the second axis of the batch is: time, or the rows
of images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS, CARRY, SEQUENCE, TENSOR, PyTree, batch_axes

FSDP = "fsdp"
"""Mesh axis over which parameters, gradients and optimiser state are sharded, beside the batch."""
AXES = (AXIS, FSDP, TENSOR, SEQUENCE)
"""The axes that a text may name."""

SMALLEST_SHARDED = 2**10
"""Arrays of fewer elements are copied to every device where no rule names them: gathering them costs more
than keeping them."""

Rule = tuple[str, P]
"""A regular expression that is searched for in the path of an array, and how its last axes are split."""

RULES: tuple[Rule, ...] = (
    (r"\bmoe/(expand|gate|project)/kernel$", P(TENSOR, None, None)),
    (r"\brouter/kernel$", P()),
    (r"\b(query|key|value|expand|gate)/kernel$", P(None, TENSOR)),
    (r"\b(query|key|value|expand|gate)/bias$", P(TENSOR)),
    (r"\b(out|project)/kernel$", P(TENSOR, None)),
    (r"\b(positions|types|relative)(/embedding)?$", P()),
    (r"\btokens/embedding$", P(TENSOR, None)),
    (r"\bhead/kernel$", P(None, TENSOR)),
    (r"\b(head/bias|head_bias)$", P(TENSOR)),
)
"""How layers are split over ``tensor``: the first of a pair by its outputs (heads, hidden features), the
second by its inputs, so that each pair needs one sum over devices; embeddings and head by the vocabulary;
experts each to a device. The first rule counts that is found in the path and whose sizes divide evenly.

Reference:
    Shoeybi et al., "Megatron-LM: Training multi-billion parameter language models using model parallelism",
    2019, section 3; experts: Lepikhin et al., "GShard: Scaling giant models with conditional computation and
    automatic sharding", 2021.
"""


def path_of(path: Any) -> str:
    """A path in a tree as rules see it: ``params/blocks/block1/attention/query/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def state_specs(state: PyTree, mesh: Mesh, rules: Sequence[Rule] = ()) -> PyTree:
    """How a state lies on the mesh: a `PartitionSpec` for each array, by its path and shape.

    What an optimiser remembers of a parameter ends in the parameter's path and has its shape, and so lies as
    it does. The first of ``rules`` that is found in the path decides alone. Other arrays are split over
    ``tensor`` by `RULES`; and over ``fsdp``, if they have at least `SMALLEST_SHARDED` elements, on the
    largest axis left that divides evenly. Arrays of as many elements that no rule names are split over both
    on their last axis (a layer's outputs). Recurrent carries are split like the batch. The rest is copied.

    Args:
        state: a tree of arrays or of `jax.ShapeDtypeStruct`.
        mesh: the mesh.
        rules: rules to go before: pairs of a regular expression and a `PartitionSpec` of the last axes of the
            arrays whose path it is found in (those before, such as the layers of a scanned stack, are not
            split). Of the axes it names, those that the mesh lacks split nothing.

    Returns:
        A tree of the same structure.

    Raises:
        ValueError: for a rule with more axes than an array it names, sizes that do not divide, or an axis
            that neither the mesh nor the library has.

    Example:
        >>> from jdl.train import make_mesh
        >>> kernel = jax.ShapeDtypeStruct((64, 256), "float32")
        >>> specs = state_specs({"mlp": {"expand": {"kernel": kernel}}}, make_mesh("fsdp:1,tensor:1"))
        >>> tuple(specs["mlp"]["expand"]["kernel"])
        ('fsdp', 'tensor')
    """

    def spec(path: Any, x: Any) -> P:
        if is_carry(path):
            return batch_spec(mesh)
        name = path_of(path)
        for expression, wanted in rules:
            if re.search(expression, name):
                return P(*_demanded(wanted, name, x.shape, mesh))
        axes = _by_rules(name, x.shape, mesh)
        return P(*_trimmed(_by_shape(x.shape, mesh) if axes is None else _filled(axes, x.shape, mesh)))

    return jax.tree_util.tree_map_with_path(spec, state)


def _demanded(wanted: P, name: str, shape: tuple[int, ...], mesh: Mesh) -> list[Any]:
    """A user's rule for an array."""
    if len(wanted) > len(shape):
        raise ValueError(
            f"the rule {wanted} has more axes than {name} of shape {shape}, which it is found in"
        )
    axes: list[Any] = [None] * (len(shape) - len(wanted))
    for size, entry in zip(shape[len(axes) :], wanted, strict=True):
        names = _names(entry)
        if unknown := [axis for axis in names if axis not in (*AXES, *mesh.axis_names)]:
            raise ValueError(f"the rule {wanted} names {unknown[0]!r}; axes are {_listed(mesh)}")
        there = tuple(axis for axis in names if axis in mesh.axis_names)
        parts = math.prod(mesh.shape[axis] for axis in there)
        if size % parts:
            raise ValueError(
                f"the rule {wanted} cannot split {name} of shape {shape}: {size} does not divide by {parts}"
            )
        axes.append(there if len(there) > 1 else next(iter(there), None))
    return _trimmed(axes)


def _by_rules(name: str, shape: tuple[int, ...], mesh: Mesh) -> list[Any] | None:
    """How `RULES` split an array over ``tensor``; None where none is found in its path."""
    parts, found = mesh.shape.get(TENSOR), False
    for expression, wanted in RULES:
        if len(wanted) <= len(shape) and re.search(expression, name):
            axes = [None] * (len(shape) - len(wanted)) + list(wanted)
            if parts and all(
                axis is None or size % parts == 0 for size, axis in zip(shape, axes, strict=True)
            ):
                return axes
            found = True
    return [None] * len(shape) if found else None


def _by_shape(shape: tuple[int, ...], mesh: Mesh) -> list[Any]:
    """How an array that no rule names is split: over ``tensor`` and ``fsdp`` on its last axis."""
    axes: list[Any] = [None] * len(shape)
    if TENSOR not in mesh.shape or len(shape) < 2 or math.prod(shape) < SMALLEST_SHARDED:
        return _filled(axes, shape, mesh)
    # In one place, since XLA's gradient of a convolution with a stride is wrong where the inputs of its
    # kernel are split over one axis, its outputs over another, and the batch over a third too.
    for names in ((FSDP, TENSOR), (TENSOR,), (FSDP,)):
        if set(names) <= set(mesh.shape) and shape[-1] % math.prod(mesh.shape[name] for name in names) == 0:
            return [*axes[:-1], names if len(names) > 1 else names[0]]
    return axes


def _filled(axes: list[Any], shape: tuple[int, ...], mesh: Mesh) -> list[Any]:
    """The same, with ``fsdp`` on the largest axis that is left and divides evenly."""
    parts = mesh.shape.get(FSDP)
    if parts is not None and math.prod(shape) >= SMALLEST_SHARDED:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % parts == 0]
        if free:
            largest = max(free, key=lambda i: (shape[i], i))
            axes = [FSDP if i == largest else axis for i, axis in enumerate(axes)]
    return axes


def _trimmed(axes: list[Any]) -> list[Any]:
    """Without what is not split at the end, so that equal layouts are equal specs."""
    while axes and axes[-1] is None:
        axes = axes[:-1]
    return axes


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _listed(mesh: Mesh) -> str:
    return ", ".join(dict.fromkeys((*AXES, *mesh.axis_names)))


def is_carry(path: Any) -> bool:
    """Whether a path in a state leads to a recurrent carry."""
    return f"'{CARRY}'" in jax.tree_util.keystr(path)


def state_shardings(state: PyTree, mesh: Mesh, rules: Sequence[Rule] = ()) -> PyTree:
    """`state_specs` as shardings."""
    return _shardings(state_specs(state, mesh, rules), mesh)


def batch_spec(mesh: Mesh) -> P:
    """How the examples of a batch lie on the mesh: the first axis of every array."""
    axes = batch_axes(mesh)
    return P(axes) if axes else P()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """`batch_spec` as a sharding."""
    return NamedSharding(mesh, batch_spec(mesh))


def batch_specs(batch: PyTree, mesh: Mesh) -> PyTree:
    """How a batch lies on the mesh: its examples by `batch_spec`, and along ``sequence`` its second axis.

    An array is split over ``sequence`` where its second axis divides evenly.
    """
    rows, parts = batch_spec(mesh), mesh.shape.get(SEQUENCE)

    def spec(x: Any) -> P:
        shape = np.shape(x)
        if parts is None or len(shape) < 2 or shape[1] % parts:
            return rows
        return P(*(rows or (None,)), SEQUENCE)

    return jax.tree.map(spec, batch)


def batch_shardings(batch: PyTree, mesh: Mesh) -> PyTree:
    """`batch_specs` as shardings."""
    return _shardings(batch_specs(batch, mesh), mesh)


def _shardings(specs: PyTree, mesh: Mesh) -> PyTree:
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda spec: isinstance(spec, P)
    )
