"""What is done to raw images before a model sees them, as a value that is saved with the model."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HOW = ("pad", "resize", "crop")
_INTERPOLATION = ("bilinear", "bicubic")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue of ImageNet's photographs, as most published weights are trained with."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow


@jax.tree_util.register_static
@dataclass(frozen=True)
class Preprocess:
    """Raw images to what a model takes: scale, convert channels, bring to one size, normalise.

    uint8 is divided by 255; floating point is taken to be in [0, 1] already. Then ::

        output = (fit_to_size(to_channels(image)) - mean) / std

    Grey becomes RGB by repetition and RGB becomes grey as 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
    Interpolation is with antialiasing, as in Pillow.

    Attributes:
        size: (height, width) of the output, pixels; None leaves the size alone.
        how: ``"resize"`` stretches to ``size``; ``"pad"`` keeps the proportions: an image that does not fit
            is shrunk until it does, and black is added around the centred image; ``"crop"`` keeps the
            proportions too and cuts the middle out, of an image scaled so that ``size`` is a share ``crop``
            of it in the tighter direction.
        channels: 1 or 3; None leaves the channels alone.
        mean: of each output channel, after the scaling to [0, 1].
        std: of each output channel, positive.
        crop: that share, in (0, 1]; 0.875 takes 224 pixels out of 256, as published weights often want it.
        interpolation: "bilinear" or "bicubic".

    A Preprocess is hashable and static under `jax.jit`, so it may be an argument or be closed over.

    Example:
        >>> preprocess = Preprocess(size=(4, 4), channels=1, mean=(0.5,), std=(0.5,))
        >>> preprocess(np.full((2, 2, 3), 255, np.uint8))[..., 0]  # one image, of any size
        Array([[-1., -1., -1., -1.],
               [-1.,  1.,  1., -1.],
               [-1.,  1.,  1., -1.],
               [-1., -1., -1., -1.]], dtype=float32)
        >>> Preprocess.from_json(preprocess.to_json()) == preprocess
        True
        >>> imagenet = Preprocess((224, 224), "crop", 3, IMAGENET_MEAN, IMAGENET_STD)
        >>> imagenet(np.zeros((300, 500, 3), np.uint8)).shape
        (224, 224, 3)
    """

    size: tuple[int, int] | None = None
    how: str = "pad"
    channels: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop: float = 0.875
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        size = None if self.size is None else tuple(int(x) for x in self.size)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "mean", tuple(float(x) for x in self.mean))
        object.__setattr__(self, "std", tuple(float(x) for x in self.std))
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"size must be (height, width) in pixels, both positive; got {self.size}")
        if self.how not in _HOW:
            raise ValueError(f"how must be one of {_HOW}, got {self.how!r}")
        if self.how == "crop" and size is None:
            raise ValueError('how="crop" needs a size to cut out')
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop, a share, must be above 0 and at most 1; got {self.crop}")
        if self.interpolation not in _INTERPOLATION:
            raise ValueError(f"interpolation must be one of {_INTERPOLATION}, got {self.interpolation!r}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1, 3 or None, got {self.channels}")
        if len(self.mean) != len(self.std) or (
            self.channels is not None and len(self.mean) not in (1, self.channels)
        ):
            raise ValueError(
                f"mean {self.mean} and std {self.std} must have one value a channel ({self.channels})"
            )
        if not all(0 < x < float("inf") for x in self.std) or not all(np.isfinite(self.mean)):
            raise ValueError(f"mean must be finite and std positive, got {self.mean} and {self.std}")

    def __call__(self, images: Any) -> jax.Array:
        """Applies it to one image or a batch, with or without `jax.jit`.

        Args:
            images: uint8 in 0..255, bool, or floating point in [0, 1]: a batch [B, H, W, C], one image [H, W,
                C] or one grey image [H, W].

        Returns:
            float32 [B, height, width, channels], without B for one image.

        Raises:
            ValueError: if the rank, the type or the number of channels is none of those.
        """
        images = self._shaped(images)
        if images.shape[-1] != len(self.mean) and len(self.mean) != 1:
            raise ValueError(
                f"images have {images.shape[-1]} channels, mean and std are for {len(self.mean)}"
            )
        shape = (1,) * (images.ndim - 1) + (-1,)
        mean = jnp.asarray(self.mean, jnp.float32).reshape(shape)
        return (images - mean) / jnp.asarray(self.std, jnp.float32).reshape(shape)

    def _shaped(self, images: Any) -> jax.Array:
        """All but the normalisation."""
        images = jnp.asarray(images)
        if images.ndim not in (2, 3, 4):
            raise ValueError(
                f"images must be [B, H, W, C], or one image [H, W, C] or [H, W]; got shape {images.shape}"
            )
        if images.ndim == 2:
            images = images[..., None]
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        elif jnp.issubdtype(images.dtype, jnp.floating) or images.dtype == jnp.bool_:
            images = images.astype(jnp.float32)
        else:
            raise ValueError(
                f"images must be uint8 in 0..255 or floating point in [0, 1], got {images.dtype}"
            )
        return self._sized(self._converted(images))

    def _converted(self, images: jax.Array) -> jax.Array:
        have = images.shape[-1]
        if self.channels in (None, have):
            return images
        if (have, self.channels) == (1, 3):
            return jnp.repeat(images, 3, axis=-1)
        if (have, self.channels) == (3, 1):
            # A sum of three products and no matrix product, which accelerators may round to bfloat16.
            return sum(images[..., c : c + 1] * _LUMA[c] for c in range(3))  # type: ignore[return-value]
        raise ValueError(f"images with {have} channels do not become images with {self.channels}")

    def _sized(self, images: jax.Array) -> jax.Array:
        *_, have_height, have_width, channels = images.shape
        if self.size is None or (self.size == (have_height, have_width) and self.how != "crop"):
            return images
        height, width = self.size
        if self.how == "crop":
            grow = max(int(height / self.crop) / have_height, int(width / self.crop) / have_width)
            height, width = round(have_height * grow), round(have_width * grow)
        if self.how == "pad":
            shrink = min(height / have_height, width / have_width, 1.0)
            height, width = max(1, round(have_height * shrink)), max(1, round(have_width * shrink))
        if (height, width) != (have_height, have_width):
            shape = (*images.shape[:-3], height, width, channels)
            images = jax.image.resize(images, shape, self.interpolation)
        if self.how == "crop":
            top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
            return images[..., top : top + self.size[0], left : left + self.size[1], :]
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        around = [(top, self.size[0] - height - top), (left, self.size[1] - width - left), (0, 0)]
        return jnp.pad(images, [(0, 0)] * (images.ndim - 3) + around)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """What `to_json` gave.

        Raises:
            ValueError: if there are entries that a Preprocess does not have, or values it does not take.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"a Preprocess has no {', '.join(unknown)}")
        return cls(**values)


@functools.partial(jax.jit, static_argnums=0)
def _shape(preprocess: Preprocess, images: jax.Array) -> jax.Array:
    return preprocess._shaped(images)


def fit_preprocess(
    images: Any, size: tuple[int, int] | None = (32, 32), how: str = "pad", *, channels: int | None = None
) -> Preprocess:
    """The `Preprocess` that gives these images mean 0 and standard deviation 1 in every channel.

    Mean and deviation are those of the images as the model gets them, the black around them included. Give it
    the training images only: statistics of the test set are knowledge of the test set.

    Args:
        images: [N, H, W, C], uint8 or floating point in [0, 1]; an ``np.memmap`` is read in chunks.
        size: as in `Preprocess`.
        how: as in `Preprocess`.
        channels: as in `Preprocess`.

    Returns:
        The `Preprocess`. A channel without variation gets standard deviation 1.

    Raises:
        ValueError: if there are no images, or `Preprocess` does not take them.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
        >>> preprocess = fit_preprocess(images, size=(8, 8))
        >>> abs(float(preprocess(images).mean())) < 1e-5
        True
    """
    if np.ndim(images) != 4 or not len(images):
        raise ValueError(f"statistics need a batch of images [N, H, W, C], got shape {np.shape(images)}")
    preprocess = Preprocess(None if size is None else (size[0], size[1]), how, channels)
    chunk = max(1, 2**24 // int(np.prod(np.shape(images)[1:])))
    count, total, square = 0, np.zeros(()), np.zeros(())
    for start in range(0, len(images), chunk):
        values = np.asarray(_shape(preprocess, np.asarray(images[start : start + chunk])), np.float64)
        values = values.reshape(-1, values.shape[-1])
        count += len(values)
        total = total + values.sum(0)
        square = square + np.square(values).sum(0)
    mean = total / count
    variance = np.maximum(square / count - mean**2, 0)
    std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
    return Preprocess(preprocess.size, how, channels, tuple(mean.tolist()), tuple(std.tolist()))
