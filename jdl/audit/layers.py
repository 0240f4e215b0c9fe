"""What every layer of a module makes of its inputs.

Axes: B batch, H height, W width, C channels of the image, F features (channels of a layer).
"""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jdl.core import CARRY, Array, Variables
from jdl.nn.taps import tapped


def activations(
    module: Any, variables: Variables, inputs: Any, layers: str | Sequence[str] | None = None
) -> OrderedDict[str, Any]:
    """The output of every layer of a module, without noise.

    Args:
        module: a Linen module.
        variables: its variables.
        inputs: a batch of inputs.
        layers: which submodules: paths or patterns, such as "Conv_0" or "encoder/*/Dense_?"; a star stands
            for any part of a path. All of them when None.

    Returns:
        The output of each submodule by its path, in order of computation; the second call of a submodule is
        "path:2".

    Raises:
        ValueError: if the module has no submodules, or none that a pattern stands for.

    Example:
        >>> from jdl.models import MLP
        >>> model, inputs = MLP((8, 3)), jnp.ones((2, 5))
        >>> variables = model.init(jax.random.key(0), inputs)
        >>> {name: x.shape for name, x in activations(model, variables, inputs).items()}
        {'Dense_0': (2, 8), 'Dropout_0': (2, 8), 'Dense_1': (2, 3)}
        >>> list(activations(model, variables, inputs, "Dense_*"))
        ['Dense_0', 'Dense_1']
    """
    _, _, found = tapped(module, variables, inputs, train=False, mutable=[CARRY])
    return OrderedDict((name, found[name]) for name in select(found, layers))


def layer_activation(module: Any, variables: Variables, inputs: Any, layer: str) -> Array:
    """The output [B, ..., F] of one layer, given by its path.

    Raises:
        ValueError: if there is no such layer, naming those there are, or if it puts out no single array.
    """
    found = activations(module, variables, inputs, layer)
    if len(found) > 1:
        raise ValueError(f"{layer!r} must name one layer; it stands for {', '.join(found)}")
    (output,) = found.values()
    if not isinstance(output, jax.Array) or output.ndim < 2:
        shapes = jax.tree.map(jnp.shape, output)
        raise ValueError(f"layer {layer!r} must put out one array [batch, ..., features]; it has {shapes}")
    return output


def select(names: Iterable[str], layers: str | Sequence[str] | None = None) -> list[str]:
    """The names that some pattern stands for, in their own order; all of them when ``layers`` is None.

    Raises:
        ValueError: if there are no names, or none for some pattern.

    Example:
        >>> select(["Conv_0", "block/Conv_0", "Dense_0"], "*Conv_0")
        ['Conv_0', 'block/Conv_0']
    """
    names = list(names)
    if not names:
        raise ValueError("the module has no layers to look into: it calls no Linen submodule")
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"there is no layer {pattern!r}; there are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def filters(variables: Variables, layer: str) -> Array:
    """The kernels of a convolution as images.

    Args:
        variables: a module's variables.
        layer: path of the convolution.

    Returns:
        float32 [F, kh, kw, C] in 0..1, each filter scaled by its own largest weight, so that 0.5 is a weight
        of zero.

    Raises:
        ValueError: if the layer has no kernel of four axes, naming those that have.

    Example:
        >>> kernel = jnp.array([-2.0, 0.0, 1.0, 2.0]).reshape(2, 2, 1, 1)
        >>> filters({"params": {"Conv_0": {"kernel": kernel}}}, "Conv_0")[0, :, :, 0].tolist()
        [[0.0, 0.5], [0.75, 1.0]]
    """
    kernels = dict(_image_kernels(variables.get("params", {})))
    if layer not in kernels:
        found = ", ".join(kernels) or "none"
        raise ValueError(f"layer {layer!r} has no kernel [height, width, in, out]; those that have: {found}")
    kernel = jnp.asarray(kernels[layer], jnp.float32).transpose(3, 0, 1, 2)
    largest = jnp.abs(kernel).max((1, 2, 3), keepdims=True)
    return 0.5 + kernel / (2 * jnp.where(largest > 0, largest, 1))


def _image_kernels(tree: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """The kernels of four axes, by the paths of their layers."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _image_kernels(value, f"{path}/{name}" if path else name)
        elif name == "kernel" and value.ndim == 4:
            yield path, value


def activation_maps(module: Any, variables: Variables, inputs: Any, layer: str) -> Array:
    """The feature maps of a layer as images.

    Args:
        module: a Linen module.
        variables: its variables.
        inputs: images [B, H, W, C].
        layer: path of a layer whose output is [B, h, w, F].

    Returns:
        float32 [B, F, h, w, 1] in 0..1, each map scaled from its smallest to its largest value; a map
        without any difference is 0.

    Raises:
        ValueError: if there is no such layer, or its output is no map.

    Example:
        >>> from jdl.models import TwoConv
        >>> model, x = TwoConv(features=(4, 6)), jnp.ones((2, 8, 8, 1))
        >>> activation_maps(model, model.init(jax.random.key(0), x), x, "Conv_1").shape
        (2, 6, 4, 4, 1)
    """
    x_BhwF = layer_activation(module, variables, inputs, layer).astype(jnp.float32)
    if x_BhwF.ndim != 4:
        raise ValueError(
            f"layer {layer!r} puts out {x_BhwF.shape}; maps are [batch, height, width, features]"
        )
    low, high = x_BhwF.min((1, 2), keepdims=True), x_BhwF.max((1, 2), keepdims=True)
    scaled = (x_BhwF - low) / jnp.where(high > low, high - low, 1)
    return scaled.transpose(0, 3, 1, 2)[..., None]
