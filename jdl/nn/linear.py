"""Matrix products.

Axes: B any leading axes, D input features, F output features.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jdl.core import SEQUENCE


def as_float(x: jax.Array, dtype: Any = None) -> jax.Array:
    """x in ``dtype``; where that is None, floats stay what they are and integers become float32.

    Example:
        >>> as_float(jnp.array([1, 2])).dtype, as_float(jnp.ones(2, jnp.bfloat16)).dtype
        (dtype('float32'), dtype(bfloat16))
    """
    if dtype is None:
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    return x.astype(dtype)


def flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """`lax.dot_general` of x [..., D] and kernel [D, F] as one product of two matrices.

    Leading axes are merged first, because the backward pass of a product over several leading axes
    becomes a general contraction that XLA:CPU runs at half the speed. Any other contraction is passed on.
    """
    last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
    if x.ndim <= 2 or kernel.ndim != 2 or dimension_numbers != last_with_first:
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    flat = _merged(x)
    product = lax.dot_general(flat, kernel, (((flat.ndim - 1,), (0,)), ((), ())), precision=precision)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def float32_dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """`lax.dot_general` of x [..., D] and a matrix, whose sums stay in float32.

    The gradients are products in the types of x and the matrix, as those of any layer: of float32 by
    bfloat16 they would be products in float32, at half the speed or less.
    """
    ((_,), (axis,)), _ = dimension_numbers
    flat = _merged(x)
    product = _float32_product(flat, kernel, (((flat.ndim - 1,), (axis,)), ((), ())), precision)
    return product.reshape(*x.shape[:-1], product.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _float32_product(x: jax.Array, y: jax.Array, dimension_numbers: Any, precision: Any) -> jax.Array:
    return lax.dot_general(x, y, dimension_numbers, precision=precision, preferred_element_type=jnp.float32)


@_float32_product.defjvp
def _float32_product_jvp(dimension_numbers: Any, precision: Any, primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    product = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers, precision=precision)
    tangent = product(dx, y).astype(jnp.float32) + product(x, dy).astype(jnp.float32)
    return _float32_product(x, y, dimension_numbers, precision), tangent


def _merged(x: jax.Array) -> jax.Array:
    """x [..., D] as a matrix; or as it is on a mesh that splits time, which merged with the batch could not
    stay split: every device would gather and multiply the whole.
    """
    is_split = SEQUENCE in jax.sharding.get_abstract_mesh().axis_names
    return x if is_split else x.reshape(-1, x.shape[-1])


class Dense(linen.Dense):
    """`flax.linen.Dense`, y = x W + b, with its product over two axes only (`flat_dot_general`).

    Parameters and their names are Linen's: ``kernel`` [D, F] and ``bias`` [F].

    Example:
        >>> y, variables = Dense(4).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> y.shape, variables["params"]["kernel"].shape
        ((2, 5, 4), (3, 4))
    """

    dot_general: Any = flat_dot_general
