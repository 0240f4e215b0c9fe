"""Random transformations of batches: pure functions of a key and a batch, compiled, with static shapes.

A transform takes ``key, batch`` and returns a batch of the same structure; entries that it does not concern
pass through. Every example of a batch is drawn for independently. B batch, H height, W width, C channels or
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Transform = Callable[[jax.Array, Mapping[str, Any]], dict[str, Any]]
"""``key, batch -> batch``."""


def _images(batch: Mapping[str, Any]) -> jax.Array:
    images = jnp.asarray(batch["inputs"])
    if images.ndim != 4:
        raise ValueError(f"inputs must be images [B, H, W, C], got shape {images.shape}")
    return images


def random_flip(probability: float = 0.5) -> Transform:
    """Mirrors each image left to right with the given probability.

    Args:
        probability: in [0, 1].

    Returns:
        A transform of ``inputs`` [B, H, W, C] of any type.

    Example:
        >>> batch = {"inputs": jnp.arange(3.0).reshape(1, 1, 3, 1)}
        >>> random_flip(1.0)(jax.random.key(0), batch)["inputs"].ravel()
        Array([2., 1., 0.], dtype=float32)
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = _images(batch)
        flipped = jax.random.bernoulli(key, probability, (images.shape[0], 1, 1, 1))
        return {**batch, "inputs": jnp.where(flipped, images[:, :, ::-1], images)}

    return transform


def random_crop(padding: int, mode: str = "constant") -> Transform:
    """Pads each image and cuts a window of the original size out of it: shifts of up to ``padding`` pixels.

    Args:
        padding: pixels on every side, at least 0; offsets are uniform on 0..2 * padding, rows and columns
            apart.
        mode: ``"constant"`` pads with zeros, ``"reflect"`` with the mirrored image, as in `jax.numpy.pad`.

    Returns:
        A transform of ``inputs`` [B, H, W, C] of any type.

    Example:
        >>> batch = {"inputs": jnp.ones((2, 32, 32, 3))}
        >>> random_crop(4)(jax.random.key(0), batch)["inputs"].shape
        (2, 32, 32, 3)

    Reference: He et al., "Deep residual learning for image recognition", arXiv:1512.03385, section 4.2.
    """
    if padding < 0:
        raise ValueError(f"padding must be at least 0 pixels, got {padding}")
    if mode not in ("constant", "reflect"):
        raise ValueError(f'mode must be "constant" or "reflect", got {mode!r}')

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = _images(batch)
        if mode == "reflect" and padding >= min(images.shape[1:3]):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} cannot be reflected by {padding} pixels"
            )
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
        offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)

        def window(image: jax.Array, offset: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

        return {**batch, "inputs": jax.vmap(window)(padded, offsets)}

    return transform


def cutout(size: int) -> Transform:
    """Sets a square of each image to zero; its centre is uniform over the pixels, so part may lie outside.

    After normalisation zero is the mean of the training images.

    Args:
        size: side of the square in pixels, at least 1.

    Returns:
        A transform of ``inputs`` [B, H, W, C] of any type.

    Example:
        >>> batch = {"inputs": jnp.ones((2, 32, 32, 3))}
        >>> float(cutout(64)(jax.random.key(0), batch)["inputs"].sum())
        0.0

    Reference: DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout",
    arXiv:1708.04552.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = _images(batch)
        count, height, width, _ = images.shape

        def inside(key: jax.Array, length: int) -> jax.Array:
            start = jax.random.randint(key, (count, 1), 0, length) - size // 2
            pixels = jnp.arange(length)[None]
            return (pixels >= start) & (pixels < start + size)

        row_key, column_key = jax.random.split(key)
        hole = inside(row_key, height)[:, :, None, None] & inside(column_key, width)[:, None, :, None]
        return {**batch, "inputs": jnp.where(hole, jnp.zeros((), images.dtype), images)}

    return transform


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
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive, got {num_classes}")

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs, labels = jnp.asarray(batch["inputs"]), jnp.asarray(batch["labels"])
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(
                f"inputs must be floating point to be mixed, got {inputs.dtype}: scale them first"
            )
        count = inputs.shape[0]
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

        def mixed(x: jax.Array) -> jax.Array:
            t = share.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)
            return t * x + (1 - t) * x[partner]

        return {**batch, "inputs": mixed(inputs), "labels": mixed(labels)}

    return transform


def compose(*transforms: Transform) -> Transform:
    """One transform after another, each with a key of its own.

    Args:
        *transforms: first to last; none leaves the batch alone.

    Returns:
        The transform that does them all.

    Example:
        >>> standard = compose(random_flip(), random_crop(4), cutout(8))
        >>> standard(jax.random.key(0), {"inputs": jnp.ones((2, 32, 32, 3))})["inputs"].shape
        (2, 32, 32, 3)
    """

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(batch)
        for i, each in enumerate(transforms):
            result = each(jax.random.fold_in(key, i), result)
        return result

    return transform
