"""What to learn: from a module to a `Task`, and from Task to Task."""

from jdl.tasks.adversarial import gan
from jdl.tasks.codes import (
    contraction,
    gaussian_noise,
    kl_sparsity,
    l1_sparsity,
    masking_noise,
    salt_and_pepper,
)
from jdl.tasks.language import next_token, seq2seq, token_classification
from jdl.tasks.masking import masked, span_corruption
from jdl.tasks.module import functions
from jdl.tasks.patches import masked_reconstruction
from jdl.tasks.quantized import vector_quantized
from jdl.tasks.reconstruction import reconstruction
from jdl.tasks.supervised import (
    classification,
    classification_score,
    regression,
    segmentation,
    segmentation_score,
    supervised,
)
from jdl.tasks.transforms import augmented, mixed_precision, preprocessed
from jdl.tasks.variational import LatentModel, elbo, importance_weighted, latent_model

__all__ = [
    "LatentModel",
    "augmented",
    "classification",
    "classification_score",
    "contraction",
    "elbo",
    "functions",
    "gan",
    "gaussian_noise",
    "importance_weighted",
    "kl_sparsity",
    "l1_sparsity",
    "latent_model",
    "masked",
    "masked_reconstruction",
    "masking_noise",
    "mixed_precision",
    "next_token",
    "preprocessed",
    "reconstruction",
    "regression",
    "salt_and_pepper",
    "segmentation",
    "segmentation_score",
    "seq2seq",
    "span_corruption",
    "supervised",
    "token_classification",
    "vector_quantized",
]
