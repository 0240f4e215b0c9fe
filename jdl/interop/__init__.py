"""Models from elsewhere."""

from jdl.interop.nnx import NnxModule, from_nnx

__all__ = ["NnxModule", "from_nnx"]
