"""Generators of images and the discriminators they play against: fully connected, DCGAN, residual.

A generator takes latents [B, Z], or {"latents": [B, Z], "labels": [B]} where it has classes, and gives images
[B, H, W, C] in -1..1. A discriminator takes such images, or {"images": ..., "labels": ...}, and gives one
logit an image [B], higher for a real one.

Axes: B batch, Z latent variables, H height, W width, C channels, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import BatchNorm, Conv, Dense, as_float, avg_pool
from jdl.nn.blocks import require_images
from jdl.nn.doubling import Double, Halve, SpectralHalve
from jdl.nn.dropout import Dropout
from jdl.nn.spectral import SpectralConv, SpectralDense, SpectralEmbed

_NORMAL = linen.initializers.normal(0.02)
_GLOROT = linen.initializers.glorot_uniform()
_GLOROT_RELU = linen.initializers.variance_scaling(2.0, "fan_avg", "uniform")


def doublings(size: tuple[int, int], smallest: int = 4) -> int:
    """How often both sides of an image can be halved and stay at least ``smallest`` pixels.

    Example:
        >>> doublings((64, 64)), doublings((32, 32)), doublings((28, 28)), doublings((9, 9))
        (4, 3, 2, 0)
    """
    count = 0
    while all(side % 2 == 0 and side // 2 >= smallest for side in size):
        size, count = (size[0] // 2, size[1] // 2), count + 1
    return count


def parts(inputs: Any, name: str, num_classes: int) -> tuple[jax.Array, jax.Array | None]:
    """What is under ``name``, and the labels where there are classes.

    Raises:
        ValueError: if a network with classes gets no labels, or one without gets them.
    """
    is_dict = isinstance(inputs, dict)
    if num_classes and not (is_dict and {name, "labels"} <= inputs.keys()):
        given = sorted(inputs) if is_dict else "an array"
        raise ValueError(f'a network with {num_classes} classes takes {{"{name}", "labels"}}; got {given}')
    if is_dict and "labels" in inputs and not num_classes:
        raise ValueError("labels were given to a network without classes: set num_classes")
    return (jnp.asarray(inputs[name]), inputs["labels"]) if num_classes else (
        jnp.asarray(inputs[name] if is_dict else inputs), None
    )  # fmt: skip


class ConditionalBatchNorm(linen.Module):
    """Batch normalisation whose scale and shift depend on the class; plain where there are no labels.

    Attributes:
        num_classes: number of classes, 0 for none.
        dtype: of the result.

    Example:
        >>> x, labels = jnp.ones((2, 4, 4, 3)), jnp.array([0, 4])
        >>> ConditionalBatchNorm(5).init_with_output(jax.random.key(0), x, labels)[0].shape
        (2, 4, 4, 3)

    Reference:
        Dumoulin, Shlens and Kudlur, "A learned representation for artistic style", 2017; in a generator:
        Miyato and Koyama, "cGANs with projection discriminator", 2018.
    """

    num_classes: int = 0
    dtype: Any = None

    @linen.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None, train: bool = False) -> jax.Array:
        """Normalises x [B, ..., F] by its statistics and the labels [B]."""
        if not self.num_classes or labels is None:
            return BatchNorm(dtype=self.dtype)(x, train)
        y = BatchNorm(use_bias=False, use_scale=False, dtype=self.dtype)(x, train)
        shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])

        def of_class(name: str, init: Any) -> jax.Array:
            table = linen.Embed(self.num_classes, x.shape[-1], embedding_init=init, name=name)
            return table(labels).reshape(shape).astype(y.dtype)

        return y * of_class("scale", linen.initializers.ones) + of_class("bias", linen.initializers.zeros)


class MLPGenerator(linen.Module):
    """Fully connected layers from latents to images, after the first GAN.

    Attributes:
        shape: (height, width, channels) of an image.
        features: widths of the hidden layers.
        num_classes: classes, which stand beside the latents as one-hot numbers; 0 for none.
        activation: of hidden layers.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> z = jnp.zeros((2, 16))
        >>> MLPGenerator((8, 8, 1), (32,)).init_with_output(jax.random.key(0), z)[0].shape
        (2, 8, 8, 1)

    Reference:
        Goodfellow et al., "Generative adversarial nets", 2014; with labels: Mirza and Osindero, "Conditional
        generative adversarial nets", 2014.
    """

    shape: Sequence[int] = (28, 28, 1)
    features: Sequence[int] = (256, 512, 1024)
    num_classes: int = 0
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Latents [B, Z] to images [B, H, W, C] in -1..1."""
        x = _with_classes(inputs, self.num_classes, self.dtype)
        for width in self.features:
            x = self.activation(Dense(width, dtype=self.dtype)(x))
        x = Dense(math.prod(self.shape), dtype=self.dtype)(x)
        return jnp.tanh(x).reshape(-1, *self.shape)


class DCGANGenerator(linen.Module):
    """A product to a small map, then transposed 4x4 convolutions, each doubling it.

    Attributes:
        size: (height, width) of an image; halved as long as it is even and stays 4 pixels or more, it gives
            the map to begin with: 4x4 for 32x32 and 64x64, 7x7 for 28x28.
        channels: of an image.
        width: features before the last convolution; each one before has twice as many.
        num_classes: classes, which stand beside the latents as one-hot numbers; 0 for none.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the size cannot be halved once.

    Example:
        >>> z = jnp.zeros((2, 100))
        >>> generator = DCGANGenerator((64, 64), width=64)
        >>> params = jax.eval_shape(generator.init, jax.random.key(0), z)["params"]
        >>> sum(x.size for x in jax.tree.leaves(params))  # 3,576,704 and the three biases of the last layer
        3576707

    Reference:
        Radford, Metz and Chintala, "Unsupervised representation learning with deep convolutional generative
        adversarial networks", 2016, figure 1.
    """

    size: tuple[int, int] = (32, 32)
    channels: int = 3
    width: int = 64
    num_classes: int = 0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Latents [B, Z] to images [B, H, W, C] in -1..1."""
        n = _doublings(self.size)
        height, width = (side // 2**n for side in self.size)
        F = self.width * 2 ** (n - 1)
        x = _with_classes(inputs, self.num_classes, self.dtype)
        x = Dense(height * width * F, kernel_init=_NORMAL, use_bias=False, dtype=self.dtype)(x)
        x = self._normalised(x.reshape(-1, height, width, F), train)
        for i in reversed(range(n - 1)):
            layer = Double(self.width * 2**i, use_bias=False, kernel_init=_NORMAL, dtype=self.dtype)
            x = self._normalised(layer(x), train)
        return jnp.tanh(Double(self.channels, kernel_init=_NORMAL, dtype=self.dtype)(x))

    def _normalised(self, x: jax.Array, train: bool) -> jax.Array:
        scale = lambda *args: 1 + _NORMAL(*args)
        return jax.nn.relu(BatchNorm(dtype=self.dtype, scale_init=scale)(x, train))


class DCGANDiscriminator(linen.Module):
    """4x4 convolutions with stride 2, each halving the image, and a product to one logit.

    Attributes:
        width: features of the first convolution; each one after has twice as many.
        normalization: "batch" (all but the first convolution, as published), "spectral" (every layer) or
            "none", which a gradient penalty needs, or may have "spectral".
        num_classes: classes whose embedding is one more channel of the image; 0 for none.
        dropout: share of the features dropped before the last layer in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: for inputs that are not images, or cannot be halved once; for an unknown normalisation.

    Example:
        >>> images = jnp.zeros((2, 28, 28, 1))
        >>> DCGANDiscriminator(16).init_with_output(jax.random.key(0), images)[0].shape
        (2,)

    Reference:
        Radford et al., 2016. Spectral: Miyato et al., "Spectral normalization for generative adversarial
        networks", 2018.
    """

    width: int = 64
    normalization: Literal["batch", "spectral", "none"] = "batch"
    num_classes: int = 0
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B]."""
        if self.normalization not in ("batch", "spectral", "none"):
            raise ValueError(f'normalization is "batch", "spectral" or "none"; got {self.normalization!r}')
        spectral = self.normalization == "spectral"
        images, labels = parts(inputs, "images", self.num_classes)
        require_images(images, "DCGANDiscriminator", smallest=8)
        x = as_float(images, self.dtype)
        if labels is not None:
            size = images.shape[1:3]
            embed = SpectralEmbed if spectral else linen.Embed
            plane = embed(self.num_classes, math.prod(size), dtype=self.dtype, name="planes")(labels)
            x = jnp.concatenate([x, plane.reshape(-1, *size, 1).astype(x.dtype)], -1)
        for i in range(_doublings(images.shape[1:3])):
            is_normalised = self.normalization == "batch" and i > 0
            layer = SpectralHalve if spectral else Halve
            x = layer(self.width * 2**i, use_bias=not is_normalised, kernel_init=_NORMAL, dtype=self.dtype)(x)
            if is_normalised:
                scale = lambda *args: 1 + _NORMAL(*args)
                x = BatchNorm(dtype=self.dtype, scale_init=scale)(x, train)
            x = jax.nn.leaky_relu(x, 0.2)
        x = x.reshape(x.shape[0], -1)
        x = Dropout(self.dropout, deterministic=not train)(x)
        last = SpectralDense if spectral else Dense
        return last(1, kernel_init=_NORMAL, dtype=self.dtype, name="head")(x)[:, 0]


class ResNetGenerator(linen.Module):
    """A product to a small map, residual blocks that double it, and a 3x3 convolution to pixels.

    Attributes:
        size: as in `DCGANGenerator`.
        channels: of an image.
        width: features of every block: 256 in the tables of Miyato et al. for 32x32, 128 in Gulrajani et al.
        num_classes: classes, which choose the scale and shift of every normalisation; 0 for none.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> z = jnp.zeros((2, 128))
        >>> params = jax.eval_shape(ResNetGenerator().init, jax.random.key(0), z)["params"]
        >>> sum(x.size for x in jax.tree.leaves(params))
        4276739

    Reference:
        Miyato et al., 2018, table 4; Gulrajani et al., "Improved training of Wasserstein GANs", 2017.
    """

    size: tuple[int, int] = (32, 32)
    channels: int = 3
    width: int = 256
    num_classes: int = 0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Latents [B, Z] to images [B, H, W, C] in -1..1."""
        z, labels = parts(inputs, "latents", self.num_classes)
        n = _doublings(self.size)
        height, width = (side // 2**n for side in self.size)
        x = Dense(height * width * self.width, kernel_init=_GLOROT, dtype=self.dtype)(as_float(z, self.dtype))
        x = x.reshape(-1, height, width, self.width)
        for i in range(n):
            x = self._block(x, labels, train, f"block{i + 1}")
        x = jax.nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train))
        return jnp.tanh(Conv(self.channels, (3, 3), kernel_init=_GLOROT, dtype=self.dtype, name="out")(x))

    def _block(self, x: jax.Array, labels: jax.Array | None, train: bool, name: str) -> jax.Array:
        def normalised(x: jax.Array, i: int) -> jax.Array:
            norm = ConditionalBatchNorm(self.num_classes, dtype=self.dtype, name=f"{name}_norm{i}")
            return jax.nn.relu(norm(x, labels, train))

        def convolved(x: jax.Array, side: int, which: str, init: Any) -> jax.Array:
            layer = Conv(self.width, (side, side), kernel_init=init, dtype=self.dtype, name=f"{name}_{which}")
            return layer(x)

        h = convolved(_doubled(normalised(x, 1)), 3, "conv1", _GLOROT_RELU)
        h = convolved(normalised(h, 2), 3, "conv2", _GLOROT_RELU)
        return h + _doubled(convolved(x, 1, "shortcut", _GLOROT))


class ResNetDiscriminator(linen.Module):
    """Residual blocks, the first two of which halve the image, a sum over positions, and one logit.

    With classes it is a projection discriminator: the logit is w . h + e_y . h, h the summed features and e_y
    the embedding of the label.

    Attributes:
        width: features of every block.
        normalization: "spectral" (every layer) or "none", the critic of Gulrajani et al., which averages over
            positions.
        num_classes: classes; 0 for none.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> x = jnp.zeros((2, 32, 32, 3))
        >>> params = jax.eval_shape(ResNetDiscriminator().init, jax.random.key(0), x)["params"]
        >>> sum(x.size for x in jax.tree.leaves(params))
        1053825

    Reference:
        Miyato et al., 2018, table 4; Miyato and Koyama, "cGANs with projection discriminator", 2018, equation
        3; Gulrajani et al., 2017.
    """

    width: int = 128
    normalization: Literal["spectral", "none"] = "spectral"
    num_classes: int = 0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B]."""
        if self.normalization not in ("spectral", "none"):
            raise ValueError(f'normalization is "spectral" or "none"; got {self.normalization!r}')
        spectral = self.normalization == "spectral"
        images, labels = parts(inputs, "images", self.num_classes)
        require_images(images, "ResNetDiscriminator", smallest=8)

        def convolved(x: jax.Array, side: int, name: str, init: Any = _GLOROT_RELU) -> jax.Array:
            layer = SpectralConv if spectral else Conv
            return layer(self.width, (side, side), kernel_init=init, dtype=self.dtype, name=name)(x)

        def halved(x: jax.Array) -> jax.Array:
            return avg_pool(x, (2, 2))

        x = as_float(images, self.dtype)
        h = convolved(jax.nn.relu(convolved(x, 3, "block1_conv1")), 3, "block1_conv2")
        # What is linear commutes: pooled first, there is a quarter to convolve.
        x = halved(h) + convolved(halved(x), 1, "block1_shortcut", _GLOROT)
        for name in ("block2", "block3", "block4"):
            h = convolved(jax.nn.relu(x), 3, f"{name}_conv1")
            h = convolved(jax.nn.relu(h), 3, f"{name}_conv2")
            if name == "block2":
                h, x = halved(h), convolved(halved(x), 1, "block2_shortcut", _GLOROT)
            x = x + h
        x = jax.nn.relu(x)
        h_BF = x.sum((1, 2)) if spectral else x.mean((1, 2))
        last = SpectralDense if spectral else Dense
        logits = last(1, kernel_init=_GLOROT, dtype=self.dtype, name="head")(h_BF)[:, 0]
        if labels is not None:
            table = SpectralEmbed if spectral else linen.Embed
            options = {"embedding_init": _GLOROT, "dtype": self.dtype, "name": "projection"}
            e_BF = table(self.num_classes, self.width, **options)(labels)
            logits = logits + (e_BF.astype(h_BF.dtype) * h_BF).sum(-1)
        return logits


def _with_classes(inputs: Any, num_classes: int, dtype: Any) -> jax.Array:
    """Latents [B, Z], and beside them, where there are classes, the label as one-hot numbers.

    One number of size one a class, as published: an embedding as large as the latents drowns them out, and
    the generator learns one image a class.
    """
    z, labels = parts(inputs, "latents", num_classes)
    z = as_float(z, dtype)
    if labels is None:
        return z
    return jnp.concatenate([z, jax.nn.one_hot(labels, num_classes, dtype=z.dtype)], -1)


def _doublings(size: tuple[int, ...]) -> int:
    count = doublings((size[0], size[1]))
    if not count:
        raise ValueError(
            f"images of {size[0]}x{size[1]} cannot be halved to 4 pixels or more: pad them to a size such as "
            "28x28, 32x32 or 64x64"
        )
    return count


def _doubled(x_BHWC: jax.Array) -> jax.Array:
    """Every pixel four times."""
    B, H, W, C = x_BHWC.shape
    x = jnp.broadcast_to(x_BHWC[:, :, None, :, None], (B, H, 2, W, 2, C))
    return x.reshape(B, 2 * H, 2 * W, C)


def tiny() -> tuple[tuple[DCGANGenerator, DCGANDiscriminator], dict[str, np.ndarray]]:
    """A generator and a discriminator of 8x8 images of four classes, and a batch of 8 with its latents."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": np.tanh(rng.normal(size=(8, 8, 8, 1))).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
        "latents": rng.normal(size=(8, 4)).astype(np.float32),
    }
    players = DCGANGenerator((8, 8), 1, 8, 4), DCGANDiscriminator(4, "spectral", 4, dropout=0.1)
    return players, batch
