"""The classifier of speakers learns, and is shown frames that are standardised by the training part alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import cli, japanese_vowels


@pytest.fixture
def fake(monkeypatch):
    """Nine speakers who differ in the mean of one channel each, at lengths of 2 to 5."""

    def part(count, seed):
        rng = np.random.default_rng(seed)
        labels, lengths = np.arange(count) % 9, rng.integers(2, 6, count)
        sequence = rng.normal(3, 2, (count, 5, 12)) + 20 * np.eye(12)[labels][:, None]
        sequence *= np.arange(5)[None, :, None] < lengths[:, None, None]
        inputs = {"sequence": sequence.astype(np.float32), "lengths": lengths.astype(np.int32)}
        return {"inputs": inputs, "labels": labels.astype(np.int32)}

    dataset = SimpleNamespace(train=part(54, 0), test=part(36, 1), fingerprint="fake")
    monkeypatch.setattr(japanese_vowels.data, "load", lambda name: dataset)


def test_frames_are_standardised_and_some_may_be_held_out(fake):
    train, test, _ = japanese_vowels.parts(japanese_vowels.Config())
    real = np.arange(5)[None] < train["inputs"]["lengths"][:, None]
    frames = train["inputs"]["sequence"]
    np.testing.assert_allclose(frames[real].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(frames[real].std(0), 1, atol=1e-5)
    assert not frames[~real].any()
    assert len(test["labels"]) == 36
    train, test, _ = japanese_vowels.parts(japanese_vowels.Config(held_out=0.5))
    assert len(train["labels"]) == len(test["labels"]) == 27
    with pytest.raises(ValueError, match="must leave some of the 54 sequences; got 1.5"):
        japanese_vowels.parts(japanese_vowels.Config(held_out=1.5))


def test_learns(fake, tmp_path, capsys):
    config = japanese_vowels.Config(
        cell="rnn",
        features=8,
        steps=60,
        learning_rate=0.03,
        execution=cli.Execution(str(tmp_path / "run"), "data:1"),
    )
    outcome = japanese_vowels.main(config)
    assert outcome.test["accuracy"] > 0.8
    assert f"{100 * outcome.test['accuracy']:.2f} % of the sequences" in capsys.readouterr().out
