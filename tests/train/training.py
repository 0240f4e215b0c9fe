"""A small training run with BatchNorm, dropout and Adam: ``python -m tests.train.training '{...}'``."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen
from jax.experimental import multihost_utils

from jdl import data, learners, nn, tasks, train
from jdl.core import Learner

CLASSES = 4


class Net(linen.Module):
    """Every kind of state that a step may change."""

    width: int = 32
    dropout: float = 0.2
    normalize: bool = True

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        # A bias before BatchNorm has a gradient of rounding errors alone, which Adam would blow up.
        x = linen.Dense(self.width, use_bias=not self.normalize)(x)
        if self.normalize:
            x = nn.BatchNorm()(x, train)
        x = linen.Dropout(self.dropout, deterministic=not train)(jax.nn.relu(x))
        return linen.Dense(CLASSES)(x)


def arrays(n: int = 203, seed: int = 0) -> dict[str, np.ndarray]:
    """Noisy classes that a small network learns."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    means = np.random.default_rng(7).normal(size=(CLASSES, 12))
    return {"inputs": (means[labels] + rng.normal(size=(n, 12))).astype(np.float32), "labels": labels}


def learner(rate: float = 1e-2, **net: Any) -> Learner:
    return learners.gradient(tasks.classification(Net(**net)), optax.adam(rate))


def start(
    folder: str | Path | None = None,
    *,
    steps: int = 120,
    batch: int = 16,
    resident: bool = True,
    rate: float = 1e-2,
    net: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    loggers: Sequence[Any] = (),
    **options: Any,
) -> train.Fitted:
    """Trains; what is the same in all tests is said here."""
    examples, others = arrays(), arrays(61, seed=1)
    if folder is not None:
        settings = {
            "config": {"rate": rate, "net": net},
            "data": data.fingerprint(examples),
            "save_every": 8,
            **(run or {}),
        }
        options["run"] = train.Run(folder, **settings)
    shard = (jax.process_index(), jax.process_count())
    return train.fit(
        learner(rate, **(net or {})),
        data.shuffled(examples, batch, seed=3, shard=shard, resident=resident),
        steps,
        **{
            "evaluation": data.in_order(others, 24, shard=shard, resident=resident),
            "evaluate_every": 30,
            "log_every": 5,
            "mesh": "data:1",
            "loggers": loggers,
            **options,
        },
    )


def digest(tree: Any) -> str:
    """A hash of every bit of a tree."""
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if jax.process_count() > 1:
            x = multihost_utils.process_allgather(x, tiled=True)
        found.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode() + np.asarray(x).tobytes())
    return found.hexdigest()


def timeless(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what depends on the clock."""
    return [{name: x for name, x in record.items() if name != "steps_per_second"} for record in history]


def outcome(fitted: train.Fitted) -> dict[str, Any]:
    """All that two runs must agree on."""
    return {
        "state": digest(fitted.state),
        "variables": digest(fitted.variables),
        "history": timeless(fitted.history),
        "step": fitted.step,
        "best": fitted.best,
        "reason": fitted.reason,
    }


def main(pause: float = 0.0, result: str = "", **options: Any) -> None:
    """Trains slowly, says so step by step, and writes what came of it."""

    def slowly(record: dict[str, Any]) -> None:
        if record["split"] == "train":
            print(record["step"], flush=True)
            time.sleep(pause)

    fitted = start(loggers=[slowly], **options)
    if result:
        found = outcome(fitted)
        if jax.process_index() == 0:
            Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
