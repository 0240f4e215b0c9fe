"""Where a token stands: embeddings of positions, rotations of queries and keys, biases of attention logits.

Axes: B batch, T positions that ask, S positions that are asked, D model, H heads, K head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial


def sinusoidal(positions: jax.Array, size: int, base: float = 10_000.0) -> jax.Array:
    """Sines and cosines of falling frequencies: all sines, then all cosines.

    e_i(p) = sin(p base^(-2i / D)) for i < D / 2, and the cosine of the same angle at i + D / 2. (The paper
    lays them out in turns, which is a permutation of the features.)

    Args:
        positions: any shape, integers or floats.
        size: D, even.
        base: the longest wavelength is 2 pi times this.

    Returns:
        [..., D] in float32.

    Raises:
        ValueError: for an odd size.

    Example:
        >>> sinusoidal(jnp.array([0, 3]), 4).shape
        (2, 4)

    Reference:
        Vaswani et al., "Attention is all you need", 2017, section 3.5.
    """
    if size % 2:
        raise ValueError(f"sinusoidal positions come in pairs of features; got an odd size, {size}")
    frequencies = Rotary(base).frequencies(size)
    angles = positions.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * positions.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor.

    Attributes:
        factor: how much longer sequences may become.

    Reference:
        Chen, Wong, Chen and Tian, "Extending context window of large language models via positional
        interpolation", 2023.
    """

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class NTKScaling:
    """A larger base, so that the highest frequency stays and the lowest is divided by the factor.

    Attributes:
        factor: how much longer sequences may become.
    """

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        i = np.arange(len(frequencies))
        return frequencies * self.factor ** (-i / max(1, len(frequencies) - 1))


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by a factor, short ones kept, those between blended.

    Attributes:
        factor: how much longer sequences may become.
        low: turns within the original context below which a frequency is divided.
        high: turns above which it is kept.
        original: the context of pretraining, positions.

    Reference:
        Grattafiori et al., "The Llama 3 herd of models", 2024.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of features of queries and keys, turned by angles that grow with the position.

    The product of a rotated query and key then depends on the distance of the two alone.

    Attributes:
        base: the longest wavelength is 2 pi times this.
        interleaved: pairs are neighbours (features 2i and 2i + 1), as in the paper, not features i and
            i + K / 2, as in Llama.
        size: how many of a head's first features turn; all when None.
        scaling: of the frequencies, for longer sequences than were trained on.

    Example:
        >>> rotation = Rotary().at(jnp.array([[0, 1]]), head_size=4)
        >>> rotation(jnp.ones((1, 2, 1, 4)))[0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]

    Reference:
        Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021, equation 34.
    """

    base: float = 10_000.0
    interleaved: bool = False
    size: int | None = None
    scaling: Callable[[np.ndarray], np.ndarray] | None = None

    def frequencies(self, head_size: int) -> np.ndarray:
        """base^(-2i / K) for i < K / 2, scaled, in radians a position."""
        size = self.size or head_size
        if size % 2 or size > head_size:
            raise ValueError(
                f"rotary positions turn an even number of a head's {head_size} features; got {size}"
            )
        frequencies = self.base ** (-np.arange(0, size, 2) / size)
        if self.scaling is not None:
            frequencies = self.scaling(frequencies)
        return frequencies.astype(np.float32)

    def at(self, positions_BT: jax.Array, head_size: int) -> Partial:
        """The rotation of queries or keys [B, T, H, K] that stand at these positions [B or 1, T]."""
        angles = positions_BT.astype(jnp.float32)[..., None] * self.frequencies(head_size).reshape(1, 1, -1)
        rotate = rotate_neighbours if self.interleaved else rotate_halves
        return Partial(rotate, jnp.cos(angles), jnp.sin(angles))


def rotate_halves(cos_BTn: jax.Array, sin_BTn: jax.Array, x_BTHK: jax.Array) -> jax.Array:
    """Turns features i and i + n of the first 2 n: (a, b) becomes (a cos - b sin, a sin + b cos)."""
    n = cos_BTn.shape[-1]
    x, rest = x_BTHK[..., : 2 * n].astype(jnp.float32), x_BTHK[..., 2 * n :]
    turned = jnp.concatenate(_turned(cos_BTn, sin_BTn, x[..., :n], x[..., n:]), -1).astype(x_BTHK.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


def rotate_neighbours(cos_BTn: jax.Array, sin_BTn: jax.Array, x_BTHK: jax.Array) -> jax.Array:
    """Turns features 2 i and 2 i + 1 of the first 2 n: (a, b) becomes (a cos - b sin, a sin + b cos)."""
    n = cos_BTn.shape[-1]
    x, rest = x_BTHK[..., : 2 * n].astype(jnp.float32), x_BTHK[..., 2 * n :]
    turned = jnp.stack(_turned(cos_BTn, sin_BTn, x[..., ::2], x[..., 1::2]), -1)
    turned = turned.reshape(x.shape).astype(x_BTHK.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


def _turned(
    cos_BTn: jax.Array, sin_BTn: jax.Array, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    cos, sin = cos_BTn[:, :, None], sin_BTn[:, :, None]
    return a * cos - b * sin, a * sin + b * cos


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slope of each head [H]: 2^(-8 h / H) for h = 1..H, where H is a power of two.

    Otherwise those of the power of two below, then every other one of the power above.

    Example:
        >>> alibi_slopes(4).tolist(), alibi_slopes(3).tolist()
        ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])

    Reference:
        Press, Smith and Lewis, "Train short, test long: Attention with linear biases enables input length
        extrapolation", 2022, section 3.
    """
    power = 2 ** int(np.log2(num_heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    more = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))[: num_heads - power]
    return np.concatenate([slopes, more]).astype(np.float32)


def alibi(slopes_H: Any, q_BT: jax.Array, k_BS: jax.Array) -> jax.Array:
    """Attention with linear biases: -slope times the distance of query and key.

    Args:
        slopes_H: from `alibi_slopes`.
        q_BT: positions of queries.
        k_BS: positions of keys.

    Returns:
        [B, H, T, S] in float32, to add to logits.

    Example:
        >>> at = jnp.arange(3).reshape(1, 3)
        >>> alibi(alibi_slopes(1), at[:, 2:], at).tolist()
        [[[[-0.0078125, -0.00390625, -0.0]]]]

    Reference:
        Press, Smith and Lewis 2022, section 3.
    """
    distance = jnp.abs(q_BT[:, None, :, None] - k_BS[:, None, None, :]).astype(jnp.float32)
    return -jnp.asarray(slopes_H).reshape(1, -1, 1, 1) * distance


@dataclasses.dataclass(frozen=True)
class Alibi:
    """Attention with linear biases, as a choice of positions: see `alibi`.

    Example:
        >>> bias = Alibi().bias(2, None)(jnp.array([[2]]), jnp.array([[0, 1, 2]]))
        >>> bias.ravel().tolist()
        [-0.125, -0.0625, -0.0, -0.0078125, -0.00390625, -0.0]
    """

    def table_shape(self, num_heads: int) -> None:
        """Nothing is learned."""

    def bias(self, num_heads: int, table: jax.Array | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The function of the steps of queries and keys that is added to logits."""
        del table
        return functools.partial(alibi, alibi_slopes(num_heads))

    def of_the_past(self) -> Alibi:
        """The same where no key comes after its query."""
        return self


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Distances sorted into buckets: near ones exactly, far ones by their logarithm, the farthest together.

    Attributes:
        count: number of buckets.
        farthest: distance from which all share the last bucket.
        both_ways: half of the buckets are for keys after the query; otherwise these are at distance 0.

    Example:
        >>> Buckets(8, 16, both_ways=False)(jnp.array([1, 0, -1, -3, -4, -6, -100])).tolist()
        [0, 0, 1, 3, 4, 5, 7]

    Reference:
        Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
        2020, section 2.1.
    """

    count: int = 32
    farthest: int = 128
    both_ways: bool = True

    def __call__(self, offsets: jax.Array) -> jax.Array:
        """The bucket of each offset, the key's position less the query's; int32 of the same shape."""
        count, distance = self.count, -offsets
        first: Any = 0
        if self.both_ways:
            count //= 2
            first = jnp.where(offsets > 0, count, 0)
            distance = jnp.abs(offsets)
        distance = jnp.maximum(distance, 0)
        exact = count // 2
        # As the published models compute it: the ratio's logarithm in float32, cut to an integer.
        ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / np.log(self.farthest / exact)
        far = exact + (ratio * (count - exact)).astype(jnp.int32)
        return first + jnp.where(distance < exact, distance, jnp.minimum(far, count - 1))

    def table_shape(self, num_heads: int) -> tuple[int, int]:
        """Of what is learned: a number for each bucket and head."""
        return self.count, num_heads

    def bias(self, num_heads: int, table: jax.Array | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The function of the steps of queries and keys that is added to logits."""
        assert table is not None
        return functools.partial(bucket_bias, self, table)

    def of_the_past(self) -> Buckets:
        """The same where no key comes after its query."""
        return dataclasses.replace(self, both_ways=False)


def bucket_bias(buckets: Buckets, table: jax.Array, q_BT: jax.Array, k_BS: jax.Array) -> jax.Array:
    """A learned bias for each head and bucket of distances.

    Args:
        buckets: sorts distances.
        table: [buckets, H].
        q_BT: positions of queries.
        k_BS: positions of keys.

    Returns:
        [B, H, T, S] in the table's dtype, to add to logits.

    Reference:
        Raffel et al. 2020, section 2.1.
    """
    offsets_BTS = k_BS[:, None, :] - q_BT[:, :, None]
    return jnp.take(table, buckets(offsets_BTS), axis=0).transpose(0, 3, 1, 2)
