"""PixelCNN: a distribution of maps of symbols, one after another from the top left.

Axes: B batch, H height, W width, F features, K symbols.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import Conv
from jdl.nn.dropout import Dropout


def _gate(x: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, -1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


class GatedLayer(linen.Module):
    """Two stacks of convolutions: one sees the rows above, the other what is to the left, and the first.

    Kernels reach up and left alone, so that no place in the receptive field is left out. Whoever calls it has
    moved the first stack's input down by one row, and the second's right by one column.

    Attributes:
        features: F.
        kernel: side of the field that a layer sees, odd.
        dropout: of the second stack, in training.
        dtype: of the computation.

    Reference:
        Van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, section 2.2 and
        figure 2.
    """

    features: int
    kernel: int = 3
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, above: jax.Array, left: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Two stacks [B, H, W, F] to the same."""
        F, reach = self.features, self.kernel // 2
        above = Conv(
            2 * F,
            (reach + 1, self.kernel),
            padding=((reach, 0), (reach, reach)),
            dtype=self.dtype,
            name="above",
        )(above)
        h = Conv(2 * F, (1, reach + 1), padding=((0, 0), (reach, 0)), dtype=self.dtype, name="left")(left)
        h = _gate(h + Conv(2 * F, (1, 1), dtype=self.dtype, name="across")(above))
        h = Dropout(self.dropout, deterministic=not train)(h)
        return _gate(above), left + Conv(F, (1, 1), dtype=self.dtype, name="project")(h)


class PixelCNN(linen.Module):
    """Logits of the symbol at each place, given all those above it and to the left in its row.

    Learned with `jdl.tasks.classification`, inputs and labels being the same map, such as the codes of
    `jdl.models.VQVAE`; `jdl.generation.sample_map` writes new ones.

    Attributes:
        symbols: K.
        features: F.
        depth: layers.
        kernel: side of the field that the first layer sees; the others see 3.
        dropout: in each layer, in training.
        dtype: of the computation; logits are float32.

    Raises:
        ValueError: if the input is not a map of integers [B, H, W].

    Example:
        >>> model, codes = PixelCNN(16, features=8, depth=2), jnp.zeros((2, 8, 8), jnp.int32)
        >>> jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], codes).shape
        (2, 8, 8, 16)

    Reference:
        Van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016.
    """

    symbols: int
    features: int = 64
    depth: int = 8
    kernel: int = 5
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Symbols, int [B, H, W], to logits [B, H, W, K]."""
        if inputs.ndim != 3 or not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f"PixelCNN takes a map of integers [batch, height, width]; got {inputs.dtype} of shape "
                f"{inputs.shape}"
            )
        x = linen.Embed(self.symbols, self.features, dtype=self.dtype, name="symbols")(inputs)
        above = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        left = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        for i in range(self.depth):
            kernel = self.kernel if i == 0 else 3
            layer = GatedLayer(self.features, kernel, self.dropout, self.dtype, name=f"layer{i + 1}")
            above, left = layer(above, left, train)
        x = Conv(self.features, (1, 1), dtype=self.dtype, name="hidden")(jax.nn.relu(left))
        return Conv(self.symbols, (1, 1), dtype=self.dtype, name="head")(jax.nn.relu(x)).astype(jnp.float32)


def tiny() -> tuple[PixelCNN, dict[str, np.ndarray]]:
    """A network of two layers with dropout, and a batch of 8 maps of few symbols."""
    codes = np.random.default_rng(0).integers(0, 3, (8, 4, 4)).astype(np.int32)
    return PixelCNN(3, 8, 2, 3, dropout=0.1), {"inputs": codes, "labels": codes}
