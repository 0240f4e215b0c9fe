"""Devices: which there are, what lies on which, and the three ways to run one step on all of them.

Sharding is a function of paths and shapes, outside the models. A mesh has the axes ``data`` (`core.AXIS`: the
batch is split, parameters are copied) and ``fsdp`` (the batch is split, and so are parameters and optimiser
state).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS, CARRY, PyTree

FSDP = "fsdp"
"""Mesh axis over which parameters and optimiser state are sharded, beside the batch."""

SMALLEST_SHARDED = 2**10
"""Parameters of fewer elements are copied to every device: gathering them costs more than keeping them."""

Mode = Literal["jit", "shard_map", "pmap"]
Step = Callable[[PyTree, Any], tuple[PyTree, PyTree]]


def make_mesh(spec: str | Mesh | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh from a text such as ``"data:4,fsdp:2"``; one size may be -1 for all devices that are left.

    Args:
        spec: the text; or a mesh, returned as it is; or None for every device along ``data``.
        devices: those to take; all that are here when None.

    Returns:
        A mesh over the first devices, as many as the sizes multiply to.

    Raises:
        ValueError: for a text that cannot be read, unknown axes, or more devices than there are.

    Example:
        >>> dict(make_mesh("data:1,fsdp:1").shape)
        {'data': 1, 'fsdp': 1}
    """
    if isinstance(spec, Mesh):
        return spec
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    sizes: dict[str, int] = {}
    for part in (spec or f"{AXIS}:-1").split(","):
        name, _, size = part.strip().partition(":")
        if name not in (AXIS, FSDP) or name in sizes or not re.fullmatch("-1|0*[1-9][0-9]*", size):
            raise ValueError(
                f'mesh must read like "{AXIS}:4" or "{AXIS}:4,{FSDP}:2" (-1 for all devices left); '
                f"got {spec!r}"
            )
        sizes[name] = int(size)
    known = math.prod(size for size in sizes.values() if size > 0)
    sizes = {name: size if size > 0 else max(available // known, 1) for name, size in sizes.items()}
    needed = math.prod(sizes.values())
    if needed > available:
        raise ValueError(
            f"mesh {spec!r} needs {needed} devices; {available} {devices[0].platform} devices are there"
        )
    grid = np.asarray(devices[:needed]).reshape(*sizes.values())
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_spec(mesh: Mesh) -> P:
    """How a batch lies on the mesh: its examples split over every axis."""
    return P(tuple(mesh.axis_names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """`batch_spec` as a sharding."""
    return NamedSharding(mesh, batch_spec(mesh))


def check_batch(batch: PyTree, mesh: Mesh, processes: int = 1) -> int:
    """The number of examples of a (whole) batch.

    Args:
        batch: a batch, or this process's rows of it.
        mesh: the mesh it will be split over.
        processes: how many processes have such rows.

    Raises:
        ValueError: if it is empty, its arrays differ in length, or it does not divide over the mesh.
    """
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (np.shape(x) or (0,))[0]
        for path, x in jax.tree_util.tree_leaves_with_path(dict(batch))
    }
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the arrays of a batch must have one length; got {sizes}")
    size = next(iter(sizes.values())) * processes
    if size == 0 or size % mesh.size:
        raise ValueError(
            f"a batch of {size} examples cannot be split evenly over {mesh.size} devices: "
            f"use a multiple of {mesh.size}, or fewer devices "
            f"(mesh={f'{AXIS}:{math.gcd(size, mesh.size)}'!r})"
        )
    return size


def state_specs(state: PyTree, mesh: Mesh) -> PyTree:
    """How a state lies on the mesh: a `PartitionSpec` for each array, by its path and shape.

    Recurrent carries are split like the batch. Along ``fsdp`` each other array of at least
    `SMALLEST_SHARDED` elements is split on its largest axis that divides evenly. The rest is copied.

    Args:
        state: a tree of arrays or of `jax.ShapeDtypeStruct`.
        mesh: the mesh.

    Returns:
        A tree of the same structure.
    """
    parts = mesh.shape.get(FSDP, 1)

    def spec(path: Any, x: Any) -> P:
        if is_carry(path):
            return batch_spec(mesh)
        if parts > 1 and math.prod(x.shape) >= SMALLEST_SHARDED:
            divisible = [axis for axis, size in enumerate(x.shape) if size % parts == 0]
            if divisible:
                axis = max(divisible, key=lambda axis: x.shape[axis])
                return P(*[FSDP if i == axis else None for i in range(x.ndim)])
        return P()

    return jax.tree_util.tree_map_with_path(spec, state)


def is_carry(path: Any) -> bool:
    """Whether a path in a state leads to a recurrent carry."""
    return f"'{CARRY}'" in jax.tree_util.keystr(path)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """`state_specs` as shardings."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), state_specs(state, mesh), is_leaf=lambda x: isinstance(x, P)
    )


def distributed(step: Step, mesh: Mesh, mode: Mode, state: PyTree) -> Step:
    """A step on whole arrays, to be called under `jax.jit`, that runs in one of the three modes.

    "jit" leaves the split to the compiler; "shard_map" and "pmap" run the step once a device on its own part
    of the batch, with `core.AXIS` bound.

    Args:
        step: ``state, batch -> state, metrics``, metrics the same on every device.
        mesh: the mesh; for "shard_map" and "pmap" with the axis ``data`` alone.
        mode: one of the three.
        state: the state, or its shapes.

    Returns:
        A function with the arguments and results of ``step``.

    Raises:
        ValueError: for an unknown mode, or a mesh that it cannot use.
    """
    if mode == "jit":
        return step
    if mode not in ("shard_map", "pmap"):
        raise ValueError(f'mode must be "jit", "shard_map" or "pmap"; got {mode!r}')
    if mesh.axis_names != (AXIS,):
        raise ValueError(
            f'mode {mode!r} splits the batch alone: the mesh must read "{AXIS}:N"; got {dict(mesh.shape)}'
        )
    specs = state_specs(state, mesh)
    if mode == "shard_map":
        return jax.shard_map(
            step, mesh=mesh, in_specs=(specs, P(AXIS)), out_specs=(specs, P()), check_vma=False
        )
    devices = mesh.devices.size

    def is_spec(x: Any) -> bool:
        return isinstance(x, P)

    axes = jax.tree.map(lambda spec: None if spec == P() else 0, specs, is_leaf=is_spec)

    def split(x: Any) -> Any:
        return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])

    def on_carry(function: Callable[[Any], Any], state: PyTree) -> PyTree:
        return jax.tree.map(lambda spec, x: x if spec == P() else function(x), specs, state, is_leaf=is_spec)

    mapped = jax.pmap(
        step, axis_name=AXIS, in_axes=(axes, 0), out_axes=(axes, None), devices=list(mesh.devices.flat)
    )

    def pmapped(state: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
        state, metrics = mapped(on_carry(split, state), jax.tree.map(split, dict(batch)))
        return on_carry(lambda x: x.reshape(-1, *x.shape[2:]), state), metrics

    return pmapped
