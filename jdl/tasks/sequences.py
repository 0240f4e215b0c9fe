"""Sequences of tokens in a batch: which positions are real, what each is to predict, and what is wrong.

Axes: B batch, T time.

A sequence is integer tokens [B, T], or a dictionary with "tokens" and, where wanted, "lengths" [B] (the first
tokens of each row are real, the rest padding), "segments" [B, T] (documents in one row, 1, 2, ...; 0 is
padding), "positions" [B, T] and "types" [B, T]. A sequence of floats [B, T, C] is called "sequence" there. An
encoder-decoder's inputs are {"source": a sequence, "target": a sequence}.

A module of sequences says by an attribute ``limits`` how many "tokens", "positions" and "types" it knows (an
encoder-decoder whose sides differ, so for "source" and "target"); batches are checked by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdl.core import Array, Batch, example_weights

ANY_TOKENS = {"tokens": math.inf}
"""The limits of a sequence that must be tokens, whichever they are."""


def position_weights(batch: Batch, shape: tuple[int, ...]) -> Array:
    """The batch's weights as an array of ``shape`` [B, ...]; a weight [B] counts each of its positions."""
    weights = example_weights(batch)
    if weights.ndim > len(shape) or weights.shape != shape[: weights.ndim]:
        raise ValueError(f"weights of shape {weights.shape} do not fit positions of shape {shape}")
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)


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


def check_inputs(module: Any, inputs: Any) -> None:
    """Checks the sequences that a module is given, concrete ones, where it says that it takes such.

    Raises:
        ValueError: saying what is wrong with them.
    """
    limits = getattr(module, "limits", None)
    if limits is None:
        return
    if isinstance(inputs, Mapping) and {"source", "target"} <= set(inputs):
        for side in ("source", "target"):
            check_sequence(side, inputs[side], limits.get(side, limits))
    elif "target" not in limits:
        check_sequence("inputs", inputs, limits)


def check_sequence(name: str, sequence: Any, limits: Mapping[str, float]) -> None:
    """Checks a concrete sequence: its shapes and types, and what of it is real, by the limits that there are.

    Raises:
        ValueError: saying what is wrong with it.
    """
    kind = _kind(sequence, limits)
    parts = _known(sequence) if isinstance(sequence, Mapping) else {kind: sequence}
    if kind not in parts:
        raise ValueError(f'{name} must be tokens or a dictionary with "tokens"; it has {sorted(parts)}')
    elements = np.asarray(parts[kind])
    if kind == "tokens" and (not np.issubdtype(elements.dtype, np.integer) or elements.ndim != 2):
        raise ValueError(f"{name}: tokens must be integers [B, T]; got {elements.dtype} {elements.shape}")
    if kind == "sequence" and elements.ndim != 3:
        raise ValueError(f"{name}: a sequence of floats must be [B, T, C]; got {elements.shape}")
    B, T = elements.shape[:2]
    for part, expected in (("lengths", (B,)), ("segments", (B, T)), ("positions", (B, T)), ("types", (B, T))):
        if part not in parts:
            continue
        given = np.asarray(parts[part])
        if given.shape != expected or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"{name}: {part} must be integers of shape {expected}, for {kind} of shape "
                             f"{elements.shape}; got {given.dtype} of shape {given.shape}")  # fmt: skip
        if part == "lengths" and ((given < 0) | (given > T)).any():
            raise ValueError(f"{name}: lengths must lie in 0..{T}, the positions of a row; got "
                             f"{given.min()} to {given.max()}")  # fmt: skip
    real = real_positions(parts)
    for part in ("tokens", "positions", "types"):
        if part not in parts:
            continue
        given = np.asarray(parts[part])
        counted = given if real is None else given[np.asarray(real)]
        if counted.size and counted.min() < 0:
            raise ValueError(f"{name}: {part} must not be negative; got {counted.min()}")
        if counted.size and counted.max() >= limits.get(part, np.inf):
            outside = (counted >= limits[part]).sum()
            raise ValueError(f"{name}: {outside} {part} lie outside 0..{limits[part] - 1}, what the model "
                             f"knows: for example {counted.max()}")  # fmt: skip


def _kind(sequence: Any, limits: Mapping[str, float]) -> str:
    """What a sequence has to be made of, where the limits say so, or is made of."""
    if "tokens" in limits:
        return "tokens"
    if isinstance(sequence, Mapping):
        return "sequence" if "sequence" in sequence else "tokens"
    return "sequence" if np.issubdtype(np.asarray(sequence).dtype, np.floating) else "tokens"
