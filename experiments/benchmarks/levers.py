"""What makes jdl fast on a CPU, each part with a way to switch it off in a process of its own.

A formulation of a layer that depends on the platform is switched off where `jax.lax.platform_dependent`
chooses it, so that the accelerators' formulation runs; other parts are replaced by their plain twins.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.benchmarks.steps import program_of
from experiments.benchmarks.workloads import Given

SEVERAL = "several"
"""The lever of several steps a dispatch, which is an argument of `fit`."""

PLATFORM = {
    "convolve": ("jdl.nn.convolution.convolve", "the ways in which a CPU convolves"),
    "max-pool": ("jdl.nn.convolution.max_pool", "maxima of tiles and shifted images"),
    "avg-pool": ("jdl.nn.convolution.avg_pool", "means of tiles"),
    "transposed": ("jdl.nn.recurrence_scan._recur_backward", "a recurrent kernel transposed once"),
    "halve": ("jdl.nn.doubling.halve", "halving convolutions as products"),
    "double": ("jdl.nn.doubling.double", "doubling convolutions as products"),
    "residual": ("jdl.nn.residual.residual", "residual sums computed once"),
    "conv-lstm": ("jdl.nn.recurrence_conv", "convolutions of time steps unrolled"),
    "accumulation": ("jdl.learners.gradient._in_parts", "parts of a batch unrolled"),
    "players": ("jdl.learners.adversarial._in_turn", "turns of a player unrolled"),
}
"""By name, the place in the code where the CPU's formulation is chosen, and what that is."""


class Lever(NamedTuple):
    """Something that makes a CPU faster.

    Attributes:
        title: what it is, to be read after "without".
        off: switches it off, in this process and before anything is traced.
        seen: the function that is called while a step that uses it is traced, or the place that gives a
            formulation for CPUs; "" for a lever of every step.
    """

    title: str
    off: Callable[[], None]
    seen: str = ""


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _default_in(place: str) -> None:
    """Makes `jax.lax.platform_dependent` take the default where a place in the code gives one for CPUs."""
    import jax

    original = jax.lax.platform_dependent

    def chosen(*args: Any, default: Any = None, **platforms: Any) -> Any:
        if _name(platforms.get("cpu")).startswith(f"{place}.") and default is not None:
            del platforms["cpu"]
        return original(*args, default=default, **platforms) if platforms else default(*args)

    jax.lax.platform_dependent = chosen


def _replace(original: Any, twin: Any) -> None:
    """Puts a twin in the place of something wherever a module of jdl's has it."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "jdl":
            for attribute, value in list(vars(module).items()):
                if value is original:
                    setattr(module, attribute, twin)


def _plain_product(x: Any, kernel: Any, dimension_numbers: Any, precision: Any = None) -> Any:
    from jax import lax

    return lax.dot_general(x, kernel, dimension_numbers, precision=precision)


def _without_flat_products() -> None:
    from jdl.nn import linear

    # The function is also the default of a class's field, which no replacement of a name would reach.
    linear.flat_dot_general.__code__ = _plain_product.__code__


def _without_written_gradient() -> None:
    importlib.import_module("jdl.nn")
    from jdl.nn import recurrence_scan

    _replace(recurrence_scan.recur, recurrence_scan.recur_plain)


def _without_tiles() -> None:
    from jdl.nn import convolution

    def none(*arguments: Any) -> None:
        """No image is cut in tiles."""

    _replace(convolution._tiles, none)


def _without_materialization() -> None:
    from jdl.nn import convolution

    def as_it_is(x: Any) -> Any:
        return x

    # There alone: residual sums, which are another lever, have the same function.
    vars(convolution)["materialized"] = as_it_is


def _without_kept_memory() -> None:
    from jdl.train import runtime

    _replace(runtime._keep_memory, lambda: None)


def _without_waiting() -> None:
    from jdl.train import runtime

    _replace(runtime._compute_in_caller, lambda: None)


def _without_flags() -> None:
    from jdl.train import runtime

    _replace(runtime.CPU_FLAGS, ())


def _without_donation() -> None:
    import jax

    original = jax.jit

    def jit(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **{n: x for n, x in options.items() if not n.startswith("donate_")})

    jax.jit = jit


LEVERS: dict[str, Lever] = {
    "memory": Lever("memory kept between steps", _without_kept_memory),
    "caller": Lever("programs computed by their callers", _without_waiting),
    "flags": Lever("the flags of XLA:CPU", _without_flags),
    "donation": Lever("the state's memory reused", _without_donation),
    SEVERAL: Lever("several steps a dispatch", lambda: None, "jdl.train.program._advance.<locals>.several"),
    "flat": Lever("products over two axes", _without_flat_products, "jdl.nn.linear.flat_dot_general"),
    "recurrence": Lever(
        "the written gradient of recurrence", _without_written_gradient, "jdl.nn.recurrence_scan._run"
    ),
    "materialized": Lever(
        "inputs of convolutions computed once",
        _without_materialization,
        "jdl.nn.convolution.convolve.<locals>.convolution_on_cpu",
    ),
    "tiles": Lever("pooling by reshaping", _without_tiles, "jdl.nn.convolution._tiles"),
    **{
        name: Lever(title, lambda place=place: _default_in(place), place)  # type: ignore[misc]
        for name, (place, title) in PLATFORM.items()
    },
}


def used(given: Given) -> list[str]:
    """The levers that a workload's step makes use of, found by tracing it once."""
    import jax

    from jdl import data

    called: set[str] = set()
    places: set[str] = set()

    def see(frame: Any, event: str, argument: Any) -> None:
        del argument
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("jdl."):
            called.add(f"{module}.{frame.f_code.co_qualname}")

    original = jax.lax.platform_dependent

    def chosen(*args: Any, **options: Any) -> Any:
        places.add(_name(options.get("cpu")))
        return original(*args, **options)

    before = sys.getprofile()
    jax.lax.platform_dependent = chosen
    sys.setprofile(see)
    try:
        if given.workload.kind == "inference":
            module, inputs = given.workload.module(), given.batches[0][0]
            jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), inputs)
        else:
            batches = data.shuffled(given.arrays, given.workload.batch_size, resident=True)
            program, _ = program_of(given.workload.learner(), batches)
            program.traces["train"][0]()
    finally:
        sys.setprofile(before)
        jax.lax.platform_dependent = original

    def is_used(name: str, lever: Lever) -> bool:
        if name == "donation" and given.workload.kind == "inference":
            return False
        if name in PLATFORM:
            return any(place.startswith(f"{lever.seen}.") for place in places)
        return not lever.seen or lever.seen in called

    return [name for name, lever in LEVERS.items() if is_used(name, lever)]
