"""The strict house of the tests: eight fake devices, no silent broadcasting, compilations kept.

Everything here acts on import or through pytest's hooks, so that the doctests of the package run in the
same house as the tests. What a test may ask for: `devices`, `torch` (an independent reference, which makes
it a parity test), `official_data` and `checking_leaks`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before the first import of jax, which reads them once. Processes that a test starts inherit all of it.
DEVICES = 8
FLAGS = {
    "xla_force_host_platform_device_count": str(DEVICES),
    # Most programs here run a few times: the graphs are optimised as ever, machine code hardly at all,
    # which took a third off the processor time of the files it was measured on.
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
}
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in FLAGS.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={value}".strip()
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

HAS_TORCH = importlib.util.find_spec("torch") is not None
NO_DATA = "needs the official files of"


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs in one folder for all workers, processes and later runs."""
    folder = os.environ.get("JDL_TEST_CACHE") or str(config.rootpath / ".pytest_cache" / "compiled")
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks who asks for `torch` as a parity test, and skips parity tests where there is no reference."""
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)
        if item.get_closest_marker("parity") and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason="parity: the independent reference is not installed"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what tests have to report, what the contract costs, and how many lacked a reference or data."""
    costs: dict[str, float] = {}
    for report in [report for reports in terminalreporter.stats.values() for report in reports]:
        for name, value in getattr(report, "user_properties", ()):
            if name == "contract":
                costs[value] = costs.get(value, 0.0) + report.duration
            if name == "report" and report.when == "call":
                terminalreporter.write_line(str(value))
    if costs:
        each = ", ".join(f"{model} {seconds:.1f} s" for model, seconds in costs.items())
        terminalreporter.write_line(f"contract suite: {each}")
    skipped = terminalreporter.stats.get("skipped", [])
    parity = sum("parity" in report.keywords for report in skipped)
    if parity:
        terminalreporter.write_line(f'{parity} parity tests skipped: pip install -e ".[parity]" runs them')
    data = sum(NO_DATA in str(report.longrepr) for report in skipped)
    if data:
        terminalreporter.write_line(f"{data} tests skipped for want of data: set JDL_DATA to their folder")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Frees what a module compiled, which would otherwise add up to gigabytes over a run.

    And keeps compiled programs again, which a mesh of several devices ends.
    """
    yield
    jax.clear_caches()
    if not jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    """The fake devices."""
    found = jax.devices()
    assert len(found) >= DEVICES, f"the tests need {DEVICES} devices and found {len(found)}"
    return found[:DEVICES]


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, as an independent reference, on one thread so that its sums do not depend on the machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def official_data() -> Callable[[str], Path]:
    """``name -> folder`` of the official files under ``$JDL_DATA``; skips the test where they are not."""

    def folder(name: str) -> Path:
        root = os.environ.get("JDL_DATA")
        if not root or not (Path(root) / name).is_dir():
            pytest.skip(f"{NO_DATA} {name} under $JDL_DATA")
        return Path(root) / name

    return folder


@pytest.fixture
def checking_leaks() -> Iterator[None]:
    """Makes a tracer that outlives its transformation an error; slow, so for the tests that look for it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.checking_leaks())
        yield
