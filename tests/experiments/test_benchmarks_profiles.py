"""Profiles: times of operations, their kinds in both libraries, and the entry that they make."""

import os

import pytest

from experiments import ledger
from experiments.benchmarks import __main__ as command_line
from experiments.benchmarks import profiles, workloads
from experiments.benchmarks.harness import Contender

PROGRAM = """HloModule jit_single

%fused_computation.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %convolution.9 = f32[4]{0} convolution(%p, %p), window={size=3x3}
}

%fused_computation.2 (q: f32[4]) -> f32[] {
  %q = f32[4]{0} parameter(0)
  ROOT %reduce.1 = f32[] reduce(%q, %q), dimensions={0}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %fusion.1 = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(single)/jvp(Net)/conv/conv_general_dilated"}
  %convolution.2 = f32[4]{0} convolution(%x, %x), metadata={op_name="jit(single)/transpose(jvp(Net))/conv/conv_general_dilated"}
  %dot.3 = f32[4]{0} dot(%x, %x), metadata={op_name="jit(single)/jvp(Net)/head/dot_general"}
  %fusion.4 = f32[] fusion(%x), kind=kLoop, calls=%fused_computation.2, metadata={op_name="jit(single)/jvp(Net)/norm/reduce_sum"}
  %add_fusion.5 = f32[4]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(single)/add"}
  %copy.6 = f32[4]{0} copy(%x)
  ROOT %tanh.7 = f32[4]{0} tanh(%x), metadata={op_name="jit(single)/jvp(Net)/act/tanh"}
}
"""  # noqa: E501


def test_operations_of_a_program_have_kinds():
    found = {name: kind for name, (kind, _) in profiles.instructions(PROGRAM).items()}
    assert {name: found[name] for name in ("fusion.1", "convolution.2", "dot.3", "fusion.4")} == {
        "fusion.1": profiles.CONVOLUTIONS,
        "convolution.2": profiles.GRADIENTS,
        "dot.3": profiles.PRODUCTS,
        "fusion.4": profiles.SUMS,
    }
    assert found["add_fusion.5"] == profiles.OUTSIDE
    assert found["copy.6"] == profiles.COPIES
    assert found["tanh.7"] == profiles.ELSE


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", profiles.CONVOLUTIONS),
        ("aten::convolution_backward", profiles.GRADIENTS),
        ("aten::addmm", profiles.PRODUCTS),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", profiles.PRODUCTS),
        ("aten::native_layer_norm_backward", profiles.SUMS),
        ("aten::copy_", profiles.COPIES),
        ("aten::mul", profiles.ELSE),
        ("aten::threshold_backward", profiles.ELSE),
        ("aten::_fused_adam_", profiles.OUTSIDE),
        ("Optimizer.step#Adam.step", profiles.OUTSIDE),
    ],
)
def test_operations_of_pytorch_have_the_same_kinds(name, kind):
    assert profiles._kind_of_torch(name) == kind


def test_time_inside_an_operation_is_not_its_own():
    def event(name, thread, start, duration):
        return {"ph": "X", "tid": thread, "ts": start, "dur": duration, "args": {"hlo_op": name}}

    events = [
        event("while.1", 1, 0.0, 100.0),
        event("call.2", 1, 0.0, 60.0),
        event("dot.3", 1, 10.0, 20.0),
        event("dot.3", 1, 30.0, 20.0),
        event("dot.3", 2, 10.0, 5.0),
        event("add.4", 1, 100.0, 7.0),
        {"ph": "M", "tid": 1},
        {"ph": "X", "tid": 1, "ts": 0, "dur": 1e6, "args": {}},
    ]
    assert profiles.own_times(events) == {
        "while.1": (40.0, 1),
        "call.2": (20.0, 1),
        "dot.3": (45.0, 3),
        "add.4": (7.0, 1),
    }


def test_a_profile_counts_by_the_step():
    made = Contender("it", 0, [], lambda steps: steps / 1e3, 0.0)

    def profile(steps):
        return [
            profiles.Spent("dot", profiles.PRODUCTS, 3.0 * steps, 2 * steps),
            profiles.Spent("add", profiles.ELSE, 1.0 * steps, steps),
        ]

    found = profiles.profiled(made, profile, seconds=0.01)
    assert found.step == pytest.approx([1.0] * profiles.ROUNDS)
    assert found.kinds == {profiles.PRODUCTS: [3.0] * 3, profiles.ELSE: [1.0] * 3}
    assert list(found.operations) == ["dot", "add"]
    assert found.counts == {"dot": 2, "add": 1}


@pytest.mark.parametrize("who", ["jdl", "torch"])
def test_a_step_is_profiled(who, tmp_path, monkeypatch):
    if who == "torch":
        pytest.importorskip("torch")
    small = workloads.mlp(8, 16, 32, 4)
    workloads.write(workloads.draw(small), tmp_path)
    script = (
        "import sys; from experiments.benchmarks import profiles, workloads; profiles.SECONDS = 0.05;"
        "workloads.WORKLOADS['mlp'] = workloads.mlp(8, 16, 32, 4); profiles.main(*sys.argv[1:])"
    )
    apart = profiles.apart

    def quickly(module, *arguments, environment):
        assert module == "experiments.benchmarks.profiles"
        (tmp_path / "quick.py").write_text(script)
        path = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
        return apart("quick", *arguments, environment={**environment, "PYTHONPATH": path})

    monkeypatch.setattr(profiles, "apart", quickly)
    found = profiles.measure("mlp", who, tmp_path)
    assert len(found.step) == profiles.ROUNDS
    assert min(found.step) > 0
    assert profiles.PRODUCTS in found.kinds
    assert profiles.OUTSIDE in found.kinds
    assert all(min(times) >= 0 for times in found.kinds.values())


def test_profiles_are_entries_of_the_ledger(tmp_path, monkeypatch):
    ours = profiles.Found([5.0], {profiles.PRODUCTS: [4.0]}, {"dot.1": [4.0]}, {"dot.1": 2.0})
    theirs = profiles.Found(
        [4.0], {profiles.PRODUCTS: [3.0], profiles.COPIES: [0.5]}, {"aten::mm": [3.0]}, {"aten::mm": 5.0}
    )
    monkeypatch.setattr(profiles, "measure", lambda name, who, folder: {"jdl": ours, "torch": theirs}[who])
    monkeypatch.setattr(command_line, "write", lambda given, folder: None)
    monkeypatch.setattr(command_line, "_is_there", lambda peer: True)
    options = command_line._parse(["mlp", "--profile", "--peers", "torch", "--out", str(tmp_path)])
    (entry,) = command_line.measure_profile("mlp", options)
    assert entry.name == "mlp_profile"
    assert {row.label: (row.median, row.more) for row in entry.rows} == {
        profiles.WHOLE: (5.0, {"PyTorch, ms": 4.0}),
        profiles.PRODUCTS: (4.0, {"PyTorch, ms": 3.0}),
        profiles.COPIES: (0.0, {"PyTorch, ms": 0.5}),
        "in jdl: dot.1": (4.0, {"times in a step": 2.0}),
        "in PyTorch: aten::mm": (3.0, {"times in a step": 5.0}),
    }
    assert ledger.read(ledger.record(entry, tmp_path / "ledger").parent) == [entry]
    with pytest.raises(ValueError, match="no steps that PyTorch takes too"):
        command_line.measure_profile("growth", options)


def test_what_was_tried_is_of_workloads_that_there_are():
    assert set(profiles.TRIED) <= {*workloads.WORKLOADS, "decoding"}
