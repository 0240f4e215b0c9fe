"""Beam search against all texts that there are, and against transformers."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from jdl.core import Decoder
from jdl.generation import banned, beam_search, gnmt, per_token
from jdl.generation.beam import _largest
from tests.generation.standins import attentive, attentive_logits, log_softmax

PROMPTS = [[1, 2], [3]]


def all_texts(prompt, limit, stop, vocabulary):
    """Every text that ends with a stop sequence, or has ``limit`` tokens, and its log-probability."""
    open_texts, found = [((), 0.0)], []
    for n in range(1, limit + 1):
        longer = []
        for text, total in open_texts:
            log_probs = log_softmax(attentive_logits([*prompt, *text], vocabulary=vocabulary))
            longer += [((*text, v), total + log_probs[v]) for v in range(vocabulary)]
        is_end = [n == limit or any(t[-len(s) :] == tuple(s) for s in stop) for t, _ in longer]
        found += [text for text, end in zip(longer, is_end, strict=True) if end]
        open_texts = [text for text, end in zip(longer, is_end, strict=True) if not end]
    return found


def test_a_wide_beam_finds_the_best_of_all_texts():
    vocabulary, limit, stop = 4, 3, [[3], [1, 2]]
    search = functools.partial(
        beam_search, attentive(vocabulary=vocabulary), PROMPTS, num_beams=64, max_new_tokens=limit, stop=stop
    )
    for alpha in (0.0, 0.8, -0.5):
        found = jax.device_get(search(num_results=6, penalty=gnmt(alpha), pad=-1, capacity=8))
        for b, prompt in enumerate(PROMPTS):
            score = lambda text, alpha=alpha: text[1] / ((5 + len(text[0])) / 6) ** alpha
            best = sorted(all_texts(prompt, limit, stop, vocabulary), key=score, reverse=True)[:6]
            for k, (tokens, total) in enumerate(best):
                assert found.tokens_BKN[b, k].tolist() == [*tokens, *[-1] * (limit - len(tokens))]
                np.testing.assert_allclose(found.log_probs_BK[b, k], total, rtol=1e-5)
                np.testing.assert_allclose(found.scores_BK[b, k], score((tokens, total)), rtol=1e-5)
                cut = 1 if tokens[-1] == 3 else 2 if tokens[-2:] == (1, 2) else 0
                assert found.rows()[b][k].tolist() == list(tokens[: len(tokens) - cut])
                assert found.stopped_BK[b, k] == (-1, 0, 1)[cut]


def torch_decoder(model, torch):
    """A decoder that asks a model in PyTorch for the logits of whole texts."""

    def logits(tokens_BS):
        with torch.inference_mode():
            return model(torch.tensor(np.array(tokens_BS)).long()).logits.numpy()

    def init_cache(batch_size, length):
        zeros = jnp.zeros((batch_size, length), jnp.int32)
        return {"tokens": zeros, "lengths": zeros[:, 0]}

    def extend(cache, tokens_BT, lengths_B=None):
        B, T = tokens_BT.shape
        lengths_B = jnp.full(B, T) if lengths_B is None else lengths_B
        at_BT = cache["lengths"][:, None] + jnp.arange(T)[None]
        rows_B1 = jnp.arange(B)[:, None]
        place_BT = jnp.where(jnp.arange(T)[None] < lengths_B[:, None], at_BT, cache["tokens"].shape[1])
        tokens_BS = cache["tokens"].at[rows_B1, place_BT].set(tokens_BT, mode="drop")
        shape = jax.ShapeDtypeStruct((*tokens_BS.shape, model.config.vocab_size), jnp.float32)
        logits_BSV = jax.pure_callback(logits, shape, tokens_BS, vmap_method="sequential")
        cache = {"tokens": tokens_BS, "lengths": cache["lengths"] + lengths_B}
        return logits_BSV[rows_B1, jnp.minimum(at_BT, tokens_BS.shape[1] - 1)], cache

    return Decoder(Partial(init_cache), Partial(extend))


def test_equals_transformers(torch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes, initializer_range=1.0, bos_token_id=0, eos_token_id=5)
    model = transformers.GPT2LMHeadModel(config).eval()
    prompts = np.array([[1, 2, 3], [7, 8, 9], [4, 4, 10]], np.int32)
    search = functools.partial(beam_search, torch_decoder(model, torch), prompts, stop=5, pad=5, capacity=12)
    ended = 0
    for early, alpha, limit in ((True, 1.0, 9), (False, 1.0, 9), (False, 0.0, 6), (True, -0.5, 9)):
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = model.generate(
                torch.tensor(prompts).long(),
                attention_mask=torch.ones(prompts.shape).long(),
                num_beams=3,
                num_return_sequences=3,
                max_new_tokens=limit,
                length_penalty=alpha,
                early_stopping=early or "never",
                pad_token_id=5,
                return_dict_in_generate=True,
                output_scores=True,
            )
        found = jax.device_get(
            search(
                num_beams=3,
                num_results=3,
                max_new_tokens=limit,
                penalty=per_token(alpha),
                early_stopping=early,
            )
        )
        expected = theirs.sequences.numpy()[:, 3:]
        ours = found.tokens_BKN.reshape(9, -1)[:, : expected.shape[1]]
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_allclose(found.scores_BK.reshape(-1), theirs.sequences_scores.numpy(), rtol=1e-4)
        ended += int((found.stopped_BK == 0).sum())
    assert ended > 5


def test_what_is_banned_is_never_found_and_missing_texts_are_left_out():
    only = [[0, 1], [1, 0]]  # of two tokens, alternation is forbidden
    found = beam_search(
        attentive(vocabulary=2),
        [[0], [1]],
        num_beams=3,
        num_results=3,
        max_new_tokens=4,
        sampler=banned(only),
    )
    assert [[text.tolist() for text in row] for row in found.rows()] == [[[0] * 4], [[1] * 4]]
    assert np.isneginf(found.scores_BK[:, 1:]).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=60, max_size=60))
def test_the_largest_are_those_of_a_sort(values):
    x = jnp.asarray(values, jnp.float32).reshape(2, 30)
    for found, expected in zip(_largest(x, 4), jax.lax.top_k(x, 4), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_a_decoder_knows_of_a_source_is_not_copied_from_step_to_step():
    memory = jnp.arange(2 * 13.0).reshape(2, 13)

    def extend(cache, tokens, lengths=None):
        del lengths
        return jax.nn.one_hot(tokens, 13) * cache["memory"][:, None], {**cache, "state": cache["state"] + 1}

    decoder = Decoder(lambda rows, length: {"memory": memory, "state": jnp.zeros((rows, 17))}, extend)
    search = functools.partial(beam_search, decoder, [[1], [2]], num_beams=3, max_new_tokens=4)
    program = str(jax.make_jaxpr(lambda: search().tokens_BKN)())
    gathered = set(re.findall(r"f32\[(6,\d+)\] = gather", program))
    assert "6,17" in gathered
    assert "6,13" not in gathered


def test_bad_requests_are_refused_in_words():
    search = functools.partial(beam_search, attentive(), [[1]], max_new_tokens=2)
    with pytest.raises(ValueError, match="num_beams must be a whole number, at least 1; got 0"):
        search(num_beams=0)
    with pytest.raises(ValueError, match="num_beams must be a whole number, at least 1; got 2.5"):
        search(num_beams=2.5)
    with pytest.raises(ValueError, match="pad must be a whole number.*; got 1.5"):
        search(num_beams=2, pad=1.5)
    with pytest.raises(ValueError, match="2 beams give 1 to 2 results; got 3"):
        search(num_beams=2, num_results=3)
    with pytest.raises(ValueError, match="samplers and penalties are functions.* got 0.6"):
        search(num_beams=2, penalty=0.6)
    with pytest.raises(ValueError, match="need a cache of 2 positions; capacity is 1"):
        search(num_beams=2, capacity=1)
