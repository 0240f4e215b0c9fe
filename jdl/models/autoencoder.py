"""Autoencoders: a code of an input, and the input again from its code.

Every model of this kind has the methods ``encode`` and ``decode``, and is called as one after the other.
Where something is known beside the data (a class), inputs are a dictionary with "data" and "condition",
integers [B], and what is decoded is one with the code as "data".

Axes: B batch, H height, W width, C channels, F features, Z code, P parameters of one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import Conv, Dense, as_float
from jdl.nn.plain import UpConv

Activation = Callable[[jax.Array], jax.Array]


def data_and_condition(inputs: Any) -> tuple[jax.Array, jax.Array | None]:
    """The two parts of inputs; an array is data without a condition."""
    if isinstance(inputs, Mapping):
        return inputs["data"], inputs.get("condition")
    return inputs, None


class Encoder(linen.Module):
    """Convolutions that halve the image, then fully connected layers; the last is linear.

    Attributes:
        outputs: width of the last layer.
        hidden: widths of the layers before it.
        convolutions: channels of 3x3 convolutions with stride 2 that come first.
        classes: a condition is one of so many; 0 where there is none.
        activation: after every layer but the last.
        dtype: of the computation.

    Example:
        >>> Encoder(5, (16,), (4,)).init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 1)))[0].shape
        (2, 5)
    """

    outputs: int
    hidden: Sequence[int] = ()
    convolutions: Sequence[int] = ()
    classes: int = 0
    activation: Activation = jax.nn.relu
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any) -> jax.Array:
        """Data [B, ...] to [B, outputs]."""
        x, condition = data_and_condition(inputs)
        x = as_float(x, self.dtype)
        for width in self.convolutions:
            x = self.activation(Conv(width, (3, 3), (2, 2), dtype=self.dtype)(x))
        x_BF = with_condition(x.reshape(x.shape[0], -1), condition, self.classes)
        for width in self.hidden:
            x_BF = self.activation(Dense(width, dtype=self.dtype)(x_BF))
        return Dense(self.outputs, dtype=self.dtype)(x_BF)


class Decoder(linen.Module):
    """The mirror of `Encoder`: fully connected layers, then transposed convolutions that double the image.

    Attributes:
        shape: of one example, without B.
        hidden: widths of the layers, in the order in which they come.
        convolutions: channels of the image before each doubling.
        parameters: P; the outputs have an axis of so many more where it is not 1.
        classes: as in `Encoder`.
        activation: after every layer but the last.
        dtype: of the computation.

    Raises:
        ValueError: if the shape's sides cannot be halved as often as there are convolutions.

    Example:
        >>> Decoder((8, 8, 1), (16,), (4,)).init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
        (2, 8, 8, 1)
    """

    shape: Sequence[int]
    hidden: Sequence[int] = ()
    convolutions: Sequence[int] = ()
    parameters: int = 1
    classes: int = 0
    activation: Activation = jax.nn.relu
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any) -> jax.Array:
        """Codes [B, Z] to [B, *shape], or [B, *shape, P]."""
        z, condition = data_and_condition(inputs)
        x_BF = with_condition(as_float(z, self.dtype), condition, self.classes)
        for width in self.hidden:
            x_BF = self.activation(Dense(width, dtype=self.dtype)(x_BF))
        B, P = x_BF.shape[0], self.parameters
        if not self.convolutions:
            x = Dense(math.prod(self.shape) * P, dtype=self.dtype)(x_BF)
            return x.reshape(B, *self.shape, *((P,) if P > 1 else ()))
        factor = 2 ** len(self.convolutions)
        if len(self.shape) != 3 or self.shape[0] % factor or self.shape[1] % factor:
            raise ValueError(
                f"{len(self.convolutions)} convolutions halve images [height, width, channels] with sides "
                f"that are multiples of {factor}; got the shape {tuple(self.shape)}"
            )
        H, W, C = self.shape
        first = (H // factor, W // factor, self.convolutions[0])
        x = self.activation(Dense(math.prod(first), dtype=self.dtype)(x_BF)).reshape(B, *first)
        for width in self.convolutions[1:]:
            x = self.activation(UpConv(width, dtype=self.dtype)(x))
        # Each pixel of a doubled image comes from one pixel alone: a 3x3 convolution lets neighbours agree.
        x = self.activation(UpConv(self.convolutions[-1], dtype=self.dtype)(x))
        x = Conv(C * P, (3, 3), dtype=self.dtype)(x)
        return x.reshape(B, H, W, C, P) if P > 1 else x


def with_condition(x_BF: jax.Array, condition: jax.Array | None, classes: int) -> jax.Array:
    """Features with a condition's one-hot code behind them.

    Raises:
        ValueError: if there is a condition and the model knows of no classes, or the other way round.
    """
    if condition is None and not classes:
        return x_BF
    if condition is None or not classes:
        raise ValueError(
            f"a model with classes={classes} takes "
            + ('inputs {"data": ..., "condition": integers [B]}' if classes else "inputs without a condition")
        )
    return jnp.concatenate([x_BF, jax.nn.one_hot(condition, classes, dtype=x_BF.dtype)], -1)


class Autoencoder(linen.Module):
    """An encoder to a short code and its mirror image, fully connected or convolutional.

    Plain with ``features=(32,)``, deep with more; what else an autoencoder may be is asked of its code
    (`jdl.tasks.reconstruction`). Submodules are ``encoder`` and ``decoder``.

    Attributes:
        shape: of one example, without B.
        features: widths of the encoder's layers, the last one of which is the code, Z.
        convolutions: channels of 3x3 convolutions with stride 2 before them.
        activation: after hidden layers.
        code_activation: of the code; None leaves it linear.
        sparsity: keep only so many of a code's largest entries and set the others to zero; None keeps all.
        parameters: P, outputs for each value: those of the task's likelihood.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> model = Autoencoder((28, 28, 1), (1000, 500, 250, 30), activation=jax.nn.sigmoid)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(x.size for x in jax.tree.leaves(variables))
        2837314

    Reference:
        Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", 2006. Sparsity:
        Makhzani and Frey, "k-sparse autoencoders", 2014, algorithm 1.
    """

    shape: Sequence[int] = (28, 28, 1)
    features: Sequence[int] = (1000, 500, 250, 30)
    convolutions: Sequence[int] = ()
    activation: Activation = jax.nn.relu
    code_activation: Activation | None = None
    sparsity: int | None = None
    parameters: int = 1
    dtype: Any = None

    def setup(self) -> None:
        if not self.features:
            raise ValueError("Autoencoder needs at least one width in features, that of its code; got none")
        *hidden, Z = self.features
        if self.sparsity is not None and not 1 <= self.sparsity <= Z:
            raise ValueError(f"sparsity keeps 1 to {Z} entries of a code of {Z}; got {self.sparsity}")
        options = {"activation": self.activation, "dtype": self.dtype}
        self.encoder = Encoder(Z, hidden, self.convolutions, **options)
        back = hidden[::-1], self.convolutions[::-1]
        self.decoder = Decoder(self.shape, *back, self.parameters, **options)

    def encode(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Data [B, *shape] to codes [B, Z]."""
        del train
        code_BZ = self.encoder(inputs)
        if self.code_activation is not None:
            code_BZ = self.code_activation(code_BZ)
        if self.sparsity is not None:
            # By their places: of equal entries no more than so many are kept.
            kept = jax.lax.top_k(code_BZ, self.sparsity)[1]
            code_BZ = code_BZ * jax.nn.one_hot(kept, code_BZ.shape[-1], dtype=code_BZ.dtype).sum(1)
        return code_BZ

    def decode(self, code_BZ: jax.Array, train: bool = False) -> jax.Array:
        """Codes [B, Z] to outputs [B, *shape], or [B, *shape, P]."""
        del train
        return self.decoder(code_BZ)

    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Data [B, *shape] to outputs [B, *shape], or [B, *shape, P]."""
        return self.decode(self.encode(inputs, train), train)


def tiny() -> tuple[Autoencoder, dict[str, np.ndarray]]:
    """A convolutional autoencoder, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.normal(size=(8, 4, 4, 1)).astype(np.float32)}
    return Autoencoder((4, 4, 1), (12, 4), (3,), activation=jax.nn.gelu), batch
