"""What the units of a network answer to: in the data, and in images made for them.

Axes: B batch, H height, W width, C channels of the image, F features (channels of a layer), K how many kept.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.audit.layers import layer_activation
from jdl.core import Array, Variables


class Strongest(NamedTuple):
    """The inputs that a unit answers to most, the strongest first.

    Attributes:
        values: float32 [K], the unit's largest activation in each input.
        indices: int32 [K], which input of the data it is, from 0; -1 where there were fewer than K.
        positions: int32 [K, P], where in the layer's map the largest activation is; P is 2 for images.
        inputs: [K, ...], the inputs.
    """

    values: Array
    indices: Array
    positions: Array
    inputs: Array


class Maximal(NamedTuple):
    """`Strongest`, with what the unit saw of each input.

    Attributes:
        strongest: values, indices, positions and inputs.
        boxes: int32 [K, 4]: top, left, bottom and right of the pixels that the activation depends on, last
            ones excluded.
    """

    strongest: Strongest
    boxes: np.ndarray

    def crops(self) -> list[np.ndarray]:
        """What the unit saw of each input, [h, w, C]."""
        inputs = np.asarray(self.strongest.inputs)
        return [
            x[top:bottom, left:right]
            for x, (top, left, bottom, right) in zip(inputs, self.boxes, strict=True)
        ]


def maximally_activating(
    module: Any, variables: Variables, batches: Iterable[Any], layer: str, channel: int, k: int = 9
) -> Maximal:
    """The inputs of a data set that one unit answers to most, and where in them.

    One pass over the data, which keeps no more than K inputs. The part of an input that counted is the box
    around the pixels on which the activation's derivative is not zero: the unit's receptive field, less what
    closed ReLUs and lost maxima hid from it.

    Args:
        module: a Linen module.
        variables: its variables.
        batches: arrays of images [B, H, W, C], or batches with ``inputs`` and, where some are padding,
            ``weights`` [B]; the model's own kind of images, after preprocessing.
        layer: path of the layer.
        channel: which of its F features.
        k: how many inputs.

    Returns:
        The strongest inputs and the boxes that were seen; fewer than ``k`` where the data are fewer.

    Raises:
        ValueError: if there is no such layer or channel, or no data.

    Example:
        >>> from jdl.models import TwoConv
        >>> model, x = TwoConv(features=(4, 6)), jax.random.normal(jax.random.key(0), (10, 8, 8, 1))
        >>> variables = model.init(jax.random.key(1), x)
        >>> found = maximally_activating(model, variables, [x[:5], x[5:]], "Conv_0", channel=2, k=3)
        >>> found.strongest.inputs.shape, all(max(crop.shape) <= 5 for crop in found.crops())
        ((3, 8, 8, 1), True)

    Reference:
        Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014, section 4.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")

    @jax.jit
    def of_batch(variables: Variables, inputs: Array, weights: Array | None, first: Array) -> Strongest:
        x_BPF = layer_activation(module, variables, inputs, layer)
        _check_channels(layer, x_BPF.shape[-1], [channel])
        x_BP = x_BPF[..., channel].astype(jnp.float32)
        flat = x_BP.reshape(x_BP.shape[0], -1)
        # A unit without positions has one, at the origin of no axes.
        where = jnp.stack(jnp.unravel_index(flat.argmax(1), x_BP.shape[1:]) or [jnp.zeros(len(flat), int)], 1)
        values = flat.max(1) if weights is None else jnp.where(weights > 0, flat.max(1), -jnp.inf)
        indices = jnp.where(values > -jnp.inf, first + jnp.arange(len(flat)), -1)
        positions = where[:, : x_BP.ndim - 1].astype(jnp.int32)
        return _top(Strongest(values, indices.astype(jnp.int32), positions, inputs), k)

    @jax.jit
    def slopes(variables: Variables, inputs: Array, positions: Array) -> Array:
        def activation(x: Array) -> Array:
            x_BPF = layer_activation(module, variables, x, layer)[..., channel]
            return x_BPF[(jnp.arange(len(x)), *positions.T)].astype(jnp.float32).sum()

        return jax.grad(activation)(inputs.astype(jnp.float32))

    found: Strongest | None = None
    first = 0
    for batch in batches:
        inputs = jnp.asarray(batch["inputs"] if isinstance(batch, Mapping) else batch)
        weights = batch.get("weights") if isinstance(batch, Mapping) else None
        part = of_batch(variables, inputs, weights, jnp.asarray(first, jnp.int32))
        found = part if found is None else merge(found, part, k)
        first += len(inputs)
    if found is None:
        raise ValueError("there is no data: batches is empty")
    real = int((found.indices >= 0).sum())
    found = jax.tree.map(lambda x: x[:real], found)
    is_seen: Any = (np.asarray(slopes(variables, found.inputs, found.positions)) != 0).any(-1)
    return Maximal(found, np.array([_box(each) for each in is_seen], np.int32))


def merge(a: Strongest, b: Strongest, k: int) -> Strongest:
    """The ``k`` strongest of both; the order in which parts are merged changes nothing but ties.

    Example:
        >>> one = lambda value, i: Strongest(*map(jnp.asarray, ([value], [i], [[0]], [[value]])))
        >>> merge(merge(one(1.0, 0), one(3.0, 1), 2), one(2.0, 2), 2).indices.tolist()
        [1, 2]
    """
    return _top(jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b), k)


@functools.partial(jax.jit, static_argnums=1)
def _top(candidates: Strongest, k: int) -> Strongest:
    _, rows = jax.lax.top_k(candidates.values, min(k, len(candidates.values)))
    return jax.tree.map(lambda x: x[rows], candidates)


def _box(is_seen_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the pixels that were seen; an empty box where none was."""
    rows, columns = (np.flatnonzero(is_seen_HW.any(axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


class Made(NamedTuple):
    """Images made by gradient descent.

    Attributes:
        images: float32 [B, H, W, C], of the kind the model takes.
        scores: float32 [B]: for `invert` the squared distance from the target over the target's squared
            norm, for `feature_visualization` the mean activation that was reached; both without priors.
        losses: float32 [steps], what was minimised, summed over the images.
    """

    images: Array
    scores: Array
    losses: Array


def invert(
    module: Any,
    variables: Variables,
    target: Array,
    layer: str,
    *,
    shape: Sequence[int],
    key: Array,
    steps: int = 500,
    learning_rate: float = 0.05,
    total_variation: float = 0.01,
    alpha_norm: float = 1e-3,
    alpha: float = 6.0,
    beta: float = 2.0,
) -> Made:
    """Images that a layer cannot tell from those it saw: what it has kept of them.

    Minimises, for each image x by itself and by Adam along a cosine,

        |f(x) - target|^2 / |target|^2 + a mean |x|^alpha + b mean (dx^2 + dy^2)^(beta / 2)

    with f the network up to the layer, and dx, dy the differences of neighbouring pixels.

    Args:
        module: a Linen module.
        variables: its variables.
        target: the layer's activations [B, ...] of the images to find.
        layer: path of the layer.
        shape: of one image, (H, W, C).
        key: for the noise that the images start from.
        steps: of Adam.
        learning_rate: at the start, in units of the images.
        total_variation: b above, against patterns that no image has.
        alpha_norm: a above, against values that no image has; for images of mean 0 and deviation 1.
        alpha: power of the norm.
        beta: power of the total variation.

    Returns:
        The images, and the relative error of each.

    Raises:
        ValueError: if there is no such layer, the target is not of its shape, or there are no steps.

    Example:
        >>> from jdl.models import TwoConv
        >>> model, x = TwoConv(features=(4, 6)), jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
        >>> variables = model.init(jax.random.key(1), x)
        >>> target = layer_activation(model, variables, x, "Conv_0")
        >>> made = invert(model, variables, target, "Conv_0", shape=(8, 8, 1), key=jax.random.key(2))
        >>> made.images.shape, bool((made.scores < 0.01).all())
        ((2, 8, 8, 1), True)

    Reference:
        Mahendran and Vedaldi, "Understanding deep image representations by inverting them", 2015, equations 1
        to 3 and section 3.
    """
    target = jnp.asarray(target, jnp.float32)
    start = 0.1 * jax.random.normal(key, (len(target), *_image_shape(shape)))
    seen = jax.eval_shape(lambda x: layer_activation(module, variables, x, layer), start).shape
    if steps < 1:
        raise ValueError(f"steps, of Adam, must be at least 1; got {steps}")
    if seen != target.shape:
        raise ValueError(
            f"target has shape {target.shape}, but layer {layer!r} makes {seen} of images {start.shape}"
        )
    axes = tuple(range(1, target.ndim))
    norm_B = jnp.maximum(jnp.square(target).sum(axes), 1e-12)

    @jax.jit
    def run(variables: Variables, start: Array, target: Array, norm_B: Array) -> Made:
        def error(x: Array) -> Array:
            y = layer_activation(module, variables, x, layer).astype(jnp.float32)
            return jnp.square(y - target).sum(axes) / norm_B

        def objective(x: Array, i: Array) -> Array:
            del i
            size = (jnp.abs(x) ** alpha).mean((1, 2, 3))
            return (error(x) + alpha_norm * size + total_variation * _variation(x, beta)).sum()

        images, losses = _descend(objective, start, steps, learning_rate)
        return Made(images, error(images), losses)

    return run(variables, start, target, norm_B)


def feature_visualization(
    module: Any,
    variables: Variables,
    layer: str,
    channels: int | Sequence[int],
    *,
    shape: Sequence[int],
    key: Array,
    position: Sequence[int] | None = None,
    steps: int = 256,
    learning_rate: float = 0.05,
    jitter: int = 2,
    total_variation: float = 5.0,
    l2: float = 0.5,
) -> Made:
    """Images that units answer to as strongly as possible: what they look for.

    Maximises, for each unit by itself and by Adam along a cosine,

        mean activation - l2 mean x^2 - b mean (dx^2 + dy^2)

    the image shifted by a few random pixels in every step, so that no exact place counts.

    Args:
        module: a Linen module.
        variables: its variables.
        layer: path of the layer, before its nonlinearity where there is a choice: a closed unit has no slope.
        channels: which of its F features, one or several; each gets an image.
        shape: of an image, (H, W, C).
        key: for the noise that the images start from, and the shifts.
        position: one place of the layer's map, for a single neuron; the mean over the map when None.
        steps: of Adam.
        learning_rate: at the start, in units of the images.
        jitter: largest shift, pixels each way.
        total_variation: b above; the defaults suit images of mean 0 and deviation 1 and a trained network's
            activations. Less of it gives more noise, too much of it a blank image.
        l2: weight of the mean square.

    Returns:
        The images, and the activation that each reaches.

    Raises:
        ValueError: if there is no such layer, channel or position.

    Example:
        >>> from jdl.models import TwoConv
        >>> model, x = TwoConv(features=(4, 6)), jnp.ones((1, 8, 8, 1))
        >>> variables = model.init(jax.random.key(1), x)
        >>> made = feature_visualization(
        ...     model, variables, "Conv_1", [0, 5], shape=(8, 8, 1), key=jax.random.key(2), steps=8)
        >>> made.images.shape
        (2, 8, 8, 1)

    Reference:
        Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks", 2014, section 2; Olah,
        Mordvintsev and Schubert, "Feature visualization", 2017.
    """
    if steps < 1:
        raise ValueError(f"steps, of ascent, must be at least 1; got {steps}")
    units = np.atleast_1d(channels).tolist()
    noise_key, jitter_key = jax.random.split(key)
    start = 0.1 * jax.random.normal(noise_key, (len(units), *_image_shape(shape)))
    seen = jax.eval_shape(lambda x: layer_activation(module, variables, x, layer), start).shape
    _check_channels(layer, seen[-1], units)
    size = seen[1:-1]
    where = None if position is None else tuple(position)
    if where is not None and (
        len(where) != len(size) or not all(0 <= p < n for p, n in zip(where, size, strict=True))
    ):
        raise ValueError(f"layer {layer!r} has positions in a map of {size}; got {where}")

    @jax.jit
    def run(variables: Variables, start: Array, key: Array, units: Array) -> Made:
        def activation(x: Array) -> Array:
            y = layer_activation(module, variables, x, layer).astype(jnp.float32)
            y = y.mean(tuple(range(1, y.ndim - 1))) if where is None else y[(slice(None), *where)]
            return jnp.take_along_axis(y, units[:, None], 1)[:, 0]

        def objective(x: Array, i: Array) -> Array:
            shift = jax.random.randint(jax.random.fold_in(key, i), (2,), -jitter, jitter + 1)
            prior = l2 * jnp.square(x).mean((1, 2, 3)) + total_variation * _variation(x, 2.0)
            return (prior - activation(jnp.roll(x, shift, (1, 2)))).sum()

        images, losses = _descend(objective, start, steps, learning_rate)
        return Made(images, activation(images), losses)

    return run(variables, start, jitter_key, jnp.asarray(units))


def _descend(objective: Any, start: Array, steps: int, learning_rate: float) -> tuple[Array, Array]:
    """Adam along a cosine on ``objective(x, step)``: what it arrives at, and the losses on the way."""
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def step(carry: Any, i: Array) -> Any:
        x, state = carry
        loss, gradient = jax.value_and_grad(objective)(x, i)
        updates, state = tx.update(gradient, state, x)
        return (optax.apply_updates(x, updates), state), loss

    (x, _), losses = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
    return x, losses


def _variation(x_BHWC: Array, beta: float) -> Array:
    """Mean of (dx^2 + dy^2)^(beta / 2) over each image, [B]."""
    dy = jnp.diff(x_BHWC, axis=1)[:, :, :-1]
    dx = jnp.diff(x_BHWC, axis=2)[:, :-1]
    squares = jnp.square(dy) + jnp.square(dx)
    # A fractional power has no slope at zero.
    return (squares if beta == 2 else (squares + 1e-8) ** (beta / 2)).mean((1, 2, 3))


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(f"shape is that of one image, (height, width, channels); got {tuple(shape)}")
    return tuple(shape)


def _check_channels(layer: str, features: int, channels: Sequence[int]) -> None:
    if wrong := [c for c in channels if not 0 <= c < features]:
        raise ValueError(f"layer {layer!r} has the channels 0 to {features - 1}; got {wrong}")
