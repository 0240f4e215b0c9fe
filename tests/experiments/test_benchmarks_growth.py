"""Curves of cost: the fit, the points, and the files that are written."""

import json

import numpy as np
import pytest

from experiments import ledger
from experiments.benchmarks import __main__ as command_line
from experiments.benchmarks import growth

SMALL = growth.Axis("width of a small MLP", (8, 16, 32), lambda n: growth._mlp(4, n, n, n, 3), 2, 2)


def test_the_exponent_is_that_of_a_power_law_and_ignores_the_smallest_point():
    sizes = np.array([1, 2, 4, 8, 16])
    values = 3.0 * sizes**1.5
    values[0] = 100
    assert growth.exponent(sizes.tolist(), values.tolist()) == pytest.approx(1.5)
    assert growth.exponent([2, 4], [8.0, 4.0]) == pytest.approx(-1)
    for wrong in (([1], [1.0]), ([1, 2], [1.0, 0.0]), ([1, 2], [1.0])):
        with pytest.raises(ValueError, match="two points or more"):
            growth.exponent(*wrong)


def test_points_are_measured_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(growth.AXES, "small", SMALL)
    found = growth.curve("small", steps=2)
    assert found.sizes == [8, 16, 32]
    # Products forward, of the weights' gradients, and of the inputs' but for the first layer's.
    assert found.flops == [2 * 4 * (2 * n * n * 3 - n * n + 2 * n * 3 + n * 3) for n in found.sizes]
    # Parameters and both moments, with all they need in between, are at least three copies of the weights.
    assert all(m >= 4 * 3 * 2 * n * n for m, n in zip(found.memory, found.sizes, strict=True))
    assert 0 < found.exponents["memory"] < 2
    assert all(s > 0 for s in found.seconds)
    paths = growth.write([found], tmp_path)
    kept = json.loads(paths[0].read_text())["curves"]["small"]
    assert kept["expected"] == {"seconds": 2, "memory": 2}
    assert kept["fitted"] == pytest.approx(found.exponents)
    assert paths[1].stat().st_size > 1000
    assert "small" in growth.table([found])


def test_the_exponents_are_an_entry_of_the_ledger(tmp_path, monkeypatch):
    curves = [growth.Curve("width", [1, 2, 4, 8], [1.0, 2.0, 8.0, 32.0], [1, 2, 4, 8], [1, 4, 16, 64])]
    monkeypatch.setattr(growth, "measure", lambda: curves)
    options = command_line._parse(["growth", "--out", str(tmp_path)])
    (entry,) = command_line.measure_growth("growth", options)
    assert ledger.read(ledger.record(entry, tmp_path / "entries").parent) == [entry]
    (row,) = entry.rows
    assert row.label == "width of an MLP of 3 layers: 1 to 8"
    assert row.samples == pytest.approx((2.0,))
    assert row.more == {"expected of time": 2, "memory": 1.0, "expected of memory": 2, "operations": 2.0}


@pytest.mark.parametrize("name", growth.AXES)
def test_every_axis_makes_learners_of_its_sizes(name):
    """Shapes only: nothing is compiled."""
    import jax

    axis = growth.AXES[name]
    learner, batch = axis.make(axis.sizes[0])
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    after, _ = jax.eval_shape(learner.step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert list(axis.sizes) == sorted(set(axis.sizes))


def test_devices_share_the_state(devices):
    axis = growth.AXES["devices"]._replace(make=lambda n: growth._mlp(8, 64, 64, 64), sizes=(1, 8))
    found = growth.curve("devices", axis, steps=1)
    assert found.memory[1] < 0.5 * found.memory[0]
    assert found.flops[0] == found.flops[1]
