"""Ridge regression in context as an attention layer: the mesa-layer.

Von Oswald et al. 2023, "Uncovering mesa-optimization algorithms in transformers" (arXiv
2309.05858, section 4).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels import linear_attention
from ..kernels.numerics import accumulation_dtype


def mesa_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, regularization: Any = 1.0
) -> jax.Array:
    """Predictions at each query of a ridge regression from keys to values up to its step.

    For each head `out_t = (sum_{s<=t} v_s k_s^T) (sum_{s<=t} k_s k_s^T + lambda I)^-1 q_t`. In the
    dual form a single Cholesky factor L of `K K^T + lambda I`, `[T, T]`, serves every prefix, since
    the factor of a prefix is a leading block of L. The result is causal linear attention with keys
    `L^-1 K` and values `L^-1 V`. To predict from strictly earlier steps, shift keys and values by
    one step and put zeros first, which do not change the regression.

    Computed in float32 (float64 for float64) with products at highest precision. A regularization
    below about `1e-7 T |k|^2` is lost to rounding in float32, and the factor is then NaN. A NaN in
    the keys of a head makes all of the head's results NaN. Differentiable in reverse mode.
    O(T^3) operations.

    Args:
      query: `[..., T, N, H]`: T steps, N heads, H features a head, any leading axes.
      key: `[..., T, N, H]`.
      value: `[..., T, N, V]`.
      regularization: lambda, positive; a number, or an array broadcastable to `[N]`.

    Returns:
      `[..., T, N, V]` in the dtype of `query`.

    Raises:
      ValueError: shapes do not match, or the regularization is not positive.
      TypeError: an input is not floating point.
    """
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _check(query, key, value)
    penalty = _penalty(regularization, query.shape[-2])
    wide = accumulation_dtype(jnp.result_type(query, key, value))
    pairs = jnp.concatenate([key.astype(wide), value.astype(wide)], axis=-1)
    pairs = jnp.moveaxis(pairs, -2, -3)
    keys = pairs[..., : key.shape[-1]]
    with jax.default_matmul_precision("highest"):
        gram = keys @ jnp.swapaxes(keys, -1, -2)
        diagonal = penalty.astype(wide)[:, None, None] * jnp.eye(gram.shape[-1], dtype=wide)[None]
        gram += jnp.broadcast_to(diagonal, gram.shape)
        white = _inverse_factor(gram) @ pairs
        keys, values = jnp.split(jnp.moveaxis(white, -3, -2), [key.shape[-1]], axis=-1)
        out = linear_attention(query.astype(wide), keys, values, is_causal=True, scale=1.0)
    return out.astype(query.dtype)


@jax.custom_jvp
def _inverse_factor(gram: jax.Array) -> jax.Array:
    """The inverse of the Cholesky factor, `[..., T, T]`."""
    return jax.lax.platform_dependent(gram, cpu=_by_elimination, default=_by_factor)


def _by_factor(gram: jax.Array) -> jax.Array:
    factor = jax.lax.linalg.cholesky(gram)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)


def _by_elimination(gram: jax.Array) -> jax.Array:
    """Gaussian elimination of whole batches; batched LAPACK calls in a training step deadlock."""
    size = gram.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)

    def eliminate(step: jax.Array, rows: jax.Array) -> jax.Array:
        pivot = jax.lax.dynamic_index_in_dim(rows, step, axis=-2)
        scale = jax.lax.rsqrt(jax.lax.dynamic_index_in_dim(pivot, step, axis=-1))
        column = jax.lax.dynamic_index_in_dim(rows, step, axis=-1)
        below = (jnp.arange(size) > step)[:, None]
        at = (jnp.arange(size) == step)[:, None]
        rows = rows - jnp.where(below, column * scale, 0) * (pivot * scale)
        return jnp.where(at, pivot * scale, rows)

    rows = jnp.concatenate([gram, identity], axis=-1)
    return jax.lax.fori_loop(0, size, eliminate, rows)[..., size:]


@_inverse_factor.defjvp
def _inverse_factor_jvp(primals, tangents):
    """dW = -low(W dA W^T) W, W = L^-1; low is tril with half the diagonal (Murray 2016, eq. 8)."""
    inverse = _inverse_factor(*primals)
    inside = inverse @ tangents[0] @ jnp.swapaxes(inverse, -1, -2)
    identity = jnp.broadcast_to(jnp.eye(inside.shape[-1], dtype=inside.dtype), inside.shape)
    low = jnp.tril(inside) - 0.5 * identity * inside
    return inverse, -low @ inverse


def _check(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 3:
            raise ValueError(f"{name} must be [..., steps, heads, features], got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {array.dtype}")
    if query.shape != key.shape:
        raise ValueError(f"query {query.shape} and key {key.shape} must have the same shape")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"key {key.shape} and value {value.shape} must agree in all but the features"
        )


def _penalty(regularization: Any, heads: int) -> jax.Array:
    """The regularization of each head, `[N]`; raises ValueError if it is invalid."""
    # JAX arrays may be traced or on a device, so their values are not checked.
    checked = not isinstance(regularization, jax.Array)
    if checked and not np.all(np.asarray(regularization) > 0):
        raise ValueError(f"regularization must be positive, got {regularization}")
    penalty = jnp.asarray(regularization)
    if penalty.shape not in ((), (1,), (heads,)):
        raise ValueError(
            f"regularization must be a number, or one for each of {heads} heads; got an array of "
            f"shape {penalty.shape}"
        )
    return jnp.broadcast_to(penalty, (heads,))
