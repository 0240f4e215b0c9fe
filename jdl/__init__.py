"""jdl: learning as pure functions on JAX.

The rooms are imported when they are first used: ``import jdl`` alone costs nothing, and ``jdl.train.fit``
works after it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

ROOMS = ("audit", "core", "data", "interop", "learners", "models", "nn", "tasks", "train")


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return importlib.import_module(f"jdl.{name}")
    raise AttributeError(f"jdl has the rooms {', '.join(ROOMS)}; there is no {name!r}")


def __dir__() -> list[str]:
    return [*ROOMS, "ROOMS"]
