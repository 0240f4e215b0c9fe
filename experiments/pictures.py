"""Pictures of every evaluation in a run's folder, and films of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdl.core import Variables

FOLDER = "pictures"


def save(sheet: Any, path: Path, *, enlarge: int = 2) -> None:
    """Writes an image [H, W, C] of 1 or 3 channels, values in 0..1, each pixel as a square of pixels."""
    _as_picture(sheet, enlarge).save(path)


def _as_picture(sheet: Any, enlarge: int) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('pictures need pillow: pip install -e ".[experiments]"') from None
    pixels = np.clip(np.round(255 * np.asarray(sheet, np.float32)), 0, 255).astype(np.uint8)
    pixels = pixels.repeat(enlarge, 0).repeat(enlarge, 1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _read(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.copy()


class Pictures:
    """An evaluator that draws with the model of each evaluation, and a logger that keeps what it drew.

    As files ``pictures/NAME-STEP.png`` of the run's folder. The name of a picture that a run which goes on
    draws again is the same, and so is the picture.

    Args:
        folder: the run's.
        draw: ``variables -> images [H, W, C]`` by name, values in 0..1.
        split: the evaluation set at which to draw.
        enlarge: side of the square that a pixel becomes.
    """

    def __init__(
        self,
        folder: Path,
        draw: Callable[[Variables], Mapping[str, Any]],
        split: str = "test",
        *,
        enlarge: int = 2,
    ):
        self.folder, self.draw, self.split, self.enlarge = folder / FOLDER, draw, split, enlarge
        self.drawn: Mapping[str, Any] = {}

    def __call__(self, predict: Any, batches: Any) -> None:
        """Draws; there is nothing to report."""
        del batches
        (variables,) = predict.args
        self.drawn = {name: np.asarray(sheet) for name, sheet in self.draw(variables).items()}

    def log(self, record: Mapping[str, Any]) -> None:
        """Writes what was drawn last, under the step that its record has."""
        if record["split"] != self.split:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, sheet in self.drawn.items():
            save(sheet, self.folder / f"{name}-{record['step']:06d}.png", enlarge=self.enlarge)
        self.drawn = {}

    def animate(self, milliseconds: int = 200) -> list[Path]:
        """Makes of all pictures of a name, step by step, a film NAME.gif, and says where they are."""
        names = sorted({path.stem.rsplit("-", 1)[0] for path in self.folder.glob("*-[0-9]*.png")})
        films = []
        for name in names:
            frames = [_read(path) for path in sorted(self.folder.glob(f"{name}-[0-9]*.png"))]
            films.append(self.folder / f"{name}.gif")
            # The last stands still for a while.
            times = [milliseconds] * (len(frames) - 1) + [10 * milliseconds]
            frames[0].save(films[-1], save_all=True, append_images=frames[1:], duration=times, loop=0)
        return films
