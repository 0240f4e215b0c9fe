"""The study of eight Gaussians: its data, what it counts and keeps."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import cli, eight_gaussians, ledger


def test_points_are_of_the_mixture():
    x = np.array(eight_gaussians.points(4000, 0, 3)["inputs"])
    distances = np.linalg.norm(x[:, None] - eight_gaussians.CENTRES[None], axis=2)
    np.testing.assert_allclose(np.bincount(distances.argmin(1)) / 4000, 1 / 8, atol=0.02)
    # Squared distances of a normal distribution in the plane: twice the variance.
    np.testing.assert_allclose((distances.min(1) ** 2).mean(), 2 * 0.1**2, rtol=0.1)
    again, other = (np.array(eight_gaussians.points(4000, 0, step)["inputs"]) for step in (3, 4))
    assert (again == x).all()
    assert (other != x).any()


def test_every_game_has_players():
    config = eight_gaussians.Config(width=4)
    for name in eight_gaussians.GAMES:
        learner, judges = eight_gaussians.learner(config, name)
        batch = {"inputs": jax.ShapeDtypeStruct((4 * judges, 2), np.float32)}
        state = jax.eval_shape(learner.init, jax.random.key(0), batch)
        jax.eval_shape(learner.step, state, batch)
    with pytest.raises(ValueError, match="there is no game chess; there are minimax"):
        eight_gaussians.learner(config, "chess")


def test_the_study_is_kept_and_is_not_done_twice(tmp_path, monkeypatch, capsys):
    config = eight_gaussians.Config(
        games=("hinge_r1",), steps=30, batch_size=16, width=8, samples=200, repeats=1,
        execution=cli.Execution(str(tmp_path / "study"), "data:1"),
    )  # fmt: skip
    found = eight_gaussians.main(config)
    assert 0 <= found["hinge_r1"]["modes"][0] <= 8
    assert "samples near a mode" in capsys.readouterr().out
    assert (tmp_path / "study/hinge_r1-0.png").stat().st_size > 1000
    (entry,) = ledger.read(tmp_path / "study/ledger")
    assert entry.name == "eight_gaussians"
    monkeypatch.setattr(eight_gaussians, "measure", lambda *_: pytest.fail("done twice"))
    assert eight_gaussians.main(config) == found
    with pytest.raises(ValueError, match="steps was 30 and is now 31"):
        eight_gaussians.main(dataclasses.replace(config, steps=31))
