"""Steps compiled for a TPU that is not here: the table's figures, and both programs of one step."""

import importlib.util

import jax
import pytest

from experiments import ledger
from experiments.benchmarks import ahead, workloads
from jdl import train
from jdl.train.chips import CHIPS
from jdl.train.cost import Cost, Memory

MIB = 2**20
FOUND = Cost(
    params=10,
    flops={"float32": 2_000_000_000},
    traffic=30 * MIB,
    collectives={},
    sent=0,
    memory=Memory(2 * MIB, 4 * MIB, 0, MIB, 0, 8 * MIB, 0),
    chip=next(iter(CHIPS.values())),
    devices=1,
    compiled_in=1.0,
)


def test_a_row_sets_the_step_beside_the_least_and_beside_plain_flax():
    other = FOUND._replace(traffic=20 * MIB, memory=FOUND.memory._replace(temporaries=3 * MIB))
    figures = dict(zip(ahead.COLUMNS, ahead.row(ahead.Compiled(FOUND, other, 13 * MIB)), strict=True))
    assert figures["GFLOP of products a step"] == 2
    assert figures["Traffic (MiB)"] == 30
    assert figures["at the least (MiB)"] == 13
    assert figures["traffic in plain Flax (MiB)"] == 20
    assert figures["Memory (MiB)"] == 15
    assert figures["of which temporaries (MiB)"] == 8
    assert figures["memory in plain Flax (MiB)"] == 10
    alone = ahead.row(ahead.Compiled(FOUND, None, 13 * MIB))
    assert [column for column, x in zip(ahead.COLUMNS, alone, strict=True) if x is None] == [
        "traffic in plain Flax (MiB)",
        "memory in plain Flax (MiB)",
    ]


def test_the_table_is_an_entry_of_the_ledger(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "topology", lambda name: [])
    monkeypatch.setattr(ahead, "compiled", lambda name, devices: ahead.Compiled(FOUND, None, 13 * MIB))
    monkeypatch.setattr(ledger, "record", lambda entry, record=ledger.record: record(entry, tmp_path))
    assert ahead.main(["mlp", "gpt", "--record"]) == 0
    (entry,) = ledger.read(tmp_path)
    assert list(entry.rows) == [workloads.WORKLOADS[name].title for name in ("mlp", "gpt")]
    assert entry.command == "python -m experiments.benchmarks.ahead mlp gpt --record"
    assert "mlp: GFLOP of products a step 2, Traffic (MiB) 30" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ahead.main(["bert"])
    assert "no workload bert trains" in capsys.readouterr().err


def test_without_the_compiler_it_is_said_which_extra_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(train.chips.importlib.util, "find_spec", lambda name: None)
    assert ahead.main(["mlp"]) == 1
    assert 'pip install -e ".[tpu]"' in capsys.readouterr().err


def test_the_least_that_a_step_moves_is_its_state_twice_and_its_batch_once(monkeypatch):
    small = workloads.mlp(8, 16, 32, 4)
    monkeypatch.setitem(workloads.WORKLOADS, "mlp", small)
    found = ahead.compiled("mlp", jax.devices()[:1])
    numbers = 16 * 32 + 32 + 32 * 4 + 4
    assert found.ours.params == found.plain.params == numbers
    assert sum(found.ours.flops.values()) == sum(found.plain.flops.values())
    # Adam remembers two numbers for each.
    assert found.least == pytest.approx(2 * 3 * 4 * numbers + 8 * (16 + 1) * 4, abs=200)
    assert found.ours.traffic > found.least


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_step_compiles_for_a_tpu(monkeypatch):
    monkeypatch.setitem(workloads.WORKLOADS, "mlp", workloads.mlp(8, 16, 32, 4))
    found = ahead.compiled("mlp", train.topology(ahead.TOPOLOGY))
    assert found.ours.chip.name == found.plain.chip.name == "TPU v5e"
