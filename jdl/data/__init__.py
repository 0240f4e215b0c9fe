"""Data: published sets, splits, batches, preprocessing and augmentation.

    >>> import jdl.data as data
    >>> digits = data.load("digits")
    >>> train, validation = data.split(digits.train, (0.9, 0.1), seed=0)
    >>> preprocess = data.fit_preprocess(train["inputs"], size=(8, 8))
    >>> batches = data.shuffled(train, batch_size=64)
    >>> preprocess(batches(0)["inputs"]).shape
    (64, 8, 8, 1)

This package stands alone: it needs jax and numpy and nothing else of jdl.
"""

from jdl.data.augment import Transform, compose, cutout, mixup, random_crop, random_flip
from jdl.data.batches import (
    Batches,
    GrainBatches,
    HostBatches,
    ResidentBatches,
    fingerprint,
    from_grain,
    in_order,
    shuffled,
)
from jdl.data.preprocess import Preprocess, fit_preprocess
from jdl.data.sources import Dataset, Text, load, load_text
from jdl.data.splits import k_fold, split

__all__ = [
    "Batches",
    "Dataset",
    "GrainBatches",
    "HostBatches",
    "Preprocess",
    "ResidentBatches",
    "Text",
    "Transform",
    "compose",
    "cutout",
    "fingerprint",
    "fit_preprocess",
    "from_grain",
    "in_order",
    "k_fold",
    "load",
    "load_text",
    "mixup",
    "random_crop",
    "random_flip",
    "shuffled",
    "split",
]
