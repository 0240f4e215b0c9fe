"""The inputs of a model of sequences: tokens or floats, and what is known of them.

Axes: B batch, T positions, C features of a float sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jdl.core import Array
from jdl.nn.multihead import Look


class Sequence(NamedTuple):
    """What a model is given, one field for each thing that may be known.

    Attributes:
        values: tokens int32 [B, T], or floats [B, T, C].
        lengths: int32 [B], how many positions of each row are real, the first ones.
        segments: int32 [B, T], which of several documents in a row; 0 is padding.
        positions: int32 [B or 1, T], for learned, sinusoidal and rotary ones. A bias of distances and a
            window count the places in the row.
        types: int32 [B, T].
    """

    values: Array
    lengths: Array | None
    segments: Array | None
    positions: Array
    types: Array | None

    def real(self) -> Array | None:
        """[B, T] booleans, which positions are no padding; None where all are."""
        real = None if self.segments is None else self.segments > 0
        if self.lengths is None:
            return real
        within = jnp.arange(self.values.shape[1]).reshape(1, -1) < self.lengths.reshape(-1, 1)
        return within if real is None else within & real

    def look(self, causal: bool) -> Look:
        """What attention of the sequence to itself is told."""
        # Padding lies behind, where a causal model does not look.
        lengths = None if causal else self.lengths
        return Look(lengths=lengths, segments=None if self.segments is None else (self.segments,) * 2)


def sequence(inputs: Any, name: str, floats: bool = False) -> Sequence:
    """Reads the inputs of a model.

    Args:
        inputs: tokens [B, T] or floats [B, T, C]; or a dictionary with these as "tokens" or "sequence", and
            what there is of "lengths", "segments", "positions" and "types".
        name: of the model, for errors.
        floats: whether the model takes floats.

    Returns:
        The sequence, with zeros where it is padding.

    Raises:
        ValueError: for something else.
    """
    field, axes = ("sequence", 3) if floats else ("tokens", 2)
    given = inputs if isinstance(inputs, Mapping) else {field: inputs}
    known = {field, "lengths", "segments", "positions", "types"}
    if field not in given or not set(given) <= known:
        raise ValueError(f"{name} takes a dictionary of {', '.join(sorted(known))}; got {sorted(given)}")
    values = jnp.asarray(given[field])
    if values.ndim != axes or jnp.issubdtype(values.dtype, jnp.integer) == floats:
        wanted = "floats [batch, time, features]" if floats else "integers [batch, time]"
        raise ValueError(f"{name} takes {field} that are {wanted}; got {values.dtype} {values.shape}")
    B, T = values.shape[:2]
    shapes = {"lengths": (B,), "segments": (B, T), "positions": (B, T), "types": (B, T)}
    others: dict[str, Any] = {
        key: None if given.get(key) is None else jnp.asarray(given[key]) for key in shapes
    }
    for key, x in others.items():
        if x is not None and (x.shape != shapes[key] or not jnp.issubdtype(x.dtype, jnp.integer)):
            raise ValueError(f"{name} takes {key} that are integers {shapes[key]}; got {x.dtype} {x.shape}")
    if others["positions"] is None:
        others["positions"] = jnp.arange(T, dtype=jnp.int32).reshape(1, T)
    read = Sequence(values, **others)
    real_BT = read.real()
    if real_BT is None:
        return read
    # Zeros there, for what padding holds (not a number, perhaps) must not pass through a sum of weight 0.
    return read._replace(values=jnp.where(real_BT if axes == 2 else real_BT[..., None], values, 0))
