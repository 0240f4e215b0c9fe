"""Data: published sets, splits, batches, preprocessing and augmentation.

    >>> import jdl.data as data
    >>> digits = data.load("digits")
    >>> train, validation = data.split(digits.train, (0.9, 0.1), seed=0)
    >>> preprocess = data.fit_preprocess(train["inputs"], size=(8, 8))
    >>> batches = data.shuffled(train, batch_size=64)
    >>> preprocess(batches(0)["inputs"]).shape
    (64, 8, 8, 1)

Text becomes ids by a `Tokenizer`, and ids become batches as `windows` of a stream, `continuing_rows`, rows
that `pack` documents, or sequences `bucketed` by length:

    >>> text = data.load_text("tiny_shakespeare")
    >>> tokenizer = data.character_tokenizer(text.train)
    >>> batches = data.windows(tokenizer.encode(text.train), length=32, batch_size=4)
    >>> tokenizer.decode(batches(0)["inputs"][0])[:20]
    'ad when thou wast bo'

This package stands alone: it needs jax and numpy and nothing else of jdl.
"""

from jdl.data.augment import Transform, compose, cutout, one_of, random_crop, random_flip
from jdl.data.augment_color import color_jitter
from jdl.data.augment_differentiable import differentiable
from jdl.data.augment_mix import cutmix, mixup
from jdl.data.augment_policy import rand_augment, trivial_augment
from jdl.data.augment_shape import elastic, random_erasing, random_resized_crop
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
from jdl.data.borders import border_weights
from jdl.data.bpe import load_ranks, load_tokenizer, save_tokenizer, train_bpe
from jdl.data.bucketing import BucketedBatches, bucket_boundaries, bucketed, padded
from jdl.data.folder import FolderBatches, image_folder
from jdl.data.packing import pack
from jdl.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, fit_preprocess
from jdl.data.sentences import Labelled, Sentences
from jdl.data.sources import Dataset, load
from jdl.data.splits import k_fold, split
from jdl.data.text_sources import Pairs, Parallel, Text, load_parallel, load_sentences, load_text
from jdl.data.token_file import read_tokens, write_tokens
from jdl.data.tokenizer import Tokenizer, byte_tokenizer, character_tokenizer, decode_stream, word_tokenizer
from jdl.data.tokens import continuing_rows, windows, windows_in_order

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batches",
    "BucketedBatches",
    "Dataset",
    "FolderBatches",
    "GrainBatches",
    "HostBatches",
    "Labelled",
    "Pairs",
    "Parallel",
    "Preprocess",
    "ResidentBatches",
    "Sentences",
    "Text",
    "Tokenizer",
    "Transform",
    "border_weights",
    "bucket_boundaries",
    "bucketed",
    "byte_tokenizer",
    "character_tokenizer",
    "color_jitter",
    "compose",
    "continuing_rows",
    "cutmix",
    "cutout",
    "decode_stream",
    "differentiable",
    "elastic",
    "fingerprint",
    "fit_preprocess",
    "from_grain",
    "image_folder",
    "in_order",
    "k_fold",
    "load",
    "load_parallel",
    "load_ranks",
    "load_sentences",
    "load_text",
    "load_tokenizer",
    "mixup",
    "one_of",
    "pack",
    "padded",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_resized_crop",
    "read_tokens",
    "save_tokenizer",
    "shuffled",
    "split",
    "train_bpe",
    "trivial_augment",
    "windows",
    "windows_in_order",
    "word_tokenizer",
    "write_tokens",
]
