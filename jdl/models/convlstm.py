"""Recurrent networks of images, for sequences of them.

Axes: B batch, T frames, H height, W width, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.core import Array
from jdl.nn import Conv, ConvLSTM
from jdl.nn.dropout import Dropout
from jdl.nn.linear import as_float


class ConvLSTMNet(linen.Module):
    """Layers of `jdl.nn.ConvLSTM` that say something about each frame, or forecast those to come.

    Without a horizon, a 1x1 convolution of all layers' outputs at each frame. With one, an encoder reads the
    frames, and a forecaster, whose layers begin in the encoder's last states, writes as many frames as the
    horizon; at each it is given the last output of the encoder (the paper's is given nothing). Submodules are
    ``encoder1``, ``encoder2``, ..., ``forecaster1``, ..., and ``head``.

    Attributes:
        outputs: channels of an output frame.
        features: F of each layer.
        horizon: frames to forecast; 0 for an output at each frame given.
        kernel: side of the layers' kernels.
        peephole: as in `jdl.nn.ConvLSTM`.
        dropout: of the head's inputs.
        recurrent_dropout: of the states, as in `jdl.nn.ConvLSTM`.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the inputs are not sequences of images [B, T, H, W, C], bare or as "sequence" beside
            "lengths"; or for a rate out of range.

    Example:
        >>> import jax
        >>> model = ConvLSTMNet(1, (4, 4), horizon=5)
        >>> x = jnp.ones((2, 3, 8, 8, 1))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x)[0]).shape
        (2, 5, 8, 8, 1)

    Reference:
        Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation nowcasting",
        2015, section 3.
    """

    outputs: int
    features: Sequence[int] = (64, 64)
    horizon: int = 0
    kernel: int = 3
    peephole: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: Any, train: bool = False) -> Array:
        """Frames [B, T, H, W, C] to frames [B, T or horizon, H, W, outputs]."""
        given = inputs if isinstance(inputs, Mapping) else {"sequence": inputs}
        if "sequence" not in given or given["sequence"].ndim != 5 or set(given) - {"sequence", "lengths"}:
            shapes = {name: tuple(x.shape) for name, x in given.items()}
            raise ValueError(
                'ConvLSTMNet takes a "sequence" of images [batch, time, height, width, channels] and its '
                f'"lengths"; got {shapes}'
            )
        x, lengths = as_float(given["sequence"], self.dtype), given.get("lengths")
        B, _, H, W, _ = x.shape

        def layer(kind: str, i: int, F: int) -> ConvLSTM:
            return ConvLSTM(
                F,
                self.kernel,
                self.peephole,
                recurrent_dropout=self.recurrent_dropout,
                dtype=self.dtype,
                name=f"{kind}{i}",
            )

        seen, states = [], []
        for i, F in enumerate(self.features, 1):
            x, state = layer("encoder", i, F)(x, lengths, None, train)
            seen.append(x)
            states.append(state)
        if self.horizon:
            last = states[-1][0].astype(x.dtype)[:, None]
            x, seen = jnp.broadcast_to(last, (B, self.horizon, H, W, last.shape[-1])), []
            for i, F in enumerate(self.features, 1):
                x, _ = layer("forecaster", i, F)(x, None, states[i - 1], train)
                seen.append(x)
        y = jnp.concatenate(seen, -1)
        y = Dropout(self.dropout, deterministic=not train)(y)
        return Conv(self.outputs, (1, 1), dtype=self.dtype, name="head")(y)


def tiny() -> tuple[ConvLSTMNet, dict[str, Any]]:
    """A layer with dropout, and a batch of 8 of which two rows are padded."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 1, 3, 3, 3, 2, 3, 3], np.int32)
    sequence = rng.normal(size=(8, 3, 4, 4, 1)).astype(np.float32)
    return ConvLSTMNet(2, (3,), dropout=0.1), {"inputs": {"sequence": sequence, "lengths": lengths}}
