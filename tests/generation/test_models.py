"""Real models write with their caches what they say of whole texts."""

import jax
import numpy as np
import pytest

from jdl import models
from jdl.generation import beam_search, chain, decoder, generate, greedy, repetition_penalty, speculative
from jdl.nn.positions import LinearScaling, Rotary
from tests.compiling import jit

V, N = 7, 9
TARGETS = np.array([[1, 2, 3, 4], [5, 0, 0, 0]], np.int32)
LENGTHS = np.array([4, 1], np.int32)
SOURCE = {"tokens": np.array([[3, 1, 4], [1, 5, 0]], np.int32), "lengths": np.array([3, 2], np.int32)}
MODELS = {
    "gpt": lambda: models.gpt(vocab_size=V, context=12, width=8, depth=1, num_heads=2, init_std=0.5),
    "lstm": lambda: models.RecurrentLM(V, 8, (8, 8)),
    "transformer": lambda: models.transformer(
        vocab_size=V, width=8, depth=1, num_heads=2, hidden=16, embed_std=0.5
    ),
}


def inputs(model, tokens):
    return {"source": SOURCE, "target": tokens} if hasattr(model, "encode") else tokens


@pytest.mark.parametrize("name", MODELS)
def test_cached_and_uncached_are_equal(name):
    model = MODELS[name]()
    variables = jit(model.init)(jax.random.key(1), inputs(model, TARGETS))
    made = decoder(model, variables, source=SOURCE if hasattr(model, "encode") else None)
    # What was said counts against being said again, for texts less dull than an untrained model's.
    sampler = chain(repetition_penalty(1.5), greedy)
    found = jax.device_get(generate(made, TARGETS, 0, sampler, max_new_tokens=N, lengths=LENGTHS))
    assert len(np.unique(found.tokens_BN)) > 2

    def said(tokens_BN):
        """Log-probabilities of what was written, by the model on whole texts."""
        texts = np.zeros((2, 4 + N - 1), np.int32)
        for b, length in enumerate(LENGTHS):
            texts[b, : length + N - 1] = [*TARGETS[b, :length], *tokens_BN[b, :-1]]
        log_probs = np.asarray(jax.nn.log_softmax(apply(variables, inputs(model, texts))))
        return np.stack(
            [log_probs[b, n - 1 : n - 1 + N][np.arange(N), tokens_BN[b]] for b, n in enumerate(LENGTHS)]
        )

    apply = jit(model.apply)
    np.testing.assert_allclose(found.log_probs_BN, said(found.tokens_BN), atol=1e-5)
    if name == "lstm":
        assert made.rewind is None
    if name == "gpt":  # whose context has been used up
        with pytest.raises(ValueError, match="12 learned positions; got a cache of 13"):
            generate(made, TARGETS, 0, sampler, max_new_tokens=N + 1, lengths=LENGTHS)
        draft = decoder(model, jax.tree.map(lambda x: 0.9 * x, variables))
        fast = speculative(made, draft, TARGETS, 0, sampler, max_new_tokens=N, lengths=LENGTHS, guesses=2)
        np.testing.assert_array_equal(fast.generated.tokens_BN, found.tokens_BN)
    if name == "transformer":
        best = beam_search(made, TARGETS, lengths=LENGTHS, num_beams=2, max_new_tokens=N)
        expected = said(np.asarray(best.tokens_BKN[:, 0])).sum(1)
        np.testing.assert_allclose(best.log_probs_BK[:, 0], expected, rtol=1e-5)


def test_weights_are_put_on_the_device_once():
    """Not whenever a program is called, as arrays of NumPy would be."""
    model = MODELS["transformer"]()
    variables = jax.device_get(jit(model.init)(jax.random.key(1), inputs(model, TARGETS)))
    made = decoder(model, variables, source=SOURCE)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made))


def test_rotary_positions_beyond_the_context_are_told():
    sizes = {"vocab_size": V, "width": 8, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "hidden": 16}
    model = models.llama(context=6, **sizes)
    variables = jit(model.init)(jax.random.key(0), TARGETS)
    write = lambda model, n: generate(decoder(model, variables), TARGETS, 0, greedy, max_new_tokens=n)
    write(model, 3)
    words = "needs 7 positions; the Transformer was trained on 6 .* no scaling"
    with pytest.warns(UserWarning, match=words) as told:
        write(model, 4)
    assert told[0].filename == __file__
    write(models.llama(context=6, rotary=Rotary(scaling=LinearScaling(2.0)), **sizes), 4)
