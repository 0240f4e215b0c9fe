"""Each sampler against its definition in numpy, and against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.generation import (
    History,
    banned,
    chain,
    frequency_penalty,
    greedy,
    logit_bias,
    max_length,
    min_length,
    min_p,
    no_repeat_ngram,
    presence_penalty,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    typical,
)
from jdl.generation.samplers import pure
from jdl.generation.session import draw

apply = jax.jit(lambda sampler, logits, history: sampler(logits, history))
RNG = np.random.default_rng(0)
B, S, V = 4, 12, 16
LOGITS = RNG.normal(size=(B, V)).astype(np.float32) * 3
HISTORY = History(
    RNG.integers(0, 5, (B, S)).astype(np.int32),
    np.array([12, 9, 5, 2], np.int32),
    np.array([3, 4, 5, 1], np.int32),
)


def smallest_set(order, probabilities, p):
    """Of tokens in order, the first few whose probabilities sum to p."""
    count = 1 + int((np.cumsum(probabilities[order])[:-1] < p).sum())
    return set(order[:count].tolist())


def by_definition(name, value, logits, history, b):
    """What the sampler leaves of one row."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    if name == "top_k":
        kept = set(np.argsort(-logits, kind="stable")[:value].tolist())
    elif name == "top_p":
        kept = smallest_set(np.argsort(-logits, kind="stable"), probabilities, value)
    elif name == "min_p":
        kept = {v for v in range(V) if probabilities[v] >= value * probabilities.max()}
    else:
        surprise = -np.log(probabilities)
        cost = np.abs(surprise - (probabilities * surprise).sum())
        kept = smallest_set(np.argsort(cost, kind="stable"), probabilities, value)
    return np.where([v in kept for v in range(V)], logits, -np.inf)


@pytest.mark.parametrize(
    ("maker", "values"),
    [
        (top_k, (1, 3, 16, 40)),
        (top_p, (0.1, 0.6, 0.95, 1.0)),
        (min_p, (0.03, 0.3, 1.0)),
        (typical, (0.1, 0.5, 0.9)),
    ],
)
def test_what_is_left_is_what_the_definition_says(maker, values):
    for value in values:
        found = apply(maker(value), LOGITS, HISTORY)
        expected = [
            by_definition(maker.__name__, value, LOGITS[b].astype(np.float64), HISTORY, b) for b in range(B)
        ]
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("maker", [top_p, typical])
def test_all_of_the_mass_is_every_token_of_a_large_vocabulary(maker):
    """In float32 a sum of 50,000 probabilities comes to 1 before its tail."""
    logits = np.random.default_rng(0).normal(0, 3, (4, 50_257)).astype(np.float32)
    history = History(jnp.zeros((4, 1), jnp.int32), jnp.ones(4, jnp.int32), jnp.ones(4, jnp.int32))
    np.testing.assert_array_equal(maker(1.0)(logits, history), logits)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -2.5, -1.0, 0.0, 0.5, 3.0, 40.0]), min_size=V, max_size=V),
    st.integers(1, V),
)
def test_of_equals_the_first_are_left(logits, k):
    logits = np.array([logits], np.float32)
    found = np.asarray(apply(top_k(k), logits, None))[0]
    expected = np.full(V, -np.inf, np.float32)
    kept = np.argsort(-logits[0], kind="stable")[:k]
    expected[kept] = logits[0][kept]
    np.testing.assert_array_equal(found, expected)


def test_greedy_leaves_the_first_of_the_largest():
    logits = np.array([[1.0, 5.0, 5.0], [-np.inf, -3.0, -4.0]], np.float32)
    assert np.isfinite(apply(pure(greedy), logits, None)).tolist() == [
        [False, True, False],
        [False, True, False],
    ]


def seen(b, with_prompt):
    first = 0 if with_prompt else HISTORY.prompt_B[b]
    return np.bincount(HISTORY.tokens_BS[b, first : HISTORY.lengths_B[b]], minlength=V)


@pytest.mark.parametrize("with_prompt", [False, True])
def test_penalties_count_what_came_before(with_prompt):
    count = np.array([seen(b, with_prompt) for b in range(B)])
    repeated = np.where(count > 0, np.where(LOGITS < 0, LOGITS * 1.3, LOGITS / 1.3), LOGITS)
    for sampler, expected in (
        (repetition_penalty(1.3, with_prompt), repeated),
        (presence_penalty(0.7, with_prompt), LOGITS - 0.7 * (count > 0)),
        (frequency_penalty(0.7, with_prompt), LOGITS - 0.7 * count),
    ):
        np.testing.assert_allclose(apply(sampler, LOGITS, HISTORY), expected, rtol=1e-6)


def test_tokens_are_biased_banned_and_forced():
    found = np.asarray(apply(logit_bias({3: 2.0, 5: -np.inf}), LOGITS, HISTORY))
    expected = LOGITS.copy()
    expected[:, 3] += 2.0
    expected[:, 5] = -np.inf
    np.testing.assert_array_equal(found, expected)

    text = HISTORY.tokens_BS[0, : HISTORY.lengths_B[0]].tolist()
    pair, single = [text[-1], 6], 7
    found = np.isneginf(apply(banned([single, pair, [*text[-2:], 8], [9, 9]]), LOGITS, HISTORY))
    for b in range(B):
        row = HISTORY.tokens_BS[b, : HISTORY.lengths_B[b]].tolist()
        expected = (
            {single} | ({6} if row[-1:] == text[-1:] else set()) | ({8} if row[-2:] == text[-2:] else set())
        )
        assert set(np.flatnonzero(found[b]).tolist()) == expected

    written = HISTORY.lengths_B - HISTORY.prompt_B  # 9, 5, 0, 1
    short = np.isneginf(apply(min_length(5, stop=[2, 4]), LOGITS, HISTORY))
    assert short.sum(1).tolist() == [2 * (n < 5) for n in written]
    # A text ends by what was written: the end of a prompt begins no stop.
    history = History(np.array([[3, 1, 0]], np.int32), np.array([2]), np.array([2]))
    free = np.zeros((1, V), np.float32)
    assert np.isfinite(apply(min_length(3, stop=[[1, 2]]), free, history)).all()
    after = history._replace(lengths_B=np.array([3]), tokens_BS=np.array([[3, 1, 1]], np.int32))
    assert np.flatnonzero(np.isneginf(apply(min_length(3, stop=[[1, 2]]), free, after))).tolist() == [2]
    forced = np.isfinite(apply(max_length(6, token=4), LOGITS, HISTORY))
    assert [set(np.flatnonzero(row).tolist()) == {4} for row in forced] == [n >= 5 for n in written]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=S), st.integers(1, 4))
def test_no_ngram_comes_twice(text, n):
    history = History(
        np.array([text + [1] * (S - len(text))], np.int32), np.array([len(text)]), np.array([1])
    )
    found = np.flatnonzero(np.isneginf(apply(no_repeat_ngram(n), np.zeros((1, V), np.float32), history)))
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    expected = [v for v in range(V) if len(text) >= n - 1 and (*text[len(text) - n + 1 :], v) in grams]
    assert found.tolist() == expected


def test_chain_applies_in_order_and_numbers_are_leaves():
    traced = []

    def watch(logits, history):
        traced.append(logits.shape)
        return logits

    for t, k in ((0.5, 3), (2.0, 2)):
        sampler = chain(temperature(t), watch, top_k(k))
        expected = apply(top_k(k), LOGITS / t, HISTORY)
        np.testing.assert_allclose(apply(sampler, LOGITS, HISTORY), expected, rtol=1e-6)
    assert traced == [(B, V)]
    np.testing.assert_array_equal(apply(chain(), LOGITS, HISTORY), LOGITS)


@pytest.mark.parametrize("penalties", [False, True])
def test_equals_transformers(torch, penalties):
    process = pytest.importorskip("transformers.generation.logits_process")
    pairs = [
        (temperature(0.7), process.TemperatureLogitsWarper(0.7)),
        (top_k(5), process.TopKLogitsWarper(5)),
        (top_p(0.8), process.TopPLogitsWarper(0.8)),
        (min_p(0.1), process.MinPLogitsWarper(0.1)),
        (typical(0.6), process.TypicalLogitsWarper(0.6)),
    ]
    if penalties:
        pairs = [
            (repetition_penalty(1.2), process.RepetitionPenaltyLogitsProcessor(1.2)),
            (no_repeat_ngram(2), process.NoRepeatNGramLogitsProcessor(2)),
            (banned([3, [1, 2]]), process.NoBadWordsLogitsProcessor([[3], [1, 2]], eos_token_id=15)),
            (min_length(20, stop=4), process.MinNewTokensLengthLogitsProcessor(3, 20, 4, device="cpu")),
            (logit_bias({2: -1.5}), process.SequenceBiasLogitsProcessor([[[2], -1.5]])),
            (max_length(7, token=4), process.ForcedEOSTokenLogitsProcessor(10, 4, device="cpu")),
        ]
    history = History(HISTORY.tokens_BS[:, :9], np.full(B, 9), np.full(B, 3))
    tokens, logits = torch.tensor(history.tokens_BS).long(), torch.tensor(LOGITS)
    for sampler, theirs in pairs:
        expected = theirs(tokens, logits.clone()).numpy()
        if isinstance(theirs, process.ForcedEOSTokenLogitsProcessor):
            expected = np.where(
                np.isfinite(expected), LOGITS, expected
            )  # theirs sets the token's logit to zero
        np.testing.assert_allclose(apply(sampler, LOGITS, history), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: temperature(0.0), "temperature must be above 0 and finite; got 0.0"),
        (lambda: top_p(1.5), r"top_p must be in \(0, 1\]; got 1.5"),
        (lambda: min_p(float("nan")), "min_p must be in"),
        (lambda: typical(0), "typical must be in"),
        (lambda: top_k(0), "top_k must be a whole number, at least 1; got 0"),
        (lambda: top_k(2.5), "top_k must be a whole number, at least 1; got 2.5"),
        (lambda: no_repeat_ngram(2.5), "no_repeat_ngram must be a whole number"),
        (lambda: min_length(-1, 0), "min_length must be a whole number, at least 0; got -1"),
        (lambda: max_length(0, 0), "max_length must be a whole number, at least 1; got 0"),
        (lambda: logit_bias({1: float("nan")}), "logit_bias adds numbers to logits"),
        (lambda: min_length(1, None), r"min_length must be tokens or sequences of tokens, \(\) for none"),
        (lambda: chain(top_k(2), 0.8), "samplers and penalties are functions.* got 0.8"),
        (lambda: repetition_penalty(-1.0), "repetition_penalty must be above 0"),
        (lambda: frequency_penalty(float("inf")), "frequency_penalty must be a finite number"),
        (lambda: no_repeat_ngram(0), "at least 1"),
        (lambda: banned([[]]), "banned: a sequence of tokens must not be empty"),
        (lambda: banned([1.5]), "banned must be tokens"),
        (lambda: logit_bias({-1: 2.0}), "logit_bias must be tokens"),
    ],
)
def test_bad_numbers_are_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_draws_have_the_weights_as_probabilities():
    rng = np.random.default_rng(3)
    weights = np.where(rng.random(37) < 0.3, 0, rng.exponential(size=37) ** 3).astype(np.float32)
    n = 100_000
    drawn = jax.jit(draw)(
        jax.random.split(jax.random.key(0), n), jnp.broadcast_to(jnp.asarray(weights), (n, 37))
    )
    counts, expected = np.bincount(drawn, minlength=37), n * weights / weights.sum()
    assert counts[weights == 0].sum() == 0
    often = expected > 5
    rest = np.array([counts[~often].sum()]), np.array([expected[~often].sum()])
    counts, expected = np.append(counts[often], rest[0]), np.append(expected[often], rest[1])
    chi2 = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi2 < 60  # about 25 degrees of freedom: one in ten thousand


def test_no_draw_of_weight_zero_through_rounding():
    # Sums over unlike magnitudes round differently from place to place.
    rng = np.random.default_rng(4)
    weights = np.exp(rng.normal(size=(2000, 50)) * 8).astype(np.float32) * (rng.random((2000, 50)) < 0.4)
    weights[:, 7] += 1e-3
    drawn = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(1), 2000), weights))
    assert (np.take_along_axis(weights, drawn[:, None], 1) > 0).all()
