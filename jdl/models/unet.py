"""U-Net: down to a small image of many channels and up again, with the fine maps handed across.

Axes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.nn import Conv, ConvNorm, Stage, as_float, max_pool
from jdl.nn.blocks import require_images
from jdl.nn.dropout import Dropout
from jdl.nn.plain import ConvRelu, UpConv


def unet_output_size(size: int, depth: int = 4) -> int:
    """The side of the map that `UNet` gives for an image of side ``size`` when it does not pad.

    Labels are cut to it around their centre.

    Args:
        size: pixels.
        depth: number of halvings.

    Returns:
        Pixels.

    Raises:
        ValueError: if a map on the way cannot be halved; the message names the nearest sizes that can.

    Example:
        >>> unet_output_size(572)
        388
    """
    found = _valid_size(size, depth)
    if found is None:
        below = next((n for n in range(size, 0, -1) if _valid_size(n, depth)), None)
        above = next(n for n in range(size, size + 2**20) if _valid_size(n, depth))
        raise ValueError(
            f"a U-Net of depth {depth} without padding cannot halve every map of an image {size} pixels wide "
            f"or high; {'' if below is None else f'{below} and '}{above} pixels fit"
        )
    return found


def _valid_size(size: int, depth: int) -> int | None:
    """Each stage's two convolutions take 4 pixels; None where an odd or empty map is to be halved."""
    for _ in range(depth):
        size -= 4
        if size <= 0 or size % 2:
            return None
        size //= 2
    for _ in range(depth):
        size = 2 * (size - 4)
        if size <= 0:
            return None
    return size - 4 if size > 4 else None


class UNet(linen.Module):
    """Stages of two 3x3 convolutions: ``depth`` times halved and doubled in channels, and back.

    On the way up the image is doubled by a transposed convolution, and the map of the same size from the way
    down is put beside it. Submodules are ``stage1`` ... ``stage5`` (down), ``up4`` and ``decoder4`` ...
    ``up1`` and ``decoder1``, and ``head`` (1x1).

    Attributes:
        num_classes: logits of each pixel; 0 gives the last map [B, H, W, width] instead.
        width: channels of the first stage.
        depth: number of halvings.
        padding: "same" keeps the image's size. "valid", the paper's, computes only pixels whose whole
            surroundings are seen: 572x572 become 388x388 (`unet_output_size`).
        norm: batch normalisation in place of the biases, as most implementations have it today; the paper has
            none.
        dropout: share of values dropped in training after the two lowest stages of the way down.
        dtype: of the computation; parameters stay float32.

    Raises:
        ValueError: if the input is not images [B, H, W, C], or of a size that cannot be halved ``depth``
            times.

    Example:
        >>> from jdl.models import UNet
        >>> shape = lambda x, **options: jax.eval_shape(
        ...     lambda x: UNet(2, **options).init_with_output(jax.random.key(0), x)[0], x).shape
        >>> shape(jnp.zeros((1, 512, 512, 1))), shape(jnp.zeros((1, 572, 572, 1)), padding="valid")
        ((1, 512, 512, 2), (1, 388, 388, 2))

    Reference:
        Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation",
        2015, section 2 and figure 1.
    """

    num_classes: int = 2
    width: int = 64
    depth: int = 4
    padding: Literal["same", "valid"] = "same"
    norm: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @linen.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] to logits [B, H, W, num_classes]; H, W are less where padding is "valid"."""
        self._check(inputs)
        x = as_float(inputs, self.dtype)
        across = []
        for s in range(self.depth + 1):
            x = self._stage(s, f"stage{s + 1}")(x, train)
            if s >= self.depth - 1:
                x = Dropout(self.dropout, deterministic=not train)(x)
            if s < self.depth:
                across.append(x)
                x = max_pool(x, (2, 2))
        for s in reversed(range(self.depth)):
            x = UpConv(self.width * 2**s, dtype=self.dtype, name=f"up{s + 1}")(x)
            fine = across[s]
            top, left = (fine.shape[1] - x.shape[1]) // 2, (fine.shape[2] - x.shape[2]) // 2
            fine = fine[:, top : top + x.shape[1], left : left + x.shape[2]]
            x = self._stage(s, f"decoder{s + 1}")(jnp.concatenate([fine, x], -1), train)
        if not self.num_classes:
            return x
        return Conv(self.num_classes, (1, 1), dtype=self.dtype, name="head")(x)

    def _stage(self, s: int, name: str) -> Stage:
        if self.norm:
            padding = None if self.padding == "same" else "VALID"
            block: Any = functools.partial(ConvNorm, self.width * 2**s, padding=padding, dtype=self.dtype)
        else:
            pixels = None if self.padding == "same" else 0
            block = functools.partial(ConvRelu, self.width * 2**s, padding=pixels, dtype=self.dtype)
        return Stage([block, block], name=name)

    def _check(self, inputs: jax.Array) -> None:
        require_images(inputs, "UNet")
        if self.padding not in ("same", "valid"):
            raise ValueError(f'UNet has the paddings "same" and "valid"; got {self.padding!r}')
        if self.depth < 1:
            raise ValueError(f"UNet halves images at least once; got depth {self.depth}")
        H, W = inputs.shape[1:3]
        if self.padding == "valid":
            for size in (H, W):
                unet_output_size(size, self.depth)
        elif H % 2**self.depth or W % 2**self.depth:
            n = 2**self.depth
            raise ValueError(
                f"UNet halves images {self.depth} times: height and width must be multiples of {n}, got "
                f"{H}x{W}; pad to {-(-H // n) * n}x{-(-W // n) * n}, say by reflection, and cut the logits"
            )


def tiny() -> tuple[UNet, dict[str, np.ndarray]]:
    """A narrow network of one halving, and a batch of 8 with labels that can be told from the images."""
    inputs = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
    batch = {"inputs": inputs, "labels": (inputs[..., 0] > 0).astype(np.int32)}
    return UNet(2, width=8, depth=1, norm=True, dropout=0.1), batch
