"""Sequences of tokens in a batch: which positions are real, what each is to predict, and what is wrong.

Axes: B batch, T time.

A sequence is integer tokens [B, T], or a dictionary with "tokens" and, where wanted, "lengths" [B] (the first
tokens of each row are real, the rest padding) and "segments" [B, T] (documents in one row, 1, 2, ...; 0 is
padding). An encoder-decoder's inputs are {"source": a sequence, "target": a sequence}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdl.core import Array, Batch
from jdl.tasks.supervised import position_weights


def decoded(inputs: Any) -> Mapping[str, Any]:
    """The parts of the sequence that a module of ``inputs`` predicts: the target, where there is one."""
    sequence = inputs["target"] if isinstance(inputs, Mapping) and "target" in inputs else inputs
    return _known(sequence)


def _known(sequence: Any) -> Mapping[str, Any]:
    """What is known of a sequence, by name."""
    parts = sequence if isinstance(sequence, Mapping) else {"tokens": sequence}
    return {name: part for name, part in parts.items() if part is not None}


def real_positions(inputs: Any) -> Array | None:
    """Which positions are no padding, bool [B, T]; None where the sequence knows of no padding."""
    sequence = decoded(inputs)
    if "segments" not in sequence and "lengths" not in sequence:
        return None
    elements = sequence["tokens"] if "tokens" in sequence else sequence["sequence"]
    real = jnp.ones(elements.shape[:2], bool)
    if "segments" in sequence:
        real &= jnp.asarray(sequence["segments"]) > 0
    if "lengths" in sequence:
        real &= jnp.arange(real.shape[1])[None, :] < jnp.asarray(sequence["lengths"])[:, None]
    return real


def labels_and_weights(batch: Batch) -> tuple[Array, Array]:
    """What each position of a batch is to predict, int32 [B, T], and its weight, float32 [B, T].

    Raises:
        ValueError: for labels or weights whose shape is not that of the tokens.
    """
    sequence = decoded(batch["inputs"])
    tokens = jnp.asarray(sequence["tokens"])
    weights = position_weights(batch, tokens.shape)
    real = real_positions(batch["inputs"])
    if batch.get("labels") is not None:
        labels = jnp.asarray(batch["labels"])
        if labels.shape != tokens.shape:
            raise ValueError(f"labels of shape {labels.shape} do not fit tokens of shape {tokens.shape}")
    else:
        # What comes around from the front counts nothing.
        labels = jnp.roll(tokens, -1, axis=1)
        follows = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :] < tokens.shape[1] - 1, tokens.shape)
        if real is not None:
            follows &= jnp.roll(real, -1, axis=1)
        if "segments" in sequence:
            segments = jnp.asarray(sequence["segments"])
            follows &= segments == jnp.roll(segments, -1, axis=1)
        weights = weights * follows
    return labels.astype(jnp.int32), weights if real is None else weights * real


def check_sequence(name: str, sequence: Any) -> np.ndarray:
    """The tokens of a concrete sequence, when it is one.

    Raises:
        ValueError: saying what is wrong with it.
    """
    parts = _known(sequence)
    if "tokens" not in parts:
        raise ValueError(f'{name} must be tokens or a dictionary with "tokens"; it has {sorted(parts)}')
    tokens = np.asarray(parts["tokens"])
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 2:
        raise ValueError(f"{name}: tokens must be integers [B, T]; got {tokens.dtype} {tokens.shape}")
    if tokens.size and tokens.min() < 0:
        raise ValueError(f"{name}: tokens must not be negative; got {tokens.min()}")
    for part, expected in (("lengths", tokens.shape[:1]), ("segments", tokens.shape)):
        if part not in parts:
            continue
        given = np.asarray(parts[part])
        if given.shape != expected or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"{name}: {part} must be integers of shape {expected}, for tokens of shape "
                             f"{tokens.shape}; got {given.dtype} of shape {given.shape}")  # fmt: skip
        if part == "lengths" and ((given < 0) | (given > tokens.shape[1])).any():
            raise ValueError(f"{name}: lengths must lie in 0..{tokens.shape[1]}, the positions of a row; got "
                             f"{given.min()} to {given.max()}")  # fmt: skip
    return tokens
