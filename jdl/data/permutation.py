"""A keyed permutation of [0, N), computed entry by entry: no table, no sort, no state.

A position is written in mixed radix, x = left * b + right with a = ceil(sqrt(N)), b = ceil(N / a), and goes
through a Feistel network whose rounds add a hash of one digit to the other, modulo that digit's radix:

    left  <- (left + hash(right, key_r)) mod a
    right <- (right + hash(left, key_r)) mod b

Every round can be undone, so the network permutes [0, a * b). The fewer than a values that fall outside
[0, N) go through it again until they land inside ("cycle walking"), which permutes [0, N). All arithmetic is
uint32, and the same code runs with numpy and with jax.numpy: host and device agree to the last index.

Reference: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002
(https://web.cs.ucdavis.edu/~rogaway/papers/subset.pdf).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import jax
import numpy as np

MAX_SIZE = 2**30
"""Bound of N: twice an index must fit into uint32 with room for a carry."""

_ROUNDS = 12


def _hash(x: Any) -> Any:
    """Murmur3's finalizer, a bijection of uint32 in which every bit of ``x`` moves every other."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _words(seed: int) -> tuple[int, int]:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64); got {seed}")
    return seed & 0xFFFFFFFF, seed >> 32


def permute(positions: Any, size: int, seed: int, epoch: Any = 0, xp: ModuleType = np) -> Any:
    """Entries of the permutation of [0, size) that belongs to (seed, epoch).

    Args:
        positions: uint32 [...] with at least one axis, each in [0, size).
        size: N, 1 to 2**30, static.
        seed: integer in [0, 2**64), static.
        epoch: uint32 scalar or of the shape of ``positions``.
        xp: ``numpy``, or ``jax.numpy`` to trace under `jax.jit`.

    Returns:
        uint32 array of the shape of ``positions``: where each goes.

    Raises:
        ValueError: if ``size`` or ``seed`` is out of bounds.

    Example:
        >>> permute(np.arange(7), 7, seed=1).tolist()
        [2, 3, 4, 5, 6, 0, 1]
        >>> permute(np.arange(7), 7, seed=1, epoch=1).tolist()
        [3, 0, 4, 1, 5, 2, 6]
    """
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"a permutation has 1 to 2**30 entries; got size={size}")
    low, high = _words(seed)
    positions = xp.asarray(positions).astype(np.uint32)
    # As an array of the same shape: numpy warns when a scalar wraps around and not when an array does.
    key = xp.zeros(positions.shape, np.uint32)
    for word in (np.uint32(low), np.uint32(high), xp.asarray(epoch).astype(np.uint32)):
        key = _hash((key + np.uint32(0x9E3779B9)) ^ word)
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)

    def network(x: Any) -> Any:
        left, right = x // np.uint32(b), x % np.uint32(b)
        for r in range(0, _ROUNDS, 2):
            even, odd = (_hash(key + np.uint32((s + 1) * 0x9E3779B9 & 0xFFFFFFFF)) for s in (r, r + 1))
            left = (left + _hash(right ^ even) % np.uint32(a)) % np.uint32(a)
            right = (right + _hash(left ^ odd) % np.uint32(b)) % np.uint32(b)
        return left * np.uint32(b) + right

    def outside(x: Any) -> Any:
        return x >= np.uint32(size)

    def again(x: Any) -> Any:
        return xp.where(outside(x), network(x), x)

    first = network(positions)
    if xp is np:
        while outside(first).any():
            first = again(first)
        return first
    # Also where nothing falls outside: XLA fuses nothing across a loop, and a network fused with the gather
    # that follows would be computed anew for every pixel of every image.
    return jax.lax.while_loop(lambda x: outside(x).any(), again, first)


def divmod_product(i: Any, factor: int, size: int, xp: ModuleType = np) -> tuple[Any, Any]:
    """``divmod(i * factor, size)`` in uint32 although the product needs 64 bits.

    Horner's rule over the binary digits of i, as many at a time as leave the remainder below 2**32:
    with quotient e and remainder r so far and the next k digits d, i * factor becomes
    (e * size + r) * 2**k + d * factor.

    Args:
        i: uint32 scalar.
        factor: 1 to ``size``, static.
        size: 1 to 2**30, static.
        xp: ``numpy`` or ``jax.numpy``.

    Returns:
        Quotient and remainder, uint32 scalars; the quotient is at most i.

    Example:
        >>> divmod_product(10**8, 4096, 50_000) == divmod(10**8 * 4096, 50_000)
        True
    """
    i = xp.asarray(i).astype(np.uint32)
    step = max(1, 31 - size.bit_length())
    quotient = remainder = xp.zeros((), np.uint32)
    for shift in reversed(range(0, 32, step)):
        width = min(step, 32 - shift)
        digits = (i >> np.uint32(shift)) & np.uint32(2**width - 1)
        total = (remainder << np.uint32(width)) + digits * np.uint32(factor)
        quotient = (quotient << np.uint32(width)) + total // np.uint32(size)
        remainder = total % np.uint32(size)
    return quotient, remainder
