"""Spectral normalisation: layers whose matrix has the largest singular value 1.

Axes: K inputs of a unit (D, or kh * kw * C), F units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jdl.nn.convolution import Conv
from jdl.nn.linear import Dense

SPECTRAL = "spectral"
"""Collection of the singular vectors that the layers remember."""

_FIRST_ITERATIONS = 15
"""Iterations when a layer is made, as in PyTorch: with fewer, the first steps see too small a norm."""


def power_iteration(matrix_KF: jax.Array, u_F: jax.Array, v_K: jax.Array, steps: int = 1) -> Any:
    """Steps towards the first pair of singular vectors: u = W^T v / |W^T v|, then v = W u / |W u|.

    Args:
        matrix_KF: W.
        u_F: the estimate on the side of the units.
        v_K: the estimate on the side of the inputs.
        steps: how many.

    Returns:
        The new u and v, without a gradient.

    Example:
        >>> W = jnp.diag(jnp.array([3.0, 1.0]))
        >>> u, v = power_iteration(W, jnp.array([0.6, 0.8]), jnp.array([0.6, 0.8]), 8)
        >>> round(float(spectral_norm(W, u, v)), 4)
        3.0
    """
    matrix = jax.lax.stop_gradient(matrix_KF.astype(jnp.float32))

    def step(_: Any, vectors: Any) -> Any:
        u_F = _unit(_product(vectors[1], matrix))
        return u_F, _unit(_product(matrix, u_F))

    if steps == 1:
        return step(0, (u_F, v_K))
    return jax.lax.fori_loop(0, steps, step, (u_F, v_K))


def spectral_norm(matrix_KF: jax.Array, u_F: jax.Array, v_K: jax.Array) -> jax.Array:
    """The largest singular value of W as v^T W u sees it, with a gradient to W alone."""
    matrix = matrix_KF.astype(jnp.float32)
    return _product(jax.lax.stop_gradient(v_K), _product(matrix, jax.lax.stop_gradient(u_F)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


class Spectral(linen.Module):
    """Divides a layer's weights by their spectral norm as the layer reads them.

    The estimates of the singular vectors are in the collection "spectral". They take one step wherever that
    collection is mutable, which is in training, and are used as they are elsewhere.
    """

    @linen.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        weights = super().param(name, init_fn, *args, **options)
        if name not in ("kernel", "embedding"):
            return weights
        matrix = weights.reshape(-1, weights.shape[-1])
        vectors = self.variable(SPECTRAL, name, self._first_vectors, matrix)
        u, v = vectors.value["u"], vectors.value["v"]
        if self.is_mutable_collection(SPECTRAL) and not self.is_initializing():
            u, v = power_iteration(matrix, u, v)
            vectors.value = {"u": u, "v": v}
        return weights / spectral_norm(matrix, u, v).astype(weights.dtype)

    @linen.nowrap
    def _first_vectors(self, matrix_KF: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(self.make_rng("params"))
        u, v = (
            _unit(jax.random.normal(key, (n,))) for key, n in zip(keys, matrix_KF.shape[::-1], strict=True)
        )
        u, v = power_iteration(matrix_KF, u, v, _FIRST_ITERATIONS)
        return {"u": u, "v": v}


class SpectralDense(Spectral, Dense):
    """`jdl.nn.Dense` with W / sigma(W), sigma the largest singular value, in place of W.

    So that the layer, and a network of such layers, changes no faster than its input does. One step of power
    iteration is done in each training pass, and W is differentiated through sigma.

    Example:
        >>> layer, x = SpectralDense(3), jnp.ones((2, 5))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> sorted(variables), sorted(variables["spectral"]["kernel"])
        (['params', 'spectral'], ['u', 'v'])

    Reference:
        Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial networks",
        2018, algorithm 1.
    """


class SpectralConv(Spectral, Conv):
    """`jdl.nn.Conv` with its kernel, as a matrix [kh * kw * C, F], divided by the largest singular value.

    That is not the norm of the convolution as a map of images, which it bounds only up to a factor.

    Reference:
        Miyato et al., 2018, section 2.1.
    """


class SpectralEmbed(Spectral, linen.Embed):
    """`flax.linen.Embed` with its table [V, D] divided by the largest singular value."""
