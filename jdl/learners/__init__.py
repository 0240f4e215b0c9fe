"""How to learn: from Task to `Learner`, and from Learner to Learner."""

from jdl.learners.adversarial import gan
from jdl.learners.constraints import max_norm
from jdl.learners.gradient import gradient
from jdl.learners.groups import decays, label_by_path, mask_by_path, scale_by_path
from jdl.learners.transforms import averaged, ensemble, grid, mean_probabilities, sweep

__all__ = [
    "averaged",
    "decays",
    "ensemble",
    "gan",
    "gradient",
    "grid",
    "label_by_path",
    "mask_by_path",
    "max_norm",
    "mean_probabilities",
    "scale_by_path",
    "sweep",
]
