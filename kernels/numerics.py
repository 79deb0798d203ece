"""Sums and products of explicit precision, and sizes of tiles."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import untyped


def accumulation_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of sums of numbers of `dtype`: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def einsum(precision: str | None, dtype: jnp.dtype) -> Callable[..., jax.Array]:
    """`jnp.einsum` that accumulates in `dtype`.

    precision: JAX's default_matmul_precision; None keeps float32 products exact.
    """
    exactness = precision or jax.lax.Precision.HIGHEST
    return partial(untyped.einsum, preferred_element_type=dtype, precision=exactness)


def triton_precision(precision: str | None, dtype: jnp.dtype) -> str:
    """Triton's name for JAX's default_matmul_precision; float32 stays exact by default."""
    if dtype != jnp.float32:
        return "ieee"
    if precision in ("default", "bfloat16", "tensorfloat32", "TF32_TF32_F32"):
        return "tf32"
    if precision in ("high", "bfloat16_3x", "TF32_TF32_F32_X3"):
        return "tf32x3"
    return "ieee"


def sum_to(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums `array` over the axes along which `shape`, of as many axes, was broadcast."""
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and array.shape[i] != 1)
    return array.sum(axis=axes, keepdims=True)


def next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
