"""What a step is said to cost: counted by hand, by the compiler, and by what is refused."""

from __future__ import annotations

import importlib.util
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jdl import data, learners, tasks, train
from jdl.core import AXIS
from jdl.models import MLP
from jdl.train import chips, cost, hlo, jaxprs
from jdl.train.collectives import Traffic
from tests.train.training import arrays, learner

ROUND = chips.Chip("round", 100.0, 50.0, 10.0, 1000.0, 5.0, "made up")


def count(f: Any, *arguments: Any) -> int:
    return sum(jaxprs.flops(jax.make_jaxpr(f)(*arguments).jaxpr).values())


def test_operations_of_loops_shards_and_strides_are_counted_as_often_as_they_run() -> None:
    w, x = jnp.ones((6, 4, 4)), jnp.ones((8, 4))
    step = lambda h, w: (jnp.tanh(h @ w), None)
    looped = lambda w, x: jax.lax.scan(step, x, w)[0].sum()
    assert count(looped, w, x) == 6 * 2 * 8 * 4 * 4
    # The gradient multiplies twice more, and once again what it did not keep.
    assert count(jax.grad(looped), w, x) == 3 * count(looped, w, x)
    again = lambda w, x: jax.lax.scan(jax.checkpoint(step), x, w)[0].sum()
    assert count(jax.grad(again), w, x) == 4 * count(looped, w, x)

    mesh = train.make_mesh("data:8")
    sharded = jax.shard_map(lambda x: x @ w[0], mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS))
    assert count(sharded, x) == count(lambda x: x @ w[0], x)
    # Where the kernel is as large as the stride, every product is needed for both gradients once.
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((2, 2, 3, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).sum()
    forward = 2 * 4 * 4 * 5 * 2 * 2 * 3
    assert count(convolve, image, kernel) == forward
    assert count(jax.grad(convolve, argnums=(0, 1)), image, kernel) == 3 * forward
    assert jaxprs.flops(jax.make_jaxpr(lambda a: a @ a)(jnp.ones((2, 2), jnp.bfloat16)).jaxpr) == {
        "bfloat16": 16
    }


def test_traffic_is_the_compilers_where_there_is_no_loop_and_grows_with_the_turns_where_there_is() -> None:
    def compiled(n: int, loop: bool) -> Any:
        def loss(w: Any, x: Any) -> Any:
            if loop:
                return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0].sum()
            for i in range(n):
                x = jnp.tanh(x @ w[i])
            return x.sum()

        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, 32, 32), (8, 32)))
        return jax.jit(jax.grad(loss)).lower(*shapes).compile()

    plain = compiled(3, loop=False)
    assert hlo.traffic(plain.as_text()) == plain.cost_analysis()["bytes accessed"]
    few, many = (hlo.traffic(compiled(n, loop=True).as_text()) for n in (8, 32))
    assert many / few == pytest.approx(4, rel=0.15)
    # The compiler takes the body once.
    assert compiled(32, loop=True).cost_analysis()["bytes accessed"] < many / 2


PROGRAM = """HloModule step

%slice (stack: f32[5,8,128], i: s32[]) -> f32[8,128] {
  %stack = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %flat = f32[8,128]{1,0:T(8,128)} bitcast(%one)
}

%update (stack: f32[5,8,128], x: f32[8,128], i: s32[]) -> f32[5,8,128] {
  %stack = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} parameter(1)
  %part = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%x)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %new = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%stack, %part, %i, %zero, %zero)
}

%body (p: (s32[], f32[5,8,128])) -> (s32[], f32[5,8,128]) {
  %p = (s32[]{:T(128)S(6)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%p), index=0
  %stack = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=1
  %x = f32[8,128]{1,0:T(8,128)} fusion(%stack, %i), kind=kLoop, calls=%slice
  %near = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
  %after = f32[5,8,128]{2,1,0:T(8,128)} fusion(%stack, %near, %i), kind=kLoop, calls=%update
  ROOT %next = (s32[]{:T(128)S(6)}, f32[5,8,128]{2,1,0:T(8,128)}) tuple(%i, %after)
}

%more (p: (s32[], f32[5,8,128])) -> pred[] {
  %p = (s32[]{:T(128)S(6)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[5,8,100]) -> f32[5,8,128] {
  %a = f32[5,8,100]{2,1,0:T(8,128)} parameter(0)
  %start = (f32[5,8,100]{2,1,0:T(8,128)S(1)}, f32[5,8,100]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %here = f32[5,8,100]{2,1,0:T(8,128)S(1)} copy-done(%start)
  %b = f32[5,8,128]{2,1,0:T(8,128)} pad(%here), padding=0_0x0_0x0_28
  %zero = s32[]{:T(128)S(6)} constant(0)
  %begin = (s32[]{:T(128)S(6)}, f32[5,8,128]{2,1,0:T(8,128)}) tuple(%zero, %b)
  %loop = (s32[]{:T(128)S(6)}, f32[5,8,128]{2,1,0:T(8,128)}) while(%begin), condition=%more, body=%body
  ROOT %end = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_traffic_of_a_tpus_program_by_hand() -> None:
    tile = 8 * 128 * 4
    # Reading a, whose copy stays on the chip, in whole tiles; writing b. Each of 5 turns reads a slice and
    # writes it out, reads that again for one that stays on the chip, and writes a slice in place.
    assert hlo.traffic(PROGRAM) == 5 * tile + 5 * tile + 5 * (2 * tile + tile + tile)


def test_traffic_of_a_gather_is_the_same_where_it_is_asynchronous() -> None:
    start = """HloModule f

ENTRY %main (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
"""
    whole = start + "  ROOT %g = f32[64]{0} all-gather(%p), dimensions={0}\n}\n"
    parts = start + (
        "  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), dimensions={0}\n"
        "  ROOT %g = f32[64]{0} all-gather-done(%s)\n}\n"
    )
    assert hlo.traffic(whole) == hlo.traffic(parts) == 4 * (8 + 64)


def test_a_roofline_by_hand() -> None:
    memory = train.Memory(100, 200, 0, 50, 0, 300, 10)
    found = train.Cost(
        25,
        {"bfloat16": 800, "float32": 100},
        40,
        {"all-reduce": Traffic(2, 10, 20)},
        20,
        memory,
        ROUND,
        2,
        0.0,
    )
    assert memory.total == 660
    assert found.parts == {"products": 5.0, "memory": 4.0, "collectives": 4.0}
    assert (found.seconds, found.bound, found.utilisation) == (5.0, "products", 1.0)
    assert found.intensity == 900 / 2 / 40
    assert found.fits
    assert not found._replace(chip=ROUND._replace(memory=659)).fits
    told = found.to_json()
    assert told["roofline"]["without_overlap"] == 13.0
    assert told["memory"]["total"] == 660
    assert "at least 5.00 s" in found.sentence()
    assert "13.0 s if nothing overlaps" in found.sentence()
    assert "10 steps at least 50.0 s" in found.sentence(10)


def test_memory_by_kind_is_the_states_and_shrinks_where_it_is_shared() -> None:
    task = tasks.classification(MLP((64, 4)))
    examples = data.shuffled(arrays(), 16, resident=False)

    def planned(mesh: str) -> train.Cost:
        with train.planning() as plan:
            train.fit(learners.gradient(task, optax.adam(1e-3)), examples, 9, mesh=mesh)
        return plan.costs["train"]

    one, copied, shared = planned("data:1"), planned("data:8"), planned("fsdp:8")
    params = 12 * 64 + 64 + 64 * 4 + 4
    assert one.params == copied.params == shared.params == params
    assert one.memory.parameters == copied.memory.parameters == 4 * params
    assert one.memory.optimizer == 2 * 4 * params + 4
    # What is too small to be worth it is copied.
    assert shared.memory.parameters == 4 * params
    assert one.memory.data - copied.memory.data == 16 * (12 + 1) * 4 * 7 / 8
    # Forward, and the gradient of weights and of what is between the layers.
    assert sum(one.flops.values()) == 2 * 16 * (2 * (12 * 64 + 64 * 4) + 64 * 4)
    assert copied.flops == one.flops
    assert one.collectives == {}
    assert 2 * 4 * params * 7 / 8 <= copied.sent < 1.01 * 2 * 4 * params


def test_fit_says_what_a_step_costs_before_the_first_and_compiles_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    listening = True

    def listen(event: str, seconds: float, **about: Any) -> None:
        del seconds
        if listening and event.endswith("backend_compile_duration"):
            compiled.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    told: list[dict[str, Any]] = []
    examples = data.shuffled(arrays(), 16)
    fitted = train.fit(learner(), examples, 20, mesh="data:1", loggers=[lambda r: told.append(dict(r))])
    listening = False
    steps = [name for name in compiled if "single" in name or "several" in name]
    assert len(steps) == 1, compiled
    assert told[0]["split"] == "message"
    assert f"{fitted.cost.params:,} parameters" in told[0]["text"]
    assert fitted.cost.params == sum(x.size for x in jax.tree.leaves(fitted.variables["params"]))


def test_what_cannot_fit_is_refused_with_the_nearest_setting_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = tasks.classification(MLP((64, 64, 4)))
    made = learners.gradient(task, optax.adam(1e-3))
    examples = data.shuffled(arrays(), 128, resident=False)
    with train.planning() as plan:
        train.fit(made, examples, 9, mesh="data:1")
    memory = plan.costs["train"].memory

    def limited(size: float) -> None:
        monkeypatch.setattr(cost, "chip_of", lambda device, sharing: ROUND._replace(memory=size))

    limited(memory.total)
    with train.planning() as plan:
        train.fit(made, examples, 9, mesh="data:1")
    assert plan.costs["train"].fits
    # Gradients stay as large as they are, and what else a step computes shrinks with its examples.
    shrinking = memory.temporaries - memory.parameters
    limited(memory.total - shrinking / 2 - 1)
    with pytest.raises(
        train.DoesNotFit, match="a batch 4 times smaller .* in 4 times as many parts"
    ) as refused:
        train.fit(made, examples, 9, mesh="data:1")
    with pytest.raises(train.DoesNotFit, match="a batch 3 times smaller"):
        train.fit(made, data.shuffled(arrays(), 129, resident=False), 9, mesh="data:1")
    with pytest.raises(train.DoesNotFit, match="a batch 127 times smaller"):
        train.fit(made, data.shuffled(arrays(), 127, resident=False), 9, mesh="data:1")
    assert refused.value.needed == memory.total
    assert refused.value.parts == 4
    assert f"parameters {cost.gib(memory.parameters)}" in str(refused.value)
    # Half of what the rest leaves is for the state, so that something remains for what a step computes.
    state = memory.parameters + memory.optimizer
    rest = memory.total - memory.temporaries - state
    limited(rest + state / 2)
    with pytest.raises(train.DoesNotFit, match='at least 4 devices, with mesh="fsdp:4"'):
        train.fit(made, examples, 9, mesh="data:1")
    limited(rest / 2)
    with pytest.raises(train.DoesNotFit, match="leave the data on the host"):
        train.fit(made, examples, 9, mesh="data:1")


def test_what_is_shared_already_is_shared_over_more(devices: list[jax.Device]) -> None:
    half = cost.Memory(parameters=80, optimizer=160, other=0, data=10, results=0, temporaries=40, code=0)
    chip = ROUND._replace(memory=100)
    refused = cost._too_large(half, 290, chip, train.make_mesh("data:2,fsdp:4"), 16)
    # 960 bytes in all, of which 45 a device.
    assert 'mesh="fsdp:32"' in str(refused)


def test_a_compiler_that_runs_out_of_memory_is_put_into_words() -> None:
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required "
        "for HLO temporaries (497.00G) exceeds available HBM (15.75G). HLO module: jit_step."
    )

    def fail() -> Any:
        raise jax.errors.JaxRuntimeError(said)

    traced = SimpleNamespace(lower=lambda: SimpleNamespace(compile=fail))
    mesh = train.make_mesh("data:1")
    with pytest.raises(train.DoesNotFit, match="needs at least 497.00 GiB and a device") as refused:
        cost.cost(traced, {}, mesh)
    assert refused.value.needed == 497 * 2**30


def test_a_program_that_cannot_be_read_keeps_nobody_from_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hlo, "parse", lambda text: ({}, "another format"))
    with pytest.warns(UserWarning, match=r"cannot be read \(KeyError: 'another format'\): loops are counted"):
        fitted = train.fit(learner(), data.shuffled(arrays(), 16), 2, mesh="data:1")
    assert fitted.step == 2
    assert fitted.cost.traffic > 0


def test_a_plan_places_nothing_and_leaves_what_called_fit() -> None:
    inside = []
    examples = data.shuffled(arrays(), 16)
    with train.planning(measure=2) as plan:
        train.fit(learner(), examples, 10, mesh="data:1")
        inside.append("after fit")
    assert not inside
    assert plan.seconds is not None
    assert plan.seconds > 0
    with train.planning() as nothing:
        pass
    assert nothing.costs == {}
    assert train.fit(learner(), examples, 2, mesh="data:1").step == 2
    with (
        pytest.raises(ValueError, match="only steps on devices that are here"),
        train.planning([], measure=2),
    ):
        pass


def test_peak_rates_are_a_chips_and_half_of_them_a_cores() -> None:
    for kind, chip in chips.CHIPS.items():
        assert min(chip.flops, chip.flops_float32, chip.bandwidth, chip.memory) > 0, kind
        assert chip.flops >= chip.flops_float32, kind
        assert chip.source
    device = SimpleNamespace(device_kind="TPU v4", platform="tpu", num_cores=1)
    assert chips.chip_of(device).flops == chips.CHIPS["TPU v4"].flops / 2
    assert chips.chip_of(SimpleNamespace(**{**vars(device), "num_cores": 2})).flops == 275e12
    with pytest.raises(ValueError, match="no peak rates are known of the device 'TPU v99'"):
        chips.chip_of(SimpleNamespace(device_kind="TPU v99", platform="tpu"))
    here = chips.chip_of(jax.devices()[0])
    assert 0 < here.bandwidth < math.inf
    assert here.memory < 2**44
    part = chips.chip_of(jax.devices()[0], sharing=8)
    assert (part.flops, part.memory) == (here.flops / 8, here.memory / 8)
    assert "measured" in here.source


def test_topologies_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("libtpu") is not None:
        with pytest.raises(ValueError, match="no topology is called 'v5e:3x3'.*some are v5e:1x1"):
            train.topology("v5e:3x3")
        assert [len(train.topology(name)) for name in ("v5e:1x1", "v5e:2x4")] == [1, 8]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[tpu\]"'):
        train.topology("v5e:2x2")
