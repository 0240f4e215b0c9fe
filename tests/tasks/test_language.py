"""What counts in the losses of language, what is hidden from a model, and what is refused in words."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.core import FAULTS, LOSSES, summarize
from jdl.models import Recurrent, RecurrentLM, Seq2Seq, TextCNN, bert, gpt, transformer
from jdl.tasks import (
    classification,
    masked,
    next_token,
    regression,
    seq2seq,
    span_corruption,
    token_classification,
)
from jdl.tasks.masking import corrupted, row_keys
from jdl.tasks.sequences import labels_and_weights
from tests.compiling import jit

B, T, V = 3, 6, 7
KEY = jax.random.key(0)


def classifier(**options):
    sizes = {"vocab_size": V, "width": 4, "depth": 1, "num_heads": 2, "context": T}
    return bert(**{**sizes, "head": 2, "pool": "first", **options})


class Words(linen.Module):
    """Logits of each position from its token alone, and from the mean of the source where there is one."""

    vocab_size: int = V
    dtype: object = None

    def setup(self):
        self.embed = linen.Embed(self.vocab_size, 4, dtype=self.dtype)
        self.head = linen.Dense(self.vocab_size, dtype=self.dtype)

    def hidden(self, inputs, train=False):
        sequence = inputs["target"] if isinstance(inputs, dict) and "target" in inputs else inputs
        h = self.embed(sequence["tokens"] if isinstance(sequence, dict) else sequence)
        if isinstance(inputs, dict) and "source" in inputs:
            source = inputs["source"]
            h = h + self.embed(source["tokens"] if isinstance(source, dict) else source).mean(
                1, keepdims=True
            )
        if train:
            self.sow(LOSSES, "balance", jnp.float32(0.5))
        return jnp.tanh(h)

    def logits(self, h):
        return self.head(h)

    def __call__(self, inputs, train=False):
        return self.logits(self.hidden(inputs, train))


def compiled(task):
    """The task with its functions compiled, which are slow operation by operation."""
    return task._replace(init=jit(task.init), loss=jit(task.loss), evaluate=jit(task.evaluate))


def tokens(*shape, seed=0, low=0, high=V):
    return np.random.default_rng(seed).integers(low, high, shape or (B, T)).astype(np.int32)


def batch(**parts):
    return {"inputs": tokens(), "labels": tokens(seed=1), **parts}


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("low", [False, True])
def test_losses_and_metrics_equal_torch(torch, chunk, low):
    weights = np.random.default_rng(2).uniform(0, 2, (B, T)).astype(np.float32)
    lengths = np.array([6, 2, 4])
    given = batch(inputs={"tokens": tokens(), "lengths": lengths}, weights=weights)
    module = Words(dtype=jnp.bfloat16 if low else None)
    task = next_token(module, label_smoothing=0.1, z_loss=0.01, chunk=chunk)
    task.check(given)
    variables = task.init(KEY, given)
    assert set(variables) == {"params"}
    counted = weights * (np.arange(T) < lengths[:, None])

    logits = torch.tensor(np.asarray(task.predict(variables, given["inputs"]), np.float32))
    labels, w = torch.tensor(given["labels"]).long(), torch.tensor(counted)
    plain, soft = (
        torch.nn.functional.cross_entropy(logits.mT, labels, label_smoothing=s, reduction="none")
        for s in (0.0, 0.1)
    )
    expected = (w * (soft + 0.01 * torch.logsumexp(logits, -1) ** 2)).sum()
    right = (w * (logits.argmax(-1) == labels)).sum() / w.sum()

    total, (weight, collections, metrics) = jit(task.loss)(variables, given, KEY)
    tolerance = 1e-2 if low else 1e-5
    assert collections == {}
    assert float(weight) == pytest.approx(counted.sum(), rel=1e-6)
    assert float(total) == pytest.approx(float(expected) + 0.5 * counted.sum(), rel=tolerance)
    assert float(metrics["balance_loss"].value()) == 0.5
    found = summarize(task.evaluate(variables, given, KEY))
    mean = float((w * plain).sum() / w.sum())
    assert found["loss"] == pytest.approx(mean, rel=tolerance)
    assert found["perplexity"] == pytest.approx(np.exp(mean), rel=tolerance)
    assert found["accuracy"] == pytest.approx(float(right), rel=1e-6)
    assert summarize(metrics)["accuracy"] == pytest.approx(float(right), rel=1e-6)


def test_chunked_gradients_are_those_of_all_logits():
    given = batch()

    def gradient(chunk):
        task = next_token(Words(), chunk=chunk)
        return jit(jax.grad(lambda variables: task.loss(variables, given, KEY)[0]))(task.init(KEY, given))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient(None), gradient(4)
    )


def test_perplexity_of_batches_is_that_of_all_their_tokens():
    task, given = compiled(next_token(Words())), batch(weights=np.array([1.0, 0.0, 3.0], np.float32))
    variables = task.init(KEY, given)
    parts = [jax.tree.map(lambda x, rows=rows: x[rows], given) for rows in (slice(0, 1), slice(1, 3))]
    added = jax.tree.map(lambda *x: sum(x), *(task.evaluate(variables, part, KEY) for part in parts))
    whole = summarize(task.evaluate(variables, given, KEY))
    assert summarize(added)["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
    assert whole["perplexity"] == pytest.approx(np.exp(whole["loss"]), rel=1e-6)
    assert float(task.evaluate(variables, given, KEY)["perplexity"].value()) == pytest.approx(
        whole["perplexity"], rel=1e-5
    )


@st.composite
def packed_rows(draw):
    """Rows of segments, each with its lengths and weights."""
    T = draw(st.integers(1, 8))
    rows = []
    for _ in range(2):
        parts = draw(st.lists(st.integers(1, 3), min_size=0, max_size=4))
        row = [number for number, size in enumerate(parts, 1) for _ in range(size)]
        rows.append((row + [0] * T)[:T])
    lengths = [draw(st.integers(0, T)) for _ in rows]
    weights = draw(st.sampled_from([None, (2,), (2, T)]))
    return np.array(rows), np.array(lengths), weights


@settings(deadline=None, max_examples=40)
@given(packed_rows(), st.booleans(), st.booleans())
def test_a_token_is_the_label_of_the_one_before_within_its_segment(rows, packed, ragged):
    segments, lengths, shape = rows
    text = tokens(*segments.shape, seed=3)
    given = {"inputs": {"tokens": text}}
    if packed:
        given["inputs"]["segments"] = segments
    if ragged:
        given["inputs"]["lengths"] = lengths
    if shape:
        given["weights"] = np.random.default_rng(4).uniform(0.5, 2, shape).astype(np.float32)
    labels, weights = (np.asarray(x) for x in labels_and_weights(given))
    for b in range(2):
        for t in range(text.shape[1]):
            here = t + 1 < text.shape[1] and not (ragged and t + 1 >= lengths[b])
            here = here and not (packed and (segments[b, t] == 0 or segments[b, t] != segments[b, t + 1]))
            weight = given["weights"][b] if shape else 1.0
            assert weights[b, t] == pytest.approx((weight[t] if np.ndim(weight) else weight) if here else 0.0)
            if here:
                assert labels[b, t] == text[b, t + 1]


def test_a_translation_counts_the_words_of_its_target():
    source = {"tokens": tokens(B, 4), "lengths": np.array([4, 1, 2])}
    target = {"tokens": tokens(seed=1), "lengths": np.array([6, 3, 1])}
    given = {"inputs": {"source": source, "target": target}, "labels": tokens(seed=2)}
    task = compiled(seq2seq(Words(), chunk=2))
    task.check(given)
    variables = task.init(KEY, given)
    assert float(task.evaluate(variables, given, KEY)["loss"].weight) == 10
    unlabelled = {"inputs": given["inputs"]}
    assert float(task.evaluate(variables, unlabelled, KEY)["loss"].weight) == 7
    with pytest.raises(ValueError, match=r'a dictionary with "source" and "target"; got ndarray'):
        task.check(batch())
    bad = {"source": source, "target": {**target, "lengths": np.array([7, 0, 0])}}
    with pytest.raises(ValueError, match=r"target: lengths must lie in 0..6, .* got 0 to 7"):
        task.check({**given, "inputs": bad})


def test_labels_of_padding_count_nothing_in_token_classification():
    lengths = np.array([6, 2, 0])
    given = batch(inputs={"tokens": tokens(), "lengths": lengths})
    beyond = np.where(np.arange(T) < lengths[:, None], given["labels"], 99)
    task = compiled(token_classification(Words()))
    variables = task.init(KEY, given)
    task.check({**given, "labels": beyond})
    found = [
        summarize(task.evaluate(variables, {**given, "labels": x}, KEY)) for x in (given["labels"], beyond)
    ]
    assert found[0] == found[1]
    weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
    plain = classification(Words()).evaluate(
        variables, {"inputs": tokens(), "labels": given["labels"], "weights": weights}, KEY
    )
    assert found[0]["loss"] == pytest.approx(float(plain["loss"].value()), rel=1e-6)
    total, (weight, _, _) = task.loss(variables, {**given, "labels": beyond}, KEY)
    assert float(weight) == 8
    assert np.isfinite(float(total))
    with pytest.raises(ValueError, match="labels lie outside 0..6"):
        task.check({"inputs": tokens(), "labels": beyond})


def spied(task_of):
    """What a task of hidden tokens hands to its module, and the task."""
    seen = []

    class Spy(Words):
        def hidden(self, inputs, train=False):
            seen.append(inputs)
            return super().hidden(inputs, train)

    return task_of(Spy()), seen


def test_a_mask_may_be_more_than_a_byte():
    text = tokens(4, 50, high=40).astype(np.uint8)
    task, seen = spied(lambda module: masked(module.clone(vocab_size=257), 257, 256))
    variables = task.init(KEY, {"inputs": text})
    seen.clear()
    task.loss(variables, {"inputs": text}, KEY)
    assert (np.asarray(seen[0]) == 256).sum() > 10


def test_hidden_tokens_are_those_of_bert():
    """The shares of Devlin et al., over 200,000 tokens, within five standard deviations."""
    V, mask = 50, 49
    text = tokens(400, 500, seed=5, high=40)
    task, seen = spied(lambda module: masked(module.clone(vocab_size=V), V, mask, special=(0, 1)))
    inputs = {"tokens": text, "lengths": np.full(400, 450)}
    variables = task.init(KEY, {"inputs": inputs})
    seen.clear()
    _, (weight, _, _) = task.loss(variables, {"inputs": inputs}, KEY)
    (shown,) = (np.asarray(x["tokens"]) for x in seen)
    possible = (text > 1) & (np.arange(500) < 450)
    n = possible.sum()
    np.testing.assert_array_equal(shown[~possible], text[~possible])

    def share(count, p, of):
        assert abs(count / of - p) < 5 * np.sqrt(p * (1 - p) / of)

    share(float(weight), 0.15, n)
    share((shown == mask).sum(), 0.15 * (0.8 + 0.1 / V), n)
    other = (shown != text) & (shown != mask)
    share(other.sum(), 0.15 * 0.1 * (1 - 2 / V), n)
    # Replacements are uniform: each of the 49 others comes as often.
    counts = np.bincount(shown[other], minlength=V)[: V - 1]
    assert np.abs(counts - counts.mean()).max() < 6 * np.sqrt(counts.mean())


def test_the_row_decides_what_is_hidden_in_evaluation_and_the_key_in_training():
    task, given = compiled(masked(Words(), V, 6)), {"inputs": tokens(8, 40, high=6)}
    variables = task.init(KEY, given)
    whole = task.evaluate(variables, given, KEY)
    parts = [
        task.evaluate(variables, {"inputs": given["inputs"][rows]}, jax.random.key(5))
        for rows in (slice(4, 8), slice(0, 4))
    ]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-5), whole, *parts)
    # Padding, however long, changes nothing.
    padded = {"tokens": np.pad(given["inputs"], ((0, 0), (0, 9))), "lengths": np.full(8, 40)}
    np.testing.assert_array_equal(
        jax.random.key_data(row_keys(padded)), jax.random.key_data(row_keys(given["inputs"]))
    )
    losses = [float(task.loss(variables, given, key)[0]) for key in (KEY, KEY, jax.random.key(1))]
    assert losses[0] == losses[1] != losses[2]
    static = compiled(masked(Words(), V, 6, dynamic=False))
    total, (weight, _, metrics) = static.loss(variables, given, jax.random.key(7))
    assert float(total) == pytest.approx(float(whole["loss"].total + 0.5 * weight), rel=1e-5)
    assert float(weight) == float(whole["loss"].weight) == float(metrics["accuracy"].weight)


SPANS = {"sentinel": 99, "rate": 0.4, "mean_length": 2.0, "end": 1, "start": 0}


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 12), min_size=4, max_size=4), st.integers(0, 99))
def test_source_and_target_make_the_text_again(lengths, seed):
    """The rule of Raffel et al. read backwards, and their counts of tokens and spans."""
    text = tokens(4, 12, seed=seed, low=2, high=60)
    inputs = {"tokens": text, "lengths": np.array(lengths)}
    parts, labels = jit(lambda keys, x: corrupted(keys, x, **SPANS))(
        jax.random.split(jax.random.key(seed), 4), inputs
    )
    for b, n in enumerate(lengths):
        source, target = (
            np.asarray(x)[: int(size)].tolist()
            for x, size in (
                (parts["source"]["tokens"][b], parts["source"]["lengths"][b]),
                (labels[b], parts["target"]["lengths"][b]),
            )
        )
        read = np.asarray(parts["target"]["tokens"])[b, : len(target)].tolist()
        assert read == [0, *target][: len(target)]
        if n < 2:
            assert (source, target) == ([*text[b, :n], 1], [])
            continue
        assert source.pop() == target.pop() == 1
        cut = min(max(round(0.4 * n), 1), n - 1)
        spans = min(max(round(cut / 2), 1), cut, n - cut)
        assert (len(source), len(target)) == (n - cut + spans, cut + spans)
        marks = [x for x in target if x > 60]
        assert marks == [x for x in source if x > 60] == list(range(99, 99 - spans, -1))
        pieces = {}
        for x in target:
            if x > 60:
                mark = x
                pieces[mark] = []
            else:
                pieces[mark].append(x)
        assert all(pieces.values())
        # A text begins with what stays, and no two spans touch.
        assert source[0] <= 60
        assert not any(a > 60 and b > 60 for a, b in itertools.pairwise(source))
        again = [y for x in source for y in (pieces[x] if x > 60 else [x])]
        assert again == text[b, :n].tolist()


def test_every_division_into_spans_is_as_likely():
    """Of 8 tokens 4 are cut in 2 spans: 3 divisions of each kind, so 9 patterns, by a chi-square test."""
    n = 3000
    text = np.tile(np.arange(2, 10, dtype=np.int32), (n, 1))
    options = {**SPANS, "rate": 0.5}
    parts, _ = jit(lambda keys, x: corrupted(keys, x, **options))(jax.random.split(KEY, n), text)
    assert "lengths" not in parts
    patterns, counts = np.unique(np.asarray(parts["source"]), axis=0, return_counts=True)
    assert len(patterns) == 9
    assert ((counts - n / 9) ** 2 / (n / 9)).sum() < 26.1  # the 99.9th percentile of 8 degrees of freedom


def test_span_corruption_is_translation_of_corrupted_text():
    task = compiled(span_corruption(Words(100), 99, rate=0.4, mean_length=2.0))
    given = {"inputs": tokens(4, 12, low=2, high=60), "weights": np.array([1.0, 0.0, 2.0, 1.0], np.float32)}
    task.check(given)
    variables = task.init(KEY, given)
    inputs, labels = corrupted(row_keys(given["inputs"]), given["inputs"], **SPANS)
    under = compiled(seq2seq(Words(100)))
    expected = under.evaluate(variables, {**given, "inputs": inputs, "labels": labels}, KEY)
    found = task.evaluate(variables, given, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # 5 of 12 tokens, 2 spans (of 2.5, to even) and the end.
    assert float(found["loss"].weight) == 4 * (5 + 2 + 1)
    for x in (given["inputs"], inputs):
        np.testing.assert_array_equal(task.predict(variables, x), under.predict(variables, inputs))
    losses = [float(task.loss(variables, given, key)[0]) for key in (KEY, KEY, jax.random.key(1))]
    assert losses[0] == losses[1] != losses[2]


def with_hole(**parts):
    return {name: x for name, x in batch(**parts).items() if x is not None}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inputs": None}, r'needs a batch with "inputs"; it has \[\'labels\'\]'),
        ({"inputs": tokens().astype(np.float32)}, r"tokens must be integers \[B, T\]; got float32 \(3, 6\)"),
        ({"inputs": tokens(3)}, r"tokens must be integers \[B, T\]; got int32 \(3,\)"),
        ({"inputs": -tokens()}, "tokens must not be negative; got -6"),
        ({"inputs": {"words": tokens()}}, r'a dictionary with "tokens"; it has \[\'words\'\]'),
        (
            {"inputs": {"tokens": tokens(), "lengths": np.ones(4, int)}},
            r"lengths must be integers of shape \(3,\), .* got int64 of shape \(4,\)",
        ),
        (
            {"inputs": {"tokens": tokens(), "segments": np.ones(6, int)}},
            r"segments must be integers of shape \(3, 6\), .* got int64 of shape \(6,\)",
        ),
        ({"labels": tokens() + 3}, r"\d+ labels lie outside 0..6, the model's vocabulary: for example [789]"),
        ({"labels": None, "inputs": tokens(high=9)}, r"\d tokens lie outside 0..6"),
        (
            {"inputs": tokens() + 3},
            r"inputs: \d tokens lie outside 0..6, what the model knows: for example [789]",
        ),
        ({"labels": np.full((B, T), -100)}, r"18 labels lie outside 0..6.* -100 \(what is not to count has"),
        ({"labels": np.zeros((B, T))}, r"labels must be integers \[B, T\]; got float64"),
        ({"labels": tokens(3, 5)}, r"labels of shape \(3, 5\) do not fit tokens of shape \(3, 6\)"),
        ({"weights": np.ones((3, 5))}, r"weights of shape \(3, 5\) do not fit positions of shape \(3, 6\)"),
    ],
)
def test_check_says_what_is_wrong_with_a_batch(parts, message):
    with pytest.raises(ValueError, match=message):
        next_token(Words()).check(with_hole(**parts))


def sequence_of(**parts):
    return {"tokens": tokens(), **parts}


FLOATS = np.ones((B, T, 2), np.float32)
SIDES = {"source": {"tokens": tokens(), "lengths": np.array([6, 2, 1])}, "target": tokens()}


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (
            TextCNN(2, V, 4, (2,), 3),
            tokens() + 3,
            r"inputs: \d+ tokens lie outside 0..6, what the model knows",
        ),
        (
            TextCNN(2, V, 4, (2,), 3),
            FLOATS,
            r"inputs: tokens must be integers \[B, T\]; got float32 \(3, 6, 2\)",
        ),
        (
            Recurrent(2, (3,), pool="mean"),
            {"sequence": FLOATS, "lengths": np.array([6, 7, 1])},
            "inputs: lengths must lie in 0..6, the positions of a row; got 1 to 7",
        ),
        (Recurrent(2, (3,)), FLOATS[0], r"inputs: a sequence of floats must be \[B, T, C\]; got \(6, 2\)"),
        (
            Recurrent(2, (3,), vocab_size=V),
            sequence_of(positions=tokens()),
            "Recurrent knows no segments, types, positions: give each document a row of its own",
        ),
        (
            classifier(context=6),
            sequence_of(positions=tokens() + 4),
            r"inputs: \d+ positions lie outside 0..5, what the model knows: for example 10",
        ),
        (classifier(), sequence_of(types=tokens()), r"inputs: \d+ types lie outside 0..1, .* for example 6"),
        (classifier(), sequence_of(types=-tokens()), "inputs: types must not be negative; got -6"),
    ],
)
def test_sequences_that_a_model_does_not_know_are_refused(module, inputs, message):
    labels = np.zeros(B, np.int32)
    for task in (classification(module), regression(module)):
        with pytest.raises(ValueError, match=message):
            task.check({"inputs": inputs, "labels": labels})
            task.init(KEY, {"inputs": inputs, "labels": labels})


def test_sides_of_a_translation_are_checked_each_by_its_own_vocabulary():
    two, one = Seq2Seq(V, 3, 4, 4), transformer(vocab_size=V, width=4, depth=1, num_heads=2, hidden=4)
    seq2seq(one).check({"inputs": SIDES})
    with pytest.raises(ValueError, match=r"source: \d+ tokens lie outside 0..2, what the model knows"):
        seq2seq(two).check({"inputs": SIDES})
    with pytest.raises(ValueError, match=r"target: \d tokens lie outside 0..6"):
        seq2seq(one).check({"inputs": {**SIDES, "target": tokens() + 1}})
    seq2seq(Seq2Seq(V, None, 4, 4)).check({"inputs": {"source": {"sequence": FLOATS}, "target": tokens()}})
    padded = {
        **SIDES["source"],
        "tokens": np.where(np.arange(T) < SIDES["source"]["lengths"][:, None], 2, 99),
    }
    seq2seq(two).check({"inputs": {**SIDES, "source": padded}})
    with pytest.raises(ValueError, match="target: 3 tokens lie outside 0..5"):
        span_corruption(
            transformer(vocab_size=6, width=4, depth=1, num_heads=2, hidden=4), 5, rate=0.5, start=9
        ).check({"inputs": tokens(high=2)})


def test_labels_out_of_range_are_counted_where_they_weigh():
    labels = tokens() + np.where(np.arange(T) < 2, 20, 0)
    given = batch(labels=labels, weights=np.array([1.0, 0.0, 1.0], np.float32))
    for chunk in (None, 2):
        task = next_token(Words(), chunk=chunk)
        metrics = task.evaluate(task.init(KEY, given), given, KEY)
        assert {name: int(n) for name, n in metrics[FAULTS].items()} == {"labels outside 0..6": 4}


def test_check_of_hidden_tokens_says_what_is_wrong():
    masks = masked(Words(), V + 1, 6)
    with pytest.raises(ValueError, match="vocab_size 8 is larger than the vocabulary of the module, 7"):
        masks.check(batch())
    with pytest.raises(ValueError, match="3 labels lie outside 0..6"):
        masked(Words(), V, 6).check(batch(inputs=tokens() + np.where(np.arange(T) == 1, 9, 0)))
    spans = span_corruption(Words(), 6, rate=0.5, mean_length=1.0)
    with pytest.raises(ValueError, match=r"rows of 6 tokens need 4..6 as sentinels, but the text has [456]"):
        spans.check(batch())
    with pytest.raises(ValueError, match=r"rows of 16 tokens need -1..6 .* there are not as many tokens"):
        spans.check({"inputs": np.zeros((B, 16), int)})
    with pytest.raises(ValueError, match="segments packed in a row"):
        spans.check({"inputs": {"tokens": tokens(high=4), "segments": np.ones((B, T), int)}})
    with pytest.raises(ValueError, match=r"weights must be of rows, \[B\]; their shape is \(3, 6\)"):
        spans.check({"inputs": tokens(high=4), "weights": np.ones((B, T))})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: next_token(Words(), label_smoothing=1.0), "label_smoothing .* got 1.0"),
        (lambda: next_token(Words(), z_loss=-1.0), "z_loss, a weight, must not be negative"),
        (lambda: next_token(linen.Dense(3), chunk=2), "methods hidden and logits; Dense has not both"),
        (lambda: next_token(bert(vocab_size=V)), "needs a causal model, .* Transformer is not"),
        (
            lambda: next_token(Recurrent(V, (4,), bidirectional=True, pool="none", vocab_size=V)),
            "needs a causal model, .* Recurrent is not: .* bidirectional=False",
        ),
        (lambda: masked(gpt(vocab_size=V), V, 6), "before and behind a token; this Transformer is causal"),
        (lambda: masked(Recurrent(V, (4,), vocab_size=V), V, 6), "this Recurrent is causal"),
        (lambda: masked(RecurrentLM(V, 4, (4,)), V, 6), "this RecurrentLM is causal"),
        (lambda: masked(Words(), V, V), "mask_token must lie in 0..6, the vocabulary; got 7"),
        (lambda: masked(Words(), V, 0, special=(9,)), "special must lie in 0..6"),
        (lambda: masked(Words(), V, 0, rate=0.0), "rate, .* between 0 and 1; got 0.0"),
        (lambda: span_corruption(Words(), 6, mean_length=0.5), "mean_length, .* at least 1; got 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
