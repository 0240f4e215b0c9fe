"""Learning from text in which something is hidden: single tokens (BERT) or spans (T5).

Axes: B batch, T time, S time of the source, U time of the target, K spans, V vocabulary.

In training the key says what is hidden. In evaluation the row does: each row draws from a key made of its own
tokens, so a figure depends neither on the order or size of batches nor on the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.core import Array, Batch, Metrics, Task, Variables
from jdl.tasks.language import check_tokens, of_tokens, seq2seq
from jdl.tasks.sequences import ANY_TOKENS, check_sequence, decoded, position_weights, real_positions

Noise = Callable[[Array, Batch], Batch]


def masked(
    module: Any,
    vocab_size: int,
    mask_token: int,
    *,
    rate: float = 0.15,
    special: Sequence[int] = (),
    dynamic: bool = True,
    chunk: int | None = None,
) -> Task:
    """Masked language modelling: the module's logits [B, T, V] are of the tokens hidden from it.

    Each token is chosen with probability ``rate``; of those chosen, 80 % become ``mask_token``, 10 % a token
    drawn uniformly from the vocabulary, and 10 % stay. The loss is -log p(original token), nats, over the
    chosen ones. The batch's inputs are a sequence of whole text; its labels, if it has any, are not used.

    Args:
        module: a module from inputs to logits [B, T, V].
        vocab_size: random replacements are drawn from 0..vocab_size-1.
        mask_token: what stands for a hidden token.
        rate: share of tokens chosen.
        special: tokens that are never chosen (separators, say).
        dynamic: hide other tokens each time that a row is seen in training; if not, always the same.
        chunk: as in `next_token`.

    Returns:
        A task with the metrics "loss" (nats a hidden token), "accuracy" and "perplexity", monitored by "min
        loss". Its ``predict`` takes tokens as they are, masks and all.

    Raises:
        ValueError: for a rate or a token out of range, or a module that says by an attribute ``causal`` that
            it sees nothing behind a token; and, from the task's ``check``, as `next_token`.

    Example:
        >>> from flax import linen
        >>> class Bag(linen.Module):
        ...     @linen.compact
        ...     def __call__(self, tokens, train=False):
        ...         return linen.Embed(9, 9)(tokens)
        >>> task = masked(Bag(), 9, mask_token=8)
        >>> batch = {"inputs": jnp.arange(48).reshape(2, 24) % 8}
        >>> variables = task.init(jax.random.key(0), batch)
        >>> total, (weight, _, _) = task.loss(variables, batch, jax.random.key(2))
        >>> 0 < int(weight) < 24
        True

    Reference:
        Devlin, Chang, Lee and Toutanova, "BERT: pre-training of deep bidirectional transformers for language
        understanding", 2019, section 3.1. Static and dynamic masks: Liu et al., "RoBERTa: a robustly
        optimized BERT pretraining approach", 2019, section 4.1.
    """
    if getattr(module, "causal", False):
        raise ValueError(
            "masked needs a model that sees what is before and behind a token; this "
            f"{type(module).__name__} is causal: give it BlockConfig(causal=False), or use tasks.next_token"
        )
    _require_share("rate", rate)
    for name, token in (("mask_token", mask_token), *(("special", token) for token in special)):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} must lie in 0..{vocab_size - 1}, the vocabulary; got {token}")
    task = of_tokens(module, 0.0, 0.0, chunk)

    def noise(keys: Array, batch: Batch) -> Batch:
        tokens = jnp.asarray(decoded(batch["inputs"])["tokens"], jnp.int32)  # a mask may not fit into bytes
        weights = position_weights(batch, tokens.shape)
        draws, others = jax.vmap(lambda key: _draws(key, tokens.shape[1], vocab_size))(keys)
        chosen, real = draws < rate, real_positions(batch["inputs"])
        if real is not None:
            chosen &= real
        for token in special:
            chosen &= tokens != token
        # Of the draws below the rate, a tenth lies in each tenth of it.
        hidden = jnp.where(draws < 0.8 * rate, mask_token, jnp.where(draws < 0.9 * rate, others, tokens))
        inputs: Any = jnp.where(chosen, hidden, tokens)
        if isinstance(batch["inputs"], Mapping):
            inputs = {**batch["inputs"], "tokens": inputs}
        return {**batch, "inputs": inputs, "labels": tokens, "weights": weights * chosen}

    def check(batch: Batch) -> None:
        tokens = None
        if "inputs" in batch:
            check_sequence("inputs", batch["inputs"], ANY_TOKENS)
            tokens = np.asarray(decoded(batch["inputs"])["tokens"])
        V = check_tokens(module, task, {**batch, "labels": tokens})
        if vocab_size > V:
            raise ValueError(f"vocab_size {vocab_size} is larger than the vocabulary of the module, {V}")

    return _noised(task, noise, dynamic)._replace(check=check)


def span_corruption(
    module: Any,
    sentinel: int,
    *,
    rate: float = 0.15,
    mean_length: float = 3.0,
    end: int = 1,
    start: int = 0,
    dynamic: bool = True,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Task:
    """Span corruption: an encoder-decoder writes the spans that are missing from its source.

    Of n tokens round(rate n) are cut out, in round(rate n / mean_length) spans whose lengths and places are
    uniformly random. In the source a sentinel token stands for each span; the target is each sentinel and
    its span. The i-th span's sentinel is ``sentinel`` - i, and both sequences finish with ``end``. Rows of
    whole text [B, T], with or without "lengths", become a source [B, S] and a target [B, U] whose widths
    follow from T alone; their weights [B] count the row's target tokens.

    Args:
        module: an encoder-decoder, as for `seq2seq`.
        sentinel: the first sentinel; others count down from it. Text must not contain them.
        rate: share of tokens cut out.
        mean_length: tokens in a span, on average.
        end: the token that ends a source and a target.
        start: the token that the decoder reads first, and that pads.
        dynamic: cut out other spans each time that a row is seen in training; if not, always the same.
        label_smoothing: as in `next_token`.
        z_loss: as in `next_token`.
        chunk: as in `next_token`.

    Returns:
        A task with the metrics of `seq2seq`. Its ``predict`` takes {"source": ..., "target": ...}, or whole
        text, from which it cuts what ``evaluate`` cuts.

    Raises:
        ValueError: for a share out of range or too short spans; and, from the task's ``check``, for
            text that is not tokens, packed in segments, or contains sentinels.

    Example:
        >>> from jdl.models import t5
        >>> model = t5(vocab_size=40, width=8, depth=1, num_heads=2, head_size=4, hidden=16)
        >>> task = span_corruption(model, sentinel=39)
        >>> batch = {"inputs": jnp.arange(2, 34).reshape(1, 32)}
        >>> variables = jax.jit(task.init)(jax.random.key(0), batch)
        >>> metrics = task.evaluate(variables, batch, jax.random.key(1))
        >>> float(metrics["loss"].weight)  # 5 tokens in 2 spans, each after its mark, and the end
        8.0

    Reference:
        Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
        2020, section 3.1.4.
    """
    _require_share("rate", rate)
    if mean_length < 1:
        raise ValueError(f"mean_length, the tokens of a span, must be at least 1; got {mean_length}")
    task = seq2seq(module, label_smoothing=label_smoothing, z_loss=z_loss, chunk=chunk)
    corrupt = functools.partial(
        corrupted, sentinel=sentinel, rate=rate, mean_length=mean_length, end=end, start=start
    )

    def noise(keys: Array, batch: Batch) -> Batch:
        inputs, labels = corrupt(keys, batch["inputs"])
        weights = batch.get("weights")
        if weights is not None and jnp.ndim(weights) != 1:
            raise ValueError(f"weights must be of rows, [B]; their shape is {jnp.shape(weights)}")
        return {**batch, "inputs": inputs, "labels": labels}

    def whole(inputs: Any) -> Any:
        """Inputs of the module, of its inputs or of whole text."""
        if isinstance(inputs, Mapping) and "source" in inputs:
            return inputs
        return corrupt(row_keys(inputs), inputs)[0]

    def check(batch: Batch) -> None:
        if "inputs" not in batch:
            raise ValueError(f'span corruption needs a batch with "inputs"; it has {sorted(batch)}')
        check_sequence("inputs", batch["inputs"], ANY_TOKENS)
        tokens = np.asarray(decoded(batch["inputs"])["tokens"])
        last = sentinel - max(spans for _, spans in _counts(tokens.shape[1], rate, mean_length)) + 1
        taken = (tokens >= last) & (tokens <= sentinel)
        if last < 0 or taken.any():
            found = "there are not as many tokens" if last < 0 else f"the text has {tokens[taken][0]}"
            raise ValueError(f"rows of {tokens.shape[1]} tokens need {last}..{sentinel} as sentinels, but "
                             f"{found}")  # fmt: skip
        task.check(noise(row_keys(batch["inputs"]), batch))

    return _noised(task, noise, dynamic)._replace(
        init=lambda key, batch: task.init(key, {**batch, "inputs": whole(batch["inputs"])}),
        predict=lambda variables, inputs: task.predict(variables, whole(inputs)),
        check=check,
    )


def corrupted(
    keys: Array, inputs: Any, *, sentinel: int, rate: float, mean_length: float, end: int, start: int
) -> tuple[dict[str, Any], Array]:
    """Inputs and labels [B, U] of an encoder-decoder, from whole text: see `span_corruption`.

    Args:
        keys: one key a row, [B].
        inputs: a sequence of tokens [B, T].
        sentinel: the first sentinel.
        rate: share of tokens cut out.
        mean_length: tokens in a span, on average.
        end: ends both sequences.
        start: begins what the decoder reads, and pads.

    Returns:
        {"source": ..., "target": ...}, whose parts have "lengths" where ``inputs`` has; and the labels.
    """
    sequence = decoded(inputs)
    if "segments" in sequence:
        raise ValueError("spans cannot be cut from segments packed in a row: give rows of one text")
    tokens = jnp.asarray(sequence["tokens"])
    T, lengths = tokens.shape[1], sequence.get("lengths")
    counts = _counts(T, rate, mean_length)
    sizes = counts[-1:] if lengths is None else counts
    first = T if lengths is None else 0
    S = max(n - cut + spans + 1 for n, (cut, spans) in enumerate(sizes, first))
    U = max(cut + spans + 1 for cut, spans in sizes)
    table = jnp.asarray(counts, jnp.int32)

    def row(key: Array, tokens: Array, n: Array) -> Any:
        cut, spans = table[n]
        hidden, span, begins = _random_spans(key, T, n, cut, spans, max(K for _, K in counts))
        marks, real = sentinel - span, jnp.arange(T) < n
        source = _packed(jnp.where(hidden, marks, tokens), real & (~hidden | begins), S, end, start)
        # What stands before a span of the target is its mark, at the place of the text before it.
        target = _packed(
            jnp.where(hidden, tokens, marks), real & (hidden | begins) & (spans > 0), U, end, start
        )
        return source, target, jnp.stack([n - cut + spans + 1, jnp.where(spans > 0, cut + spans + 1, 0)])

    n_B = jnp.full(tokens.shape[:1], T) if lengths is None else jnp.asarray(lengths)
    source, labels, sizes_B2 = jax.vmap(row)(keys, tokens.astype(jnp.int32), n_B)
    target = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    if lengths is None:
        return {"source": source, "target": target}, labels
    return {
        "source": {"tokens": source, "lengths": sizes_B2[:, 0]},
        "target": {"tokens": target, "lengths": sizes_B2[:, 1]},
    }, labels


def row_keys(inputs: Any) -> Array:
    """One key a row [B], made of the row's tokens alone: equal rows have equal keys."""
    tokens = jnp.asarray(decoded(inputs)["tokens"]).astype(jnp.uint32) + jnp.uint32(1)
    real = real_positions(inputs)
    if real is not None:
        tokens = tokens * real
    # A polynomial of the tokens modulo 2^32.
    powers = np.cumprod(np.full(tokens.shape[1], 2654435761, np.uint32), dtype=np.uint32)
    hashes = (tokens * powers[None, :]).sum(axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), hashes)


def _noised(task: Task, noise: Noise, dynamic: bool) -> Task:
    """The task on batches that pass through ``noise(keys [B], batch)``."""

    def loss(variables: Variables, batch: Batch, key: Array) -> Any:
        if dynamic:
            noise_key, key = jax.random.split(key)
            keys = jax.random.split(noise_key, decoded(batch["inputs"])["tokens"].shape[0])
        else:
            keys = row_keys(batch["inputs"])
        return task.loss(variables, noise(keys, batch), key)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        return task.evaluate(variables, noise(row_keys(batch["inputs"]), batch), key)

    return task._replace(loss=loss, evaluate=evaluate)


def _draws(key: Array, T: int, vocab_size: int) -> tuple[Array, Array]:
    """For each position of a row a number in [0, 1), and a token."""
    first, second = jax.random.split(key)
    return jax.random.uniform(first, (T,)), jax.random.randint(second, (T,), 0, vocab_size)


def _counts(T: int, rate: float, mean_length: float) -> list[tuple[int, int]]:
    """For rows of 0..T tokens, how many are cut out, in how many spans; of fewer than two, none."""

    def of(n: int) -> tuple[int, int]:
        if n < 2:
            return 0, 0
        cut = min(max(round(n * rate), 1), n - 1)
        return cut, min(max(round(cut / mean_length), 1), cut, n - cut)

    return [of(n) for n in range(T + 1)]


def _random_spans(key: Array, T: int, n: Array, cut: Array, spans: Array, K: int) -> tuple[Array, ...]:
    """Which of the first n of T positions are hidden, the number of their span, and where spans begin.

    The n - cut tokens that stay and the ``cut`` that go are each divided into ``spans`` parts, every division
    being as likely as any other, and the parts take turns, one that stays first. Both parts of turn i have
    number i.
    """

    def lengths(key: Array, items: Array) -> Array:
        """``items`` things in ``spans`` parts of at least one, as lengths [K]."""
        between = jnp.arange(1, T + 1) < items
        rank = jnp.where(between, jax.random.uniform(key, (T,)), 2.0).argsort().argsort()
        part = jnp.cumsum(jnp.pad((rank < spans - 1) & between, (1, 0))[:T])
        return jnp.zeros(K, jnp.int32).at[part].add(jnp.arange(T) < items, mode="drop")

    stay_key, cut_key = jax.random.split(key)
    turns = jnp.stack([lengths(stay_key, n - cut), lengths(cut_key, cut)], axis=1).reshape(-1)
    ends = jnp.cumsum(turns)
    begins = jnp.zeros(T, bool).at[ends - turns].set(turns > 0, mode="drop")
    number = jnp.cumsum(begins) - 1
    return (number % 2 == 1) & (spans > 0), number // 2, begins


def _packed(values: Array, keep: Array, size: int, end: int, pad: int) -> Array:
    """The values [T] to keep, one after another, then ``end``, then ``pad``: [size]."""
    places = jnp.where(keep, jnp.cumsum(keep) - 1, size)
    packed = jnp.full(size, pad, values.dtype).at[places].set(values, mode="drop")
    return packed.at[keep.sum()].set(end, mode="drop")


def _require_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name}, a share of the tokens, must lie between 0 and 1; got {share}")
