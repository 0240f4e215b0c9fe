"""What was measured: one JSON file a result, rendered beside the published figures.

``python -m experiments.ledger`` renders RESULTS.md, and the table between ``<!-- ledger:begin -->`` and
``<!-- ledger:end -->`` in README.md; with ``--check`` it only says whether both are up to date. A file holds
what was observed and nothing that follows from it: means, spreads and ratios are computed when rendered.

Example:
    >>> result = Result(
    ...     name="lenet_digits", title="LeNet-5 on digits", group="Images", paper="", published=None,
    ...     metric="test accuracy", goal="max", unit="%", seeds=(0, 1), values=(98.0, 99.0),
    ...     dataset="UCI digits", fingerprint="9f2c", config={"epochs": 30},
    ...     command="python -m experiments.lenet --seed 0", seconds=(40.0, 42.0), energy_wh=None,
    ...     energy_how="not measured", device={"processor": "a CPU", "jax": "0.10.2"}, date="2026-01-31",
    ... )
    >>> f"{result.mean:.1f} ± {result.spread:.1f} {result.unit}"
    '98.5 ± 0.7 %'
"""

from experiments.ledger.entries import (
    MEMORY,
    Benchmark,
    Entry,
    Estimate,
    Published,
    Result,
    Row,
    module_of,
    read,
    record,
)
from experiments.ledger.meter import Meter, commit, device_description
from experiments.ledger.rendering import figure, ours, render, rendered, seeds, stale, with_summary

__all__ = [
    "MEMORY",
    "Benchmark",
    "Entry",
    "Estimate",
    "Meter",
    "Published",
    "Result",
    "Row",
    "commit",
    "device_description",
    "figure",
    "module_of",
    "ours",
    "read",
    "record",
    "render",
    "rendered",
    "seeds",
    "stale",
    "with_summary",
]
