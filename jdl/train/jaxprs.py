"""Walks over jaxprs: what a program computes, read before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any, platform: str | None = None) -> Iterator[Any]:
    """All equations of a jaxpr, those of the functions it calls included, each once.

    Of formulations by platform (`jax.lax.platform_dependent`) that of ``platform``, or all of them.
    """
    for equation in jaxpr.eqns:
        yield equation
        inner, choices = _inner(equation), equation.params.get("branches_platforms")
        if platform and choices:
            own = [names is None or platform in names for names in choices].index(True)
            inner = [equation.params["branches"][own].jaxpr]
        for each in inner:
            yield from equations(each, platform)


def executed(jaxpr: Any, scope: str = "", times: int = 1) -> Iterator[tuple[str, Any, int]]:
    """Scope, equation and number of executions of everything that a jaxpr computes, on all devices together.

    The body of a scan counts as often as it runs, and that of `jax.shard_map` on every shard. Of a loop whose
    number of turns is not known (`jax.lax.while_loop`) one turn counts; of a choice the dearest branch; of a
    formulation by platform the cheapest that has any products, which is the textbook's.
    """
    platform_choices = {
        equation.outvars[0] for equation in jaxpr.eqns if equation.primitive.name == "platform_index"
    }
    for equation in jaxpr.eqns:
        inner_scope = "/".join(filter(None, [scope, str(equation.source_info.name_stack)]))
        name, parameters = equation.primitive.name, equation.params
        if name == "cond":
            branches = [list(executed(b.jaxpr, inner_scope, times)) for b in parameters["branches"]]
            costs = [sum(t * multiply_adds(e) for _, e, t in branch) for branch in branches]
            # A formulation without products does them elementwise, which does not count.
            cheapest = min((cost for cost in costs if cost), default=0)
            wanted = cheapest if equation.invars[0] in platform_choices else max(costs)
            yield from branches[costs.index(wanted)]
            continue
        turns = 1
        if name == "scan":
            turns = parameters["length"]
        elif name == "shard_map":
            sizes = parameters["mesh"].shape
            # Named so in one release of JAX and so in another.
            manual = parameters.get("newly_manual_axes", parameters.get("manual_axes", sizes))
            turns = math.prod(sizes[axis] for axis in manual)
        inner = _inner(equation)
        for each in inner:
            yield from executed(each, inner_scope, times * turns)
        if not inner:
            yield inner_scope, equation, times


def flops(jaxpr: Any) -> dict[str, int]:
    """Floating-point operations of the products and convolutions, two a multiply-add, by the inputs' type.

    Elementwise work does not count, as in published figures of utilisation; work that is done twice, such as
    what ``remat`` computes again, does.

    Example:
        >>> import jax.numpy as jnp
        >>> def f(w, x):
        ...     return jax.lax.scan(lambda h, w: (h @ w, None), x, w)[0]
        >>> flops(jax.make_jaxpr(f)(jnp.ones((5, 4, 4)), jnp.ones((2, 4))).jaxpr)
        {'float32': 320}
    """
    found: dict[str, int] = {}
    for _, equation, times in executed(jaxpr):
        if count := 2 * times * multiply_adds(equation):
            dtype = str(equation.invars[1].aval.dtype)
            found[dtype] = found.get(dtype, 0) + count
    return found


def multiply_adds(equation: Any) -> int:
    """Multiply-adds of one product or convolution; 0 for anything else."""
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = equation.params["dimension_numbers"].rhs_spec[0]
        # A dilated input is zeros in between (the gradient of a stride, a transposed convolution).
        dilation = math.prod(equation.params["lhs_dilation"])
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[features] // dilation
    return 0


def _inner(equation: Any) -> list[Any]:
    """The jaxprs of the functions that an equation calls."""
    found = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    )
    found = [getattr(x, "jaxpr", x) for x in found]
    return [x for x in found if hasattr(x, "eqns")]
