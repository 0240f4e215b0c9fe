"""Multilayer perceptrons, plain and residual.

Axes: B batch, D flattened input, F hidden features, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import Dense, as_float
from jdl.nn.dropout import Dropout
from jdl.nn.residual import residual


class MLP(linen.Module):
    """A stack of fully connected layers on the flattened input; the last is linear.

    Attributes:
        features: width of each layer; the last one is the number of outputs. ``(300, 100, 10)`` is the
            LeNet-300-100 of LeCun et al. (1998).
        activation: applied between layers.
        dropout: share of hidden units dropped in training.
        residual: hidden layers of equal width become pre-normalised residual blocks,
            x + Dense(activation(LayerNorm(x))), which train at any depth.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> import jax.numpy as jnp
        >>> model = MLP((300, 100, 10))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(x.size for x in jax.tree.leaves(variables))
        266610

    Reference:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998,
        section III. Residual form: He et al., "Identity mappings in deep residual networks", 2016.
    """

    features: Sequence[int] = (300, 100, 10)
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    dropout: float = 0.0
    residual: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Inputs [B, ...] to outputs [B, C]."""
        if not self.features:
            raise ValueError("MLP needs at least one width in features, its number of outputs; got none")
        x_BF = as_float(inputs.reshape(inputs.shape[0], -1), self.dtype)
        for width in self.features[:-1]:
            if self.residual and x_BF.shape[-1] == width:
                h_BF = self.activation(linen.LayerNorm(dtype=self.dtype)(x_BF))
                h_BF = Dropout(self.dropout, deterministic=not train)(h_BF)
                x_BF = residual(x_BF, Dense(width, dtype=self.dtype)(h_BF))
            else:
                x_BF = self.activation(Dense(width, dtype=self.dtype)(x_BF))
                x_BF = Dropout(self.dropout, deterministic=not train)(x_BF)
        return Dense(self.features[-1], dtype=self.dtype)(x_BF)


def tiny() -> tuple[MLP, dict[str, np.ndarray]]:
    """A residual MLP with every kind of layer the family has, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 4, 4, 1)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return MLP((16, 16, 4), activation=jax.nn.gelu, dropout=0.1, residual=True), batch
