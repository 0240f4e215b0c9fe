"""Taps: the output of every layer of a module, read or added to while the module is applied.

No model is changed for it. The derivative with respect to what is added, at zero, is the derivative with
respect to a layer's output.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

_TAPS = "taps"


def tapped(
    module: linen.Module,
    variables: Mapping[str, Any],
    *inputs: Any,
    add: Mapping[str, Any] | None = None,
    mutable: Sequence[str] = (),
    **options: Any,
) -> tuple[Any, Mapping[str, Any], OrderedDict[str, Any]]:
    """``module.apply``, with the output of every submodule beside the result.

    Layers inside a ``linen.scan`` are seen where it carries the collection "taps".

    Args:
        module: a Linen module.
        variables: its variables.
        *inputs: what it takes.
        add: what to add to the outputs of some submodules, by their names in what is returned.
        mutable: collections that the module may change.
        **options: passed on to ``module.apply`` (``train``, ``rngs``, ...).

    Returns:
        The module's outputs; the collections in ``mutable`` as they became; and the output of each submodule
        by its path, in the order in which they finished. The second call of a submodule is "path:2".

    Raises:
        ValueError: if ``add`` names something that is no submodule's output.

    Example:
        >>> model, x = linen.Sequential([linen.Dense(4), linen.Dense(2)]), jnp.ones((3, 5))
        >>> variables = model.init(jax.random.key(0), x)
        >>> y, _, outputs = tapped(model, variables, x)
        >>> {name: output.shape for name, output in outputs.items()}
        {'layers_0': (3, 4), 'layers_1': (3, 2)}
        >>> moved, _, _ = tapped(model, variables, x, add={"layers_1": jnp.ones((3, 2))})
        >>> bool((moved == y + 1).all())
        True
    """
    add = add or {}
    # The names in order; the arrays go through a collection, which rematerialisation knows how to carry.
    order: dict[str, tuple[str, int]] = {}

    def through(call: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        layer, path = context.module, "/".join(context.module.path)
        output = call(*args, **kwargs)
        if context.method_name != "__call__" or not path or not layer.is_mutable_collection(_TAPS):
            return output
        calls = len(layer.get_variable(_TAPS, "__call__", ()))
        name = f"{path}:{calls + 1}" if calls else path
        if name in add:
            output = jax.tree.map(jnp.add, output, add[name])
        layer.sow(_TAPS, "__call__", output)
        order.pop(name, None)
        order[name] = path, calls
        return output

    with linen.intercept_methods(through):
        outputs, changed = module.apply(variables, *inputs, mutable=[*mutable, _TAPS], **options)
    changed = dict(changed)
    seen = _by_path(changed.pop(_TAPS, {}))
    found = OrderedDict((name, seen[path][call]) for name, (path, call) in order.items() if path in seen)
    if unknown := sorted(set(add) - set(found)):
        raise ValueError(f"no submodule has the output {', '.join(unknown)}; there are {', '.join(found)}")
    return outputs, changed, found


def features(
    module: linen.Module, variables: Mapping[str, Any], inputs: jax.Array, stages: str | Sequence[str]
) -> tuple[jax.Array, ...]:
    """The outputs of a network's stages, such as a detector or a decoder of segments takes.

    Under `jax.jit` what lies behind the last stage is not computed.

    Args:
        module: a Linen module.
        variables: its variables.
        inputs: a batch of inputs.
        stages: paths of submodules, or one, as in the parameters: ``"stage2"``, ``"stage2/block1"``. Those of
            a ViT give tokens, which `jdl.nn.token_map` makes a map of.

    Returns:
        Their outputs, in the order asked for.

    Raises:
        ValueError: if there is no such submodule; the message lists those there are.

    Example:
        >>> from jdl.models import resnet
        >>> model, images = resnet(18), jnp.zeros((1, 64, 64, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> maps = jax.eval_shape(lambda v: features(model, v, images, ("stage2", "stage4")), variables)
        >>> [x.shape for x in maps]
        [(1, 8, 8, 128), (1, 2, 2, 512)]
    """
    stages = [stages] if isinstance(stages, str) else stages
    _, _, found = tapped(module, variables, inputs, train=False)
    if missing := [stage for stage in stages if stage not in found]:
        raise ValueError(f"{type(module).__name__} has no {missing}; it has {list(found)}")
    return tuple(found[stage] for stage in stages)


def _by_path(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What was kept of each submodule, by its path."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name == "__call__":
            found[path] = value
        else:
            found |= _by_path(value, f"{path}/{name}" if path else name)
    return found
