"""Devices: which there are, and the three ways to run one step on all of them. What lies where is said by
`jdl.train.sharding`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jdl.core import AXIS, SEQUENCE, TENSOR, PyTree, batch_axes
from jdl.train.sharding import AXES, FSDP, path_of, state_specs

Mode = Literal["jit", "shard_map", "pmap"]
Step = Callable[[PyTree, Any], tuple[PyTree, PyTree]]


def make_mesh(spec: str | Mesh | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh from a text such as ``"data:2,fsdp:2,tensor:2"``; one size may be -1 for all devices left.

    On a TPU the axes follow its network where they can; neighbours along the last axes named are nearest.
    Several CPU devices turn JAX's cache of compiled programs off in this process: programs for them come back
    from it broken.

    Args:
        spec: the text, with any of the axes ``data``, ``fsdp``, ``tensor`` and ``sequence``
            (`jdl.train.sharding` says what they mean); or a mesh; or None for every device along ``data``.
        devices: those to take; all that are here when None.

    Returns:
        A mesh over the first devices, as many as the sizes multiply to. A mesh comes back as it is, but for
        axes that JAX calls explicit or manual: the compiler is to split the work.

    Raises:
        ValueError: for a text that cannot be read, unknown axes, more devices than there are, or processes
            that would share examples.

    Example:
        >>> dict(make_mesh("data:1,fsdp:1").shape)
        {'data': 1, 'fsdp': 1}
    """
    if isinstance(spec, Mesh):
        is_automatic = all(kind == AxisType.Auto for kind in spec.axis_types)
        return _usable(spec if is_automatic else _automatic(spec.devices, spec.axis_names))
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    sizes: dict[str, int] = {}
    for part in (spec or f"{AXIS}:-1").split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES or name in sizes or not re.fullmatch("-1|0*[1-9][0-9]*", size):
            raise ValueError(
                f'mesh must read like "{AXIS}:4" or "{AXIS}:2,{FSDP}:2,{TENSOR}:2", with the axes '
                f"{', '.join(AXES)} (-1 for all devices left); got {spec!r}"
            )
        sizes[name] = int(size)
    known = math.prod(size for size in sizes.values() if size > 0)
    left = list(sizes.values()).count(-1)
    if left > 1 or (left and known <= available and available % known):
        raise ValueError(
            f"mesh {spec!r} leaves it open how the {available} {devices[0].platform} devices are split: -1 "
            f"stands for one axis, of all the devices left by others that divide them"
        )
    sizes = {name: size if size > 0 else max(available // known, 1) for name, size in sizes.items()}
    needed = math.prod(sizes.values())
    if needed > available:
        platform = devices[0].platform
        hint = f"; prepare(devices={needed}) first lets a CPU count as so many" if platform == "cpu" else ""
        raise ValueError(
            f"mesh {spec!r} needs {needed} devices; {available} {platform} devices are there{hint}"
        )
    return _usable(_laid_out(tuple(sizes.values()), tuple(sizes), list(devices[:needed])))


def _automatic(devices: Any, names: tuple[str, ...]) -> Mesh:
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def _laid_out(sizes: tuple[int, ...], names: tuple[str, ...], devices: list[Any]) -> Mesh:
    """A mesh whose axes follow the network, or where they cannot, the order of the devices."""
    in_order = _automatic(np.asarray(devices).reshape(sizes), names)
    if devices[0].platform != "tpu":
        return in_order
    try:
        mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)
    except (ValueError, NotImplementedError, AssertionError):
        return in_order  # Part of a slice, several slices, or sizes that do not fit the network's.
    return mesh if _are_apart(mesh) else in_order


def _are_apart(mesh: Mesh) -> bool:
    """Whether no example lies in two processes, so that each can read its own part of the data."""
    whole = [i for i, name in enumerate(mesh.axis_names) if name in (TENSOR, SEQUENCE)]
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return bool((owners.min(axis=tuple(whole)) == owners.max(axis=tuple(whole))).all())


def _usable(mesh: Mesh) -> Mesh:
    """The mesh, once it is known that its devices can work together."""
    if not _are_apart(mesh):
        raise ValueError(
            f"the axes {TENSOR} and {SEQUENCE} must lie within one process, since each reads examples of its "
            f"own: name them last, and no larger than its devices; got {dict(mesh.shape)}"
        )
    compile_anew(mesh)
    return mesh


def compile_anew(mesh: Mesh) -> None:
    """Turns JAX's compilation cache off in this process, where the mesh is of several CPU devices.

    XLA:CPU (jaxlib 0.10 to 0.12) forgets the order of a program's collectives when it reads the program from
    the cache, and its devices may then wait for one another for ever.
    """
    is_on = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu" and is_on:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or JAX goes by what it found the first time


def check_batch(batch: PyTree, mesh: Mesh, processes: int = 1) -> int:
    """The number of examples of a (whole) batch.

    Args:
        batch: a batch, or this process's rows of it.
        mesh: the mesh it will be split over.
        processes: how many processes have such rows.

    Raises:
        ValueError: if it is empty, its arrays differ in length, its examples do not divide over the mesh, or
            the second axis of none of its arrays does where the mesh has ``sequence``.
    """
    leaves = jax.tree_util.tree_leaves_with_path(dict(batch))
    sizes = {path_of(path): (np.shape(x) or (0,))[0] for path, x in leaves}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the arrays of a batch must have one length; got {sizes}")
    size = next(iter(sizes.values())) * processes
    parts = math.prod(mesh.shape[name] for name in batch_axes(mesh))
    if size == 0 or size % parts:
        others = "".join(f",{name}:{n}" for name, n in mesh.shape.items() if name in (TENSOR, SEQUENCE))
        raise ValueError(
            f"a batch of {size} examples cannot be split evenly over {parts} devices: use a multiple of "
            f"{parts}, or fewer devices (mesh={f'{AXIS}:{math.gcd(size, parts)}{others}'!r})"
        )
    shapes = {path_of(path): np.shape(x) for path, x in leaves}
    length = mesh.shape.get(SEQUENCE, 1)
    if not any(len(shape) > 1 and shape[1] % length == 0 for shape in shapes.values()) and length > 1:
        raise ValueError(
            f"the mesh has {SEQUENCE}:{length}, and no array of the batch a second axis that divides by it; "
            f"got {shapes}"
        )
    return size


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function whose traces know of the mesh."""

    def known(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return known


def distributed(step: Step, mesh: Mesh, mode: Mode, state: PyTree) -> Step:
    """A step on whole arrays, to be called under `jax.jit`, that runs in one of the three modes.

    "jit" leaves the split to the compiler, and tells `jdl.core.by_example` of the mesh; "shard_map" and
    "pmap" run the step once a device on its own part of the batch, with `core.AXIS` bound.

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
    compile_anew(mesh)
    if mode == "jit":
        return on_mesh(step, mesh)
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
