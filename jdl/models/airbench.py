"""The small network of the CIFAR-10 speed records: whitened patches, then three groups of two convolutions.

Axes: B batch, H height, W width, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import BatchNorm, Conv, Dense, as_float, max_pool
from jdl.nn.blocks import require_images

_uniform = linen.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform on plus and minus one over the square root of the number of inputs."""


def dirac_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel [k, k, C, F] whose first C features copy their inputs; the other features are drawn.

    Example:
        >>> kernel = dirac_uniform(jax.random.key(0), (3, 3, 2, 5))
        >>> kernel[1, 1, :, :2].tolist(), float(jnp.abs(kernel[0, :, :, :2]).max())
        ([[1.0, 0.0], [0.0, 1.0]], 0.0)
    """
    height, width, C, F = shape
    copies = min(C, F)
    kernel = _uniform(key, tuple(shape), dtype)
    identity = jnp.zeros((height, width, C, copies), dtype)
    identity = identity.at[height // 2, width // 2, jnp.arange(copies), jnp.arange(copies)].set(1)
    return kernel.at[..., :copies].set(identity)


def whitening_kernel(images: np.ndarray, side: int = 2, epsilon: float = 5e-4) -> np.ndarray:
    """A kernel whose outputs on the images' patches are uncorrelated and of equal variance.

    Its features are the eigenvectors of the patches' covariance, each divided by the square root of its
    eigenvalue, and their negatives.

    Args:
        images: preprocessed images [N, H, W, C]; a few thousand are enough.
        side: of a patch, pixels.
        epsilon: added to the eigenvalues.

    Returns:
        Array [side, side, C, 2 * side * side * C], float32.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(50, 8, 8, 3)).astype(np.float32)
        >>> whitening_kernel(images).shape
        (2, 2, 3, 24)

    Reference:
        Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.2.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), (1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, side * side * images.shape[-1])
    eigenvalues, vectors = np.linalg.eigh(patches.T.astype(np.float64) @ patches / len(patches))
    scaled = (vectors / np.sqrt(eigenvalues + epsilon)).reshape(side, side, images.shape[-1], -1)[..., ::-1]
    return np.concatenate([scaled, -scaled], -1).astype(np.float32)


class AirBench(linen.Module):
    """A fixed whitening layer, three groups of two 3x3 convolutions, a linear layer.

    Submodules are ``whiten``, ``group1`` to ``group3`` (``conv1``, ``norm1``, ``conv2``, ``norm2``) and
    ``head``. The kernel of ``whiten`` is meant to be `whitening_kernel` of the training images and to stay.

    The scales of the normalisations, which the paper's network holds at one, are left out.

    Attributes:
        widths: channels of each group.
        num_classes: number of logits.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C] of at least 17x17 pixels, or with G > 4 groups
            2^G + 1.

    Example:
        >>> variables = jax.eval_shape(AirBench().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        1971640

    Reference:
        Jordan 2024, section 3 and listing 4 (the network of airbench94).
    """

    widths: Sequence[int] = (64, 256, 256)
    num_classes: int = 10
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        require_images(inputs, "AirBench", smallest=2 ** max(4, len(self.widths)) + 1)
        x = as_float(inputs, self.dtype)
        x = Conv(8 * x.shape[-1], (2, 2), padding="VALID", dtype=self.dtype, name="whiten")(x)
        x = jax.nn.gelu(x, approximate=False)
        for g, width in enumerate(self.widths, 1):
            x = Group(width, self.dtype, name=f"group{g}")(x, train)
        x = max_pool(x, (x.shape[1], x.shape[2])).reshape(x.shape[0], -1)
        head = Dense(self.num_classes, use_bias=False, kernel_init=_uniform, dtype=self.dtype, name="head")
        return head(x) / 9


class Group(linen.Module):
    """Convolution, 2x2 maximum, convolution, each normalised and activated."""

    features: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to [B, H / 2, W / 2, features]."""
        for i in (1, 2):
            conv = Conv(self.features, (3, 3), padding=1, use_bias=False, kernel_init=dirac_uniform,
                        dtype=self.dtype, name=f"conv{i}")  # fmt: skip
            x = conv(x)
            if i == 1:
                x = max_pool(x, (2, 2))
            norm = BatchNorm(momentum=0.6, epsilon=1e-12, use_scale=False, dtype=self.dtype, name=f"norm{i}")
            x = jax.nn.gelu(norm(x, train), approximate=False)
        return x


def tiny() -> tuple[AirBench, dict[str, np.ndarray]]:
    """A network of two narrow groups, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 17, 17, 1)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return AirBench((8, 8), num_classes=4), batch
