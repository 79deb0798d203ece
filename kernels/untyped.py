"""JAX's functions whose own types are incomplete, with the type Any."""

# pyright: basic

from typing import Any

import jax
import jax.numpy as jnp

broadcasted_iota: Any = jax.lax.broadcasted_iota
checkpoint: Any = jax.checkpoint
custom_linear_solve: Any = jax.lax.custom_linear_solve
custom_vjp: Any = jax.custom_vjp
dot_general: Any = jax.lax.dot_general
einsum: Any = jnp.einsum
finfo: Any = jnp.finfo
flatten: Any = jax.tree.flatten
matmul: Any = jnp.matmul
optimization_barrier: Any = jax.lax.optimization_barrier
pad: Any = jnp.pad
pcast: Any = jax.lax.pcast
platform_dependent: Any = jax.lax.platform_dependent
vjp: Any = jax.vjp
