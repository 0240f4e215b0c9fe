"""What a device can do: its peak rates and its memory, from the makers' data sheets or measured here."""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GIB = 2**30


class Chip(NamedTuple):
    """What one device can do at best.

    Attributes:
        name: its name.
        flops: floating-point operations a second in products of bfloat16.
        flops_float32: the same of float32, at the precision that JAX takes by default (a TPU rounds the
            inputs to bfloat16, an NVIDIA GPU to TF32).
        bandwidth: bytes a second between it and its memory.
        memory: bytes of its memory.
        interconnect: bytes a second that it sends to its neighbours, all links together; 0 where unknown.
        source: where the figures are from.
    """

    name: str
    flops: float
    flops_float32: float
    bandwidth: float
    memory: float
    interconnect: float
    source: str

    def peak(self, dtype: str) -> float:
        """Operations a second in products of a type."""
        return self.flops_float32 if dtype in ("float32", "float64") else self.flops


CLOUD = 'Google Cloud documentation, "TPU architecture"'
PAPER = 'Jouppi et al., "A domain-specific supercomputer for training deep neural networks", 2020'
NVIDIA = "NVIDIA's data sheet, without sparsity"

CHIPS = {
    "TPU v2": Chip("TPU v2", 46e12, 46e12, 700e9, 16 * GIB, 248e9, PAPER),
    "TPU v3": Chip("TPU v3", 123e12, 123e12, 900e9, 32 * GIB, 328e9, PAPER),
    "TPU v4": Chip("TPU v4", 275e12, 275e12, 1228e9, 32 * GIB, 300e9, CLOUD),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 197e12, 819e9, 15.75 * GIB, 200e9, CLOUD),
    "TPU v5": Chip("TPU v5p", 459e12, 459e12, 2765e9, 95 * GIB, 600e9, CLOUD),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 918e12, 1640e9, 31.25 * GIB, 400e9, CLOUD),
    "TPU7x": Chip("TPU7x", 2307e12, 2307e12, 7380e9, 192 * GIB, 600e9, CLOUD),
    "NVIDIA H200": Chip("H200 SXM", 989e12, 495e12, 4.8e12, 141e9, 450e9, NVIDIA),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989e12, 495e12, 3.35e12, 80 * GIB, 450e9, NVIDIA),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 378e12, 2.0e12, 80 * GIB, 64e9, NVIDIA),
    "NVIDIA A100-SXM4-80GB": Chip("A100 SXM", 312e12, 156e12, 2.039e12, 80 * GIB, 300e9, NVIDIA),
    "NVIDIA A100-SXM4-40GB": Chip("A100 SXM", 312e12, 156e12, 1.555e12, 40 * GIB, 300e9, NVIDIA),
    "NVIDIA L4": Chip("L4", 121e12, 60e12, 300e9, 24e9, 0, NVIDIA),
    # No bfloat16 in its tensor cores, which XLA then computes as float32.
    "Tesla T4": Chip("T4", 8.1e12, 8.1e12, 320e9, 16e9, 0, NVIDIA),
}
"""Peaks by `jax.Device.device_kind`, a chip each. Memory is what a program may use of it, where that is known
to be less than what is built in (15.75 of the 16 GiB of a v5e, as its compiler says)."""

CORES = {"TPU v2": 2, "TPU v3": 2, "TPU v4": 2, "TPU v5": 2, "TPU7x": 2}
"""Cores of a chip, where a device may be one of them."""

QUIETLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment of a libtpu that only compiles: it asks no network where it is, and locks no device."""

ONE_HOST = {
    f"{chip}:{shape}": bounds
    for chip in ("v5e", "v6e")
    for shape, bounds in (("1x1", (1, 1, 1)), ("2x4", (2, 4, 1)))
}
"""Topologies that one host has, and its chips; libtpu would have four on each."""
EXAMPLES = ("v5e:1x1", "v5e:2x4", "v5e:16x16", "v6e:2x4", "v5p:2x2x1", "v5p:8x8x16", "v4:2x2x1")


def chip_of(device: Any, sharing: int = 1) -> Chip:
    """What a device can do at best: as listed, or measured, in a moment, where it is here and unlisted.

    Args:
        device: a device, or one of a topology.
        sharing: how many devices of a program share the machine, where they are CPUs: each has its part of
            the rates and of the memory.

    Raises:
        ValueError: for a device that is neither listed nor here.
    """
    kind = device.device_kind
    if kind not in CHIPS:
        if device.platform == "tpu":
            raise ValueError(f"no peak rates are known of the device {kind!r}; known are {', '.join(CHIPS)}")
        chip = measured(device.platform)
        return _part(chip, 1 / sharing) if device.platform == "cpu" else chip
    chip = CHIPS[kind]
    cores = CORES.get(kind, 1)
    share = min(1.0, getattr(device, "num_cores", cores) / cores)
    if share < 1:
        chip = _part(chip, share)._replace(name=f"{chip.name} core")
    with suppress(Exception):  # a device of a topology has no memory to ask
        chip = chip._replace(memory=device.memory_stats()["bytes_limit"])
    return chip


def _part(chip: Chip, share: float) -> Chip:
    """A part of a chip: its share of the rates and of the memory."""
    return chip._replace(
        flops=share * chip.flops,
        flops_float32=share * chip.flops_float32,
        bandwidth=share * chip.bandwidth,
        memory=share * chip.memory,
        interconnect=share * chip.interconnect,
    )


@functools.cache
def measured(platform: str) -> Chip:
    """A device of this machine by what it does: one large product, and one pass over a large array."""
    is_cpu = platform == "cpu"
    n, length = (1024, 2**23) if is_cpu else (4096, 2**28)
    device = jax.local_devices(backend=platform)[0]
    with jax.default_device(device):
        product = jax.jit(lambda x: x @ x / n, donate_argnums=0)
        dtypes = (jnp.float32,) if is_cpu else (jnp.bfloat16, jnp.float32)
        rates = [2 * n**3 / _seconds(product, jnp.ones((n, n), dtype)) for dtype in dtypes]
        copied = _seconds(jax.jit(lambda x: x + 1, donate_argnums=0), jnp.ones(length, jnp.float32))
        bandwidth = 8 * length / copied
    return Chip(
        name=device.device_kind,
        flops=rates[0],
        flops_float32=rates[-1],
        bandwidth=bandwidth,
        memory=_memory(device),
        interconnect=bandwidth if is_cpu else 0.0,
        source="measured here: a product and a copy",
    )


def _seconds(function: Callable[[Any], Any], x: Any) -> float:
    """The shortest of three runs, each on what the one before gave."""
    found = []
    for _ in range(4):
        start = time.perf_counter()
        x = function(x).block_until_ready()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _memory(device: Any) -> float:
    """Bytes of a device's memory; of a CPU, those that this process may use."""
    if device.platform != "cpu":
        return float((device.memory_stats() or {}).get("bytes_limit", float("inf")))
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(float(Path(path).read_text()))
    return min(found)


def topology(name: str) -> list[Any]:
    """The devices of a TPU topology that need not be here, for compiling ahead of time.

    Args:
        name: the generation and the shape, such as "v5e:2x4".

    Raises:
        ImportError: without libtpu.
        ValueError: for a topology that there is not.

    Example:
        >>> len(topology("v5e:2x4"))  # doctest: +SKIP
        8
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError('compiling for a TPU needs libtpu: pip install -e ".[tpu]"')
    for variable, value in QUIETLY.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        whole = {"chips_per_host_bounds": ONE_HOST[name]} if name in ONE_HOST else {}
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **whole).devices)
    except Exception as error:
        reason = str(error).strip().splitlines()[0].partition(": ")[2]
        raise ValueError(
            f"no topology is called {name!r} ({reason or error}); some are {', '.join(EXAMPLES)}"
        ) from None
