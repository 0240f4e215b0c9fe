"""The core of Transformers: a cache that changes nothing, padding that leaks nowhere, layers in a loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.core import LOSSES
from jdl.models import Transformer, gpt, llama
from jdl.nn import Alibi, BlockConfig, Buckets, Experts, Rotary, stack_layers, unstack_layers
from jdl.nn.taps import tapped
from tests.compiling import CHEAPLY, jit

V, D, T, ROOM, PIECE = 11, 8, 9, 10, 4

BLOCK = BlockConfig(4, 16, causal=True)
BLOCKS = {
    "learned": BLOCK,
    "rotary, groups, window, experts": BlockConfig(
        4,
        12,
        num_kv_heads=2,
        causal=True,
        window=3,
        rotary=Rotary(),
        norm="rms",
        activation="silu",
        gated=True,
        use_bias=False,
        experts=Experts(3, capacity=1.0),
    ),
    "alibi, one head of keys": BlockConfig(4, 16, num_kv_heads=1, causal=True, relative=Alibi()),
    "buckets, norm after": BlockConfig(
        4,
        16,
        causal=True,
        relative=Buckets(8, 6, False),
        norm_first=False,
        scale=1.0,
        init_std=None,
        head_size=3,
    ),
}


def perturbed(variables, scale=0.3):
    """No parameter zero or one by its initialiser."""
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    return structure.unflatten([x + scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def tokens(seed=0, rows=3, length=T):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (rows, length)), jnp.int32)


@functools.cache
def model_and_variables(name, scan=False, **options):
    block = BLOCKS[name]
    positions = None if block.rotary or block.relative else "learned"
    model = Transformer(V, D, 2, block, positions=positions, context=ROOM, scan=scan, **options)
    plain = model.clone(scan=False)
    variables = perturbed(jit(lambda key: plain.init(key, tokens()))(jax.random.key(0)))
    return model, stack_layers(variables) if scan else variables


@functools.cache
def compiled(name, scan):
    """Logits of whole sequences, and of pieces after a cache; and the variables."""
    model, variables = model_and_variables(name, scan)
    extend = jit(lambda v, *given: model.apply(v, *given, method="extend"))
    return model, variables, jit(model.apply), extend


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, T), min_size=3, max_size=3),
    pieces=st.lists(st.lists(st.integers(0, PIECE), min_size=3, max_size=3), min_size=1, max_size=12),
)
def test_a_cache_changes_nothing(name, scan, lengths, pieces):
    """Rows of different lengths, read in pieces of different lengths, some of nothing."""
    model, variables, whole, extend = compiled(name, scan)
    sequence, read, cache = tokens(), np.zeros(3, int), model.init_cache(3, ROOM)
    expected = np.asarray(whole(variables, sequence))
    for piece in [*pieces, *[[PIECE] * 3] * 3]:
        new = np.minimum(piece, np.array(lengths) - read)
        given = np.random.default_rng(0).integers(0, V, (3, PIECE)).astype(np.int32)
        for b, (start, count) in enumerate(zip(read, new, strict=True)):
            given[b, :count] = sequence[b, start : start + count]
        logits, cache = extend(variables, cache, given, new.astype(np.int32))
        for b, (start, count) in enumerate(zip(read, new, strict=True)):
            np.testing.assert_allclose(
                logits[b, :count],
                expected[b, start : start + count],
                rtol=0,
                atol=1e-5 * np.abs(expected).max(),
            )
        read += new
    np.testing.assert_array_equal(cache["lengths"], lengths)
    assert {x.shape[0] for x in jax.tree.leaves(cache)} == {3}


def test_a_cache_goes_back():
    model, variables, whole, extend = compiled("rotary, groups, window, experts", False)
    del model
    sequence, other = tokens(), tokens(1)
    _, cache = extend(variables, compiled_cache(), sequence[:, :4], None)
    _, cache = extend(variables, cache, other[:, :4], None)
    back = {**cache, "lengths": jnp.array([4, 3, 2], jnp.int32)}
    following = jnp.stack([sequence[b, n : n + PIECE] for b, n in enumerate((4, 3, 2))])
    logits, _ = extend(variables, back, following, None)
    expected = whole(variables, sequence)
    for b, n in enumerate((4, 3, 2)):
        np.testing.assert_allclose(logits[b], expected[b, n : n + PIECE], rtol=0, atol=1e-4)


def compiled_cache():
    return model_and_variables("rotary, groups, window, experts")[0].init_cache(3, ROOM)


def test_what_a_cache_has_no_room_for_is_not_a_number():
    model, variables, _, extend = compiled("alibi, one head of keys", False)
    cache = model.init_cache(3, 6)
    _, cache = extend(variables, cache, tokens(length=PIECE), None)
    before = jax.tree.map(np.asarray, cache)
    logits, cache = extend(variables, cache, tokens(1, length=PIECE), jnp.array([4, 2, 0], jnp.int32))
    finite = np.isfinite(logits).all(-1)
    np.testing.assert_array_equal(finite, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(cache["lengths"], [8, 6, 4])
    for now, then in zip(jax.tree.leaves(cache["blocks"]), jax.tree.leaves(before["blocks"]), strict=True):
        np.testing.assert_array_equal(now[:, :, :4], then[:, :, :4])


@pytest.mark.parametrize("scan", [False, True])
def test_a_donated_cache_is_written_in_place(scan):
    room, rows = 512, 4
    block = dataclasses.replace(BLOCKS["alibi, one head of keys"], head_size=32)
    model = Transformer(V, D, 4, block, positions=None, scan=scan)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens()))
    cache = jax.eval_shape(lambda: model.init_cache(rows, room))
    extend = jax.jit(
        lambda v, cache, new: model.apply(v, cache, new, method="extend"),
        donate_argnums=1,
        compiler_options=CHEAPLY,
    )
    memory = extend.lower(variables, cache, tokens(rows=rows, length=1)).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= size
    # One layer's logits and what is read of it, not a copy of all layers.
    assert memory.temp_size_in_bytes < size / 2


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_in_a_loop_are_the_same_layers(name):
    model, variables = model_and_variables(name)
    stacked = stack_layers(variables)
    looped = model.clone(scan=True)
    shapes = jax.eval_shape(lambda: looped.init(jax.random.key(0), tokens()))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), variables)

    def loss(model, variables):
        logits, changed = model.apply(variables, tokens(), train=True, mutable=[LOSSES])
        return jnp.square(logits).mean() + sum(x.sum() for x in jax.tree.leaves(changed))

    expected, gradient = jit(jax.value_and_grad(functools.partial(loss, model)))(variables)
    for remat in (None, "full", "dots") if name == "rotary, groups, window, experts" else (None,):
        run = jit(jax.value_and_grad(functools.partial(loss, looped.clone(remat=remat))))
        actual, stacked_gradient = run(stacked)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-6),
            unstack_layers(stacked_gradient),
            gradient,
        )
    assert bool(changed_losses(model, variables)) == (BLOCKS[name].experts is not None)


def test_layers_in_a_loop_can_be_looked_into():
    outputs = []
    for scan in (False, True):
        model, variables = model_and_variables("learned", scan)
        outputs.append(tapped(model, variables, tokens())[2])
    plain, looped = outputs
    for name in ("attention", "mlp/expand"):
        each = jnp.stack([plain[f"blocks/block{i}/{name}"] for i in (1, 2)])
        np.testing.assert_allclose(looped[f"blocks/block/{name}"], each, rtol=0, atol=1e-5)


def changed_losses(model, variables):
    return model.apply(variables, tokens(), train=True, mutable=[LOSSES])[1]


def test_remat_keeps_less():
    model = Transformer(V, 16, 4, BlockConfig(2, 64, causal=True))
    inputs = jax.ShapeDtypeStruct((4, 64), np.int32)

    def kept(remat):
        """Bytes of what the gradient is given by the forward pass."""
        this = model.clone(remat=remat)
        variables = jax.eval_shape(lambda x: this.init(jax.random.key(0), x), inputs)
        pullback = jax.eval_shape(
            lambda v, x: jax.vjp(lambda v: this.apply(v, x, train=True), v)[1], variables, inputs
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    everything, dots, nothing = (kept(remat) for remat in (None, "dots", "full"))
    assert nothing < 0.3 * everything
    assert nothing < 0.8 * dots < 0.6 * everything


@pytest.mark.parametrize("causal", [False, True])
def test_padding_leaks_nowhere(causal):
    block = dataclasses.replace(BLOCKS["rotary, groups, window, experts"], causal=causal)
    model = Transformer(V, D, 2, block, positions=None)
    run = jit(lambda v, *given: model.apply(v, dict(zip(("tokens", "lengths"), given, strict=True))))
    variables = perturbed(jit(model.init)(jax.random.key(0), tokens()))
    lengths = jnp.array([9, 4, 1], jnp.int32)
    changed = jnp.where(jnp.arange(T).reshape(1, T) < lengths.reshape(3, 1), tokens(), tokens(1))
    a, b = run(variables, tokens(), lengths), run(variables, changed, lengths)
    alone = jit(model.apply)(variables, tokens()[1:2, :4])[0]
    for row, n in enumerate(lengths.tolist()):
        np.testing.assert_array_equal(a[row, :n], b[row, :n])
    np.testing.assert_allclose(a[1, :4], alone, rtol=0, atol=1e-5)


def test_no_number_in_the_padding_of_floats_reaches_nothing():
    model = Transformer(None, D, 1, BlockConfig(2, 16), head=2, pool="mean")
    lengths = jnp.array([4, 1])
    real = (jnp.arange(4)[None] < lengths[:, None])[..., None]

    def loss(params, fill):
        given = {"sequence": jnp.where(real, jnp.ones((1, 1, 3)), fill), "lengths": lengths}
        return model.apply({"params": params}, given).sum()

    params = model.init(jax.random.key(0), jnp.zeros((2, 4, 3)))["params"]
    run = jit(jax.value_and_grad(loss))
    jax.tree.map(np.testing.assert_array_equal, run(params, jnp.nan), run(params, 1.0))


@pytest.mark.parametrize("name", ["learned", "buckets, norm after"])
def test_documents_in_a_row_do_not_see_each_other(name):
    model, variables = model_and_variables(name)
    first, second = tokens()[:1, :4], tokens(1)[:1, :3]
    packed = {
        "tokens": jnp.concatenate([first, second, tokens(2)[:1, :2]], 1),
        "segments": jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]]),
        "positions": jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
    }
    run = jit(model.apply)
    together = run(variables, packed)
    np.testing.assert_allclose(together[:, :4], run(variables, first), rtol=0, atol=1e-5)
    np.testing.assert_allclose(together[:, 4:7], run(variables, second), rtol=0, atol=1e-5)


def test_experts_count_no_padding_in_their_losses():
    model, variables = model_and_variables("rotary, groups, window, experts")
    short = tokens()[:, :4]
    inputs = {"tokens": tokens(), "lengths": jnp.full(3, 4)}
    run = jit(lambda variables, x: model.apply(variables, x, mutable=[LOSSES])[1])
    losses = [run(variables, x) for x in (inputs, short)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *losses)


@pytest.mark.parametrize(("pool", "expected"), [("first", [0, 0, 0]), ("last", [8, 3, 0]), ("mean", None)])
def test_pools_real_positions(pool, expected):
    model, variables = model_and_variables("learned", head=None, pool=pool)
    inputs = {"tokens": tokens(), "lengths": jnp.array([9, 4, 1])}
    states = jit(lambda v, x: model.apply(v, x, method="hidden"))(variables, inputs)
    pooled = jit(model.apply)(variables, inputs)
    for row, n in enumerate((9, 4, 1)):
        by_hand = states[row, :n].mean(0) if expected is None else states[row, expected[row]]
        np.testing.assert_allclose(pooled[row], by_hand, rtol=0, atol=1e-5)


def test_logits_are_float32_and_of_hidden_states():
    model, variables = model_and_variables("learned", dtype=jnp.bfloat16)
    hidden = jit(lambda v, x: model.apply(v, x, method="hidden"))(variables, tokens())
    logits = model.apply(variables, hidden, method="logits")
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(logits, jit(model.apply)(variables, tokens()))
    cache = model.init_cache(3, ROOM)
    assert {str(x.dtype) for x in jax.tree.leaves(cache["blocks"])} == {"bfloat16"}


def test_sequences_of_floats():
    model = Transformer(None, D, 1, BlockConfig(2, 16), positions="sinusoidal", head=3)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    outputs, variables = jit(model.init_with_output)(jax.random.key(0), x)
    assert outputs.shape == (2, 5, 3)
    assert variables["params"]["tokens"]["kernel"].shape == (4, D)
    same = jit(model.apply)(variables, {"sequence": x, "lengths": jnp.array([5, 5])})
    np.testing.assert_allclose(same, outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", ["124m", None])
@pytest.mark.parametrize("make", [gpt, llama])
def test_says_which_sizes_it_has(make, size):
    with pytest.raises(ValueError, match=f"{make.__name__} has the sizes .*; got {size!r}"):
        make(size)


def test_another_width_of_llama_needs_its_own_heads():
    with pytest.raises(ValueError, match="than that of 2-7b needs its own num_kv_heads, hidden too"):
        llama(width=192, depth=6, num_heads=6)


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, jnp.zeros((2, 3)), r"tokens that are integers \[batch, time\]; got float32 \(2, 3\)"),
        ({}, jnp.zeros(3, int), "got int32"),
        ({}, {"token": tokens()}, r"a dictionary of lengths, positions, .* got \['token'\]"),
        ({}, {"tokens": tokens(), "lengths": jnp.ones(2, int)}, r"integers \(3,\); got int32 \(2,\)"),
        ({}, {"tokens": tokens(), "lengths": jnp.full(3, 2.7)}, r"integers \(3,\); got float32 \(3,\)"),
        ({}, {"tokens": tokens(), "types": tokens()}, "no types of tokens; got some"),
        ({"context": 8}, tokens(), "has 8 learned positions; got a sequence of 9"),
        ({"positions": "rotary"}, tokens(), "positions are None or one of learned, sinusoidal; got 'rotary'"),
        ({"pool": "max"}, tokens(), "pool is None or one of first, mean, last; got 'max'"),
        ({"head": "linear"}, tokens(), "head is None, a number or one of tied, .*; got 'linear'"),
        ({"vocab_size": None}, jnp.zeros((2, 3, 4)), "no vocabulary for its head 'tied': give a number"),
        ({"pooler": True}, tokens(), 'a pooler needs a pool, such as pool="first"'),
        (
            {"pool": "mean", "head": 2},
            {"tokens": tokens(), "segments": jnp.ones((3, 9), int)},
            "the pool 'mean' would mix the segments of a row: give each document a row of its own",
        ),
        ({"stochastic_depth": 1.0}, tokens(), "at least 0 and below 1; got 1.0"),
        ({"dropout": 1.5}, tokens(), "dropout, a rate, must be at least 0 and below 1; got 1.5"),
        ({"remat": "all"}, tokens(), "remat is None or one of full, dots; got 'all'"),
    ],
)
def test_says_what_is_wrong(options, inputs, message):
    model = Transformer(**{"vocab_size": V, "width": D, "depth": 1, "block": BLOCK} | options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "the activations gelu, .*; got 'swish'"),
        ({"norm": "batch"}, "the norms layer, rms; got 'batch'"),
        ({"num_kv_heads": 3}, "4 heads cannot share 3 heads of keys and values equally"),
    ],
)
def test_a_block_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BLOCK, **options)


def test_a_cache_says_what_is_wrong():
    model, variables = model_and_variables("learned")
    cache = model.init_cache(3, 4)
    with pytest.raises(ValueError, match="room for 4 positions cannot be extended by 9"):
        model.apply(variables, cache, tokens(), method="extend")
    with pytest.raises(ValueError, match="a cache of 3 rows cannot be extended by 2"):
        model.apply(variables, cache, tokens(rows=2, length=2), method="extend")
    with pytest.raises(ValueError, match="has 10 learned positions; got a cache of 11"):
        model.init_cache(3, 11)
    with pytest.raises(ValueError, match="only a causal model of tokens has a cache"):
        model.clone(block=BlockConfig(4, 16)).init_cache(3, 4)
    for options in {"head": None}, {"head": 3, "pool": "last"}:
        with pytest.raises(ValueError, match="only a model that gives logits of the next token writes"):
            model.clone(**options).init_cache(3, 4)


def test_unknown_options_are_refused():
    with pytest.raises(
        TypeError, match="neither Transformer nor BlockConfig has layers; there are activation"
    ):
        gpt(layers=3)
