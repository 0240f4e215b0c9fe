"""What a task computes, layer by layer, read from its jaxpr: shapes, parameters, multiply-adds.

Nothing is run, and the model may be any pure function: layers are the name scopes that Flax leaves in a
jaxpr.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from jdl.core import Batch, Task
from jdl.train.jaxprs import executed, multiply_adds


class Layer(NamedTuple):
    """A row of a summary.

    Attributes:
        name: path of the layer, as in the parameters.
        output: shape of the last array that it computes.
        params: number of its own parameters.
        multiply_adds: multiplications followed by an addition in its products and convolutions, an example.
    """

    name: str
    output: tuple[int, ...]
    params: int
    multiply_adds: int


class Summary(NamedTuple):
    """What `summary` finds; printed, it is a table.

    Attributes:
        layers: the layers that have parameters or products, in order of computation.
        params: number of parameters in all.
        multiply_adds: in all, an example.
        other: number of elements in other collections (running statistics, ...).
    """

    layers: tuple[Layer, ...]
    params: int
    multiply_adds: int
    other: int

    def __str__(self) -> str:
        """The table."""
        width = max([5, *(len(layer.name) for layer in self.layers)])
        lines = [f"{'layer':<{width}}  {'output':<20} {'parameters':>13} {'multiply-adds':>15}"]
        for layer in self.layers:
            shape = "x".join(map(str, layer.output))
            lines.append(f"{layer.name:<{width}}  {shape:<20} {layer.params:>13,} {layer.multiply_adds:>15,}")
        lines.append(f"{'total':<{width}}  {'':<20} {self.params:>13,} {self.multiply_adds:>15,}")
        if self.other:
            lines.append(f"and {self.other:,} numbers in other collections")
        return "\n".join(lines)


def summary(task: Task, batch: Batch) -> Summary:
    """Shapes, parameters and multiply-adds of a task's prediction, an example of the batch at a time.

    Products and convolutions count, elementwise work does not, as in the papers' tables. Of a loop whose
    number of turns is not known (`jax.lax.while_loop`) one turn counts; of a choice the dearest branch; of a
    formulation by platform the cheapest that has any, which is the textbook's.

    Args:
        task: a task.
        batch: a batch, or its shapes.

    Returns:
        The layers and totals; ``print(summary(task, batch))`` shows a table.

    Example:
        >>> import numpy as np
        >>> from jdl import models, tasks
        >>> task = tasks.classification(models.MLP((300, 100, 10)))
        >>> print(summary(task, {"inputs": np.zeros((1, 28, 28, 1), np.float32)}))
        layer    output                  parameters   multiply-adds
        Dense_0  300                        235,500         235,200
        Dense_1  100                         30,100          30,000
        Dense_2  10                           1,010           1,000
        total                               266,610         266,200
    """
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    jaxpr = jax.make_jaxpr(task.predict)(variables, batch["inputs"]).jaxpr
    B = jax.tree.leaves(batch["inputs"])[0].shape[0]

    params: dict[str, int] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(variables["params"]):
        owner = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        params[owner] = params.get(owner, 0) + math.prod(x.shape)
    products: dict[str, int] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    for scope, equation, times in executed(jaxpr):
        name = _layer_name(scope)
        outputs[name] = tuple(equation.outvars[0].aval.shape)
        products[name] = products.get(name, 0) + times * multiply_adds(equation)

    # A layer made in one module and called in another has its parameters with the first, its scope in both.
    for owner in [name for name in params if name not in outputs]:
        called = [name for name in outputs if name.endswith(f"/{owner}") and name not in params]
        if len(called) == 1:
            params[called[0]] = params.pop(owner)

    seen = [name for name in outputs if products[name] or name in params]
    unseen = [name for name in params if name not in outputs]
    layers = tuple(
        Layer(name or "(whole)", outputs.get(name, ())[1:], params.get(name, 0), products.get(name, 0) // B)
        for name in seen + unseen
    )
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return Summary(
        layers,
        sum(params.values()),
        sum(products.values()) // B,
        sum(math.prod(x.shape) for x in jax.tree.leaves(rest)),
    )


def _layer_name(scope: str) -> str:
    """``"LeNet5/LeNet5._modern/Conv_0"`` to ``"Conv_0"``: without the outermost module and its methods."""
    parts = [part for part in scope.split("/") if part]
    return "/".join(part for part in parts[1:] if "." not in part)
