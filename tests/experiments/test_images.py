"""The image experiments, as a user runs them: from the command line, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import cli, evaluate, images, lenet, mlp, reproduce
from jdl import data, train

ROOT = Path(__file__).parents[2]


def run(folder, *arguments, module="experiments.lenet", **environment):
    """A finished process, started in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **environment}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short LeNet run from the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("user")
    return folder, run(folder, "--steps", 250, "--run", "runs/short")


def test_a_run_learns_and_says_where_everything_is(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    for file in ("curves.png", "metrics.jsonl", "checkpoints", "config.json"):
        assert str(Path("runs/short") / file) in done.stdout
        assert (folder / "runs/short" / file).exists()
    assert "experiments.lenet --resume runs/short" in done.stdout
    assert "experiments.evaluate runs/short" in done.stdout
    history = train.read_lines(folder / "runs/short/metrics.jsonl")
    _, accuracies = history.series("test", "accuracy")
    assert accuracies[0] < 0.3
    assert accuracies[-1] > 0.95
    assert "step/s" in done.stderr
    with Image.open(folder / "runs/short/curves.png") as picture:
        assert min(picture.size) > 200


def test_evaluate_gives_the_same_figure_and_reads_pictures(trained, tmp_path):
    folder, _ = trained
    history = train.read_lines(folder / "runs/short/metrics.jsonl")
    classifier = evaluate.load(folder / "runs/short")
    assert evaluate.test_metrics(classifier)["accuracy"] == pytest.approx(history.last("test")["accuracy"])
    digits = data.load("digits").test
    for i in range(5):
        # Enlarged, and in colour, as a user's picture would be.
        image = np.kron(digits["inputs"][i, ..., 0], np.ones((9, 9), np.uint8))
        Image.fromarray(np.stack([image] * 3, -1)).save(tmp_path / f"{i}.png")
    found = evaluate.classify_pictures(classifier, [tmp_path / f"{i}.png" for i in range(5)])
    assert sum(name == str(label) for (name, _), label in zip(found, digits["labels"], strict=False)) >= 4
    done = run(folder, "runs/short", tmp_path / "0.png", module="experiments.evaluate")
    assert found[0][0] in done.stdout


def test_resume_of_a_finished_run_changes_nothing(trained):
    folder, _ = trained
    before = (folder / "runs/short/metrics.jsonl").read_text()
    done = run(folder, "--resume", "runs/short")
    assert done.returncode == 0, done.stderr
    assert "going on from step 250 of 250" in done.stderr
    assert (folder / "runs/short/metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "runs/short", "--steps", 300], "steps was 250 and is now 300"),
        (["--resume", "runs/nothing"], "runs/nothing holds no run"),
        (["--steps", 300, "--resume", "runs/short"], "--resume comes first"),
        (["--dataset", "mnist"], "could not be downloaded. Put "),
        (["--batch-size", 5000], "5000"),
        (["--batch-size", 0], "batch"),
        (["--steps", 0], "steps"),
        (["--run", "/proc/nowhere/run"], "/proc/nowhere/run"),
        (["--mesh", "data:7"], "mesh"),
        (["--mesh", "rows:1"], "mesh"),
        (["--accumulate", 3], "divided into 3"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_a_sentence(trained, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(trained[0])
    monkeypatch.setattr(sys, "argv", ["lenet", *map(str, arguments)])
    for name in ("JDL_DATA", "JDL_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("JDL_PLAIN", "1")
    with pytest.raises(SystemExit) as stopped:
        cli.command(lenet.main, lenet.Config, lenet.__doc__)
    assert stopped.value.code == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in sentence
    assert len(sentence) < 1500


@pytest.mark.parametrize(
    "arguments", [["--no-such-flag", 1], ["--dataset", "imagenet"], ["--mode", "vmap"], ["--steps", "many"]]
)
def test_an_argument_that_cannot_be_read_is_explained(tmp_path, arguments):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(arguments[0]) in done.stdout + done.stderr


def test_help_explains_every_field(tmp_path):
    text = " ".join(run(tmp_path, "--help").stdout.split())
    for field in (*lenet.Config.__dataclass_fields__, *cli.Execution.__dataclass_fields__):
        if field != "execution":
            assert f"--{field.replace('_', '-')}" in text
    assert "Images to learn" in text
    assert "--resume FOLDER" in text


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    folder, _ = trained
    learner = images.recipe(mlp.model(mlp.Config()), data.Preprocess(), mlp.Config())
    batch = {"inputs": np.zeros((1, 8, 8, 1), np.uint8), "labels": np.zeros(1, np.int32)}
    with pytest.raises(
        train.CheckpointMismatch,
        match=r"Dense_0/kernel: float32\[400, 120\] stored, float32\[64, 300\] asked",
    ):
        train.load(folder / "runs/short", learner, batch)
    other = tmp_path / "mlp"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"experiment": "mlp", "hidden": [3]}))
    with pytest.raises(ValueError, match="another experiment: it sets hidden"):
        cli.resumed(lenet.Config, ["--resume", str(other)])


def test_options_reach_the_program(tmp_path):
    config = mlp.Config(
        hidden=(32,), steps=100, learning_rate=1e-2, shift=0, averaging=0.9, accumulate=2,
        dtype="bfloat16", label_smoothing=0.1, dropout=0.1,
        execution=cli.Execution(str(tmp_path / "run"), "data:2", "shard_map", quiet=True, tensorboard=True),
    )  # fmt: skip
    outcome = mlp.main(config)
    assert outcome.test["accuracy"] > 0.6
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_flags_give_the_configuration_back():
    for recipe in reproduce.RECIPES.values():
        arguments = " ".join(cli.flags(recipe.config)).split()
        assert cli.parse(type(recipe.config), arguments) == recipe.config


def test_reproduce_records_each_seed_once(tmp_path, monkeypatch):
    recipe = reproduce.Recipe(mlp.main, mlp.Config(steps=20, hidden=(8,)), "A toy")
    monkeypatch.setitem(reproduce.RECIPES, "toy", recipe)
    monkeypatch.setattr(reproduce.ledger, "record", lambda entry: recorded.append(entry))
    recorded: list = []
    reproduce.main(["toy"], [0, 1], tmp_path)
    monkeypatch.setattr(mlp, "main", None)
    reproduce.main(["toy"], [0, 1], tmp_path)
    assert recorded[0] == recorded[1]
    assert len(set(recorded[0].values)) >= 1
    assert recorded[0].command == "python -m experiments.mlp --steps 20 --hidden 8"
