"""VQ-VAE: an image as a small map of entries of a codebook.

Axes: B batch, H height, W width, C channels, D size of an entry, P parameters of one value.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import Conv, Stage, as_float
from jdl.nn.blocks import require_images
from jdl.nn.doubling import Double, Halve
from jdl.nn.quantization import Codebook, Quantized


class ResidualBlock(linen.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))).

    Attributes:
        hidden: channels between the two.
        dtype: of the computation.
    """

    hidden: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] to the same shape."""
        h = Conv(self.hidden, (3, 3), dtype=self.dtype, name="conv1")(jax.nn.relu(x_BHWC))
        return x_BHWC + Conv(x_BHWC.shape[-1], (1, 1), dtype=self.dtype, name="conv2")(jax.nn.relu(h))


class VQEncoder(linen.Module):
    """Convolutions that halve the image, residual blocks, a 1x1 convolution to vectors.

    Attributes:
        width: channels; half as many after the first of several halvings.
        depth: number of residual blocks.
        halvings: how often the image is halved.
        size: D, of a vector.
        dtype: of the computation.
    """

    width: int
    depth: int
    halvings: int
    size: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to vectors [B, h, w, D]."""
        for i in range(self.halvings):
            width = self.width // 2 if i == 0 and self.halvings > 1 else self.width
            x_BHWC = jax.nn.relu(Halve(width, dtype=self.dtype, name=f"down{i + 1}")(x_BHWC))
        x_BHWC = Conv(self.width, (3, 3), dtype=self.dtype, name="conv")(x_BHWC)
        block = functools.partial(ResidualBlock, max(1, self.width // 4), self.dtype)
        x_BHWC = jax.nn.relu(Stage([block] * self.depth, name="blocks")(x_BHWC, train))
        return Conv(self.size, (1, 1), dtype=self.dtype, name="project")(x_BHWC)


class VQDecoder(linen.Module):
    """A convolution, residual blocks, transposed convolutions that double the image.

    Attributes:
        width: channels; half as many between two doublings.
        depth: number of residual blocks.
        doublings: how often the map is doubled.
        outputs: channels of what it gives.
        dtype: of the computation.
    """

    width: int
    depth: int
    doublings: int
    outputs: int
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BHWD: jax.Array, train: bool = False) -> jax.Array:
        """Vectors [B, h, w, D] to [B, H, W, outputs]."""
        x = Conv(self.width, (3, 3), dtype=self.dtype, name="conv")(as_float(x_BHWD, self.dtype))
        block = functools.partial(ResidualBlock, max(1, self.width // 4), self.dtype)
        x = jax.nn.relu(Stage([block] * self.depth, name="blocks")(x, train))
        for i in range(self.doublings):
            is_last = i == self.doublings - 1
            width = self.outputs if is_last else self.width // 2
            up = Double(width, dtype=self.dtype, name=f"up{i + 1}")
            x = up(x) if is_last else jax.nn.relu(up(x))
        return x


class VQVAE(linen.Module):
    """Encoder, codebook and decoder, for `jdl.tasks.vector_quantized`.

    Submodules are ``encoder``, ``codebook`` (`jdl.nn.quantization.Codebook`) and ``decoder``. The codes of
    trained images are `codes`, and `decode_codes` makes images of codes, such as a prior over them writes
    (`jdl.models.PixelCNN`).

    Attributes:
        shape: of one image, [H, W, C].
        width: channels.
        depth: residual blocks in the encoder and in the decoder.
        halvings: how often the map of codes is halved against the image.
        entries: of the codebook.
        size: D, of an entry.
        decay: share of the codebook's moving averages kept at each step; None learns it by gradients.
        restart: an entry used less often than this in a batch, on average, starts again; 0 for never.
        parameters: P, outputs for each value: those of the task's likelihood.
        dtype: of the computation; vectors are compared with the codebook in float32.

    Raises:
        ValueError: if the image cannot be halved so often.

    Example:
        >>> import jax.numpy as jnp
        >>> model, images = VQVAE((32, 32, 3)), jnp.zeros((2, 32, 32, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(lambda v: model.apply(v, images, method="codes"), variables).shape
        (2, 8, 8)

    Reference:
        Van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", 2017, section 4.1.
    """

    shape: Sequence[int] = (32, 32, 3)
    width: int = 128
    depth: int = 2
    halvings: int = 2
    entries: int = 512
    size: int = 64
    decay: float | None = 0.99
    restart: float = 0.0
    parameters: int = 1
    dtype: Any = None

    def setup(self) -> None:
        factor = 2**self.halvings
        if len(self.shape) != 3 or self.shape[0] % factor or self.shape[1] % factor:
            raise ValueError(
                f"VQVAE halves images [height, width, channels] {self.halvings} times, so their sides are "
                f"multiples of {factor}; got the shape {tuple(self.shape)}"
            )
        layout = self.width, self.depth, self.halvings
        self.encoder = VQEncoder(*layout, self.size, self.dtype)
        self.decoder = VQDecoder(*layout, self.shape[-1] * self.parameters, self.dtype)
        self.codebook = Codebook(self.entries, self.size, self.decay, self.restart)

    def encode(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to vectors [B, h, w, D]."""
        require_images(inputs, "VQVAE", smallest=2**self.halvings)
        return self.encoder(as_float(inputs, self.dtype), train)

    def quantize(self, inputs: Mapping[str, jax.Array], train: bool = False) -> Quantized:
        """{"vectors": [B, h, w, D], "weights": [B] or missing} to `Quantized`."""
        return self.codebook(inputs["vectors"], inputs.get("weights"), train)

    def decode(self, vectors: jax.Array, train: bool = False) -> jax.Array:
        """Entries [B, h, w, D] to outputs [B, H, W, C], or [B, H, W, C, P]."""
        outputs = self.decoder(vectors, train)
        P = self.parameters
        return outputs.reshape(*outputs.shape[:-1], -1, P) if P > 1 else outputs

    def codes(self, inputs: jax.Array) -> jax.Array:
        """Images [B, H, W, C] to their entries, int32 [B, h, w]."""
        return self.codebook(self.encode(inputs)).codes

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Entries, int [B, h, w], to outputs as of `decode`."""
        return self.decode(self.codebook.lookup(codes))

    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to outputs of the same shape, or [B, H, W, C, P]."""
        return self.decode(self.codebook(self.encode(inputs, train)).values, train)


def tiny() -> tuple[VQVAE, dict[str, np.ndarray]]:
    """A network with two entries that follow as moving averages, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.normal(size=(8, 4, 4, 1)).astype(np.float32)}
    return VQVAE((4, 4, 1), 4, 1, 1, entries=3, size=2, decay=0.9), batch
