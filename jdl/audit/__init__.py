"""Questions put to a trained function.

What it has learnt: `activations`, `filters`, `maximally_activating`, `invert`, `feature_visualization`,
`probe_layers`. Whether it can learn: `signal_report`.
"""

from jdl.audit.anomaly import auroc, reconstruction_errors
from jdl.audit.features import feature_visualization, invert, maximally_activating
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
from jdl.audit.pca import PCA, pca
from jdl.audit.plots import plot_images, plot_probes, plot_signal
from jdl.audit.probes import linear_probe, probe_layers
from jdl.audit.signal import SignalReport, signal_report

__all__ = [
    "PCA",
    "LogLikelihood",
    "SignalReport",
    "Units",
    "activation_maps",
    "activations",
    "auroc",
    "beside",
    "decoded",
    "feature_visualization",
    "filters",
    "interpolate",
    "invert",
    "layer_activation",
    "linear_probe",
    "log_likelihood",
    "maximally_activating",
    "pca",
    "plane",
    "plot_images",
    "plot_probes",
    "plot_signal",
    "probe_layers",
    "reconstruction_errors",
    "signal_report",
    "tile",
    "traverse",
    "units",
    "watch_collapse",
]
