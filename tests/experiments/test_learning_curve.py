"""Learning curves: the fit against an independent one, and a study from end to end."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import optimize

from experiments import cli, learning_curve, ledger

SIZES = np.array([100, 300, 1000, 3000, 10_000, 30_000, 60_000])


def law(n, a, b, c):
    return a * n**-b + c


@pytest.mark.parametrize(("a", "b", "c"), [(300.0, 0.7, 0.5), (90.0, 0.35, 0.0), (5000.0, 1.2, 2.0)])
def test_the_law_is_found_and_agrees_with_scipy(a, b, c):
    exact = learning_curve.power_law(SIZES, law(SIZES, a, b, c))
    np.testing.assert_allclose(exact, (a, b, c), rtol=1e-3, atol=1e-6)
    noisy = law(SIZES, a, b, c) * np.exp(np.random.default_rng(0).normal(0, 0.05, SIZES.size))
    ours = learning_curve.power_law(SIZES, noisy)
    theirs, _ = optimize.curve_fit(
        law, SIZES, noisy, (a, b, c + 0.1), sigma=noisy, bounds=(0, np.inf), x_scale=(a, b, c + 0.1)
    )
    np.testing.assert_allclose(law(SIZES, *ours), law(SIZES, *theirs), rtol=0.01)
    assert ours.b == pytest.approx(theirs[1], abs=0.005)


def test_an_interval_holds_the_truth_and_shrinks_with_the_noise():
    rng = np.random.default_rng(1)
    truth, widths = law(SIZES, 300.0, 0.7, 0.5)[:, None], []
    for noise in 0.1, 0.01:
        errors_SR = truth * np.exp(rng.normal(0, noise, (SIZES.size, 5)))
        low, high = np.percentile(learning_curve.resampled(SIZES, errors_SR, 300).b, [2.5, 97.5])
        assert low < 0.7 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_fewer_than_three_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least three different sizes"):
        learning_curve.power_law([10, 10, 20], [3.0, 3.0, 2.0])
    execution = cli.Execution(run=str(tmp_path / "study"), quiet=True)
    with pytest.raises(ValueError, match="1 to the 1,437 of digits; got 10 100 1500"):
        learning_curve.main(
            learning_curve.Config(dataset="digits", sizes=(10, 100, 1500), execution=execution)
        )
    assert not (tmp_path / "study").exists()


def test_a_study_learns_is_kept_and_is_not_done_twice(tmp_path, monkeypatch, capsys):
    config = learning_curve.Config(
        dataset="digits", sizes=(30, 120, 600), repeats=1, steps=150, batch_size=30, resamples=20,
        execution=cli.Execution(run=str(tmp_path / "study")),
    )  # fmt: skip
    found = learning_curve.main(config)
    for each in found.values():
        errors = np.mean(each["errors"], -1)
        assert errors[0] > errors[-1]
        assert errors[-1] < 15
        assert np.shape(each["training_errors"]) == (3, 1)
    assert (tmp_path / "study/curves.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "LeNet-5: test error = " in printed

    (entry,) = ledger.read(tmp_path / "study/ledger")
    assert len(entry.rows) == 6
    assert entry.rows[0].samples == tuple(found["MLP"]["errors"][0])
    assert "--sizes 30 120 600" in entry.command

    monkeypatch.setattr(learning_curve, "measure", None)
    resumed = cli.resumed(learning_curve.Config, ["--resume", str(tmp_path / "study")])
    assert dataclasses.replace(resumed, execution=config.execution) == config
    assert learning_curve.main(resumed) == found
    assert json.loads((tmp_path / "study/curves.json").read_text())["MLP"] == found["MLP"]
    with pytest.raises(ValueError, match="steps was 150 and is now 151"):
        learning_curve.main(dataclasses.replace(config, steps=151))
