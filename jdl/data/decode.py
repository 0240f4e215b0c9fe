"""From an image file to the pixels that a model sees. Needs Pillow."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdl.data.augment_shape import largest_box


@dataclass(frozen=True)
class Crop:
    """What part of an image is seen, and how large it comes out.

    ``resize`` is the length in pixels of the shorter side before the middle is cut out; None means a random
    crop.
    """

    size: int
    resize: int | None
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """(left, top, width, height) in pixels of an image of ``width`` by ``height``."""
        if self.resize is None:
            return self._random(width, height, rng)
        short = min(width, height)
        resized = int(self.resize * width / short), int(self.resize * height / short)
        left, top = (round((length - self.size) / 2) for length in resized)
        across, down = width / resized[0], height / resized[1]
        return left * across, top * down, self.size * across, self.size * down

    def _random(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        # Only `random`: numpy promises no stream from release to release, and this one is the least likely to
        # change.
        low, high = np.log(self.ratio)
        for share, shape, x, y in rng.random((10, 4)):
            area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 1 <= w <= width and 1 <= h <= height:
                return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
        h, w = largest_box((height, width), self.ratio)
        return (width - w) // 2, (height - h) // 2, w, h


_ORIENTATION = 0x0112  # EXIF's number for it; 5 to 8 exchange rows and columns.


def decode(path: str | os.PathLike[str], crop: Crop, rng: np.random.Generator) -> np.ndarray:
    """Part of an image file, upright and in RGB: uint8 [size, size, 3]."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
        turned = orientation in (5, 6, 7, 8)
        width, height = image.size[::-1] if turned else image.size
        left, top, w, h = crop.box(width, height, rng)
        # JPEG decodes to a half, a quarter or an eighth at a fraction of the cost. A random crop takes what
        # is no smaller than its output; an evaluation keeps twice that, so that the result hardly changes.
        enough = crop.size * (1 if crop.resize is None else 2)
        wanted = math.ceil(width * enough / w), math.ceil(height * enough / h)
        image.draft(None, wanted[::-1] if turned else wanted)
        upright = image if orientation == 1 else ImageOps.exif_transpose(image)
        across, down = upright.width / width, upright.height / height
        right, bottom = min((left + w) * across, upright.width), min((top + h) * down, upright.height)
        part = _rgb(upright).resize(
            (crop.size, crop.size), Image.Resampling.BILINEAR, (left * across, top * down, right, bottom)
        )
    return np.asarray(part)


def _rgb(image: Any) -> Any:
    """An image in RGB; what is transparent loses its transparency, and 16 bits their lower half.

    Raises:
        ValueError: if the pixels have no known range.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
