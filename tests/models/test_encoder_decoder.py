"""Encoder and decoder equal PyTorch's, and a decoder with a cache and a memory equals one without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.generation import decoder
from jdl.models import EncoderDecoder, t5, transformer
from jdl.nn import BlockConfig, Buckets, stack_layers
from tests.compiling import jit

V, D, H, F, B, S, T = 11, 8, 2, 16, 3, 6, 5
SOURCE_LENGTHS = jnp.array([6, 2, 4], jnp.int32)


def perturbed(variables):
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    return structure.unflatten([x + 0.2 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def batch(seed=0):
    rng = np.random.default_rng(seed)
    source, target = (jnp.asarray(rng.integers(0, V, (B, n)), jnp.int32) for n in (S, T))
    return {"source": {"tokens": source, "lengths": SOURCE_LENGTHS}, "target": target}


MODELS = {
    "t5": functools.partial(
        t5, vocab_size=V, width=D, depth=2, num_heads=H, head_size=3, hidden=F, relative=Buckets(8, 6)
    ),
    "t5 1.1": functools.partial(
        t5, "1.1-small", vocab_size=V, width=D, depth=2, num_heads=H, head_size=3, hidden=F
    ),
    "transformer": functools.partial(
        transformer, vocab_size=V, width=D, depth=1, num_heads=H, hidden=F, decoder_depth=2, dropout=0.0
    ),
}


def layer_state(torch, params, has_memory):
    """A PyTorch layer's state of a block's parameters."""
    state = {}

    def put(name, ours):
        state[f"{name}.weight"] = ours["kernel"].T if "kernel" in ours else ours["scale"]
        state[f"{name}.bias"] = ours["bias"]

    for theirs, ours in [("self_attn", "attention")] + [("multihead_attn", "cross")] * has_memory:
        parts = [params[ours][name] for name in ("query", "key", "value")]
        state[f"{theirs}.in_proj_weight"] = np.concatenate([part["kernel"].T for part in parts])
        state[f"{theirs}.in_proj_bias"] = np.concatenate([part["bias"] for part in parts])
        put(f"{theirs}.out_proj", params[ours]["out"])
    norms = ["norm1", "norm_cross", "norm2"] if has_memory else ["norm1", "norm2"]
    for i, name in enumerate(norms, 1):
        put(f"norm{i}", params[name])
    put("linear1", params["mlp"]["expand"])
    put("linear2", params["mlp"]["project"])
    return {name: torch.tensor(np.asarray(x)) for name, x in state.items()}


@pytest.mark.parametrize("norm_first", [False, True])
def test_equals_torch(torch, norm_first):
    model = MODELS["transformer"](norm_first=norm_first, positions=None)
    inputs = batch()
    variables = perturbed(jit(model.init)(jax.random.key(0), inputs))
    params = jax.tree.map(np.asarray, variables["params"])
    options = {
        "dim_feedforward": F,
        "dropout": 0.0,
        "batch_first": True,
        "norm_first": norm_first,
        "layer_norm_eps": 1e-5,
    }
    embed = torch.tensor(params["tokens"]["embedding"])
    padding = torch.arange(S).reshape(1, S) >= torch.tensor(np.array(SOURCE_LENGTHS)).reshape(B, 1)
    memory, states = (
        embed[torch.tensor(np.array(x)).long()] * D**0.5
        for x in (inputs["source"]["tokens"], inputs["target"])
    )

    def stack(kind, blocks, has_memory, x, **given):
        for name in sorted(blocks):
            layer = kind(D, H, **options)
            layer.load_state_dict(layer_state(torch, blocks[name], has_memory))
            x = layer(x, **given)
        return x

    def normed(x, side):
        if not norm_first:
            return x
        norm = (torch.tensor(params[side]["norm"][name]) for name in ("scale", "bias"))
        return torch.nn.functional.layer_norm(x, (D,), *norm)

    nn = torch.nn
    memory = stack(
        nn.TransformerEncoderLayer,
        params["encoder"]["blocks"],
        False,
        memory,
        src_key_padding_mask=padding,
    )
    memory = normed(memory, "encoder")
    states = stack(
        nn.TransformerDecoderLayer,
        params["decoder"]["blocks"],
        True,
        states,
        memory=memory,
        tgt_mask=torch.ones(T, T).triu(1).bool(),
        memory_key_padding_mask=padding,
    )
    expected = (normed(states, "decoder") @ embed.T).detach()
    actual = jit(model.apply)(variables, inputs)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_and_a_memory_change_nothing(name, scan):
    model, inputs = MODELS[name](), batch()
    variables = perturbed(jit(model.init)(jax.random.key(0), inputs))
    expected = jit(model.apply)(variables, inputs)
    assert np.abs(expected).max() > 0.3
    if scan:
        model, variables = model.clone(scan=True), stack_layers(variables)
        same = jit(model.apply)(variables, inputs)
        np.testing.assert_allclose(same, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    made = decoder(model, variables, inputs["source"])
    extend, cache = jit(lambda made, *given: made.extend(*given)), made.init_cache(B, T)
    assert {x.shape[0] for x in jax.tree.leaves(cache)} == {B}
    # Row b is b tokens ahead, and of what follows only the first token is real.
    target = jnp.pad(inputs["target"], ((0, 0), (0, 1)))
    logits, cache = extend(made, cache, inputs["target"][:, :2], jnp.array([0, 1, 2], jnp.int32))
    for t in range(3):
        following = jnp.stack([target[b, t + b : t + b + 2] for b in range(B)])
        logits, cache = extend(made, cache, following, jnp.ones(B, jnp.int32))
        for b in range(B):
            np.testing.assert_allclose(
                logits[b, 0], expected[b, t + b], rtol=0, atol=1e-5 * np.abs(expected).max()
            )
    assert made.rewind is not None


def test_padding_of_the_source_leaks_nowhere():
    model, inputs = MODELS["t5"](), batch()
    variables = perturbed(jit(model.init)(jax.random.key(0), inputs))
    run = jit(model.apply)
    real = jnp.arange(S).reshape(1, S) < SOURCE_LENGTHS.reshape(B, 1)
    other = jnp.where(real, inputs["source"]["tokens"], batch(1)["source"]["tokens"])
    assert jnp.any(other != inputs["source"]["tokens"])
    changed = {**inputs, "source": {"tokens": other, "lengths": SOURCE_LENGTHS}}
    outputs = run(variables, inputs)
    np.testing.assert_array_equal(run(variables, changed), outputs)
    nothing = {**inputs, "source": {"tokens": other, "lengths": jnp.zeros(B, jnp.int32)}}
    assert np.isfinite(run(variables, nothing)).all()
    short = {"source": inputs["source"]["tokens"][1:2, :2], "target": inputs["target"][1:2]}
    np.testing.assert_allclose(run(variables, short)[0], outputs[1], rtol=0, atol=1e-5)


def test_pairs_in_a_row_do_not_see_each_other():
    model, inputs = MODELS["transformer"](), batch()
    variables = perturbed(jit(model.init)(jax.random.key(0), inputs))
    run = jit(model.apply)
    source, target = inputs["source"]["tokens"][:2, :3], inputs["target"][:2, :2]
    apart = run(variables, {"source": source, "target": target})

    def packed(x, n):
        ids = jnp.repeat(jnp.array([[1, 2]]), n, axis=1)
        return {"tokens": x.reshape(1, -1), "segments": ids, "positions": jnp.tile(jnp.arange(n), 2)[None]}

    together = run(variables, {"source": packed(source, 3), "target": packed(target, 2)})
    np.testing.assert_allclose(together.reshape(apart.shape), apart, rtol=0, atol=1e-5)


def test_the_decoder_counts_buckets_of_the_past_alone():
    model = MODELS["t5"]()
    assert model.block.relative.both_ways
    assert not model.decoder_block.relative.both_ways
    assert model.decoder_block.causal
    assert not model.block.causal


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, jnp.zeros((B, T), int), 'takes {"source": ..., "target": ...}; got '),
        ({}, {"source": jnp.zeros((B, T), int)}, r"got \['source'\]"),
        (
            {},
            {"source": {"tokens": jnp.zeros((B, T), int), "segments": jnp.ones((B, T), int)},
             "target": jnp.zeros((B, T), int)},
            "where the source has segments the target has too",
        ),
        ({"positions": "learned", "context": 4}, batch(), "has 4 learned positions; got a sequence of 6"),
        ({"positions": "rotary"}, batch(), "positions are None or one of learned, sinusoidal; got 'rotary'"),
        ({"head": 3}, batch(), 'head is "tied" or "untied"; got 3'),
    ],
)  # fmt: skip
def test_says_what_is_wrong(options, inputs, message):
    model = EncoderDecoder(**{"vocab_size": V, "width": D, "depth": 1, "block": BlockConfig(H, F)} | options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), inputs)


def test_a_memory_fits_the_rows():
    model, inputs = MODELS["transformer"](), batch()
    variables = jit(model.init)(jax.random.key(0), inputs)
    memory = jax.eval_shape(lambda v: model.apply(v, inputs["source"], method="encode"), variables)
    with pytest.raises(ValueError, match="4 rows need a memory of as many; got 3"):
        model.init_cache(4, T, memory)
    packed = {"tokens": inputs["source"]["tokens"], "segments": jnp.ones((B, S), int)}
    with pytest.raises(ValueError, match="cannot be encoded for a decoder"):
        model.apply(variables, packed, method="encode")


@pytest.mark.parametrize("make", [t5, transformer])
def test_says_which_sizes_it_has(make):
    with pytest.raises(ValueError, match=f"{make.__name__} has the sizes .*base.*; got 'huge'"):
        make("huge")
