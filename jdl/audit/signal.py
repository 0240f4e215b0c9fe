"""The per-layer signal report: how strongly signals run forwards and gradients backwards, by depth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdl.core import Array, Batch, PyTree, Variables
from jdl.nn.taps import tapped

_BLOCKED = 1e-3


class LayerSignal(NamedTuple):
    """What was measured of one layer. A norm is Euclidean, over all entries.

    Attributes:
        name: its path; "path:2" for the second call.
        shape: of its output.
        mean: of the output's entries.
        std: their standard deviation.
        rms: their root mean square.
        dead: share of its units (places on the last axis) whose output has gradient zero in every example
            and position, so that nothing teaches them.
        blocked: share of the output's entries whose gradient is below a thousandth of the gradient's own
            root mean square: closed ReLUs, saturated sigmoids, values that lost a maximum.
        output_gradient: norm of the loss's gradient with respect to the output.
        parameter_gradient: norm with respect to its parameters, those of its submodules included; None, like
            all that follow, where it has none.
        weight: norm of the parameters.
        update_ratio: norm of the updates over that of the parameters; None where no updates are given.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    rms: float
    dead: float
    blocked: float
    output_gradient: float
    parameter_gradient: float | None
    weight: float | None
    update_ratio: float | None


class SignalReport(NamedTuple):
    """What `signal_report` finds; printed, it is a table.

    Attributes:
        loss: of the batch.
        layers: in order of computation.
    """

    loss: float
    layers: tuple[LayerSignal, ...]

    def __str__(self) -> str:
        """The table."""
        width = max(5, *(len(layer.name) for layer in self.layers))
        columns = ("mean", "std", "rms", "dead", "blocked", "d output", "d params", "weights", "update")
        lines = [f"{'layer':<{width}}  " + " ".join(f"{column:>9}" for column in columns)]
        for layer in self.layers:
            shares = [f"{100 * share:>7.1f} %" for share in (layer.dead, layer.blocked)]
            numbers = [_number(x) for x in layer[2:5]], [_number(x) for x in layer[7:]]
            lines.append(f"{layer.name:<{width}}  " + " ".join([*numbers[0], *shares, *numbers[1]]))
        return "\n".join([*(line.rstrip() for line in lines), f"loss {self.loss:.4g}"])

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, lists and numbers."""
        layers = [{**layer._asdict(), "shape": list(layer.shape)} for layer in self.layers]
        return {"loss": self.loss, "layers": layers}


def _number(x: float | None) -> str:
    return " " * 9 if x is None else f"{x:>9.2e}"


def signal_report(
    module: Any,
    variables: Variables,
    batch: Batch,
    loss: Callable[[Any, Batch], Array],
    key: Array,
    *,
    updates: PyTree | None = None,
    train: bool = True,
) -> SignalReport:
    """Measures signals and gradients at every layer, for one batch.

    A layer is a Linen submodule, and its output what the submodule returns: an activation function that is a
    plain function belongs to the layer after it. No variable is changed; in training mode batch normalisation
    uses the batch's statistics, and noise comes from the key.

    Args:
        module: a Linen module.
        variables: its variables, as initialised or at any time.
        batch: ``inputs`` and what ``loss`` needs.
        loss: ``outputs, batch -> scalar``.
        key: for dropout and other noise.
        updates: what an optimiser would add to ``variables["params"]``, a tree like it.
        train: whether the module is in training mode.

    Returns:
        The report.

    Raises:
        ValueError: if the module has no layers, the loss is no scalar, or ``updates`` is not like the
            parameters.

    Example:
        >>> from jdl.models import MLP
        >>> model, batch = MLP((8, 3)), {"inputs": jnp.ones((2, 5)), "labels": jnp.array([0, 2])}
        >>> def loss(logits, batch):
        ...     return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
        >>> variables = model.init(jax.random.key(0), batch["inputs"])
        >>> report = signal_report(model, variables, batch, loss, jax.random.key(1))
        >>> [(layer.name, layer.shape) for layer in report.layers]
        [('Dense_0', (2, 8)), ('Dropout_0', (2, 8)), ('Dense_1', (2, 3))]
        >>> print(report)
        layer           mean       std       rms      dead   blocked  d output  d params   weights    update
        Dense_0 ...

    Reference:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward networks", 2010,
        sections 3 and 4.
    """
    params = variables.get("params", {})
    if updates is not None and jax.tree.structure(updates) != jax.tree.structure(params):  # type: ignore[operator]
        raise ValueError('updates must be a tree like variables["params"]; they differ in structure')
    mutable = [name for name in variables if name != "params"]

    def apply(variables: Variables, inputs: Any, key: Array, add: Mapping[str, Any]) -> tuple[Any, Any]:
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "sample"))}
        outputs, _, found = tapped(
            module, variables, inputs, add=add, train=train, rngs=rngs, mutable=mutable
        )
        return outputs, OrderedDict((name, x) for name, x in found.items() if _is_float(x))

    @jax.jit
    def measure(variables: Variables, batch: Batch, key: Array, add: Any, updates: PyTree | None) -> Any:
        def objective(params: PyTree, add: Any) -> tuple[Array, Any]:
            outputs, found = apply({**variables, "params": params}, batch["inputs"], key, add)
            total = loss(outputs, batch)
            if jnp.shape(total) != ():
                raise ValueError(f"loss must give a scalar; it gives shape {jnp.shape(total)}")
            return total, found

        differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (total, found), (gradient, slopes) = differentiate(variables.get("params", {}), add)
        rows = OrderedDict()
        for name, output in found.items():
            trees = [_within(tree, name) for tree in (variables.get("params", {}), gradient, updates)]
            rows[name] = {**_of_output(output, slopes[name]), **_of_parameters(*trees)}
        return total, rows

    _, shapes = jax.eval_shape(apply, variables, batch["inputs"], key, {})
    if not shapes:
        raise ValueError("the module has no layers to report on: it calls no Linen submodule")
    zeros = {name: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree) for name, tree in shapes.items()}
    total, rows = jax.device_get(measure(variables, batch, key, zeros, updates))
    layers = []
    for name, row in rows.items():
        numbers: dict[str, Any] = {field: None if x is None else float(x) for field, x in row.items()}
        layers.append(LayerSignal(name, jax.tree.leaves(shapes[name])[0].shape, **numbers))
    return SignalReport(float(total), tuple(layers))


def _is_float(output: PyTree) -> bool:
    """Whether all that a layer puts out can have a gradient."""
    leaves = jax.tree.leaves(output)
    return bool(leaves) and all(x.ndim > 0 and jnp.issubdtype(x.dtype, jnp.floating) for x in leaves)


def _of_output(output: PyTree, slope: PyTree) -> dict[str, Array]:
    """What is measured of a layer's output, and of the loss's gradient with respect to it."""
    x, g = (jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in jax.tree.leaves(tree)])
            for tree in (output, slope))  # fmt: skip
    is_dead = [(leaf == 0).reshape(-1, leaf.shape[-1]).all(0) for leaf in jax.tree.leaves(slope)]
    norm = jnp.linalg.norm(g)
    return {
        "mean": x.mean(),
        "std": x.std(),
        "rms": jnp.sqrt(jnp.square(x).mean()),
        "dead": jnp.concatenate(is_dead).mean(),
        "blocked": (jnp.abs(g) <= _BLOCKED * norm / g.size**0.5).mean(),
        "output_gradient": norm,
    }


def _of_parameters(params: PyTree, gradient: PyTree, updates: PyTree) -> dict[str, Array | None]:
    """What is measured of a layer's parameters; None each where it has none."""
    if not jax.tree.leaves(params):
        return dict.fromkeys(("parameter_gradient", "weight", "update_ratio"))
    weight = optax.tree.norm(params)
    ratio = None if updates is None else optax.tree.norm(updates) / jnp.maximum(weight, 1e-12)
    return {"parameter_gradient": optax.tree.norm(gradient), "weight": weight, "update_ratio": ratio}


def _within(tree: PyTree, name: str) -> PyTree:
    """The part of a tree of parameters that belongs to a layer; None where it has none."""
    for part in name.partition(":")[0].split("/"):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
