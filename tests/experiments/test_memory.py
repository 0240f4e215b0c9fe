"""The memory problems are what they say, and the study runs, is kept and is not done twice."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import cli, memory


def test_marked_steps_lie_in_each_half_and_add_up():
    batch = memory.adding(np.random.default_rng(0), 50, 9)
    numbers, marks = np.moveaxis(batch["inputs"], -1, 0)
    assert (marks[:, :4].sum(1) == 1).all()
    assert (marks[:, 4:].sum(1) == 1).all()
    np.testing.assert_allclose((numbers * marks).sum(1), batch["labels"][:, 0], rtol=1e-6)
    # Who answers 1 has the variance of two uniform numbers.
    many = memory.adding(np.random.default_rng(0), 20_000, 4)["labels"]
    assert np.mean((many - 1) ** 2) == pytest.approx(1 / 6, rel=0.05)


def test_batches_follow_from_seed_and_step_alone():
    draw = memory.drawn("copy", 3, 5, 0)
    assert all(np.array_equal(a, b) for a, b in zip(draw(7).values(), draw(7).values(), strict=True))
    assert not np.array_equal(draw(7)["inputs"], draw(8)["inputs"])
    assert not np.array_equal(draw(7)["inputs"], memory.drawn("copy", 3, 5, 1)(7)["inputs"])
    test = {row.tobytes() for row in memory.copying(np.random.default_rng(0), 12, 5)["inputs"]}
    learnt = {row.tobytes() for i in range(4) for row in draw(i)["inputs"]}
    assert not test & learnt, "the test sequences, which are drawn from the seed alone, are no training ones"


@pytest.mark.parametrize("problem", ["adding", "copy"])
def test_networks_of_all_kinds_are_of_one_size_and_fit_the_problem(problem):
    batch = memory.DRAWN[problem](np.random.default_rng(0), 2, 12)
    for kind in memory.NAMES:
        module = memory.fitting(kind, problem, 20_000)
        assert memory.size_of(module, batch) == pytest.approx(20_000, rel=0.15)
        outputs = jax.eval_shape(lambda m=module: m.init_with_output(jax.random.key(0), batch["inputs"])[0])
        assert outputs.shape == ((2, 1) if problem == "adding" else (2, 32, 9))


def test_the_study_is_kept_and_is_not_done_twice(tmp_path, monkeypatch, capsys):
    config = memory.Config(
        lengths=(4,), networks=("rnn",), parameters=300, steps=60, test=20, learning_rate=0.03,
        execution=cli.Execution(str(tmp_path / "study"), "data:1"),
    )  # fmt: skip
    found = memory.main(config)
    for problem in ("adding", "copy"):
        (one,) = found[problem]["4"]["rnn"]
        assert one["curve"]["errors"][-1] == one["error"] < one["curve"]["errors"][0]
        assert 0 <= one["solved"] <= 1
    assert "sequences solved" in capsys.readouterr().out
    assert (tmp_path / "study/ledger/memory_adding.json").exists()
    with Image.open(tmp_path / "study/memory.png") as picture:
        assert min(picture.size) > 400
    monkeypatch.setattr(memory, "measure", None)
    quiet = dataclasses.replace(config, execution=dataclasses.replace(config.execution, quiet=True))
    assert memory.main(quiet) == found


def test_what_pictures_need_is_missed_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(memory, "measure", None)
    with pytest.raises(ImportError, match=r'matplotlib: pip install -e ".\[experiments\]"'):
        memory.main(memory.Config(lengths=(4,), execution=cli.Execution(str(tmp_path / "study"), quiet=True)))


def test_mistakes_are_explained(tmp_path):
    execution = cli.Execution(str(tmp_path / "study"), quiet=True)
    with pytest.raises(ValueError, match="lengths of at least 4 steps"):
        memory.main(memory.Config(lengths=(3,), execution=execution))
