"""Architectures, one file a family.

A model is a Linen module called as ``module.apply(variables, inputs, train=False)``. Each file has a
function ``tiny()`` that returns a small module and a batch for it.
"""

from jdl.models.lenet import LeNet5
from jdl.models.mlp import MLP

__all__ = ["MLP", "LeNet5"]
