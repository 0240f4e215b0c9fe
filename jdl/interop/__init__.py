"""Models and weights from elsewhere: PyTorch and Hugging Face files, NNX modules."""

from jdl.interop import names
from jdl.interop.hugging_face import end_tokens, from_hugging_face, hugging_face_folder, to_hugging_face
from jdl.interop.nnx import NnxModule, from_nnx
from jdl.interop.tensors import read_tensors, write_tensors
from jdl.interop.weights import adapt_channels, export_weights, load_weights, resize_positions

__all__ = [
    "NnxModule",
    "adapt_channels",
    "end_tokens",
    "export_weights",
    "from_hugging_face",
    "from_nnx",
    "hugging_face_folder",
    "load_weights",
    "names",
    "read_tensors",
    "resize_positions",
    "to_hugging_face",
    "write_tensors",
]
