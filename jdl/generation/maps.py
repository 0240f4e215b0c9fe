"""Maps of symbols, written one place after another by a model that knows them all up to there.

Axes: B batch, H height, W width, K symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdl.core import Array


def sample_map(
    predict: Callable[[Any], Array], key: Array, shape: tuple[int, int, int], *, temperature: float = 1.0
) -> Array:
    """Draws maps from an autoregressive model of them, row by row from the top left.

    Args:
        predict: ``symbols, int32 [B, H, W] -> logits [B, H, W, K]`` of each, from those before it alone,
            such as `jdl.models.PixelCNN`.
        key: PRNG key.
        shape: (B, H, W).
        temperature: divides the logits; 0 takes the most likely symbol.

    Returns:
        int32 [B, H, W]. It takes H * W calls of ``predict``, in one compiled loop.

    Raises:
        ValueError: for a negative temperature.

    Example:
        >>> logits = jnp.log(jnp.array([0.0, 0.5, 0.5]))
        >>> predict = lambda x: jnp.broadcast_to(logits, (*x.shape, 3))
        >>> drawn = sample_map(predict, jax.random.key(0), (2, 3, 3))
        >>> drawn.shape, sorted(set(drawn.ravel().tolist()))
        ((2, 3, 3), [1, 2])
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0; got {temperature}")
    B, H, W = shape

    def write(drawn_BHW: Array, place: Array) -> tuple[Array, None]:
        i, j = place // W, place % W
        logits_BK = predict(drawn_BHW)[:, i, j].astype(jnp.float32)
        if temperature:
            symbol_B = jax.random.categorical(jax.random.fold_in(key, place), logits_BK / temperature)
        else:
            symbol_B = logits_BK.argmax(-1)
        return drawn_BHW.at[:, i, j].set(symbol_B.astype(jnp.int32)), None

    return jax.lax.scan(write, jnp.zeros((B, H, W), jnp.int32), jnp.arange(H * W))[0]
