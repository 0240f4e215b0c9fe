"""Prepares a process for training: memory, compiler flags, compilation cache.

These are choices for a whole process, so one call at the top of a script makes them, never an import.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version

import jax

from jdl.data.download import cache_folder

PLAIN = "JDL_PLAIN"
"""Environment variable that, set to anything, makes `prepare` do nothing."""

CPU_FLAGS = ("--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",)
"""Flags under which XLA:CPU is faster; each is used only where this jaxlib knows it."""


def prepare(*, compilation_cache: bool = True, devices: int | None = None) -> None:
    """Makes this process fast; call it before anything is computed.

    - Compiled programs are kept on disk, so that the next process starts without compiling.
    - XLA:CPU frees its scratch memory after every step, and the C library would hand it back to the system,
      to be cleared page by page in the next: it is told to keep it, but for what a compilation leaves behind.
    - A program is computed by the thread that calls it, which waits for it. Otherwise it takes up one of
      XLA:CPU's threads (on two cores a GPT's step took a third longer, an LSTM's an eighth), and steps that
      are sent ahead hold their scratch memory meanwhile.
    - XLA:CPU gets the flags in `CPU_FLAGS`.

    On an accelerator only the cache is set up. JDL_PLAIN=1 in the environment undoes all of it.

    Args:
        compilation_cache: whether to keep compiled programs.
        devices: as how many devices a CPU counts, for a mesh (``fit(..., mesh="data:2", mode="shard_map")``
            computes halves of the batch side by side, with no thread waiting for another: on two cores an
            LSTM's or a GRU's step took a fifth less); one when None.

    Raises:
        RuntimeError: if something was computed before, and ``devices`` would come too late.

    Example:
        >>> prepare(compilation_cache=False)
    """
    if os.environ.get(PLAIN):
        return
    if compilation_cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if _expects_cpu():
        _keep_memory()
        _compute_in_caller()
        if devices is not None:
            jax.config.update("jax_num_cpu_devices", devices)
        flags = os.environ.get("XLA_FLAGS", "")
        new = [flag for flag in CPU_FLAGS if flag.partition("=")[0] not in flags and _is_known(flag)]
        os.environ["XLA_FLAGS"] = " ".join(filter(None, [flags, *new]))


def _expects_cpu() -> bool:
    """Whether JAX will run on the CPU, told without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms:
        return platforms.split(",")[0] == "cpu"
    accelerators = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
    return platform.system() != "Darwin" and not any(os.path.exists(path) for path in accelerators)


def _keep_memory() -> None:
    """Tells glibc's allocator to keep freed memory, and to hand out large blocks from it."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    mallopt(m_arena_max, 1)
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    _hand_back_after_compiling()


@functools.cache  # listeners add up
def _hand_back_after_compiling() -> None:
    """Compiling, or loading a compiled program, needs memory in small pieces, which no step can use again."""
    trim = ctypes.CDLL(None).malloc_trim

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listener)


def _compute_in_caller() -> None:
    """Lets XLA:CPU compute a program in the thread that calls it."""
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def _is_known(flag: str) -> bool:
    """Whether this jaxlib knows a flag. An unknown one aborts the process, so another is asked, once."""
    path = cache_folder() / f"flags-{version('jaxlib')}.json"
    try:
        known = dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        known = {}
    if flag not in known:
        script = "import jax; jax.devices()"
        environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        if done.returncode and b"flag" not in done.stderr.lower():
            return False  # It failed for another reason, so the next process asks again.
        known[flag] = done.returncode == 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(known))
        except OSError:
            pass
    return bool(known[flag])
