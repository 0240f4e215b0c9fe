"""Large models' steps: run small, planned, and put into tables that say they are estimates."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from experiments import cli, ledger, scaling, scaling_tables

ESTIMATE = ledger.Estimate(
    name="estimate_gpt",
    title="GPT on TPU v5e",
    group="Scaling",
    columns=("Chips", "Step at least (ms)"),
    rows={"weak": (16.0, 1.5), "strong": (64.0, None)},
    notes={"strong": "does not fit"},
    assumptions=("everything at its peak rate",),
    command="python -m experiments.scaling_tables gpt_124m_v5e --record",
    compiler={"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.52"},
    date="2026-11-27",
)


def test_an_estimate_survives_its_file_and_says_that_nothing_was_run(tmp_path: Path) -> None:
    ledger.record(ESTIMATE, tmp_path)
    assert ledger.read(tmp_path) == [ESTIMATE]
    page = ledger.render([ESTIMATE])
    assert "**Nothing here was run.**" in page
    assert "| weak | 16 | 1.5 |" in page
    assert "| strong | 64 |  |" in page
    assert "- strong: does not fit" in page
    assert "Assumed: everything at its peak rate." in page
    assert "libtpu 0.0.52" in page
    assert "Estimates" not in ledger.render([])
    # The README's table is of what was measured.
    assert "GPT on TPU" not in ledger.with_summary("<!-- ledger:begin --><!-- ledger:end -->", [ESTIMATE])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": {}}, "needs columns and rows"),
        (
            {"rows": {"weak": (16.0,)}, "notes": {}},
            "row 'weak' needs a finite number or null for each column",
        ),
        ({"rows": {"weak": (16.0, float("nan"))}, "notes": {}}, "row 'weak' needs a finite number"),
        ({"assumptions": ()}, "must say what it assumes"),
        ({"notes": {"other": "?"}}, "a note is of no row"),
        ({"compiler": {"jax": "0.10.2"}}, "version of jaxlib"),
        ({"command": "python -m experiments.nothing"}, "no experiment is run by"),
        ({"date": "today"}, "date must read"),
    ],
)
def test_an_estimate_that_lacks_something_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ESTIMATE, **changes)


def test_weak_scaling_keeps_the_windows_a_chip_and_strong_scaling_the_batch() -> None:
    for name, table in scaling_tables.TABLES.items():
        for case in table.cases:
            options = dict(zip(*[iter(case.flags.replace("--", "").split())] * 2, strict=True))
            batch, n = int(options["batch-size"]), scaling_tables.chips(case.topology)
            parts = [int(axis.partition(":")[2]) for axis in options["mesh"].split(",")]
            assert math.prod(parts) == n
            assert batch % (n * int(options.get("accumulate", 1))) == 0
            if case.label.startswith("weak"):
                assert batch == scaling_tables.WINDOWS * n // (2 if name == "gpt_7b_v5e" else 1)
            elif case.label.startswith("strong"):
                assert batch == scaling_tables.WINDOWS * scaling_tables.chips(table.cases[0].topology)
        assert len({case.label for case in table.cases}) == len(table.cases), name
    largest = {case.topology for table in scaling_tables.TABLES.values() for case in table.cases}
    assert {"v5e:16x16", "v5p:8x8x16"} <= largest


def test_a_table_holds_what_was_reported_and_what_did_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = {
        "memory": {"total": 2**31, "temporaries": 2**30},
        "flops": {"bfloat16": 3e15, "float32": 1e15},
        "traffic": 2**33,
        "collectives": {
            "all-gather": {"sent": 2**28},
            "all-reduce": {"sent": 2**28},
            "all-to-all": {"sent": 0},
        },
        "sent": 2**29,
        "chip": {"source": "a data sheet"},
        "roofline": {"seconds": 0.5, "without_overlap": 0.75, "utilisation": 0.25, "assumptions": ["peak"]},
    }
    fits = {"fits": True, "programs": {"train": program}, "versions": ESTIMATE.compiler, "date": "2026-11-02"}

    def compiled(case: scaling_tables.Case) -> dict[str, Any]:
        return (
            fits if case.label.startswith("weak") else {"fits": False, "needed": 2**35, "date": "2026-11-01"}
        )

    monkeypatch.setattr(scaling_tables, "compiled", compiled)
    entry = scaling_tables.estimate("gpt_7b_v5e")
    assert entry.rows["weak, v5e:16x16"] == (256, 2048, 2.0, 1.0, 4.0, 8.0, 0.5, 500.0, 750.0, 25.0)
    assert entry.rows["strong, v5e:8x8"] == (64, 256, 32.0, *[None] * 7)
    assert entry.notes["strong, v5e:8x8"] == "does not fit"
    assert entry.notes["weak, v5e:16x16"] == "all-gather 0.25 GiB, all-reduce 0.25 GiB"
    assert entry.date == "2026-11-01"
    assert "Utilisation at most (%) 25" in "\n".join(scaling_tables.lines(entry))
    assert "Not compiled" not in entry.note

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no case is compiled"):
        scaling_tables.estimate("gpt_7b_v5e", kept=True)
    first, *others = scaling_tables.TABLES["gpt_7b_v5e"].cases
    first.file.parent.mkdir(parents=True)
    first.file.touch()
    entry = scaling_tables.estimate("gpt_7b_v5e", kept=True)
    assert list(entry.rows) == [first.label]
    assert entry.note.endswith(f"Not compiled yet: {'; '.join(case.label for case in others)}.")


def test_a_case_is_compiled_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    case = scaling_tables.Case("none", "v5e:none", "--size 124M --batch-size 8")
    with pytest.raises(RuntimeError, match=r"no topology is called 'v5e:none'|libtpu"):
        scaling_tables.compiled(case)
    assert not case.file.exists()
    case.file.write_text(json.dumps({"fits": True}))
    assert scaling_tables.compiled(case) == {"fits": True}
    # What another compiler made is not taken for it.
    kept = case.file
    monkeypatch.setattr(scaling_tables, "versions", lambda: {"jax": "0.0.1"})
    scaling_tables.made_by.cache_clear()
    try:
        assert case.file != kept
    finally:
        scaling_tables.made_by.cache_clear()


def test_a_step_is_planned_and_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(scaling.SHAPES, "124M", {"width": 8, "depth": 2, "num_heads": 2, "vocab_size": 65})
    where = cli.Execution(mesh="data:1", dry_run=True)
    config = scaling.Config(batch_size=2, context=16, chunk=8, steps=2, remat="full", execution=where)
    monkeypatch.setattr("sys.argv", ["scaling", "--steps", "2"])
    params = 65 * 8 + 16 * 8 + 2 * (12 * 8 * 8 + 13 * 8) + 2 * 8
    told = cli.dry_run(scaling.main, config)
    assert f"{params:,} parameters on 1 x cpu" in told
    assert re.search(r"^expected: [\d.]+ [mu]?s a step, as \d+ took here; 2 steps [\d.]+", told, re.M)
    assert not list(tmp_path.iterdir())
    fitted = scaling.main(dataclasses.replace(config, execution=cli.Execution(mesh="data:1", profile=True)))
    assert fitted.step == 2
    assert fitted.cost.params == params
    assert "124M: predicted at least" in capsys.readouterr().out
    with pytest.raises(ValueError, match="remat is none or full"):
        scaling.recipe(dataclasses.replace(config, size="resnet50", remat="dots"))
    pixels, _ = scaling.batches(scaling.Config(size="resnet50", batch_size=2, side=8))
    assert pixels(0)["inputs"].shape == (2, 8, 8, 3)
    assert (pixels(0)["inputs"] != pixels(1)["inputs"]).all()
