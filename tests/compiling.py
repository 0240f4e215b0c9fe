"""`jax.jit` for programs that run a few times: compiling is most of their cost, optimising most of that."""

import functools

import jax

CHEAPLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

jit = functools.partial(jax.jit, compiler_options=CHEAPLY)
