"""TextCNN: a sentence as the strongest responses of convolutions over its words.

Axes: B batch, T tokens, D features of a token, F feature maps, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.core import Array
from jdl.models.recurrent import embedded, limits_of
from jdl.nn import Conv, Dense
from jdl.nn.dropout import Dropout, require_rate
from jdl.nn.recurrence import uniform_within


class TextCNN(linen.Module):
    """Convolutions of several widths over the tokens, ReLU, the maximum over time, dropout, a head.

    A window may begin before the sentence and end after it, with zeros there; the maximum is over all that
    hold a real token, so it does not depend on how rows are padded. Submodules are ``tokens``, ``conv3``,
    ``conv4``, ... by width, and ``head``.

    Attributes:
        num_classes: C; 0 gives the pooled features instead.
        vocab_size: V; None for sequences of features, such as vectors of words.
        width: D, features of a token.
        widths: tokens that a convolution sees.
        maps: F, feature maps of each width.
        dropout: of the pooled features.
        token_dropout: of the features of tokens.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the inputs are not sequences of the kind that the module is for, or a rate is out of
            range.

    Example:
        >>> model = TextCNN(2, vocab_size=100)
        >>> inputs = {"tokens": jnp.zeros((3, 7), jnp.int32), "lengths": jnp.array([7, 2, 5])}
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
        >>> sorted(variables["params"])
        ['conv3', 'conv4', 'conv5', 'head', 'tokens']

    Reference:
        Kim, "Convolutional neural networks for sentence classification", 2014.
    """

    num_classes: int
    vocab_size: int | None = None
    width: int = 300
    widths: Sequence[int] = (3, 4, 5)
    maps: int = 100
    dropout: float = 0.5
    token_dropout: float = 0.0
    dtype: Any = None

    @property
    def limits(self) -> dict[str, int]:
        """How many tokens there are, by which tasks check sequences."""
        return limits_of(self.vocab_size)

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> Array:
        """Sequences to logits [B, C]."""
        require_rate("token_dropout", self.token_dropout)
        embed = None
        if self.vocab_size is not None:
            embed = linen.Embed(
                self.vocab_size,
                self.width,
                dtype=self.dtype,
                embedding_init=uniform_within(0.25),
                name="tokens",
            )
        x_BTD, lengths = embedded(inputs, embed, "TextCNN", self.dtype)
        B, T, _ = x_BTD.shape
        lengths_B1 = (jnp.full(B, T) if lengths is None else lengths)[:, None]
        if lengths is not None:
            x_BTD = jnp.where((jnp.arange(T)[None] < lengths_B1)[..., None], x_BTD, 0)
        x_BTD = Dropout(self.token_dropout, deterministic=not train)(x_BTD)
        found = []
        for w in self.widths:
            conv = Conv(self.maps, (w,), padding=((w - 1, w - 1),), dtype=self.dtype, name=f"conv{w}")
            y_BSF = jax.nn.relu(conv(x_BTD))
            # Window s begins w - 1 tokens before s, and ReLU is zero at least.
            holds_BS = jnp.arange(T + w - 1)[None] < jnp.where(lengths_B1 > 0, lengths_B1 + w - 1, 0)
            found.append(jnp.where(holds_BS[..., None], y_BSF, 0).max(1))
        y = Dropout(self.dropout, deterministic=not train)(jnp.concatenate(found, -1))
        return Dense(self.num_classes, dtype=self.dtype, name="head")(y) if self.num_classes else y


def tiny() -> tuple[TextCNN, dict[str, Any]]:
    """Two widths with dropout, and a batch of 8 of which two rows are padded."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 2, 5, 5, 5, 3, 5, 5], np.int32)
    batch = {
        "inputs": {"tokens": rng.integers(0, 9, (8, 5)).astype(np.int32), "lengths": lengths},
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return TextCNN(4, 9, 6, (2, 3), 8, dropout=0.2), batch
