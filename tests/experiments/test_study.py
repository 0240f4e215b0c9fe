"""What studies share: a folder that knows its settings, and results that are measured once."""

import dataclasses

import pytest

from experiments import cli, ledger, study


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (1, 2)
    seed: int = 3
    repeats: int = 2
    execution: cli.Execution = dataclasses.field(default_factory=cli.Execution)


def test_a_folder_takes_the_same_settings_again_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = study.begin("toy", Config())
    assert str(first) == "runs/toy-1"
    again = cli.resumed(Config, ["--resume", str(first)])
    assert again.sizes == (1, 2)
    assert study.begin("toy", again) == first
    with pytest.raises(ValueError, match=r"runs/toy-1 holds a study with other settings: sizes was \[1, 2\]"):
        study.begin("toy", dataclasses.replace(again, sizes=(1,)))
    with pytest.raises(ValueError, match="experiment was 'toy' and is now 'other'"):
        study.begin("other", again)
    assert str(study.begin("toy", Config())) == "runs/toy-2"


def test_what_is_measured_is_measured_once_and_kept_whole(tmp_path):
    path = tmp_path / "points" / "a.json"
    with pytest.raises(RuntimeError, match="out of power"):
        study.once(path, lambda: (_ for _ in ()).throw(RuntimeError("out of power")))
    assert not path.exists()
    assert study.once(path, lambda: {"x": (1, 2.5)}) == {"x": [1, 2.5]}
    assert study.once(path, lambda: {"x": "another"}) == {"x": [1, 2.5]}
    path.write_text(path.read_text()[:5])
    with pytest.raises(ValueError, match=r"a\.json cannot be read"):
        study.once(path, dict)


def test_seeds_are_counted_from_the_first():
    assert list(study.seeds(Config())) == [3, 4]
    with pytest.raises(ValueError, match="at least 1; got 0"):
        study.seeds(Config(repeats=0))


def test_an_entry_is_offered_with_the_command_that_gives_it(tmp_path):
    config = Config(sizes=(4, 5))
    entry = study.offer(
        tmp_path, "mlp", config, name="toy", title="A toy", group="Images", metric="test error", goal="min",
        unit="%", subject=None, rows=(ledger.Row("one", (1.0, 2.0)),),
    )  # fmt: skip
    assert entry.command.startswith("python -m experiments.mlp --sizes 4 5")
    assert ledger.read(tmp_path / "ledger") == [entry]
    assert "| one | 1.5 % |" in ledger.render([entry])
