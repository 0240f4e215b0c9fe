"""Two convolutions and one product: the small network that one looks into first.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

from jdl.nn import BatchNorm, Conv, Dense, as_float, max_pool
from jdl.nn.dropout import Dropout


class TwoConv(linen.Module):
    """Convolution, max-pooling and ReLU, twice; then a linear layer.

    With 32 and 64 features on 28x28 images and without batch normalisation it is the network of 83,466
    parameters behind the row "2 Conv Layers net <100K parameters" of the Fashion-MNIST benchmark table.

    The last map is flattened by rows, columns, channels; PyTorch's channels come first there, and the rule
    ``("Dense_0", their name, "flat 7x7")`` of `jdl.interop.load_weights` reads its weights, of 28x28 images.

    Attributes:
        num_classes: number of outputs.
        features: of the two convolutions.
        kernel_size: height and width of their kernels; images are padded, so that they keep their size.
        batch_norm: normalise after each max-pooling, before the ReLU; the convolutions then have no bias.
        dropout: share of the last layer's inputs dropped in training.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the images are not [B, H, W, C] with H and W multiples of 4.

    Example:
        >>> import jax.numpy as jnp
        >>> for batch_norm in False, True:
        ...     model = TwoConv(batch_norm=batch_norm)
        ...     params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
        ...     print(batch_norm, sum(x.size for x in jax.tree.leaves(params)))
        False 83466
        True 83562

    Reference:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms", 2017, and the benchmark table of its repository. Normalised: Ioffe and Szegedy, "Batch
        normalization", 2015.
    """

    num_classes: int = 10
    features: Sequence[int] = (32, 64)
    kernel_size: tuple[int, int] = (5, 5)
    batch_norm: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, num_classes]."""
        if inputs.ndim != 4 or inputs.shape[1] % 4 or inputs.shape[2] % 4:
            raise ValueError(
                "TwoConv takes images [batch, height, width, channels], height and width multiples of 4; "
                f"got shape {tuple(inputs.shape)}"
            )
        x = as_float(inputs, self.dtype)
        for features in self.features:
            x = Conv(features, self.kernel_size, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            # Max-pooling and ReLU commute; pooled first, there is a quarter to normalise.
            x = max_pool(x, (2, 2))
            if self.batch_norm:
                x = BatchNorm(dtype=self.dtype)(x, train)
            x = jax.nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        x = Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, dtype=self.dtype)(x)


def tiny() -> tuple[TwoConv, dict[str, np.ndarray]]:
    """The published network with few features and dropout, on 8x8 images, and a batch of 8."""
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 8, 8, 1)).astype(np.float32),
        "labels": np.arange(8, dtype=np.int32) % 4,
    }
    return TwoConv(4, (4, 8), (3, 3), dropout=0.1), batch
