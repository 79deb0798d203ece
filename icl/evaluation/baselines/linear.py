"""Estimators linear in the labels, from running sums over the prompt."""

import jax
import jax.numpy as jnp


def _before(array: jax.Array) -> jax.Array:
    """Sums over the points before each, along axis 1."""
    return jnp.cumsum(array, axis=1) - array


def _spectrum(x: jax.Array, y: jax.Array, query: jax.Array | None = None):
    """Eigenvalues `[B, P, D]` of each prefix's X^T X, and X^T y and the query in its eigenbasis."""
    with jax.default_matmul_precision("highest"):
        gram = _before(x[..., :, None] * x[..., None, :])
        moment = _before(x * y[..., None])
        values, vectors = jnp.linalg.eigh(gram)
        rotate = lambda v: jnp.einsum("bpde,bpd->bpe", vectors, v)
        return values, rotate(moment), rotate(x if query is None else query)


def least_squares(x: jax.Array, y: jax.Array, query: jax.Array | None = None) -> jax.Array:
    """Least squares, of minimum norm where the prefix has fewer points than dimensions.

    With queries `[B, P, D]` entry i is the prediction there, not at x_i, from the i points before.
    """
    values, moment, query = _spectrum(x, y, query)
    tolerance = x.shape[-1] * x.shape[1] * jnp.finfo(x.dtype).eps
    kept = values > tolerance * values[..., -1:]
    return jnp.where(kept, moment * query / jnp.where(kept, values, 1), 0).sum(axis=-1)


def ridge(x: jax.Array, y: jax.Array, penalty: float = 1.0) -> jax.Array:
    """Least squares with `penalty * |w|^2` added to the sum of squares.

    With the noise variance as penalty it is the posterior mean, the optimal predictor, for
    w ~ N(0, I).
    """
    values, moment, query = _spectrum(x, y)
    return (moment * query / (jnp.maximum(values, 0) + penalty)).sum(axis=-1)


def averaging(x: jax.Array, y: jax.Array) -> jax.Array:
    """w as the mean of y_j x_j over the prefix."""
    counts = jnp.maximum(jnp.arange(x.shape[1]), 1)
    return (_before(x * y[..., None]) * x).sum(axis=-1) / counts


def zero(x: jax.Array, y: jax.Array) -> jax.Array:
    """Always 0."""
    return jnp.zeros_like(y)
