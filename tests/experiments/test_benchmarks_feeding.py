"""Whether reading keeps up with training: what is done once does not count as a step's."""

import jax
import pytest
from flax import linen

from experiments.benchmarks import feeding
from jdl import models, train
from jdl.nn import as_float, global_mean


class Small(linen.Module):
    num_classes: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return linen.Dense(self.num_classes)(global_mean(as_float(x)))


def test_a_step_takes_what_more_steps_take_longer(monkeypatch):
    pytest.importorskip("grain")
    now, real, fitted = [0.0], train.fit, []

    def fit(learner, batches, count, **options):
        real(learner, batches, 1, **options)
        is_folder = not hasattr(batches, "arrays")
        fitted.append(is_folder)
        now[0] += 3.0 + count * (0.7 if is_folder else 0.5)

    def clock():
        now[0] += 0.001
        return now[0]

    monkeypatch.setenv("JDL_PLAIN", "1")
    monkeypatch.setattr(feeding, "IMAGES", 8)
    monkeypatch.setattr(feeding, "BATCH", 4)
    monkeypatch.setattr(models, "mobilenet_v2", Small)
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(feeding.time, "perf_counter", clock)
    reading, resident, fed = feeding.times(steps=6, few=2, repeats=3).values()
    assert len(reading) == 6
    assert resident == pytest.approx([0.5] * 3, abs=0.05)
    assert fed == pytest.approx([0.7] * 3, abs=0.05)
    assert fitted == [False] * 7 + [True] * 7
