"""The machine in words, and what a run costs on it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.catalogue import ROOT


def device_description() -> dict[str, Any]:
    """The machine in words: processor, cores, memory, JAX's version and what it computes on."""
    import jax
    import jaxlib

    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    description: dict[str, Any] = {"processor": _processor(), **_generation(), "cores": cores}
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        description["memory_gib"] = round(memory / 2**30, 1)
    description |= {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
    }
    return description


@functools.cache
def commit(root: Path = ROOT) -> str:
    """The commit of the code when first asked, and whether code was changed since; "" if there is no git."""
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        # Results that are written meanwhile change no code.
        return f"{head}, changed" if git("status", "--porcelain", "--", "*.py") else head
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _generation() -> dict[str, str]:
    """Which of the processors of that name it is, and its widest instructions, where Linux tells."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "cpu family" in told:
            wide = [x for x in ("avx2", "avx512f", "amx_bf16") if x in told.get("flags", "").split()]
            number = "-".join(told.get(name, "?") for name in ("cpu family", "model", "stepping"))
            return {"family_model_stepping": number, "instructions": " ".join(wide)}
    return {}


WATTS_A_CORE = 5.0
"""Assumed where nothing can be read: a server processor's thermal design power divided by its cores."""


class Meter:
    """Wall-clock time and energy of what runs inside a ``with``.

    Energy is read from the processor's counters (RAPL) and an NVIDIA card's, where they can be read;
    otherwise it is estimated from the processor time used by this process and its finished children.

    Attributes:
        seconds: wall-clock time.
        energy_wh: energy in watt hours, or None where it cannot even be estimated.
        how: how the energy was measured or estimated, or why it was not.

    Example:
        >>> with Meter() as meter:
        ...     total = sum(range(1000))
        >>> meter.seconds > 0 and bool(meter.how)
        True
    """

    seconds: float
    energy_wh: float | None
    how: str

    def __enter__(self) -> Meter:
        self._counters = _processor_counters()
        self._card = _card_joules()
        self._busy = _processor_seconds()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._counters:
            after = _processor_counters()
            joules = sum((after[p][0] - j) % top for p, (j, top) in self._counters.items() if p in after)
            self.how = "measured by the processor's RAPL counters (the whole package)"
        else:
            joules = WATTS_A_CORE * (_processor_seconds() - self._busy)
            self.how = f"estimated as {WATTS_A_CORE:g} W for each second of processor time, not measured"
        card = _card_joules()
        if self._card is not None and card is not None:
            joules += card - self._card
            self.how += ", plus the graphics card's own counter"
        elif "jax" in sys.modules and sys.modules["jax"].default_backend() != "cpu":
            self.energy_wh, self.how = None, "not known: the accelerator's energy cannot be read here"
            return
        self.energy_wh = joules / 3600


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def _processor_counters() -> dict[str, tuple[float, float]]:
    """Joules so far of each processor package, and the value at which its counter starts again."""
    counters = {}
    for zone in sorted(Path("/sys/class/powercap").glob("intel-rapl:?")):
        with contextlib.suppress(OSError, ValueError):
            top = int((zone / "max_energy_range_uj").read_text()) / 1e6
            counters[zone.name] = int((zone / "energy_uj").read_text()) / 1e6, top
    return counters


def _card_joules() -> float | None:
    """Joules so far of the NVIDIA cards that this process may see, or None."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(card) for card in cards) / 1e3
    except pynvml.NVMLError:
        return None
