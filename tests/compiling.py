"""`jax.jit` for programs that run a few times: compiling is most of their cost, optimising most of that."""

import functools

import jax


def _known(**options: object) -> dict[str, object]:
    """Those of the compiler's options that this release of it has."""
    found = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        found[name] = value
    return found


CHEAPLY = _known(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)

jit = functools.partial(jax.jit, compiler_options=CHEAPLY)
