"""A folder of images, one sub-folder a class, as batches that are decoded when they are read.

Batch i stays a pure function of (seed, i), as `jdl.data.batches` says, and so does the part of every image
that training sees: the random crop of an image is drawn from (seed, epoch, index of the image). Neither the
number of threads nor what was read before has a part in it. Threads share the work of one batch, since Pillow
decodes and resizes outside Python's lock. Decoding needs Pillow.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.augment_shape import check_interval
from jdl.data.batches import _checked_order, _checked_step, _Order, _Stream, _with_weights
from jdl.data.decode import Crop, decode
from jdl.data.permutation import permute

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What files of images are called; case does not matter. What is in them Pillow finds out for itself."""

_CROPS = ("random", "center")
_ON_ERROR = ("raise", "skip")


class _Skipped:
    """Files that could not be read, across threads, and what a warning has told of them."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        self._told = 0
        self._lock = threading.Lock()

    def add(self, found: dict[str, str], epoch_ends: bool) -> None:
        """Warns of the first file at once, and of the others when an epoch ends."""
        with self._lock:
            self.errors.update(found)
            count, told = len(self.errors), self._told
            if count == told or (told and not epoch_ends):
                return
            self._told = count
            examples = "; ".join(list(self.errors.values())[:3])
        warnings.warn(
            f"unreadable images of weight zero: {count} so far: {examples}{'; ...' if count > 3 else ''} "
            "(the attribute skipped lists them)",
            stacklevel=3,
        )


@dataclass(frozen=True, eq=False, repr=False)
class FolderBatches(_Stream):
    """Host batches of image files, called with a Python integer.

    Attributes:
        root: the folder.
        files: names of the N files below it.
        labels: int32 [N], the class of each, an index into ``class_names``.
        class_names: C names.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    order: _Order
    crop: Crop
    threads: int
    on_error: str
    _skipped: _Skipped = field(default_factory=_Skipped, init=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the threads and what this object has skipped."""
        names = "root", "files", "labels", "class_names", "order", "crop", "threads", "on_error"
        return FolderBatches, tuple(getattr(self, name) for name in names)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the files that this object has found unreadable so far."""
        return tuple(sorted(self._skipped.errors))

    @functools.cached_property
    def fingerprint(self) -> str:
        """What identifies the files: sha256 over their names and sizes in bytes, and the classes' names.

        Their content is not read, which would take as long as an epoch.
        """
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for name in self.files:
            digest.update(f"\n{name} {os.stat(self.root / name).st_size}".encode())
        return digest.hexdigest()

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="images")

    def __call__(self, i: Any) -> dict[str, Any]:
        """Batch ``i``.

        Raises:
            IndexError: if ``i`` is negative, or past the end of one pass in order.
            TypeError: if ``i`` is no integer.
            OSError: if a file cannot be read; with ``on_error="skip"``, if all files of the batch cannot.
        """
        step, order = _checked_step(i, self.order), self.order
        rows, valid = order.rows(np.uint32(step), np)
        index, count = order.shard
        first = step * order.batch_size + index * (order.batch_size // count)
        epochs = [(first + j) // order.num_examples for j in range(len(rows))]
        read = list(self._pool.map(self._read, rows.tolist(), epochs))
        failed = {
            self.files[row]: x for row, x in zip(rows.tolist(), read, strict=True) if isinstance(x, str)
        }
        good = np.array([not isinstance(x, str) for x in read])
        if failed and not good.any():
            raise OSError(
                f"none of the {len(read)} images of batch {step} can be read: {next(iter(failed.values()))}"
            )
        end = (step + 1) * order.batch_size
        self._skipped.add(failed, order.num_examples <= end and end % order.num_examples < order.batch_size)
        # The place of an unreadable image is taken by the next one of the batch that can be read.
        places = np.arange(len(rows))
        source = np.flatnonzero(good)
        places = source[np.searchsorted(source, places) % len(source)]
        batch = {"inputs": np.stack([read[j] for j in places]), "labels": self.labels[rows[places]]}
        if self.on_error == "skip":
            valid = good if valid is None else good & valid
        return batch if valid is None else _with_weights(batch, valid, np)

    def _read(self, row: int, epoch: int) -> np.ndarray | str:
        path = self.root / self.files[row]
        rng = np.random.default_rng([self.order.seed or 0, epoch, row])
        try:
            return decode(path, self.crop, rng)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly every kind.
            message = f"{path}: {error}"
            if self.on_error == "raise":
                raise OSError(
                    f'cannot read the image {message}; on_error="skip" gives such images weight zero'
                ) from error
            return message


def _scan(root: Path, classes: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Class names, the images' names below the root, sorted, and their labels."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    found = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{root} must have one sub-folder of images a class, and has no sub-folders")
    names = tuple(found if classes is None else classes)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(f"{root} has sub-folders that are no classes: {', '.join(map(repr, unknown[:5]))}")
    if len(set(names)) < len(names):
        raise ValueError("classes must be different names")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = _images_below(root, name) if name in found else []
        if not images and classes is None:
            raise ValueError(
                f"class {name!r} has no images: {root / name} holds no file that ends in "
                f"{', '.join(EXTENSIONS)}; give classes to allow it"
            )
        files += images
        labels += [label] * len(images)
    if not files:
        raise ValueError(f"{root} has no images of the classes {', '.join(map(repr, names[:5]))}")
    return names, tuple(files), np.asarray(labels, np.int32)


def _images_below(root: Path, name: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise error

    # Strings, since a million paths as objects take half a minute.
    above = len(os.path.join(root, ""))
    return sorted(
        os.path.join(folder, file)[above:]
        for folder, _, files in os.walk(os.path.join(root, name), onerror=stop)
        for file in files
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    )


def image_folder(
    path: str | os.PathLike[str],
    batch_size: int,
    seed: int | None = None,
    *,
    size: int = 224,
    crop: str | None = None,
    resize: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    classes: Sequence[str] | None = None,
    on_error: str = "raise",
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> FolderBatches:
    """Batches of the images in a folder with one sub-folder a class, decoded when they are read.

    With a seed they are an endless shuffled stream as `shuffled` gives, for training; without, one pass in
    order as `in_order` gives, for evaluation. Class c is the c-th sub-folder in sorted order. Images are
    turned upright (EXIF) and made RGB.

    A file that cannot be read stops the run, or, with ``on_error="skip"``, has weight zero in ``weights``:
    its place in the batch is filled with the next readable image, so that shapes are static and BatchNorm
    sees real pixels, and nothing is counted twice. A warning names the first such file at once, and an epoch
    that found more ends with a warning of how many; ``batches.skipped`` lists them.

    Args:
        path: the folder.
        batch_size: B, as in `shuffled`.
        seed: integer in [0, 2**64), or None.
        size: height and width of the images, pixels.
        crop: ``"random"``, the default with a seed, cuts out a random rectangle and resizes it, as
            `random_resized_crop` does; ``"center"`` resizes the shorter side and cuts out the middle.
        resize: length of the shorter side before the middle is cut out, at least ``size``; None means
            ``size`` / 0.875, 256 for 224.
        scale: bounds of a random crop's share of the image's area.
        ratio: bounds of its width / height.
        classes: names of the sub-folders in the order of the labels; None takes those there are. Give the
            training set's (``batches.class_names``) where a folder may lack some.
        on_error: ``"raise"`` or ``"skip"``.
        threads: that decode a batch, at least 1; None takes one for each processor.
        shard: as in `shuffled`.

    Returns:
        A function of the step to the batch: ``inputs`` uint8 [B / count, size, size, 3], ``labels`` int32 [B
        / count] and, in one pass or with ``on_error="skip"``, ``weights`` float32 [B / count]. Its attributes
        are ``class_names``, ``files``, ``labels``, ``fingerprint``, ``skipped`` and those of `shuffled`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: if Pillow is not installed.
        ValueError: if there are no classes, a class has no images, or the options make no stream.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, color in (("grass", "green"), ("sea", "blue")):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (64, 48), color).save(folder / name / "1.jpg")
        >>> train = image_folder(folder, batch_size=2, seed=0, size=32)
        >>> train.class_names, train(0)["inputs"].shape, sorted(train(0)["labels"].tolist())
        (('grass', 'sea'), (2, 32, 32, 3), [0, 1])
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError('reading images needs pillow: pip install -e ".[data]"') from None
    crop = ("center" if seed is None else "random") if crop is None else crop
    if crop not in _CROPS:
        raise ValueError(f"crop must be one of {_CROPS}, got {crop!r}")
    if crop == "random" and seed is None:
        raise ValueError("random crops need a seed")
    if on_error not in _ON_ERROR:
        raise ValueError(f"on_error must be one of {_ON_ERROR}, got {on_error!r}")
    if not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1; got {size!r}")
    if resize is None:
        resize = round(size / 0.875)
    if resize < size:
        raise ValueError(f"resize must be at least size, {size} pixels; got {resize}")
    check_interval("scale", scale, highest=1)
    check_interval("ratio", ratio)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    root = Path(path)
    class_names, files, labels = _scan(root, classes)
    order = _checked_order({"labels": labels}, batch_size, seed, shard)
    if seed is not None:
        permute(np.zeros(1, np.uint32), len(files), seed)  # raises for a seed out of bounds
    cut = Crop(size, resize if crop == "center" else None, (scale[0], scale[1]), (ratio[0], ratio[1]))
    return FolderBatches(root, files, labels, class_names, order, cut, threads or _processors(), on_error)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
