"""The host's side of training: the loop, checkpoints, history, devices."""

from jdl.train.checkpoint import CheckpointError, CheckpointMismatch, Checkpoints, Restored
from jdl.train.chips import Chip, topology
from jdl.train.cost import Cost, DoesNotFit, Memory
from jdl.train.fit import Fault, Fitted, Interrupted, Logger, fit
from jdl.train.history import History, read_lines
from jdl.train.hosts import connect
from jdl.train.loggers import LiveCurves, ProgressBar, TensorBoard, print_lines
from jdl.train.mesh import Mode, distributed, make_mesh
from jdl.train.planning import Plan, planning
from jdl.train.plots import plot_history, save_history
from jdl.train.profile import Goodput, goodput
from jdl.train.run import Loaded, ResumeError, Run, load
from jdl.train.runtime import prepare
from jdl.train.sharding import batch_sharding, batch_shardings, state_shardings
from jdl.train.summary import Layer, Summary, summary

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "Checkpoints",
    "Chip",
    "Cost",
    "DoesNotFit",
    "Fault",
    "Fitted",
    "Goodput",
    "History",
    "Interrupted",
    "Layer",
    "LiveCurves",
    "Loaded",
    "Logger",
    "Memory",
    "Mode",
    "Plan",
    "ProgressBar",
    "Restored",
    "ResumeError",
    "Run",
    "Summary",
    "TensorBoard",
    "batch_sharding",
    "batch_shardings",
    "connect",
    "distributed",
    "fit",
    "goodput",
    "load",
    "make_mesh",
    "planning",
    "plot_history",
    "prepare",
    "print_lines",
    "read_lines",
    "save_history",
    "state_shardings",
    "summary",
    "topology",
]
