"""What a compiled program exchanges is read from its text: by hand-made programs, and by one of XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.train import make_mesh
from jdl.train.collectives import collectives

LOOP = """HloModule looped, num_partitions=4
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %r = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(6)
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %while = (s32[], f32[8]{0}) while(%p), condition=%condition, body=%body@NOTE
}
"""

ASYNC = """HloModule chained, replica_count=2, num_partitions=8
%start (p: f32[2]) -> f32[16] {
  ROOT %g = bf16[16]{0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, @CHAIN
}
%link (p: f32[2]) -> f32[16] {
  ROOT %g = bf16[16]{0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, @CHAIN
}
%all-reduce-scatter.3 (p: f32[64,4]) -> f32[8,4] {
  %p = f32[64,4]{1,0} parameter(0)
  %r = f32[64,4]{1,0} all-reduce(%p), channel_id=2, replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %s = f32[8,4]{1,0} dynamic-slice(%r, %i, %j)
}
ENTRY %main (p: f32[2], q: f32[64,4]) -> f32[16] {
  %a = (bf16[2], bf16[16]) fusion(%p), kind=kCustom, calls=%start
  %b = bf16[16] fusion(%a), kind=kCustom, calls=%link
  %c = f32[8,4]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.3
  %d = (f32[4]{0}, f32[32]{0}) all-gather-start(%q), channel_id=7, replica_groups={}
  %e = f32[32]{0} all-gather-done(%d)
  %f = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%q), channel_id=4
  %g = f32[4]{0} collective-permute-done(%f)
  %h = (f32[4]{0}, /*index=1*/s8[3]{0}) all-reduce-start(%q), replica_groups=mesh['x'=16] {'x':(2)4}
  ROOT %i = (f32[4]{0}, s8[3]{0}) all-reduce-done(%h)
}
""".replace(
    "@CHAIN",
    "replica_groups=mesh['x'=2,'y'=8], device_ids=([8,2]T(1,0)) {'y'}, chain_id=\"3\"",
)


@pytest.mark.parametrize(
    ("note", "turns"),
    [("", 6), (', backend_config={"known_trip_count":{"n":"5"}}', 5)],
    ids=["bound", "note"],
)
def test_a_loop_counts_as_often_as_it_turns(note, turns):
    assert collectives(LOOP.replace("@NOTE", note)) == {"all-reduce": (turns, turns * 32, turns * 2 * 32 / 2)}


def test_a_loop_of_unknown_length_counts_once():
    assert (
        collectives(LOOP.replace("@NOTE", "").replace("constant(6)", "parameter(1)"))["all-reduce"].times == 1
    )


def test_asynchronous_chains_are_one_exchange():
    assert collectives(ASYNC) == {
        "all-gather": (2, 16 * 2 + 32 * 4, 16 * 2 * 7 / 8 + 32 * 4 * 15 / 16),
        "reduce-scatter": (1, 8 * 4 * 4, 7 * 8 * 4 * 4),
        "all-reduce": (1, 4 * 4 + 3, round(2 * (4 * 4 + 3) * 3 / 4)),
        "collective-permute": (1, 4 * 4, 4 * 4),
    }


def test_a_program_of_xla(devices):
    """The products of a split contraction are summed over the devices, once a turn, and no more."""
    mesh = make_mesh("data:8")
    x = jax.device_put(np.ones((4, 16, 16), np.float32), NamedSharding(mesh, P(None, None, "data")))
    y = jax.device_put(np.ones((16, 16), np.float32), NamedSharding(mesh, P()))
    split = NamedSharding(mesh, P(None, "data"))

    def product(x, y):
        def turn(y, x):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(y.T, split).T), None

        return jax.lax.scan(turn, y, x)[0]

    found = collectives(jax.jit(product).lower(x, y).compile().as_text())
    assert found["all-reduce"] == (4, 4 * 16 * 16 * 4, 4 * 2 * 7 / 8 * 16 * 16 * 4)


def test_exchanges_of_one_channel_are_told_apart():
    """What is no link of a chain counts for itself: parts of an unrolled loop may have one channel."""
    text = LOOP.replace("@NOTE", "").replace(
        "  %r = f32",
        "  %twin = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,2},{1,3}}\n  %r = f32",
    )
    assert collectives(text)["all-reduce"] == (12, 12 * 32, 12 * 32)


@pytest.mark.parametrize(
    ("spec", "over", "group"),
    [("data:8", "data", 8), ("data:2,fsdp:4", "fsdp", 4), ("data:2,fsdp:4", "data", 2)],
)
def test_what_is_sent_goes_by_the_group_and_not_by_the_mesh(devices, spec, over, group):
    mesh = make_mesh(spec)
    x = jax.device_put(np.ones((64, 3), np.float32), NamedSharding(mesh, P(over)))
    program = jax.jit(lambda x: 2 * x, out_shardings=NamedSharding(mesh, P())).lower(x).compile()
    size = 64 * 3 * 4
    assert collectives(program.as_text()) == {"all-gather": (1, size, size * (group - 1) / group)}


def test_groups_in_an_unknown_hand_are_refused():
    with pytest.raises(ValueError, match="are written in no known way: <8>"):
        collectives(LOOP.replace("@NOTE", "").replace("{{0,2},{1,3}}", "<8>"))


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="must have one computation marked ENTRY"):
        collectives("module @jit_f {}")
