"""TextCNN equals PyTorch's convolutions over padded sentences, however rows are padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import models
from jdl.interop import load_weights
from tests.compiling import jit

MODEL = models.TextCNN(4, 9, 5, (2, 3), 6, dropout=0.0)
TOKENS = np.random.default_rng(0).integers(0, 9, (3, 6)).astype(np.int32)
LENGTHS = np.array([6, 1, 0], np.int32)


def test_equals_pytorch(torch):
    """Sentence by sentence, each with zeros of a window's width less one on both sides."""
    torch.manual_seed(0)
    nn = torch.nn
    parts = nn.ModuleDict(
        {
            "tokens": nn.Embedding(9, 5),
            "conv2": nn.Conv1d(5, 6, 2, padding=1),
            "conv3": nn.Conv1d(5, 6, 3, padding=2),
            "head": nn.Linear(12, 4),
        }
    )
    tensors = {name: x.detach().numpy() for name, x in parts.state_dict().items()}
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS)
    variables = load_weights(shapes, tensors, [(name, name) for name in parts])
    run = jit(lambda tokens, lengths: MODEL.apply(variables, {"tokens": tokens, "lengths": lengths}))
    actual = run(TOKENS, LENGTHS)
    np.testing.assert_array_equal(actual, run(np.where(np.arange(6) < LENGTHS[:, None], TOKENS, 8), LENGTHS))
    np.testing.assert_allclose(actual[:1], MODEL.apply(variables, TOKENS[:1]), atol=1e-6)
    for row, (tokens, length) in zip(actual, zip(TOKENS, LENGTHS, strict=True), strict=True):
        with torch.no_grad():
            x = parts["tokens"](torch.tensor(tokens[:length]).long()).T[None]
            pooled = [parts[name](x).relu().amax(-1) for name in ("conv2", "conv3")] if length else []
            features = torch.cat(pooled, -1) if length else torch.zeros(1, 12)
            np.testing.assert_allclose(row, parts["head"](features)[0], atol=1e-5)


def test_has_the_size_of_the_published_one():
    params = jax.eval_shape(models.TextCNN(2, 100).init, jax.random.key(0), TOKENS)["params"]
    assert params.pop("tokens")["embedding"].shape == (100, 300)
    # Widths 3, 4 and 5 with 100 maps each over 300 features, and a head for two classes.
    assert sum(x.size for x in jax.tree.leaves(params)) == 100 * 300 * 12 + 300 + 602


def test_takes_vectors_of_words_and_says_what_is_wrong():
    x = jnp.ones((2, 4, 3))
    assert jax.eval_shape(lambda: models.TextCNN(0).init_with_output(jax.random.key(0), x)[0]).shape == (
        2,
        300,
    )
    for name in ("dropout", "token_dropout"):
        noisy = models.TextCNN(2, 9, **{name: 50})
        with pytest.raises(ValueError, match=f"^{name}, a rate, must be at least 0 and below 1; got 50"):
            jax.eval_shape(noisy.init, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="TextCNN takes tokens that are integers"):
        jax.eval_shape(MODEL.init, jax.random.key(0), x)
