"""Variational autoencoders: a distribution of codes for each input.

Axes: as in `jdl.models.autoencoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.models.autoencoder import Activation, Decoder, Encoder, data_and_condition


class VAE(linen.Module):
    """An encoder to the mean and spread of a Gaussian over codes, and a decoder, conditional if asked.

    What is learned with it, and drawn from it, is the task's affair (`jdl.tasks.elbo`). Submodules are
    ``encoder`` and ``decoder``.

    Attributes:
        shape: of one example, without B.
        latent: Z, size of a code.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        convolutions: channels of 3x3 convolutions with stride 2 before them.
        classes: for inputs {"data": ..., "condition": integers [B]}, the number of classes; 0 for plain data.
        activation: after hidden layers.
        parameters: P, outputs for each value: those of the task's likelihood.
        dtype: of the computation; parameters stay float32.

    Example:
        >>> model = VAE(latent=20, hidden=(500,))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(x.size for x in jax.tree.leaves(variables))
        815824

    Reference:
        Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 3 and appendix C. Conditional:
        Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative
        models", 2015, section 4.
    """

    shape: Sequence[int] = (28, 28, 1)
    latent: int = 20
    hidden: Sequence[int] = (500,)
    convolutions: Sequence[int] = ()
    classes: int = 0
    activation: Activation = jax.nn.relu
    parameters: int = 1
    dtype: Any = None

    def setup(self) -> None:
        hidden, convolutions = tuple(self.hidden), tuple(self.convolutions)
        options = {"classes": self.classes, "activation": self.activation, "dtype": self.dtype}
        self.encoder = Encoder(2 * self.latent, hidden, convolutions, **options)
        self.decoder = Decoder(self.shape, hidden[::-1], convolutions[::-1], self.parameters, **options)

    def encode(self, inputs: Any, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Data [B, *shape] to the means [B, Z] of codes, and the logarithms of their standard deviations."""
        del train
        mean_BZ, log_std_BZ = jnp.split(self.encoder(inputs), 2, -1)
        return mean_BZ, log_std_BZ

    def decode(self, inputs: Any, train: bool = False) -> jax.Array:
        """Codes [B, Z] to outputs [B, *shape], or [B, *shape, P]."""
        del train
        return self.decoder(inputs)

    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        """Data [B, *shape] to the outputs of the mean code."""
        mean_BZ, _ = self.encode(inputs, train)
        _, condition = data_and_condition(inputs)
        return self.decode(mean_BZ if condition is None else {"data": mean_BZ, "condition": condition}, train)


def tiny() -> tuple[VAE, dict[str, Any]]:
    """A conditional VAE, and a batch of 8 binary images."""
    rng = np.random.default_rng(0)
    data = (rng.random((8, 4, 4, 1)) < 0.4).astype(np.float32)
    batch = {"inputs": {"data": data, "condition": np.arange(8, dtype=np.int32) % 2}}
    return VAE((4, 4, 1), 3, (8,), classes=2, activation=jnp.tanh), batch
