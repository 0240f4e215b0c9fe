"""Recurrent layers in both directions, and one upon another.

Axes: B batch, T time, D input features, H features of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

import jax.numpy as jnp
from flax import linen

from jdl.core import Array
from jdl.nn.dropout import Dropout


class Bidirectional(linen.Module):
    """Two layers over the same inputs, one from each end; their outputs lie side by side.

    Submodules are ``forward`` and ``backward``.

    Attributes:
        layer: constructor of a layer, which takes ``name`` and ``reverse``.

    Raises:
        ValueError: for a carry that is no pair.

    Example:
        >>> import functools, jax
        >>> from jdl.nn import LSTM
        >>> layer = Bidirectional(functools.partial(LSTM, 4))
        >>> init = layer.init_with_output
        >>> (y, carry), variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> y.shape, sorted(variables["params"])
        ((2, 5, 8), ['backward', 'forward'])

    Reference:
        Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.
    """

    layer: Callable[..., Any]

    @linen.compact
    def __call__(
        self, x_BTD: Array, lengths: Array | None = None, carry: Any = None, train: bool = False
    ) -> tuple[Array, Any]:
        """As `Recurrence`; outputs [B, T, 2 H] and a carry of each direction."""
        if carry is not None and (not isinstance(carry, tuple | list) or len(carry) != 2):
            raise ValueError(
                f"the carry of a layer in both directions is a pair, of each its own; got {_said(carry)}"
            )
        forward, backward = (None, None) if carry is None else carry
        y_BTH, forward = self.layer(name="forward")(x_BTD, lengths, forward, train)
        z_BTH, backward = self.layer(name="backward", reverse=True)(x_BTD, lengths, backward, train)
        return jnp.concatenate([y_BTH, z_BTH], -1), (forward, backward)


class RecurrentStack(linen.Module):
    """Recurrent layers one upon another, as ``layer1``, ``layer2``, ..., with dropout between them.

    Attributes:
        layers: a constructor for each layer, which takes a ``name``.
        dropout: probability of dropping a feature between two layers.
        locked: drop the same features at all steps of a row (variational dropout), not at each step others.

    Raises:
        ValueError: for a dropout out of range, or a carry of another number of layers.

    Example:
        >>> import functools, jax
        >>> from jdl.nn import GRU
        >>> stack = RecurrentStack([functools.partial(GRU, 4), functools.partial(GRU, 2)], dropout=0.5)
        >>> init = stack.init_with_output
        >>> (y, carry), _ = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> y.shape, [h.shape for (h,) in carry]
        ((2, 5, 2), [(2, 4), (2, 2)])
    """

    layers: Sequence[Callable[..., Any]]
    dropout: float = 0.0
    locked: bool = False

    @linen.compact
    def __call__(
        self, x_BTD: Array, lengths: Array | None = None, carry: Any = None, train: bool = False
    ) -> tuple[Array, Any]:
        """As `Recurrence`; outputs are the last layer's, the carry has an entry a layer."""
        if carry is not None and (not isinstance(carry, tuple | list) or len(carry) != len(self.layers)):
            raise ValueError(
                f"the carry of a stack of {len(self.layers)} layers has an entry for each; got {_said(carry)}"
            )
        carries = []
        for i, make in enumerate(self.layers):
            if i:
                x_BTD = LockedDropout(self.dropout, self.locked)(x_BTD, train)
            before = None if carry is None else carry[i]
            x_BTD, after = make(name=f"layer{i + 1}")(x_BTD, lengths, before, train)
            carries.append(after)
        return x_BTD, tuple(carries)


def _said(carry: Any) -> str:
    """What is wrong with a carry, for errors."""
    count = f" of {len(carry)}" if isinstance(carry, Sized) and not hasattr(carry, "shape") else ""
    return f"{type(carry).__name__}{count}"


class LockedDropout(linen.Module):
    """Dropout of features [B, T, D] that drops the same ones at all steps of a row.

    Attributes:
        rate: probability of dropping.
        locked: False draws anew at each step: the usual dropout.

    Raises:
        ValueError: for a rate out of range.

    Example:
        >>> import jax
        >>> y = LockedDropout(0.5).apply({}, jnp.ones((2, 3, 8)), True, rngs={"dropout": jax.random.key(0)})
        >>> bool((y == y[:, :1]).all()), sorted(set(y.ravel().tolist()))
        (True, [0.0, 2.0])

    Reference:
        Gal and Ghahramani 2016; Merity et al. 2018, section 4.2.
    """

    rate: float
    locked: bool = True

    @linen.compact
    def __call__(self, x_BTD: Array, train: bool = False) -> Array:
        """[B, T, D] to the same shape."""
        dims = (1,) if self.locked else ()
        return Dropout(self.rate, broadcast_dims=dims, deterministic=not train)(x_BTD)
