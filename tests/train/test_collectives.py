"""What a compiled program exchanges is read from its text: by hand-made programs, and by one of XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdl.train import make_mesh
from jdl.train.collectives import collectives

LOOP = """HloModule looped
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %r = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
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

ASYNC = """HloModule chained
%start (p: f32[2]) -> f32[16] {
  ROOT %g = bf16[16]{0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, dimensions={0}
}
%link (p: f32[2]) -> f32[16] {
  ROOT %g = bf16[16]{0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, dimensions={0}
}
%all-reduce-scatter.3 (p: f32[64,4]) -> f32[8,4] {
  %p = f32[64,4]{1,0} parameter(0)
  %r = f32[64,4]{1,0} all-reduce(%p), channel_id=2, to_apply=%add
  ROOT %s = f32[8,4]{1,0} dynamic-slice(%r, %i, %j)
}
ENTRY %main (p: f32[2], q: f32[64,4]) -> f32[16] {
  %a = (bf16[2], bf16[16]) fusion(%p), kind=kCustom, calls=%start
  %b = bf16[16] fusion(%a), kind=kCustom, calls=%link
  %c = f32[8,4]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.3
  %d = (f32[4]{0}, f32[32]{0}) all-gather-start(%q), channel_id=3, dimensions={0}
  %e = f32[32]{0} all-gather-done(%d)
  %f = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%q), channel_id=4
  %g = f32[4]{0} collective-permute-done(%f)
  %h = (f32[4]{0}, /*index=1*/s8[3]{0}) all-reduce-start(%q), channel_id=5, to_apply=%add
  ROOT %i = (f32[4]{0}, s8[3]{0}) all-reduce-done(%h)
}
"""


@pytest.mark.parametrize(
    ("note", "turns"),
    [("", 6), (', backend_config={"known_trip_count":{"n":"5"}}', 5)],
    ids=["bound", "note"],
)
def test_a_loop_counts_as_often_as_it_turns(note, turns):
    assert collectives(LOOP.replace("@NOTE", note)) == {"all-reduce": (turns, turns * 32)}


def test_a_loop_of_unknown_length_counts_once():
    assert (
        collectives(LOOP.replace("@NOTE", "").replace("constant(6)", "parameter(1)"))["all-reduce"].times == 1
    )


def test_asynchronous_chains_are_one_exchange():
    assert collectives(ASYNC) == {
        "all-gather": (2, 16 * 2 + 32 * 4),
        "reduce-scatter": (1, 8 * 4 * 4),
        "all-reduce": (1, 4 * 4 + 3),
        "collective-permute": (1, 4 * 4),
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
    assert found["all-reduce"] == (4, 4 * 16 * 16 * 4)


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="must have one computation marked ENTRY"):
        collectives("module @jit_f {}")
