"""Programs that compile for longer than they run."""

import functools

import jax

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` that compiles fast; loops run several times slower."""
