"""Speculative decoding writes what the target writes: greedily, and in distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from jdl.generation import (
    chain,
    generate,
    greedy,
    no_repeat_ngram,
    repetition_penalty,
    speculative,
    temperature,
    top_p,
)
from jdl.generation.session import check
from jdl.generation.speculative import accept
from tests.generation.standins import V, attentive, attentive_logits, by_hand, log_softmax, recurrent

PROMPTS = [[1, 2, 3], [4], [5, 6, 0, 1, 2, 3, 4, 5]]
LIMIT = 13
ROOM = {"max_new_tokens": LIMIT, "capacity": 32}
by_target = functools.partial(generate, attentive(), PROMPTS, 0, **ROOM)


def test_greedy_writes_what_the_target_writes():
    texts = [by_hand(attentive_logits, prompt, LIMIT)[0] for prompt in PROMPTS]
    stop = [texts[0][4:6], texts[2][6:7]]
    expected = by_target(greedy, stop=stop)
    assert "stop" in expected.reasons()
    accepted = []
    for draft in (attentive(seed=1), attentive(seed=0, scale=1.9), attentive()):
        found = speculative(attentive(), draft, PROMPTS, 0, greedy, guesses=4, stop=stop, **ROOM)
        for x, y in zip(found.generated, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
        assert (found.accepted_B <= found.guessed_B).all()
        accepted.append(float(found.accepted_B.sum() / found.guessed_B.sum()))
    assert accepted[0] < accepted[1] <= accepted[2] == 1.0
    assert found.rounds_B.tolist() == [-(-n // 5) for n in expected.lengths_B.tolist()]


def test_samplers_see_the_guesses_as_text():
    sampler = chain(repetition_penalty(1.5), no_repeat_ngram(2), greedy)
    expected = by_target(sampler)
    found = speculative(attentive(), attentive(seed=1), PROMPTS, 0, sampler, guesses=1, **ROOM)
    np.testing.assert_array_equal(found.generated.tokens_BN, expected.tokens_BN)


def test_a_draft_with_less_room_than_the_target_is_asked_for_no_more():
    draft = attentive(seed=1)

    def init_cache(weights, batch_size, length):
        if length > 10:
            raise ValueError(f"there are 10 positions; asked for {length}")
        return draft.init_cache.func(weights, batch_size, length)

    small = draft._replace(init_cache=Partial(init_cache, *draft.init_cache.args))
    room = lambda n: check(attentive(), [[1, 2, 3]], 0, greedy, n, None, (), None, small).capacity
    assert room(8) == 10
    with pytest.raises(ValueError, match="there are 10 positions; asked for 11"):
        speculative(attentive(), small, [[1, 2, 3]], 0, greedy, max_new_tokens=9)


distributions = st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any)


@settings(max_examples=50, deadline=None)
@given(distributions, distributions, st.integers(0, 2))
def test_what_comes_out_of_acceptance_sums_to_the_target(p, q, limit):
    p, q = (np.array(x, np.float32) / sum(x) for x in (p, q))
    other = np.array([0.1, 0.2, 0.3, 0.4], np.float32)  # the second guess is another matter
    grid = (np.arange(200) + 0.5) / 200
    guess, uniform = (x.ravel() for x in np.meshgrid(np.arange(4), grid, indexing="ij"))
    n = len(guess)
    found = accept_all(
        np.broadcast_to(np.stack([p, other, other]), (n, 3, 4)),
        np.broadcast_to(np.stack([q, other]), (n, 2, 4)),
        np.stack([guess, guess], 1),
        np.full(n, limit),
        np.stack([uniform, uniform], 1).astype(np.float32),
    )
    accepted, after = (np.asarray(x, np.float64) for x in found)
    first = np.where((accepted > 0)[:, None], np.eye(4)[guess], after)
    marginal = (first * (q[guess] / 200)[:, None]).sum(0) if limit else first[0]
    np.testing.assert_allclose(marginal, p, atol=0.5 / 200 + 1e-6)
    assert (accepted <= limit).all()


accept_all = jax.jit(accept)


def test_sampled_texts_have_the_targets_distribution():
    vocabulary, n = 4, 20_000
    sampler, draft_sampler = chain(temperature(0.9), top_p(0.9)), chain(temperature(1.3), top_p(0.95))
    make = functools.partial(attentive, vocabulary=vocabulary, scale=1.0)
    found = speculative(
        make(0), make(1), [[2]] * n, 7, sampler, max_new_tokens=3, guesses=2, draft_sampler=draft_sampler
    )
    counts = np.zeros((vocabulary,) * 3)
    np.add.at(counts, tuple(np.asarray(found.generated.tokens_BN).T), 1)

    expected = np.full((vocabulary,) * 3, float(n))
    for i in range(3):
        before = list(np.ndindex(*(vocabulary,) * i))
        logits = [attentive_logits([2, *text], vocabulary=vocabulary, scale=1.0) for text in before]
        allowed = np.asarray(sampler(jnp.asarray(logits, jnp.float32), None))
        of_token = np.exp([log_softmax(row) for row in allowed])
        expected *= of_token.reshape(*(vocabulary,) * (i + 1), *(1,) * (2 - i))
    assert (counts[expected == 0] == 0).all()
    assert (expected == 0).sum() > 5
    often = expected > 5
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert chi2 < often.sum() + 4 * np.sqrt(2 * often.sum())
    assert 0.2 < found.accepted_B.sum() / found.guessed_B.sum() < 0.95


def test_bad_requests_are_refused_in_words():
    write = functools.partial(speculative, prompts=[[1]], key=0, sampler=greedy, max_new_tokens=3)
    with pytest.raises(ValueError, match="the target cannot forget what it has read"):
        write(recurrent(), attentive())
    with pytest.raises(ValueError, match="the draft cannot forget what it has read"):
        write(attentive(), recurrent())
    with pytest.raises(ValueError, match=f"the same vocabulary; theirs have {V} and 4"):
        write(attentive(), attentive(vocabulary=4))
    with pytest.raises(ValueError, match="guesses must be a whole number, at least 1; got 0"):
        write(attentive(), attentive(), guesses=0)
    with pytest.raises(ValueError, match="pad must be a whole number.*; got 1.5"):
        write(attentive(), attentive(), pad=1.5)
