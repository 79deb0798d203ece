"""Estimators that are linear in the labels, computed from running sums over the prompt."""

import jax
import jax.numpy as jnp


def _before(array: jax.Array) -> jax.Array:
    """Sums over the points before each point, along axis 1."""
    return jnp.cumsum(array, axis=1) - array


def _spectrum(x: jax.Array, y: jax.Array, query: jax.Array | None = None):
    """Eigenvalues of X^T X of each prefix, and X^T y and query in its eigenbasis: `[B, P, D]`."""
    with jax.default_matmul_precision("highest"):
        gram = _before(x[..., :, None] * x[..., None, :])
        moment = _before(x * y[..., None])
        values, vectors = jnp.linalg.eigh(gram)
        rotate = lambda v: jnp.einsum("bpde,bpd->bpe", vectors, v)
        return values, rotate(moment), rotate(x if query is None else query)


def least_squares(x: jax.Array, y: jax.Array, query: jax.Array | None = None) -> jax.Array:
    """Least squares, of minimum norm if the prefix has fewer points than dimensions.

    With `query` `[B, P, D]`, entry i is the prediction at query i, not at x_i.
    """
    values, moment, query = _spectrum(x, y, query)
    tolerance = x.shape[-1] * x.shape[1] * jnp.finfo(x.dtype).eps
    kept = values > tolerance * values[..., -1:]
    return jnp.where(kept, moment * query / jnp.where(kept, values, 1), 0).sum(axis=-1)


def ridge(x: jax.Array, y: jax.Array, penalty: float = 1.0) -> jax.Array:
    """Least squares with `penalty * |w|^2` added to the sum of squares.

    For w ~ N(0, I) and a penalty equal to the noise variance, this is the posterior mean, which is
    the optimal predictor.
    """
    values, moment, query = _spectrum(x, y)
    return (moment * query / (jnp.maximum(values, 0) + penalty)).sum(axis=-1)


def averaging(x: jax.Array, y: jax.Array) -> jax.Array:
    """Predicts w.x with w the mean of y_j x_j over the prefix."""
    counts = jnp.maximum(jnp.arange(x.shape[1], dtype=x.dtype), 1)
    return (_before(x * y[..., None]) * x).sum(axis=-1) / counts[None]


def zero(x: jax.Array, y: jax.Array) -> jax.Array:
    """Predicts 0 at every point."""
    return jnp.zeros_like(y)
