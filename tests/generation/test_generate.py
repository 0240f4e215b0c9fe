"""Generation against a plain loop over whole texts, and its promises: rows, keys, compilations, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from jdl.core import Decoder
from jdl.generation import (
    banned,
    chain,
    decoder,
    endless,
    generate,
    greedy,
    min_length,
    stream,
    temperature,
    top_p,
)
from tests.generation.standins import (
    V,
    attentive,
    attentive_logits,
    by_hand,
    log_softmax,
    recurrent,
    recurrent_logits,
)

PROMPTS = [[1, 2, 3], [4], [5, 6, 0, 1, 2, 3, 4, 5]]
SAMPLER = chain(temperature(1.5), top_p(0.9))
# The same shapes where it does not matter, so that tests share compiled programs.
USUAL = {"capacity": 32, "stop": [[2, 3], 6]}


@pytest.mark.parametrize(
    ("made", "logits_of"),
    [(attentive(), attentive_logits), (recurrent(), recurrent_logits)],
    ids=["keys", "carry"],
)
def test_greedy_equals_a_plain_loop_over_whole_texts(made, logits_of):
    first = [by_hand(logits_of, prompt, 12)[0] for prompt in PROMPTS]
    stop = [first[0][3:5], first[2][4:5]]  # so that some rows end early, by one token and by two
    found = jax.device_get(
        generate(made, PROMPTS, 0, greedy, max_new_tokens=12, stop=stop, pad=-7, capacity=32)
    )
    reasons = []
    for b, prompt in enumerate(PROMPTS):
        written, log_probs, reason = by_hand(logits_of, prompt, 12, stop)
        n = len(written)
        assert found.tokens_BN[b].tolist() == written + [-7] * (12 - n)
        np.testing.assert_allclose(found.log_probs_BN[b], log_probs + [0.0] * (12 - n), atol=1e-5)
        assert (found.lengths_B[b], found.stopped_B[b]) == (n, reason)
        assert found.rows()[b].tolist() == (written[: n - len(stop[reason])] if reason >= 0 else written)
        reasons.append("stop" if reason >= 0 else "length")
    assert found.reasons() == reasons
    assert "stop" in reasons


def test_long_prompts_are_read_in_chunks():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, V, n).tolist() for n in (1, 65, 150)]
    found = generate(attentive(), prompts, 0, greedy, max_new_tokens=3, capacity=160)
    for row, prompt in zip(found.rows(), prompts, strict=True):
        assert row.tolist() == by_hand(attentive_logits, prompt, 3)[0]


def test_full_chunks_of_long_prompts_are_wide(monkeypatch):
    widths = []

    def extend(cache, tokens, lengths=None):
        widths.append(tokens.shape[1])
        return attentive().extend(cache, tokens, lengths)

    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, V, n).tolist() for n in (513, 40, 1100)]
    made = Decoder(attentive().init_cache, extend)
    found = generate(made, prompts, 0, greedy, max_new_tokens=2, capacity=1200)
    assert {512, 64} <= set(widths)
    for row, prompt in zip(found.rows(), prompts, strict=True):
        assert row.tolist() == by_hand(attentive_logits, prompt, 2)[0]
    widths.clear()
    generate(made, [[1] * 600] * 20, 0, greedy, max_new_tokens=2, capacity=1200)
    assert max(widths) == 192  # of 20 rows no more than 4,096 tokens


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=9), min_size=2, max_size=2),
    st.lists(st.integers(0, V - 1), min_size=1, max_size=9),
    st.integers(0, 2),
    st.integers(0, 2**31),
)
def test_a_row_is_the_same_whatever_else_is_in_the_batch(others, prompt, place, seed):
    write = functools.partial(generate, attentive(), max_new_tokens=6, **USUAL)
    keys = jax.random.split(jax.random.key(seed), 3)
    keys = keys.at[place].set(jax.random.key(seed))
    rows = [*others[:place], prompt, *others[place:]]
    together = jax.device_get(write(rows, keys, SAMPLER))
    alone = jax.device_get(write([prompt], jax.random.key(seed)[None], SAMPLER))
    for x, y in zip(together, alone, strict=True):
        # Log-probabilities of one row and of three may be rounded in another order.
        tolerance = 1e-6 if np.issubdtype(x.dtype, np.floating) else 0
        np.testing.assert_allclose(x[place], y[0], rtol=tolerance, atol=tolerance)


def test_keys_decide_and_are_folded_with_the_row():
    write = functools.partial(
        generate,
        attentive(),
        [[1]] * 3,
        sampler=chain(temperature(9.0), top_p(1.0)),
        max_new_tokens=20,
        stop=[[5, 5], [6, 6]],
        capacity=32,
    )
    key = jax.random.key(5)
    first, again, other = write(key=key), write(key=5), write(key=jax.random.key(6))
    folded = write(key=jnp.stack([jax.random.fold_in(key, row) for row in range(3)]))
    np.testing.assert_array_equal(first.tokens_BN, again.tokens_BN)
    np.testing.assert_array_equal(first.tokens_BN, folded.tokens_BN)
    assert len({tuple(row) for row in np.concatenate([first.tokens_BN, other.tokens_BN]).tolist()}) == 6


def test_sampled_tokens_have_the_models_probabilities():
    n = 20_000
    found = generate(attentive(scale=1.0), [[3]] * n, 0, temperature(0.8), max_new_tokens=2, capacity=4)
    counts = np.zeros((V, V))
    np.add.at(counts, tuple(np.asarray(found.tokens_BN).T), 1)
    first = np.exp(log_softmax(attentive_logits([3], scale=1.0) / 0.8))
    second = [np.exp(log_softmax(attentive_logits([3, v], scale=1.0) / 0.8)) for v in range(V)]
    expected = n * first[:, None] * np.array(second)
    assert ((counts - expected) ** 2 / expected).sum() < 90  # 48 degrees of freedom: 0.02 %


def test_one_program_for_prompts_of_any_length():
    traced = []
    made = attentive()

    def extend(weights, cache, tokens, lengths=None):
        traced.append(tokens.shape)
        return made.extend.func(weights, cache, tokens, lengths)

    watched = made._replace(extend=Partial(extend, *made.extend.args))
    write = functools.partial(generate, watched, key=0, capacity=200, stop=[[2, 2]])
    write([[1, 2], [3, 4]], sampler=SAMPLER, max_new_tokens=5)
    before = len(traced)
    assert sorted(set(traced)) == [(2, 1), (2, 64)]
    for length, limit, t in ((1, 7, 0.5), (70, 20, 2.0), (190, 11, 1.1)):
        other = chain(temperature(t), top_p(t / 4))
        write(
            np.ones((2, length), int), sampler=other, max_new_tokens=limit, lengths=[1, length], stop=[[3, 1]]
        )
    scaled = watched._replace(extend=Partial(extend, jax.tree.map(lambda x: 2 * x, made.extend.args[0])))
    generate(scaled, [[1], [2]], 0, SAMPLER, capacity=200, stop=[[2, 2]], max_new_tokens=5)
    assert len(traced) == before
    # And with no capacity given, one program for a range of lengths.
    generate(watched, [[1] * 3], 0, SAMPLER, max_new_tokens=10)
    before = len(traced)
    for length in (20, 55):
        generate(scaled, [[1] * length], 0, SAMPLER, max_new_tokens=10)
    assert len(traced) == before


@pytest.mark.parametrize("every", [1, 4, 50])
def test_stream_gives_what_generate_gives(every):
    arguments = {"max_new_tokens": 14, **USUAL}
    found = jax.device_get(generate(attentive(), PROMPTS, 3, SAMPLER, pad=-1, **arguments))
    assert len(set(found.lengths_B.tolist())) == 3
    came = np.array(list(stream(attentive(), PROMPTS, 3, SAMPLER, every=every, **arguments)))
    np.testing.assert_array_equal(came.T, found.tokens_BN[:, : found.lengths_B.max()])


def test_stream_may_be_left_at_any_time_and_checks_at_the_call():
    tokens = stream(attentive(), PROMPTS, 3, SAMPLER, max_new_tokens=14, **USUAL)
    some = np.array(list(itertools.islice(tokens, 3)))
    whole = generate(attentive(), PROMPTS, 3, SAMPLER, max_new_tokens=14, **USUAL, pad=-1)
    np.testing.assert_array_equal(some.T, whole.tokens_BN[:, :3])
    with pytest.raises(ValueError, match="prompts are empty"):
        stream(attentive(), [], 0, greedy, max_new_tokens=2)
    with pytest.raises(ValueError, match="every must be at least 1"):
        stream(attentive(), [[1]], 0, greedy, max_new_tokens=2, every=0)


def test_endless_goes_on_from_the_last_half_of_a_full_context():
    known, expected = [1, 2, 3], []
    while len(expected) < 20:
        if len(known) == 9:
            known = known[-4:]
        (token,), *_ = by_hand(attentive_logits, known, 1)
        known.append(token)
        expected.append(token)
    assert list(itertools.islice(endless(attentive(), [1, 2, 3], 0, greedy, context=8), 20)) == expected


def test_endless_reads_the_end_of_a_longer_prompt():
    long = [0, 5, 6, 1, 4, 2, 1, 3, 2]
    ended, short = (list(itertools.islice(endless(attentive(), text, 1, SAMPLER, context=8), 30))
                    for text in (long, long[-4:]))  # fmt: skip
    assert ended == short
    other = itertools.islice(endless(attentive(), long, jax.random.key(2), SAMPLER, context=8), 30)
    assert list(other) != ended


def test_endless_draws_anew_after_each_turn_of_the_context():
    uniform = itertools.islice(endless(recurrent(), [1], 0, temperature(1e6), context=2), 200)
    counts = np.bincount(list(uniform), minlength=V)
    assert counts.min() > 0.4 * 200 / V


def test_endless_ends_where_nothing_is_left_to_choose():
    nothing = banned(range(V))
    assert list(endless(attentive(), [1], 0, nothing, context=8)) == []


@pytest.mark.parametrize(
    ("prompt", "context", "words"),
    [
        ([[1], [2]], 8, r"after one prompt, integers \[T\]; got shape \(2, 1\)"),
        ([], 8, "empty"),
        ([1], 1, "context must be a whole number, at least 2"),
        ([V], 8, "prompts"),
    ],
)
def test_endless_refuses_at_the_call(prompt, context, words):
    with pytest.raises(ValueError, match=words):
        endless(attentive(), prompt, 0, greedy, context=context)


def test_a_row_with_nothing_to_choose_ends_and_says_so():
    # All but 1 are forbidden, and 1 after a 1 too.
    sampler = banned([*(v for v in range(V) if v != 1), [1, 1]])
    found = generate(attentive(), [[1], [2], [3]], 0, sampler, max_new_tokens=5, **USUAL)
    assert found.lengths_B.tolist() == [0, 1, 1]
    assert found.reasons() == ["nothing to choose"] * 3
    broken = generate(attentive(scale=float("nan")), PROMPTS, 0, greedy, max_new_tokens=5, **USUAL)
    assert broken.reasons() == ["nothing to choose"] * 3


def test_a_minimum_length_holds_off_the_stop():
    end = by_hand(attentive_logits, PROMPTS[0], 1)[0][0]
    stop = [end, [0, 0]]
    write = functools.partial(generate, attentive(), PROMPTS, 0, max_new_tokens=9, stop=stop, capacity=32)
    assert write(greedy).lengths_B[0] == 1
    assert write(chain(min_length(4, stop=end), greedy)).lengths_B[0] > 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "prompts are empty"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": np.zeros((2, 0), int)}, "prompts are empty"),
        ({"prompts": [1, 2]}, r"prompts must be \[B, T\], or a list"),
        ({"prompts": np.array([1, 2])}, r"got shape \(2,\)"),
        ({"prompts": np.ones((1, 2))}, "prompts must be integers, the tokens; got float64"),
        ({"prompts": [[1, V]]}, "prompts: token 7 is outside the vocabulary, 0..6"),
        ({"prompts": [[1, -1]]}, "prompts: token -1 is outside"),
        ({"prompts": [[1, 2]], "lengths": [0]}, "length 0 must be 1 to 2, the prompts' width; got 0"),
        ({"prompts": [[1, 2]], "lengths": [3]}, "got 3"),
        ({"prompts": [[1, 2]], "lengths": [1, 1]}, "lengths must be 1 integers"),
        ({"capacity": 6}, "a prompt of 3 tokens and 5 to write need a cache of 7 positions; capacity is 6"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1; got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, at least 1; got 2.5"),
        ({"pad": 1.5}, "pad must be a whole number.*; got 1.5"),
        ({"capacity": 16.0}, "capacity must be a whole number, at least 1; got 16.0"),
        ({"sampler": 0.8}, "samplers and penalties are functions.*got 0.8"),
        ({"stop": [[]]}, "stop: a sequence of tokens must not be empty"),
        ({"stop": ["end"]}, "stop must be tokens"),
        ({"stop": V}, "stop: token 7 is outside the vocabulary"),
        ({"sampler": banned([[1, V + 1]])}, "sampler: token 8 is outside the vocabulary"),
        ({"key": np.zeros(2, np.uint32)}, "key must be jax.random.key"),
        (
            {"key": jax.random.split(jax.random.key(0), 2)},
            r"key must be one, or 1, one a row; got shape \(2,\)",
        ),
    ],
)
def test_bad_requests_are_refused_in_words(arguments, words):
    request = {"prompts": [[1, 2, 3]], "key": 0, "sampler": greedy, "max_new_tokens": 5, **arguments}
    with pytest.raises(ValueError, match=words):
        generate(attentive(), **request)


class Module:
    """What `decoder` asks of a module, like Linen's, of a model of which no more is known."""

    def __init__(self, limit=1000):
        self.limit = limit

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return hash(type(self))

    def apply(self, variables, *args, method):
        self.traced.append(method)
        return getattr(type(self), method)(self, variables, *args)

    def extend(self, variables, cache, tokens_BT, lengths_B=None):
        logits_BTV, new = attentive().extend.func(variables, cache, tokens_BT, lengths_B)
        return logits_BTV + cache.get("memory", jnp.zeros((1, V)))[:, None], {**cache, **new}

    traced = []


class LanguageModel(Module):
    def init_cache(self, batch_size, length):
        if length > self.limit:
            raise ValueError(f"there are {self.limit} positions")
        return attentive().init_cache.func((np.zeros((V, V)),), batch_size, length)


class Translator(LanguageModel):
    def encode(self, variables, source):
        return 9.0 * jax.nn.one_hot(source, V)

    def init_cache(self, batch_size, length, memory):
        return {"memory": memory, **super().init_cache(batch_size, length)}


def test_decoder_of_a_module():
    variables = attentive().extend.args[0]
    write = functools.partial(generate, prompts=PROMPTS, key=0, sampler=greedy, max_new_tokens=12)
    found = write(decoder(LanguageModel(), variables))
    for row, prompt in zip(found.rows(), PROMPTS, strict=True):
        assert row.tolist() == by_hand(attentive_logits, prompt, 12)[0]
    before = len(Module.traced)
    write(decoder(LanguageModel(), jax.tree.map(lambda x: x + 1, variables)))  # an equal module
    assert len(Module.traced) == before
    write(decoder(LanguageModel(limit=19), variables))  # 8 + 12 - 1 positions are needed, 64 refused

    assert decoder(LanguageModel(), variables).rewind is not None
    translated = write(decoder(Translator(), variables, source=np.array([1, 2, 3])))
    assert [row.tolist() for row in translated.rows()] == [[i] * 12 for i in (1, 2, 3)]
    before = Module.traced.count("encode")
    decoder(Translator(), variables, source=np.array([4, 5, 6]))  # one program encodes both
    assert Module.traced.count("encode") == before


def test_a_module_that_cannot_decode_is_refused_in_words():
    with pytest.raises(ValueError, match="made of a module with init_cache and extend, which object has not"):
        decoder(object(), {})
    with pytest.raises(ValueError, match="Translator reads a source; give one"):
        decoder(Translator(), {})
    with pytest.raises(ValueError, match="LanguageModel reads no source"):
        decoder(LanguageModel(), {}, source=np.array([1]))


def test_plain_functions_make_a_decoder():
    made = attentive()
    plain = Decoder(lambda b, n: made.init_cache(b, n), lambda c, t, n=None: made.extend(c, t, n))
    found = generate(plain, PROMPTS, 0, lambda logits, history: greedy(logits, history), max_new_tokens=3)
    assert [row.tolist() for row in found.rows()] == [by_hand(attentive_logits, p, 3)[0] for p in PROMPTS]
