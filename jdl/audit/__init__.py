"""Questions put to a trained function.

What it has learnt: `activations`, `filters`, `maximally_activating`, `invert`, `feature_visualization`,
`probe_layers`. Whether it can learn: `signal_report`. How close its samples are to data: `frechet_distance`,
`kernel_distance`, `support`, `classifier_score`, `memorization`, `count_modes`, and in training
`collapse_alarm`, `saturation_alarm`.
"""

from jdl.audit.anomaly import auroc, reconstruction_errors
from jdl.audit.collapse import collapse_alarm, saturation_alarm
from jdl.audit.components import PCA, pca
from jdl.audit.features import feature_visualization, invert, maximally_activating
from jdl.audit.generative import (
    Estimate,
    Moments,
    classifier_score,
    featurize,
    frechet_distance,
    kernel_distance,
    moments,
)
from jdl.audit.latent import (
    LogLikelihood,
    Units,
    beside,
    decoded,
    interpolate,
    log_likelihood,
    plane,
    tile,
    traverse,
    units,
    watch_collapse,
)
from jdl.audit.layers import activation_maps, activations, filters, layer_activation
from jdl.audit.neighbours import (
    Memorization,
    Modes,
    Support,
    count_modes,
    memorization,
    nearest_mode,
    support,
)
from jdl.audit.plots import plot_images, plot_probes, plot_signal
from jdl.audit.probes import linear_probe, probe_layers
from jdl.audit.signal import SignalReport, signal_report

__all__ = [
    "PCA",
    "Estimate",
    "LogLikelihood",
    "Memorization",
    "Modes",
    "Moments",
    "SignalReport",
    "Support",
    "Units",
    "activation_maps",
    "activations",
    "auroc",
    "beside",
    "classifier_score",
    "collapse_alarm",
    "count_modes",
    "decoded",
    "feature_visualization",
    "featurize",
    "filters",
    "frechet_distance",
    "interpolate",
    "invert",
    "kernel_distance",
    "layer_activation",
    "linear_probe",
    "log_likelihood",
    "maximally_activating",
    "memorization",
    "moments",
    "nearest_mode",
    "pca",
    "plane",
    "plot_images",
    "plot_probes",
    "plot_signal",
    "probe_layers",
    "reconstruction_errors",
    "saturation_alarm",
    "signal_report",
    "support",
    "tile",
    "traverse",
    "units",
    "watch_collapse",
]
