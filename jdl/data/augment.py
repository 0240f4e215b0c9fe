"""Random transformations of batches: pure functions of a key and a batch, compiled, with static shapes.

A transform takes ``key, batch`` and returns a batch of the same structure; entries that it does not concern
pass through. Every example of a batch is drawn for independently. B batch, H height, W width, C channels or
classes.

Where pixels move, ``also`` names entries that move along with ``inputs``, such as the masks of segmentation:
[B, H, W] or [B, H, W, channels], of the same height and width. Where values between pixels are needed,
entries of integers or booleans take the nearest pixel's, so that no class is made up between two others, and
entries of floating point are interpolated like the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Transform = Callable[[jax.Array, Mapping[str, Any]], dict[str, Any]]
"""``key, batch -> batch``."""


def check_probability(probability: float) -> None:
    """Raises ValueError unless ``probability`` is one."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")


def images_of(batch: Mapping[str, Any]) -> jax.Array:
    """``inputs``, once they are known to be images [B, H, W, C]."""
    images = jnp.asarray(batch["inputs"])
    if images.ndim != 4:
        raise ValueError(f"inputs must be images [B, H, W, C], got shape {images.shape}")
    return images


def check_pixels(images: jax.Array) -> None:
    """Raises ValueError unless images are uint8 or floating point, the types whose pixels have a range."""
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"inputs must be uint8 or floating point, got {images.dtype}")


def move(
    batch: Mapping[str, Any],
    also: Sequence[str],
    how: Callable[[jax.Array], jax.Array],
    nearest: Callable[[jax.Array], jax.Array] | None = None,
) -> dict[str, Any]:
    """The batch with ``how``, of arrays [B, H, W, any], applied to ``inputs`` and to the entries ``also``.

    Where ``how`` interpolates, ``nearest`` does the same to those of ``also`` that are not floating point.

    Raises:
        ValueError: if an entry is missing or is no map of the images' size.
    """
    size = images_of(batch).shape[:3]
    result = dict(batch)
    for name in ("inputs", *also):
        if name not in batch:
            raise ValueError(f"also names {name!r}, and the batch has only {', '.join(sorted(batch))}")
        x = jnp.asarray(batch[name])
        if x.ndim not in (3, 4) or x.shape[:3] != size:
            raise ValueError(
                f"{name!r} must be [B, H, W] or [B, H, W, channels] to move with inputs of "
                f"[B, H, W] = {list(size)}, got shape {x.shape}"
            )
        blended = name == "inputs" or jnp.issubdtype(x.dtype, jnp.floating)
        moved = how if blended or nearest is None else nearest
        result[name] = moved(x) if x.ndim == 4 else moved(x[..., None])[..., 0]
    return result


def checked_also(also: Sequence[str]) -> tuple[str, ...]:
    """``also`` as a tuple of names.

    Raises:
        ValueError: if it is one string instead of several, or names ``inputs``, which move in any case.
    """
    if isinstance(also, str) or "inputs" in also:
        raise ValueError(f'also must be a tuple of entries beside inputs, such as ("labels",), got {also!r}')
    return tuple(also)


def random_flip(probability: float = 0.5, also: Sequence[str] = ()) -> Transform:
    """Mirrors each image left to right with the given probability.

    Args:
        probability: in [0, 1].
        also: entries that are mirrored with the images.

    Returns:
        A transform of ``inputs`` [B, H, W, C] of any type.

    Example:
        >>> batch = {"inputs": jnp.arange(3.0).reshape(1, 1, 3, 1)}
        >>> random_flip(1.0)(jax.random.key(0), batch)["inputs"].ravel()
        Array([2., 1., 0.], dtype=float32)
    """
    check_probability(probability)
    also = checked_also(also)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        flipped = jax.random.bernoulli(key, probability, (images_of(batch).shape[0], 1, 1, 1))
        return move(batch, also, lambda x: jnp.where(flipped, x[:, :, ::-1], x))

    return transform


def random_crop(padding: int, mode: str = "constant", also: Sequence[str] = ()) -> Transform:
    """Pads each image and cuts a window of the original size out of it: shifts of up to ``padding`` pixels.

    Args:
        padding: pixels on every side, at least 0; offsets are uniform on 0..2 * padding, rows and columns
            apart.
        mode: ``"constant"`` pads with zeros, ``"reflect"`` with the mirrored image, as in `jax.numpy.pad`.
        also: entries that are cut alike. ``"constant"`` pads them with zeros too: where zero is a class that
            must not appear there, take ``"reflect"``.

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

    also = checked_also(also)

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        count, height, width, _ = images_of(batch).shape
        if mode == "reflect" and padding >= min(height, width):
            raise ValueError(f"images of {height}x{width} cannot be reflected by {padding} pixels")
        offsets = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

        def cut(x: jax.Array) -> jax.Array:
            padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
            window = lambda image, offset: jax.lax.dynamic_slice(
                image, (offset[0], offset[1], 0), x.shape[1:]
            )
            return jax.vmap(window)(padded, offsets)

        return move(batch, also, cut)

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
        images = images_of(batch)
        count, height, width, _ = images.shape

        def inside(key: jax.Array, length: int) -> jax.Array:
            start = jax.random.randint(key, (count, 1), 0, length) - size // 2
            pixels = jnp.arange(length)[None]
            return (pixels >= start) & (pixels < start + size)

        row_key, column_key = jax.random.split(key)
        hole = inside(row_key, height)[:, :, None, None] & inside(column_key, width)[:, None, :, None]
        return {**batch, "inputs": jnp.where(hole, jnp.zeros((), images.dtype), images)}

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


def one_of(transforms: Sequence[Transform], probabilities: Sequence[float] | None = None) -> Transform:
    """One of several transforms, drawn for each batch; only that one is computed.

    Args:
        transforms: at least one; given the same batch, all must return the same names, shapes and types.
        probabilities: of each, at least 0 and together 1; None makes them equally likely.

    Returns:
        The transform that draws one of them.

    Example:
        >>> from jdl.data import cutmix, mixup
        >>> modern = one_of([mixup(0.2, 10), cutmix(1.0, 10)])  # as torchvision's classification recipe
        >>> batch = {"inputs": jnp.ones((4, 8, 8, 3)), "labels": jnp.arange(4)}
        >>> modern(jax.random.key(0), batch)["labels"].shape
        (4, 10)
    """
    transforms = tuple(transforms)
    if not transforms:
        raise ValueError("one_of needs at least one transform, got none")
    if probabilities is None:
        probabilities = (1 / len(transforms),) * len(transforms)
    if len(probabilities) != len(transforms):
        raise ValueError(f"{len(transforms)} transforms need as many probabilities, got {len(probabilities)}")
    if min(probabilities) < 0 or not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise ValueError(f"probabilities must be at least 0 and have the sum 1, got {list(probabilities)}")

    @jax.jit
    def transform(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        made = [jax.eval_shape(each, key, dict(batch)) for each in transforms]
        for i, other in enumerate(made):
            if other != made[0]:
                raise ValueError(
                    "the transforms of one_of must return the same names, shapes and types: "
                    f"number 0 makes {_described(made[0])}; number {i} makes {_described(other)}"
                )
        choice_key, transform_key = jax.random.split(key)
        choice = jax.random.choice(choice_key, len(transforms), p=jnp.asarray(probabilities, jnp.float32))
        return jax.lax.switch(choice, transforms, transform_key, dict(batch))

    return transform


def _described(batch: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {x.dtype} {list(x.shape)}" for name, x in sorted(batch.items()))
