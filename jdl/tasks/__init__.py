"""What to learn: from a module to a `Task`, and from Task to Task."""

from jdl.tasks.adversarial import gan
from jdl.tasks.language import next_token, seq2seq, token_classification
from jdl.tasks.masking import masked, span_corruption
from jdl.tasks.module import functions
from jdl.tasks.supervised import (
    classification,
    classification_score,
    regression,
    segmentation,
    segmentation_score,
    supervised,
)
from jdl.tasks.transforms import augmented, mixed_precision, preprocessed

__all__ = [
    "augmented",
    "classification",
    "classification_score",
    "functions",
    "gan",
    "masked",
    "mixed_precision",
    "next_token",
    "preprocessed",
    "regression",
    "segmentation",
    "segmentation_score",
    "seq2seq",
    "span_corruption",
    "supervised",
    "token_classification",
]
