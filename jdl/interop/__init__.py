"""Models and weights from elsewhere: PyTorch and Hugging Face files, NNX modules."""

from jdl.interop import names
from jdl.interop.nnx import NnxModule, from_nnx
from jdl.interop.tensors import read_tensors, write_tensors
from jdl.interop.weights import adapt_channels, export_weights, load_weights, resize_positions

__all__ = [
    "NnxModule",
    "adapt_channels",
    "export_weights",
    "from_nnx",
    "load_weights",
    "names",
    "read_tensors",
    "resize_positions",
    "write_tensors",
]
