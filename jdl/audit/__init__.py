"""Questions put to a trained function.

What it has learnt: `activations`, `filters`, `maximally_activating`, `invert`, `feature_visualization`,
`probe_layers`. Whether it can learn: `signal_report`.
"""

from jdl.audit.features import feature_visualization, invert, maximally_activating
from jdl.audit.layers import activation_maps, activations, filters, layer_activation
from jdl.audit.plots import plot_images, plot_probes, plot_signal
from jdl.audit.probes import linear_probe, probe_layers
from jdl.audit.signal import SignalReport, signal_report

__all__ = [
    "SignalReport",
    "activation_maps",
    "activations",
    "feature_visualization",
    "filters",
    "invert",
    "layer_activation",
    "linear_probe",
    "maximally_activating",
    "plot_images",
    "plot_probes",
    "plot_signal",
    "probe_layers",
    "signal_report",
]
