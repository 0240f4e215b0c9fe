"""The published sizes have the published numbers of parameters."""

import jax
import jax.numpy as jnp
import pytest

from jdl.models import bert, gpt, llama, t5, transformer

TOKENS = jnp.zeros((1, 4), jnp.int32)
PAIR = {"source": TOKENS, "target": TOKENS}


@pytest.mark.parametrize(
    ("make", "size", "options", "inputs", "parameters"),
    [
        (gpt, "small", {}, TOKENS, 124_439_808),
        (gpt, "medium", {}, TOKENS, 354_823_168),
        (gpt, "large", {}, TOKENS, 774_030_080),
        (gpt, "xl", {}, TOKENS, 1_557_611_200),
        (bert, "base", {"head": None, "pool": "first", "pooler": True}, TOKENS, 109_482_240),
        (bert, "base", {}, TOKENS, 109_514_298),
        (bert, "large", {"head": None, "pool": "first", "pooler": True}, TOKENS, 335_141_888),
        (t5, "small", {}, PAIR, 60_506_624),
        (t5, "base", {}, PAIR, 222_903_552),
        (t5, "large", {}, PAIR, 737_668_096),
        (t5, "3b", {}, PAIR, 2_851_598_336),
        (t5, "11b", {}, PAIR, 11_307_321_344),
        (t5, "1.1-small", {}, PAIR, 76_961_152),
        (t5, "1.1-base", {}, PAIR, 247_577_856),
        (llama, "2-7b", {}, TOKENS, 6_738_415_616),
        (llama, "2-13b", {}, TOKENS, 13_015_864_320),
        (llama, "2-70b", {}, TOKENS, 68_976_648_192),
        (llama, "3-8b", {}, TOKENS, 8_030_261_248),
        (llama, "3.2-1b", {}, TOKENS, 1_235_814_400),
        (llama, "mistral-7b", {}, TOKENS, 7_241_732_096),
        (llama, "mixtral-8x7b", {}, TOKENS, 46_702_792_704),
        (transformer, "base", {}, PAIR, 63_082_496),
    ],
)
def test_parameters(make, size, options, inputs, parameters):
    model = make(size, scan=True, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters


def test_options_override_those_of_a_size():
    model = gpt("medium", width=12, num_heads=3, depth=2, dropout=0.2, window=5)
    assert (model.width, model.depth, model.dropout) == (12, 2, 0.2)
    assert (model.block.num_heads, model.block.hidden, model.block.window) == (3, 48, 5)
    assert model.block.residual_scale == 0.5
    assert t5("small", width=16).logit_scale == 0.25
