"""Convolution and pooling of images.

A layer chooses how it computes by shape and, when a program is lowered, by platform; what it computes, and
its parameters, are the same everywhere.

Axes: B batch, H height, W width, C channels, F features (channels of the output).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

from jdl.nn.residual import materialized

Pads = tuple[tuple[int, int], tuple[int, int]]

_LARGE = 2**15
"""From so many outputs on the fast gradient of a depthwise kernel is worth its longer program."""

_FEW_CHANNELS = 8
"""Below so many input channels XLA:CPU is faster at a product with a banded matrix than at a convolution."""


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, on CPU as a matrix product where that is faster.

    Accelerators have hardware for convolutions and always get one.

    Args:
        x: images [B, H, W, C], or what else ``dimension_numbers`` says.
        kernel: [kh, kw, C, F], likewise.
        strides: as in `lax.conv_general_dilated`, like all that follow.
        padding: "SAME", "VALID" or rows and columns to add on each side.
        lhs_dilation: dilation of the images.
        rhs_dilation: dilation of the kernel.
        dimension_numbers: order of the axes.
        feature_group_count: number of groups of channels.
        **options: passed on.

    Returns:
        [B, H', W', F].

    Example:
        >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), (1, 1), "VALID",
        ...          dimension_numbers=("NHWC", "HWIO", "NHWC"))[0, 0, 0].tolist()
        [9.0, 9.0]
    """

    def plain(x: jax.Array, kernel: jax.Array, padding: Any = padding) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            **options,
        )

    is_dilated = any(n != 1 for n in lhs_dilation or ())
    order = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)

    def convolution_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # The gradient of the kernel would compute what comes before again, back to the convolution before,
        # in the order of a transposed x: a fifth of a ResNet-20's step.
        x = materialized(x)
        if (
            is_dilated
            or isinstance(padding, str)
            or _pads_well(kernel, strides, rhs_dilation, padding, order)
        ):
            return plain(x, kernel)
        return plain(_padded(x, padding, order), kernel, [(0, 0)] * len(padding))

    def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, kernel, cpu=convolution_on_cpu, default=plain)

    if not _is_usual(x, kernel, dimension_numbers) or is_dilated or any(options.values()):
        return direct(x, kernel)
    rates = tuple(rhs_dilation or (1, 1))
    sides = [(side - 1) * rate + 1 for side, rate in zip(kernel.shape[:2], rates, strict=True)]
    pads = lax.padtype_to_pads(x.shape[1:3], sides, strides, padding) if isinstance(padding, str) else padding
    is_short = any(n + sum(pad) < side for n, pad, side in zip(x.shape[1:3], pads, sides, strict=True))
    if is_short or min(map(min, pads)) < 0:
        return direct(x, kernel)
    is_measured = x.dtype == jnp.float32
    is_pointwise = feature_group_count == kernel.shape[0] == kernel.shape[1] == 1 and not np.any(pads)
    is_pointwise &= is_measured
    # Whatever the type: for the gradient XLA:CPU would make a kernel of C times as many numbers.
    is_depthwise = feature_group_count == x.shape[-1] == kernel.shape[-1] > 1
    is_simple = is_measured and feature_group_count == 1 and all(n == 1 for n in (*strides, *rates))
    if not is_pointwise and not is_depthwise and not (is_simple and _banded_is_faster(kernel)):
        return direct(x, kernel)

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if is_pointwise:
            # The gradient of the kernel takes XLA:CPU twice as long as that of a product.
            x_BHWC = x[:, :: strides[0], :: strides[1]]
            return (x_BHWC.reshape(-1, x.shape[3]) @ kernel[0, 0]).reshape(*x_BHWC.shape[:3], -1)
        if is_depthwise:
            wide = jnp.promote_types(x.dtype, jnp.float32)
            y = depthwise_convolution(x.astype(wide), kernel.astype(wide), strides, pads, rates)
            return y.astype(x.dtype)
        return banded_convolution(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _pads_well(
    kernel: jax.Array, strides: Sequence[int], rates: Sequence[int] | None, pads: Any, order: Any
) -> bool:
    """Whether XLA:CPU may pad by itself, fast and right.

    Where outputs are longer than inputs, it takes 10 to 100 times as long for the gradient of the kernel.
    Where one side loses pixels, in the convolution or in its gradient, it reads what it must not
    (openxla/xla, issue 48713).
    """
    sides = [kernel.shape[axis] for axis in order.rhs_spec[2:]]
    reaches = [(side - 1) * rate for side, rate in zip(sides, rates or [1] * len(sides), strict=True)]
    is_strided = any(n != 1 for n in strides)
    return all(
        min(pad) >= 0 and max(pad) <= reach and (is_strided or sum(pad) <= reach)
        for pad, reach in zip(pads, reaches, strict=True)
    )


def _padded(x: jax.Array, pads: Any, order: Any) -> jax.Array:
    """With zeros at the ends of its spatial axes."""
    edges = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(order.lhs_spec[2:], pads, strict=True):
        edges[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _is_usual(x: jax.Array, kernel: jax.Array, dimension_numbers: Any) -> bool:
    """Whether these are images [B, H, W, C] and a kernel [kh, kw, C, F], of one type of 16 to 64 bits."""
    if x.ndim != 4 or x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        return False
    if jnp.finfo(x.dtype).bits < 16:
        return False
    order = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    return order == lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))


def _banded_is_faster(kernel: jax.Array) -> bool:
    """Whether XLA:CPU is faster at `banded_convolution`: measured in float32 and for kernels up to 5x5."""
    return kernel.shape[2] < _FEW_CHANNELS and 1 < kernel.shape[0] * kernel.shape[1] <= 25


def _at_each_position(
    x_BHWC: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    rates: Sequence[int] = (1, 1),
    fill: float = 0.0,
) -> list[jax.Array]:
    """What each of a window's kh * kw positions sees of the images: arrays [B, H', W', C], row by row."""
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)), constant_values=fill)
    stops = [
        length - (side - 1) * rate
        for length, side, rate in zip(x_BHWC.shape[1:3], window, rates, strict=True)
    ]
    if min(stops) < 1:
        raise ValueError(
            f"a window of {window[0]}x{window[1]} pixels does not fit images of "
            f"{x_BHWC.shape[1]}x{x_BHWC.shape[2]}"
        )
    return [
        x_BHWC[:, i : i + stops[0] : strides[0], j : j + stops[1] : strides[1]]
        for i in range(0, window[0] * rates[0], rates[0])
        for j in range(0, window[1] * rates[1], rates[1])
    ]


def depthwise_convolution(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    rates: Sequence[int] = (1, 1),
) -> jax.Array:
    """Each channel correlated with a kernel of its own, as a sum of shifted images times a number a channel.

    XLA:CPU takes five to sixty times longer for the same as a convolution of many groups. Kernels above 5x5
    go through their rows one after another, since the whole sum would take seconds to compile.

    Args:
        x_BHWC: images [B, H, W, C].
        kernel: [kh, kw, 1, C].
        strides: steps between outputs.
        pads: zeros added to rows and columns on each side.
        rates: dilation of the kernel.

    Returns:
        [B, H', W', C].

    Example:
        >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
        >>> depthwise_convolution(x, kernel, (1, 1), ((1, 1), (1, 1)))[0, :2, :2, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    height, width, _, _ = kernel.shape
    if height * width <= 25:
        return _weighed(x_BHWC, kernel, tuple(strides), _as_tuples(pads), tuple(rates))
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), pads[0], (0, 0), (0, 0)))
    rows = x_BHWC.shape[1] - (height - 1) * rates[0]

    @jax.checkpoint  # or every row's part of the images would be kept for the backward pass
    def add_row(y: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        i, weights = row
        band = lax.dynamic_slice_in_dim(x_BHWC, i * rates[0], rows, 1)
        return y + of_row(band, weights[None]), None

    of_row = functools.partial(
        _weighed, strides=tuple(strides), pads=_as_tuples(((0, 0), pads[1])), rates=tuple(rates)
    )
    y = jax.eval_shape(lambda x: of_row(x[:, :rows], kernel[:1]), x_BHWC)
    return lax.scan(add_row, jnp.zeros(y.shape, y.dtype), (jnp.arange(height), kernel))[0]


def _as_tuples(pads: Sequence[tuple[int, int]]) -> Pads:
    (top, bottom), (left, right) = pads
    return (int(top), int(bottom)), (int(left), int(right))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _weighed(
    x_BHWC: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads, rates: tuple[int, ...]
) -> jax.Array:
    """`depthwise_convolution` as one sum."""
    seen = _at_each_position(x_BHWC, kernel.shape[:2], strides, pads, rates)
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    return functools.reduce(jnp.add, [x * weights[i] for i, x in enumerate(seen)])


@_weighed.defjvp
def _weighed_jvp(strides: Any, pads: Any, rates: Any, primals: Any, tangents: Any) -> Any:
    (x_BHWC, kernel), (dx_BHWC, dkernel) = primals, tangents
    y_BHWC = _weighed(x_BHWC, kernel, strides, pads, rates)
    of_kernel = _weighed if y_BHWC.size < _LARGE else _weighed_by
    of_images = _weighed(dx_BHWC, kernel, strides, pads, rates)
    return y_BHWC, of_images + of_kernel(x_BHWC, dkernel, strides, pads, rates)


def _weighed_by(x_BHWC: jax.Array, kernel: jax.Array, strides: Any, pads: Any, rates: Any) -> jax.Array:
    """`_weighed`, whose gradient for the kernel is a fast one.

    As a sum over B, H and W the gradient is one number after another for XLA:CPU. Here up to eight rows
    share a copy of the kernel, made by a product with ones: the gradient adds rows in vectors of channels,
    and what is left in a product of two matrices.
    """
    seen = _at_each_position(x_BHWC, kernel.shape[:2], strides, pads, rates)
    B, H, W, C = seen[0].shape
    rows = max(n for n in range(1, 9) if H % n == 0)
    ones = jnp.ones((B * H // rows * W, 1), kernel.dtype)
    copies = lax.optimization_barrier([ones @ weights[None] for weights in kernel.reshape(-1, C)])
    copies = [copy.reshape(B, H // rows, W, C) for copy in copies]
    seen = [x.reshape(B, H // rows, rows, W, C) for x in seen]
    y = [
        functools.reduce(jnp.add, [x[:, :, i] * copy for x, copy in zip(seen, copies, strict=True)])
        for i in range(rows)
    ]
    return jnp.stack(y, 2).reshape(B, H, W, C)


def banded_convolution(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation without padding, stride 1, as one product with a banded (Toeplitz) matrix.

    A row of the product takes a patch of kh rows and t + kw - 1 columns to t neighbouring outputs. Tiles are
    as wide as they can be up to the kernel's width: wider ones multiply more of the matrix's zeros, narrower
    ones copy each pixel more often.

    Args:
        x_BHWC: images [B, H, W, C].
        kernel: [kh, kw, C, F].

    Returns:
        [B, H - kh + 1, W - kw + 1, F].

    Example:
        >>> x, kernel = jnp.arange(32.0).reshape(1, 4, 8, 1), jnp.ones((3, 3, 1, 1))
        >>> banded_convolution(x, kernel)[0, :, :, 0].tolist()
        [[81.0, 90.0, 99.0, 108.0, 117.0, 126.0], [153.0, 162.0, 171.0, 180.0, 189.0, 198.0]]
    """
    B, H, W, C = x_BHWC.shape
    kh, kw, _, F = kernel.shape
    rows, columns = H - kh + 1, W - kw + 1
    t = max(t for t in range(1, kw + 1) if columns % t == 0)
    width = t + kw - 1
    tiles = jnp.stack([x_BHWC[:, :, i : i + width].reshape(B, H, -1) for i in range(0, columns, t)], 2)
    patches = jnp.concatenate([tiles[:, i : i + rows] for i in range(kh)], -1)
    # band[i, v, c, o, f] = kernel[i, v - o, c, f]
    shifts = np.stack([np.eye(width, t, -j, dtype=kernel.dtype) for j in range(kw)])
    band = jnp.einsum("ijcf,jvo->ivcof", kernel, shifts)
    y = patches.reshape(-1, kh * width * C) @ band.reshape(kh * width * C, t * F)
    return y.reshape(B, rows, columns, F)


class Conv(linen.Conv):
    """`flax.linen.Conv`, computed by `convolve`.

    x [B, H, W, C] is correlated with ``kernel`` [kh, kw, C, F], and ``bias`` [F] is added.

    Example:
        >>> y, _ = Conv(4, (3, 3), strides=2).init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> y.shape
        (2, 4, 4, 4)
    """

    conv_general_dilated: Any = convolve


def _tiles(x_BHWC: jax.Array, window: tuple[int, int]) -> jax.Array | None:
    """x as [B, H/h, h, W/w, w, C], if the windows tile it exactly."""
    B, H, W, C = x_BHWC.shape
    h, w = window
    if H % h or W % w:
        return None
    return x_BHWC.reshape(B, H // h, h, W // w, w, C)


@jax.custom_jvp
def _max_of_tiles(tiles: jax.Array) -> jax.Array:
    """[B, H, h, W, w, C] to [B, H, W, C]: ``tiles.max((2, 4))``, with a faster backward pass."""
    return tiles.max((2, 4))


@_max_of_tiles.defjvp
def _max_of_tiles_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (tiles,), (change,) = primals, tangents
    # Who is largest is decided by comparing tiles with each other. Comparing them with the maximum loses
    # gradients in silence where XLA computes a tile again and rounds it otherwise.
    _, _, h, _, w, _ = tiles.shape
    y, largest = tiles[:, :, 0, :, 0], jnp.zeros((), jnp.int32)
    for k, (i, j) in enumerate(np.ndindex(h, w)):
        tile = tiles[:, :, i, :, j]
        is_larger = (tile > y) | jnp.isnan(tile)
        y, largest = jnp.where(is_larger, tile, y), jnp.where(is_larger, k, largest)
    position = jnp.arange(h * w, dtype=jnp.int32).reshape(1, 1, h, 1, w, 1)
    is_largest = largest[:, :, None, :, None] == position
    return _max_of_tiles(tiles), jnp.where(is_largest, change, 0).sum((2, 4))


@jax.custom_jvp
def _largest(seen: tuple[jax.Array, ...]) -> jax.Array:
    """The elementwise maximum of several arrays; of equal ones, the first has the gradient."""
    return functools.reduce(jnp.maximum, seen)


@_largest.defjvp
def _largest_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (seen,), (changes,) = primals, tangents
    # As for tiles, by comparing the arrays with each other.
    y, change = seen[0], changes[0]
    for x, its_change in zip(seen[1:], changes[1:], strict=True):
        is_larger = (x > y) | jnp.isnan(x)
        y, change = jnp.where(is_larger, x, y), jnp.where(is_larger, its_change, change)
    return _largest(seen), change


def max_pool(
    x_BHWC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 0,
) -> jax.Array:
    """The largest value in each window.

    On CPU the general sliding window is several times slower, forward and backward, than what stands here:
    a reshape and a maximum where windows tile the image, and a maximum of shifted images where they overlap.
    Of equal maxima, the first has the gradient.

    Args:
        x_BHWC: images [B, H, W, C].
        window: height and width of a window.
        strides: steps between windows; the window itself when None.
        padding: pixels added on each side, which are never the largest; or those above and below, and to the
            left and right.

    Returns:
        [B, (H + 2p - h) // s + 1, (W + 2p - w) // s' + 1, C].

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (3, 3), (2, 2), padding=1)[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    strides = strides or window
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    is_tiled = strides == window and not np.any(pads) and _tiles(x_BHWC, window) is not None

    def on_cpu(x: jax.Array) -> jax.Array:
        if is_tiled:
            return _max_of_tiles(_tiles(x, window))
        return _largest(tuple(_at_each_position(x, window, strides, pads, fill=-jnp.inf)))

    def plain(x: jax.Array) -> jax.Array:
        return linen.max_pool(x, window, strides, pads)

    if not jnp.issubdtype(x_BHWC.dtype, jnp.floating):
        return on_cpu(x_BHWC) if is_tiled else plain(x_BHWC)
    return lax.platform_dependent(x_BHWC, cpu=on_cpu, default=plain)


def avg_pool(
    x_BHWC: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None = None, padding: int = 0
) -> jax.Array:
    """The mean of each window, in which padded pixels are zeros; arguments and shapes as in `max_pool`.

    Example:
        >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2))[0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    strides = strides or window
    pads = ((padding, padding), (padding, padding))

    def plain(x: jax.Array) -> jax.Array:
        return linen.avg_pool(x, window, strides, pads)

    def on_cpu(x: jax.Array) -> jax.Array:
        tiles = _tiles(x, window) if strides == window and not padding else None
        return plain(x) if tiles is None else jnp.mean(tiles, (2, 4))

    return lax.platform_dependent(x_BHWC, cpu=on_cpu, default=plain)
