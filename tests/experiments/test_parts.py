"""Of several processes each reads its own part of every batch, and the first alone talks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import cli, lenet, masked_language, shakespeare, translation
from jdl import data, train

POEM = "the sea is wide and the sky is high\nand nobody knows the reason why\n"

SMALL: dict[str, Callable[[cli.Execution], Any]] = {
    "images": lambda where: lenet.main(lenet.Config(batch_size=16, execution=where)),
    "shakespeare": lambda where: shakespeare.main(
        shakespeare.Config(context=4, batch_size=4, width=8, num_heads=2, depth=1, sampled=2, execution=where)
    ),
    "masked_language": lambda where: masked_language.main(
        masked_language.Config(vocab_size=270, context=4, batch_size=4, execution=where)
    ),
    "translation": lambda where: translation.main(
        translation.Config(vocab_size=270, width=8, batch_tokens=128, buckets=2, execution=where)
    ),
}


class Begun(Exception):
    """Raised instead of training."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an experiment gives to `fit`, which does nothing with it."""
    pairs = data.Pairs(tuple(POEM.split()), tuple(POEM.upper().split()))
    parallel = data.Parallel("multi30k", ("en", "de"), pairs, pairs, {}, "0" * 64, "made here")
    text = data.Text("tiny_shakespeare", 40 * POEM, 9 * POEM, None, "fingerprint", "made here")
    monkeypatch.setattr(data, "load_text", lambda name: text)
    monkeypatch.setattr(data, "load_parallel", lambda name: parallel)
    found: dict[str, Any] = {}

    def fit(learner: Any, batches: Any, steps: int, **named: Any) -> None:
        found.update(named, sets={"train": batches, **named["evaluation"]})
        raise Begun

    monkeypatch.setattr(train, "fit", fit)
    return found


@pytest.mark.parametrize("experiment", SMALL)
def test_the_parts_together_are_the_batch_of_one_process(
    experiment: str,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(index: int, count: int) -> dict[str, Any]:
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        with pytest.raises(Begun):
            SMALL[experiment](cli.Execution(run=str(tmp_path)))
        assert bool(given["loggers"]) == (index == 0)
        assert bool(capsys.readouterr().out) == (index == 0)
        assert count == 1 or not given.get("evaluators")
        found = {}
        for name, batches in given["sets"].items():
            assert batches.shard == (index, count)
            found[name] = [jax.device_get(batches(i)) for i in (0, len(batches) - 1)]
        return found

    whole, first, second = read(0, 1), read(0, 2), read(1, 2)
    assert whole.keys() == first.keys() == second.keys() > {"train"}
    for name, batches in whole.items():
        for batch, *parts in zip(batches, first[name], second[name], strict=True):
            joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
            jax.tree.map(np.testing.assert_array_equal, joined, batch)
