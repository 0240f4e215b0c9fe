"""What the README shows runs as it stands."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jdl.audit import frechet_distance, moments

README = Path(__file__).parents[1] / "README.md"


def examples():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_runs_and_learns(tmp_path, monkeypatch, capsys):
    code = examples()[0]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) <= 30
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["fitted"].history.last("test")["accuracy"] > 0.95
    assert names["logits"].shape == (5, 10)
    assert (tmp_path / "runs" / "readme" / "metrics.jsonl").exists()
    assert "accuracy" in capsys.readouterr().out


def test_published_weights_go_into_a_network_with_another_head(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(examples()[1], str(README), "exec"), names)
    assert [x.shape for x in names["maps"]] == [(1, 8, 8, 128), (1, 2, 2, 512)]
    assert names["variables"]["params"]["head"]["bias"].shape == (5,)


def test_a_small_gpt_writes_and_goes_to_hugging_face_and_back(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(examples()[2], str(README), "exec"), names)
    written = names["tokenizer"].decode(names["written"].rows()[0])
    assert len(written) == 50
    assert written in capsys.readouterr().out
    assert names["fitted"].history.series("train", "loss")[1][-1] < 2.6
    back, there = names["variables"], names["fitted"].variables
    same = jax.tree.map(lambda a, b: bool((a == b).all()), back, there)
    assert all(jax.tree.leaves(same))


def test_images_are_learnt_by_their_likelihood_and_by_a_game(capsys):
    names: dict = {}
    exec(compile(examples()[3], str(README), "exec"), names)
    assert names["drawn"].shape == (64, 8, 8, 1)
    # Better than independent pixels, each with its mean over the training images.
    mean = np.clip(np.asarray(names["unit"](names["images"])).mean(0), 1e-3, 1 - 1e-3)
    test = np.asarray(names["test"])
    alone = (test * np.log(mean) + (1 - test) * np.log(1 - mean)).reshape(len(test), -1).sum(1)
    assert names["likelihood"].estimate.mean() > alone.mean() + 1
    # Nearer to the test set than Gaussian noise with the pixels' own means and variances.
    data, test = (np.asarray(x) for x in names["seen"][:2])
    noise = data.mean(0) + data.std(0) * np.random.default_rng(0).normal(size=(360, 64))
    far = frechet_distance(*(moments(lambda x: x, [x]) for x in (test, noise)))
    assert names["distance"] < far
    assert "copied" in capsys.readouterr().out


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")))
def test_links_lead_somewhere(link):
    assert link.startswith("https://") or (README.parent / link).exists()
