"""The ledger says only what was measured, and what is rendered from it agrees with it."""

import dataclasses
import json
import math
import re
import subprocess
import time
import types

import pytest

from experiments import ledger, reproduce
from experiments.catalogue import experiments
from experiments.ledger import entries, meter, rendering
from experiments.ledger.__main__ import main

RESULT = ledger.Result(
    name="lenet_mnist",
    title="LeNet-5 on MNIST",
    group="Images",
    paper="LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998.",
    published=ledger.Published(0.95, "Figure 9", "recalled"),
    metric="test error",
    goal="min",
    unit="%",
    seeds=(0, 1, 2),
    values=(0.9, 1.0, 1.1),
    dataset="MNIST, the official split",
    fingerprint="5f3a",
    config={"epochs": 20, "model": {"features": [6, 16]}},
    command="python -m experiments.catalogue --dataset mnist",
    seconds=(60.0, 62.0, 64.0),
    energy_wh=(0.2, 0.2, 0.2),
    energy_how="estimated",
    device={"processor": "a CPU", "jax": "0.10.2"},
    date="2026-01-31",
)
BENCHMARK = ledger.Benchmark(
    name="mlp_step",
    title="One training step of an MLP",
    group="Speed",
    metric="time of a step",
    goal="min",
    unit="ms",
    subject="jdl",
    rows=(ledger.Row("jdl", (2.0, 2.1, 1.9)), ledger.Row("peer", (3.0, 2.9, 3.2))),
    command="python -m experiments.catalogue",
    device={"processor": "a CPU", "jax": "0.10.2"},
    date="2026-01-31",
)


def test_rendered_files_are_up_to_date():
    assert ledger.stale() == [], "run python -m experiments.ledger"


def test_every_recorded_command_runs_an_experiment():
    modules = {e.module for e in experiments()}
    for entry in ledger.read():
        assert ledger.module_of(entry.command) in modules, f"{entry.name}: {entry.command}"


@pytest.mark.parametrize("entry", [RESULT, BENCHMARK], ids=lambda e: e.name)
def test_entry_survives_its_file(entry, tmp_path):
    path = ledger.record(entry, tmp_path / "results")
    assert ledger.read(path.parent) == [entry]
    text = path.read_text()
    assert ledger.record(entry, path.parent).read_text() == text
    assert list(path.parent.iterdir()) == [path]
    assert list(json.loads(text))[:2] == ["kind", "name"]
    assert "mean" not in text
    assert "ratio" not in text


def test_spread_is_the_sample_standard_deviation():
    assert RESULT.mean == pytest.approx(1.0)
    assert RESULT.spread == pytest.approx(0.1)
    assert math.isnan(dataclasses.replace(RESULT, **one_seed()).spread)


def one_seed() -> dict:
    return {"seeds": (0,), "values": (0.9,), "seconds": (60.0,), "energy_wh": None}


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        (RESULT, {"name": "LeNet 5"}, "name must be lower_case"),
        (RESULT, {"title": ""}, "title is empty"),
        (RESULT, {"goal": "up"}, 'goal must be "max" or "min"'),
        (RESULT, {"seeds": (0, 1, 1)}, "seeds repeat"),
        (RESULT, {"values": (0.9, 1.0)}, "3 seeds, but 2 values"),
        (RESULT, {"seconds": ()}, "3 seeds, but 0 seconds"),
        (RESULT, {"values": (0.9, math.nan, 1.0)}, "values must be finite"),
        (RESULT, {"energy_how": ""}, "energy_how must say"),
        (RESULT, {"published": ledger.Published(0.95, "Table 1", "sure")}, '"verified" or "recalled"'),
        (RESULT, {"paper": ""}, "a published figure needs its paper"),
        (RESULT, {"command": "python lenet.py"}, "no experiment is run by"),
        (RESULT, {"command": "python -m experiments.not_there"}, "no experiment is run by"),
        (RESULT, {"device": {"jax": "0.10.2"}}, "device does not say its processor"),
        (RESULT, {"date": "31 January"}, "date must read YYYY-MM-DD"),
        (BENCHMARK, {"rows": ()}, "a benchmark needs rows"),
        (BENCHMARK, {"subject": "torch"}, "subject 'torch' is none of the rows"),
        (BENCHMARK, {"rows": (ledger.Row("jdl", ()),)}, "row 'jdl' has no samples"),
        (BENCHMARK, {"rows": (ledger.Row("jdl", (0.0,)),)}, "ratios need positive medians"),
    ],
)
def test_wrong_entries_are_refused(entry, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(entry, **change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tree: tree.pop("values"), "missing fields: values"),
        (lambda tree: tree.update(mean=1.0), "unknown fields: mean"),
        (lambda tree: tree.update(kind="rumour"), "kind must be one of result, benchmark"),
        (lambda tree: tree.update(name="another"), "holds the entry 'another'"),
        (lambda tree: tree["published"].pop("where"), "where"),
    ],
)
def test_wrong_files_are_named(edit, message, tmp_path):
    tree = json.loads(entries.to_json(RESULT))
    edit(tree)
    (tmp_path / "lenet_mnist.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=message) as error:
        ledger.read(tmp_path)
    assert "lenet_mnist.json" in str(error.value)


@pytest.mark.parametrize("config", [{"rate": math.nan}, {"model": object()}, {"size": (1, 2)}])
def test_what_json_cannot_give_back_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="lenet_mnist"):
        ledger.record(dataclasses.replace(RESULT, config=config), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_figures_of_another_machine_are_kept_beside(tmp_path):
    intel = {**BENCHMARK.device, "processor": "Intel(R) Xeon(R) CPU @ 2.20GHz"}
    gpu = {**intel, "backend": "gpu", "device": "NVIDIA H100 80GB HBM3"}
    ledger.record(BENCHMARK, tmp_path)
    for device in (intel, gpu, {**intel, "jax": "0.12.0"}):
        ledger.record(dataclasses.replace(BENCHMARK, device=device, note=device["jax"]), tmp_path)
    ledger.record(dataclasses.replace(BENCHMARK, note="anew"), tmp_path)
    kept = {entry.name: entry for entry in ledger.read(tmp_path)}
    assert set(kept) == {"mlp_step", "mlp_step_intel_xeon_cpu", "mlp_step_nvidia_h100_80gb_hbm3"}
    assert kept["mlp_step"].note == "anew"
    assert kept["mlp_step_intel_xeon_cpu"].note == "0.12.0"
    text = ledger.render(list(kept.values()))
    assert f"### {BENCHMARK.title}, Intel Xeon CPU\n" in text
    # A result is one, whatever it ran on.
    ledger.record(RESULT, tmp_path)
    ledger.record(dataclasses.replace(RESULT, device=gpu), tmp_path)
    assert sum(entry.group == RESULT.group for entry in ledger.read(tmp_path)) == 1


def test_earlier_medians_are_kept(tmp_path):
    faster = dataclasses.replace(
        BENCHMARK, rows=(ledger.Row("jdl", (1.0,)), ledger.Row("peer", (3.0,))), date="2026-03-01"
    )
    last = dataclasses.replace(faster, date="2026-04-01")
    for entry in (BENCHMARK, faster, faster, last):  # the same twice is one
        ledger.record(entry, tmp_path)
    (kept,) = ledger.read(tmp_path)
    assert [each["date"] for each in kept.earlier] == ["2026-01-31", "2026-03-01"]
    assert kept.earlier[0]["medians"] == {"jdl": 2.0, "peer": 3.0}
    assert kept.past == [("2026-01-31", pytest.approx(1.5)), ("2026-03-01", pytest.approx(3.0))]
    assert "measured earlier: 1.50 (2026-01-31), 3.00 (2026-03-01)." in ledger.render([kept])
    with pytest.raises(ValueError, match="an earlier measurement has"):
        dataclasses.replace(BENCHMARK, earlier=({"date": "2026-01-31"},))


def test_report_shows_published_beside_ours():
    text = ledger.render([RESULT, BENCHMARK])
    assert (
        "| LeNet-5 on MNIST | test error (min) | 0.95 % (recalled) | 1.00 ± 0.10 % | 3 | 1 min 2 s | 0.2 Wh"
        in text
    )
    assert "Figure: Figure 9, recalled." in text
    assert "0.9 (seed 0), 1 (seed 1), 1.1 (seed 2)" in text
    assert "| **jdl** | 2 ms | 1.95 to 2.05 | 3 |  |" in text
    assert "| peer | 3 ms | 2.95 to 3.1 | 3 | 1.50 |" in text


def test_what_was_not_measured_says_so():
    empty = {"seeds": (), "values": (), "seconds": (), "energy_wh": None, "published": None}
    text = ledger.render([dataclasses.replace(RESULT, **empty)])
    assert "| none | not yet measured | 0 |" in text


def test_figures_show_no_more_digits_than_their_spread_allows():
    values = (98.123, 98.456, 98.789)
    assert ledger.ours(dataclasses.replace(RESULT, values=values)) == "98.46 ± 0.33 %"
    assert ledger.ours(dataclasses.replace(RESULT, values=(1234.0, 1334.0, 1434.0))) == "1334 ± 100 %"
    assert ledger.ours(dataclasses.replace(RESULT, values=(98.0, 98.0, 98.0))) == "98.00 ± 0.00 %"
    assert ledger.ours(dataclasses.replace(RESULT, **one_seed())) == "0.9 %"


def test_ratio_is_above_one_where_the_subject_wins():
    jdl, peer = BENCHMARK.rows
    assert BENCHMARK.ratio(peer) == pytest.approx(1.5)
    assert BENCHMARK.ratio(jdl) is None
    assert dataclasses.replace(BENCHMARK, goal="max").ratio(peer) == pytest.approx(2 / 3)
    assert dataclasses.replace(BENCHMARK, subject=None).ratio(peer) is None


def test_readme_table_is_rendered_between_its_marks():
    readme = f"# jdl\n\n{rendering.BEGIN}\nold\n{rendering.END}\n\nmore\n"
    text = ledger.with_summary(readme, [RESULT, BENCHMARK])
    assert text.startswith("# jdl\n\n")
    assert text.endswith("\n\nmore\n")
    assert "old" not in text
    assert "1.00 ± 0.10 %, 3 seeds" in text
    assert "| One training step of an MLP | a CPU | time of a step | jdl | 1.50 (peer) |  |  |" in text
    assert ledger.with_summary(text, [RESULT, BENCHMARK]) == text
    for wrong in ("", readme + readme, f"{rendering.END} {rendering.BEGIN}"):
        with pytest.raises(ValueError, match=r"README\.md must hold"):
            ledger.with_summary(wrong, [])


def test_readme_tells_the_best_peer_apart_from_variants():
    rows = (
        ledger.Row("jdl", (2.0,), {ledger.MEMORY: 300.0}),
        ledger.Row("jdl, 2 devices", (1.0,), {ledger.MEMORY: 100.0}),
        ledger.Row("jdl without prepare()", (3.0,)),
        ledger.Row("slow", (8.0,), {ledger.MEMORY: 50.0}),
        ledger.Row("quick", (1.5,), {ledger.MEMORY: 200.0}),
    )
    found = dataclasses.replace(BENCHMARK, rows=rows)
    variants = "0.50 (2 devices), 1.50 (jdl without prepare())"
    said = f"| time of a step | jdl | 0.75 (quick) | 300 beside 200 | {variants} |"
    assert said in rendering.render_summary([found])
    alone = dataclasses.replace(found, rows=rows[:3])
    assert f"| jdl | no peer |  | {variants} |" in rendering.render_summary([alone])
    more = dataclasses.replace(found, goal="max", rows=rows[::4])
    assert more.best_peer == rows[4]


def test_what_is_added_to_a_base_is_shown():
    found = dataclasses.replace(BENCHMARK, subject=None, base="jdl")
    text = ledger.render([found])
    assert "| Samples | Added, ms | Added, % |" in text
    assert "| jdl | 2 ms | 1.95 to 2.05 | 3 |  |  |" in text
    assert "| peer | 3 ms | 2.95 to 3.1 | 3 | 1.0 | 50.0 |" in text
    with pytest.raises(ValueError, match="base 'torch' is none of the rows"):
        dataclasses.replace(found, base="torch")


@pytest.mark.parametrize("entry", [RESULT, BENCHMARK], ids=lambda e: e.name)
def test_the_commit_is_shown_where_it_is_known(entry, tmp_path):
    assert "commit" not in entries.to_json(entry)
    assert "commit" not in ledger.render([entry])
    known = dataclasses.replace(entry, commit="abc1234, changed")
    assert entries.from_json(entries.to_json(known)) == known
    assert "jax 0.10.2, commit abc1234, changed." in ledger.render([known])
    with pytest.raises(ValueError, match="commit reads 'today'"):
        dataclasses.replace(entry, commit="today")


def test_the_commit_is_that_of_the_code(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit():
        meter.commit.cache_clear()
        return meter.commit(tmp_path)

    assert commit() == "", "no checkout"
    git("init")
    assert commit() == "", "nothing committed"
    (tmp_path / "code.py").write_text("1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    assert re.fullmatch(r"[0-9a-f]{7,}", commit())
    (tmp_path / "result.json").write_text("{}")
    assert "changed" not in commit()
    (tmp_path / "code.py").write_text("2\n")
    assert re.fullmatch(r"[0-9a-f]{7,}, changed", commit())
    meter.commit.cache_clear()


def test_a_stale_report_is_noticed(tmp_path):
    ledger.record(RESULT, tmp_path / "experiments" / "results")
    report = tmp_path / "experiments" / "RESULTS.md"
    assert ledger.stale(tmp_path) == [report]
    report.write_text(ledger.render([RESULT]))
    assert ledger.stale(tmp_path) == []
    (tmp_path / "README.md").write_text(f"{rendering.BEGIN}\n{rendering.END}\n")
    assert ledger.stale(tmp_path) == [tmp_path / "README.md"]


def test_check_says_what_is_out_of_date(monkeypatch, capsys):
    monkeypatch.setattr("experiments.ledger.__main__.stale", lambda: [rendering.REPORT])
    assert main(["--check"]) == 1
    assert "experiments/RESULTS.md is out of date" in capsys.readouterr().err


def test_device_is_described():
    device = ledger.device_description()
    assert {"processor", "cores", "backend", "device", "devices", "jax", "jaxlib"} <= device.keys()
    assert device["backend"] == "cpu"
    json.dumps(device, allow_nan=False)


def test_meter_reads_the_processors_counters(monkeypatch):
    readings = iter([{"intel-rapl:0": (90.0, 100.0)}, {"intel-rapl:0": (26.0, 100.0)}])
    monkeypatch.setattr(meter, "_processor_counters", lambda: next(readings))
    monkeypatch.setattr(meter, "_card_joules", lambda: None)
    with ledger.Meter() as measured:
        pass
    assert measured.energy_wh == pytest.approx(36 / 3600), "the counter passed its top once"
    assert "RAPL" in measured.how


def test_meter_estimates_where_nothing_can_be_read(monkeypatch):
    monkeypatch.setattr(meter, "_processor_counters", dict)
    monkeypatch.setattr(meter, "_card_joules", lambda: None)
    with ledger.Meter() as measured:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    assert measured.seconds > 0.05
    assert measured.energy_wh > 0.05 * meter.WATTS_A_CORE / 3600
    assert "estimated" in measured.how


def test_the_headline_stands_in_the_ledger():
    entries = {entry.name: entry for entry in ledger.read()}
    headline = entries["lenet_digits"]
    assert len(headline.seeds) >= 3
    assert max(headline.values) <= 2
    assert max(headline.seconds) < 90


@pytest.mark.parametrize("name", reproduce.RECIPES)
def test_what_a_recipe_comes_to_can_be_entered(name, monkeypatch):
    recipe = dataclasses.replace(
        reproduce.RECIPES[name], load=lambda _: types.SimpleNamespace(fingerprint="f")
    )
    monkeypatch.setitem(reproduce.RECIPES, name, recipe)
    found = {"figure": 1.0, "seconds": 2.0, "energy_wh": None, "energy_how": "not measured"}
    entry = reproduce.result(name, [0], [found])
    assert entries.from_json(entries.to_json(entry)) == entry
