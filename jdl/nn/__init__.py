"""Layers and pure layer functions, shared by the models."""

from jdl.nn.convolution import Conv, avg_pool, max_pool
from jdl.nn.linear import Dense, as_float
from jdl.nn.normalization import BatchNorm

__all__ = ["BatchNorm", "Conv", "Dense", "as_float", "avg_pool", "max_pool"]
