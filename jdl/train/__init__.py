"""The host's side of training: the loop, checkpoints, history, devices."""

from jdl.train.checkpoint import CheckpointError, CheckpointMismatch, Checkpoints, Restored
from jdl.train.fit import Fault, Fitted, Interrupted, fit
from jdl.train.history import History, read_lines
from jdl.train.loggers import ProgressBar, TensorBoard, print_lines
from jdl.train.mesh import batch_sharding, distributed, make_mesh, state_shardings
from jdl.train.plots import plot_history, save_history
from jdl.train.run import ResumeError, Run
from jdl.train.runtime import prepare

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "Checkpoints",
    "Fault",
    "Fitted",
    "History",
    "Interrupted",
    "ProgressBar",
    "Restored",
    "ResumeError",
    "Run",
    "TensorBoard",
    "batch_sharding",
    "distributed",
    "fit",
    "make_mesh",
    "plot_history",
    "prepare",
    "print_lines",
    "read_lines",
    "save_history",
    "state_shardings",
]
