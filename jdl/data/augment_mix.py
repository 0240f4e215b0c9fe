"""Random mixtures of the examples of a batch: their inputs and, alike, their labels.

B batch, H height, W width, C channels or classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.data.augment import Transform, images_of


class _Pairs(NamedTuple):
    """Who is mixed with whom: partners [B], the share [B] that each keeps of itself, and labels [B, C]."""

    partner: jax.Array
    share: jax.Array
    labels: jax.Array


def _check(alpha: float, num_classes: int) -> None:
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive, got {num_classes}")


def _pairs(key: jax.Array, batch: Mapping[str, Any], alpha: float, num_classes: int) -> _Pairs:
    labels = jnp.asarray(batch["labels"])
    count = jnp.shape(batch["inputs"])[0]
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1:
        labels = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if labels.shape != (count, num_classes):
        raise ValueError(
            f"labels must be integers [{count}] or probabilities [{count}, {num_classes}], "
            f"got {labels.dtype} {labels.shape}"
        )
    weights = batch.get("weights")
    weights = jnp.ones(count, jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), one for each example; got {weights.shape}")
    ratio_key, partner_key = jax.random.split(key)
    ratio = jax.random.beta(ratio_key, alpha, alpha, (count,))
    partner = jax.random.permutation(partner_key, count)
    own, other = ratio * weights, (1 - ratio) * weights[partner]
    share = jnp.where(own + other > 0, own / jnp.where(own + other > 0, own + other, 1), 1)
    return _Pairs(partner, share, labels)


def _mixed(x: jax.Array, share: jax.Array, partner: jax.Array) -> jax.Array:
    t = share.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)
    return t * x + (1 - t) * x[partner]


def mixup(alpha: float, num_classes: int) -> Transform:
    """Replaces each example by a random convex combination of it and another of the batch.

    With r ~ Beta(alpha, alpha) for each example and a random partner j(i), ::

        inputs_i <- t inputs_i + (1 - t) inputs_j
        labels_i <- t labels_i + (1 - t) labels_j
        t = r weights_i / (r weights_i + (1 - r) weights_j)

    so t = r where the weights are equal, and an example of weight zero (padding) never enters another.
    ``weights`` stay as they are, and with them the weight of the batch.

    Args:
        alpha: positive; small values stay near the originals, 1 is uniform.
        num_classes: C; integer labels [B] become float32 [B, C].

    Returns:
        A transform of ``inputs``, floating point [B, ...], and ``labels``, integers [B] or probabilities [B,
        C].

    Example:
        >>> batch = {"inputs": jnp.eye(4), "labels": jnp.arange(4)}
        >>> mixed = mixup(0.2, num_classes=4)(jax.random.key(0), batch)
        >>> bool(jnp.allclose(mixed["inputs"], mixed["labels"]))
        True

    Reference: Zhang et al., "mixup: beyond empirical risk minimization", arXiv:1710.09412.
    """
    _check(alpha, num_classes)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs = jnp.asarray(batch["inputs"])
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(
                f"inputs must be floating point to be mixed, got {inputs.dtype}: scale them first"
            )
        partner, share, labels = _pairs(key, batch, alpha, num_classes)
        return {
            **batch,
            "inputs": _mixed(inputs, share, partner),
            "labels": _mixed(labels, share, partner),
        }

    return transform


def cutmix(alpha: float, num_classes: int) -> Transform:
    """Pastes a rectangle of another image of the batch into each image, and mixes the labels by its area.

    With t as in `mixup` (Beta distributed where the weights are equal; 1, so nothing is pasted, where the
    partner has weight zero), the rectangle has the image's proportions and the area (1 - t) H W; its centre
    is uniform over the pixels and what lies outside is cut off. The labels' share is that of the pixels that
    remain.

    Args:
        alpha: positive; 1, as in the paper, is uniform.
        num_classes: C; integer labels [B] become float32 [B, C].

    Returns:
        A transform of ``inputs`` [B, H, W, C] of any type and ``labels``, integers [B] or probabilities [B,
        C].

    Example:
        >>> batch = {"inputs": jnp.zeros((2, 4, 4, 1)).at[1].set(1), "labels": jnp.arange(2)}
        >>> mixed = cutmix(1.0, num_classes=2)(jax.random.key(3), batch)
        >>> bool(jnp.allclose(mixed["inputs"].mean((1, 2, 3)), mixed["labels"][:, 1]))
        True

    Reference: Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable
    features", arXiv:1905.04899, section 3.1 and Algorithm A1.
    """
    _check(alpha, num_classes)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = images_of(batch)
        count, height, width, _ = images.shape
        pair_key, row_key, column_key = jax.random.split(key, 3)
        partner, share, labels = _pairs(pair_key, batch, alpha, num_classes)

        def inside(key: jax.Array, length: int) -> jax.Array:
            side = jnp.floor(length * jnp.sqrt(1 - share)).astype(jnp.int32)[:, None]
            start = jax.random.randint(key, (count, 1), 0, length) - side // 2
            pixels = jnp.arange(length)[None]
            return (pixels >= start) & (pixels < start + side)

        pasted = inside(row_key, height)[:, :, None] & inside(column_key, width)[:, None, :]
        kept = 1 - pasted.mean((1, 2), dtype=jnp.float32)
        return {
            **batch,
            "inputs": jnp.where(pasted[..., None], images[partner], images),
            "labels": _mixed(labels, kept, partner),
        }

    return transform
