"""Linear probes: how much of the answer a linear map can read from each layer.

Axes: N examples, D features, C classes.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.audit.layers import activations
from jdl.core import Array, Variables


class Probe(NamedTuple):
    """A fitted softmax regression.

    Attributes:
        kernel: float32 [D, C].
        bias: float32 [C].
        loss: the objective that was reached, nats.
        gradient_norm: of the objective there, in coordinates whose curvature is at most about one.
        steps: of L-BFGS that it took.
    """

    kernel: Array
    bias: Array
    loss: Array
    gradient_norm: Array
    steps: Array

    def logits(self, features: Any) -> Array:
        """Features [N, D] to logits [N, C]."""
        return jnp.asarray(features, jnp.float32) @ self.kernel + self.bias[None]


def linear_probe(
    features: Any,
    labels: Any,
    *,
    l2: float = 1e-3,
    num_classes: int | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 2000,
) -> Probe:
    """Softmax regression on features that stay as they are, solved to convergence by L-BFGS.

    Minimises mean_n(-log softmax(x_n W + b)[y_n]) + l2 / 2 |W|^2, which is convex: there is one answer,
    whatever the start.

    Args:
        features: [N, D]; of deviation 1 in every column, if the penalty is to weigh all alike.
        labels: integers [N] in 0..C-1.
        l2: the penalty above, at least 0; scikit-learn's ``C`` is 1 / (N l2).
        num_classes: C; one more than the largest label when None.
        tolerance: the norm of the gradient at which to stop; the loss is then within about its square.
        max_steps: the most steps.

    Returns:
        The regression.

    Raises:
        ValueError: for shapes that do not fit, labels out of range, features that are not finite, or
            ``max_steps`` that are too few to converge.

    Example:
        >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
        >>> linear_probe(x, [0, 0, 1, 1], l2=0.1).logits(x).argmax(-1).tolist()
        [0, 0, 1, 1]

    Reference:
        Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016. L-BFGS:
        Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989. Curvature:
        Boehning, "Multinomial logistic regression algorithm", 1992.
    """
    x_ND, y_N = np.asarray(features, np.float32), np.asarray(labels)
    if x_ND.ndim != 2 or y_N.shape != x_ND.shape[:1] or not np.issubdtype(y_N.dtype, np.integer):
        raise ValueError(
            f"a probe takes features [N, D] and integer labels [N]; got {x_ND.shape}, {y_N.dtype} {y_N.shape}"
        )
    if not len(y_N):
        raise ValueError("a probe needs examples; got none")
    if not np.isfinite(x_ND).all():
        raise ValueError("some features are not finite")
    if l2 < 0:
        raise ValueError(f"l2 must be at least 0; got {l2}")
    C = int(y_N.max()) + 1 if num_classes is None else num_classes
    if y_N.min() < 0 or y_N.max() >= C:
        raise ValueError(f"labels must be in 0..{C - 1}; got {y_N.min()} to {y_N.max()}")
    # In coordinates where Boehning's bound on the curvature is one in every direction, L-BFGS takes tens of
    # steps and single precision is enough; the bias takes up the mean, so that the objective stays the same.
    mean_D = x_ND.mean(0, dtype=np.float64)
    centred_ND = x_ND - mean_D
    spectrum_D, basis_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(x_ND))
    curvature_D = np.maximum(spectrum_D, 0) / 2 + l2
    scale_D = np.maximum(curvature_D, 1e-6 * curvature_D.max() + 1e-30) ** -0.5
    z_ND = (centred_ND @ (basis_DD * scale_D)).astype(np.float32)
    solved = _solve(z_ND, y_N.astype(np.int32), l2 * scale_D**2, C, tolerance, max_steps)
    if not solved.gradient_norm <= tolerance:
        raise ValueError(
            f"{max_steps} steps are too few: the gradient's norm is {solved.gradient_norm:.1e}, not yet "
            f"{tolerance:.1e}; raise l2, tolerance or max_steps"
        )
    kernel_DC = (basis_DD * scale_D) @ np.asarray(solved.kernel, np.float64)
    bias_C = np.asarray(solved.bias, np.float64) - mean_D @ kernel_DC
    return solved._replace(kernel=jnp.asarray(kernel_DC, jnp.float32), bias=jnp.asarray(bias_C, jnp.float32))


@functools.partial(jax.jit, static_argnums=3)
def _solve(z_ND: Array, y_N: Array, l2_D: Array, C: int, tolerance: Array, max_steps: Array) -> Probe:
    def objective(params: Any) -> Array:
        kernel, bias = params
        losses = optax.softmax_cross_entropy_with_integer_labels(z_ND @ kernel + bias[None], y_N)
        return losses.mean() + (l2_D[:, None] * jnp.square(kernel)).sum() / 2

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        params, state, i = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = tx.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(params, updates), state, i + 1

    def is_unfinished(carry: Any) -> Array:
        _, state, i = carry
        return (i == 0) | ((i < max_steps) & (optax.tree.norm(optax.tree.get(state, "grad")) > tolerance))

    start = jnp.zeros((z_ND.shape[1], C)), jnp.zeros(C)
    (kernel, bias), _, steps = jax.lax.while_loop(is_unfinished, step, (start, tx.init(start), 0))
    loss, gradient = jax.value_and_grad(objective)((kernel, bias))
    return Probe(kernel, bias, loss, optax.tree.norm(gradient), jnp.asarray(steps))


def probe_layers(
    module: Any,
    variables: Variables,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    layers: str | Sequence[str] | None = None,
    *,
    grid: int = 2,
    l2: float = 1e-3,
    batch_size: int = 500,
) -> OrderedDict[str, float]:
    """How well a linear map reads the class from each layer, by depth.

    Each layer's features are averaged over a grid of ``grid`` x ``grid`` cells of its map (or ``grid`` parts
    of its sequence), so that their number stays small and layers are asked on equal terms; then brought to
    mean 0 and deviation 1 by the training examples, and given to `linear_probe`.

    Args:
        module: a Linen module.
        variables: its variables.
        train: ``inputs`` [N, ...] and ``labels`` [N] to fit the probes on.
        test: the same to score them on.
        layers: which submodules, as in `jdl.audit.activations`; all when None.
        grid: cells each way; a map that has no more than these stays as it is.
        l2: penalty of the probes.
        batch_size: inputs that the network sees at once.

    Returns:
        Test accuracy, 0 to 1: first that of the inputs themselves, as "inputs", then of each layer in order
        of computation.

    Raises:
        ValueError: if a pattern stands for no layer, or there are no examples.

    Example:
        >>> from jdl.models import MLP
        >>> x = jnp.array([[-2.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [2.0, -1.0]])
        >>> data, model = {"inputs": x, "labels": jnp.array([0, 0, 1, 1])}, MLP((8, 2))
        >>> variables = model.init(jax.random.key(0), x)
        >>> dict(probe_layers(model, variables, data, data, layers="Dense_0"))
        {'inputs': 1.0, 'Dense_0': 1.0}

    Reference:
        Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
    """

    for name, part in (("train", train), ("test", test)):
        if not len(part["inputs"]) or len(part["inputs"]) != len(part["labels"]):
            raise ValueError(f"{name} must have inputs, and as many labels; got {len(part['inputs'])} and "
                             f"{len(part['labels'])}")  # fmt: skip

    @jax.jit
    def features(variables: Variables, inputs: Array) -> OrderedDict[str, Array]:
        found = activations(module, variables, inputs, layers)
        named = [("inputs", jnp.asarray(inputs)), *found.items()]
        return OrderedDict((name, _pooled(x, grid)) for name, x in named if _is_features(x))

    def of(arrays: Mapping[str, Any]) -> OrderedDict[str, np.ndarray]:
        inputs = arrays["inputs"]
        parts = [features(variables, inputs[i : i + batch_size]) for i in range(0, len(inputs), batch_size)]
        return OrderedDict((name, np.concatenate([part[name] for part in parts])) for name in parts[0])

    seen, unseen = of(train), of(test)
    y_train, y_test = np.asarray(train["labels"]), np.asarray(test["labels"])
    C = int(max(y_train.max(), y_test.max())) + 1
    accuracies = OrderedDict()
    for name, x in seen.items():
        mean, deviation = x.mean(0), x.std(0)
        scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
        probe = linear_probe((x - mean) * scale, y_train, l2=l2, num_classes=C)
        answers = np.asarray(probe.logits((unseen[name] - mean) * scale)).argmax(-1)
        accuracies[name] = float((answers == y_test).mean())
    return accuracies


def _is_features(x: Any) -> bool:
    """Whether a layer's output is one array of numbers, a row an example."""
    return isinstance(x, jax.Array) and x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)


def _pooled(x: Array, grid: int) -> Array:
    """[N, ..., F] to [N, D]: means over a grid of the axes between, at most ``grid`` cells each way."""
    x = x.astype(jnp.float32)
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        cells = min(grid, size)
        # Cell of each place; where they do not divide evenly, some are one wider.
        member = np.arange(size) * cells // size == np.arange(cells)[:, None]
        x = jnp.moveaxis(jnp.tensordot(x, member / member.sum(1, keepdims=True), (axis, 1)), -1, axis)
    return x.reshape(len(x), -1)
