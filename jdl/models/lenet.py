"""LeNet-5, as published in 1998 and as it is usually built today.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import Conv, Dense, as_float, avg_pool, max_pool
from jdl.nn.convolution import convolve

# Table I of the paper: which of the 6 maps of S2 each of the 16 maps of C3 sees.
C3_CONNECTIONS = (
    [[(i + j) % 6 for j in range(3)] for i in range(6)]
    + [[(i + j) % 6 for j in range(4)] for i in range(6)]
    + [[0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5]]
    + [[0, 1, 2, 3, 4, 5]]
)


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159 tanh(2x / 3), which maps 1 to 1 and -1 to -1 (LeCun et al. 1998, appendix A)."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


class Subsampling(linen.Module):
    """The 1998 pooling layer: each 2x2 sum times a trainable coefficient, plus a trainable bias, a map."""

    @linen.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H/2, W/2, C]."""
        C = x_BHWC.shape[-1]
        coefficient = self.param("coefficient", linen.initializers.ones, (C,)).astype(x_BHWC.dtype)
        bias = self.param("bias", linen.initializers.zeros, (C,)).astype(x_BHWC.dtype)
        x_BHWC = avg_pool(x_BHWC, (2, 2))
        return scaled_tanh(x_BHWC * coefficient.reshape(1, 1, 1, C) + bias.reshape(1, 1, 1, C))


class PartialConv(linen.Module):
    """The 5x5 convolution C3, whose 16 maps each see some of the 6 maps below (the paper's table I)."""

    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, 14, 14, 6] to [B, 10, 10, 16]."""
        # Position of each connection in a full kernel [..., 6 * 16].
        positions = [16 * below + above for above, seen in enumerate(C3_CONNECTIONS) for below in seen]
        kernel = self.param("kernel", _c3_normal, (5, 5, len(positions)))
        full = jnp.zeros((5, 5, 6 * 16), kernel.dtype).at[:, :, jnp.asarray(positions)].set(kernel)
        full = full.reshape(5, 5, 6, 16).astype(x_BHWC.dtype)
        bias = self.param("bias", linen.initializers.zeros, (16,)).astype(x_BHWC.dtype)
        dimensions = ("NHWC", "HWIO", "NHWC")
        y_BHWC = convolve(x_BHWC, full, (1, 1), "VALID", dimension_numbers=dimensions)
        return y_BHWC + bias.reshape(1, 1, 1, 16)


def _c3_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """LeCun's initialisation of C3: each map's variance is one over the number of its own inputs."""
    inputs = np.concatenate([np.full(len(seen), 25 * len(seen)) for seen in C3_CONNECTIONS])
    deviations = jnp.asarray(inputs**-0.5 / 0.87962566, jnp.float32)  # a normal cut at 2 deviates by 0.88
    return jax.random.truncated_normal(key, -2, 2, shape) * deviations.reshape(1, 1, -1)


def output_codes(num_classes: int) -> np.ndarray:
    """Fixed +-1 target codes [num_classes, 84] of the 1998 output layer.

    The paper draws stylised characters on a 7x12 bitmap and notes that codes drawn at random would do as
    well (section III.B); these are random, from a fixed seed.
    """
    return np.random.default_rng(1998).choice(np.array([-1.0, 1.0], np.float32), (num_classes, 84))


class LeNet5(linen.Module):
    """LeNet-5 for images of 32x32 pixels and any number of channels.

    ``layout="modern"`` has ReLU, max-pooling, fully connected C3 and a linear output layer (61,706
    parameters for one channel and ten classes). ``layout="1998"`` is the paper's: trainable subsampling,
    the partial connections of its table I, scaled tanh, and an output of Euclidean radial basis units
    with fixed codes, whose negative half squared distances serve as logits: the paper's 60,000 parameters.

    The last map is flattened by rows, columns, channels; PyTorch's channels come first there, and the rule
    ``("Dense_0", their name, "flat 5x5")`` of `jdl.interop.load_weights` reads its weights.

    Attributes:
        num_classes: number of outputs.
        layout: "modern" or "1998".
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the images are not [B, 32, 32, C], or the layout is unknown.

    Example:
        >>> for layout in "modern", "1998":
        ...     variables = LeNet5(layout=layout).init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
        ...     print(layout, sum(x.size for x in jax.tree.leaves(variables)))
        modern 61706
        1998 60000

    Reference:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998,
        section II.B.
    """

    num_classes: int = 10
    layout: Literal["modern", "1998"] = "modern"
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, 32, 32, C] to logits [B, num_classes]."""
        if inputs.ndim != 4 or inputs.shape[1:3] != (32, 32):
            raise ValueError(
                f"LeNet5 takes images [batch, 32, 32, channels]; got shape {tuple(inputs.shape)}"
            )
        x = as_float(inputs, self.dtype)
        if self.layout == "modern":
            return self._modern(x)
        if self.layout == "1998":
            return self._published(x)
        raise ValueError(f'LeNet5 has the layouts "modern" and "1998"; got {self.layout!r}')

    def _modern(self, x: jax.Array) -> jax.Array:
        for features in (6, 16):
            x = Conv(features, (5, 5), padding="VALID", dtype=self.dtype)(x)
            x = max_pool(jax.nn.relu(x), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for features in (120, 84):
            x = jax.nn.relu(Dense(features, dtype=self.dtype)(x))
        return Dense(self.num_classes, dtype=self.dtype)(x)

    def _published(self, x: jax.Array) -> jax.Array:
        x = Conv(6, (5, 5), padding="VALID", dtype=self.dtype, name="C1")(x)
        x = Subsampling(name="S2")(scaled_tanh(x))
        x = PartialConv(self.dtype, name="C3")(x)
        x = Subsampling(name="S4")(scaled_tanh(x))
        x = x.reshape(x.shape[0], -1)
        x = scaled_tanh(Dense(120, dtype=self.dtype, name="C5")(x))
        x = scaled_tanh(Dense(84, dtype=self.dtype, name="F6")(x))
        codes = output_codes(self.num_classes)
        # In float32: the distances are near 84, where bfloat16 steps by a half.
        distances = jnp.square(x.astype(jnp.float32)[:, None, :] - codes[None]).sum(-1)
        return -distances / 2


def tiny() -> tuple[LeNet5, dict[str, np.ndarray]]:
    """LeNet-5 itself, which is small enough, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 32, 32, 1)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return LeNet5(num_classes=4), batch
