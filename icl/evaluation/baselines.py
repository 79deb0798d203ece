"""What classical estimators predict from every prefix of a prompt at once.

Each function takes a batch of prompts, x `[B, P, D]` and y `[B, P]`, and returns `[B, P]`:
the prediction of y_i at x_i from the i points before it, and 0 from none, as in Garg et al.
2022 (appendix A.3). Accuracy near as many points as dimensions wants float64: call them
under `jax.enable_x64(True)`, as `icl.evaluation.evaluate` does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Baseline = Callable[[jax.Array, jax.Array], jax.Array]


def _before(array: jax.Array) -> jax.Array:
    """Sums over the points before each, along axis 1."""
    return jnp.cumsum(array, axis=1) - array


def _spectrum(x: jax.Array, y: jax.Array):
    """Eigenvalues `[B, P, D]` of each prefix's X^T X, and X^T y and x in its eigenbasis."""
    with jax.default_matmul_precision("highest"):
        gram = _before(x[..., :, None] * x[..., None, :])
        moment = _before(x * y[..., None])
        values, vectors = jnp.linalg.eigh(gram)
        rotate = lambda v: jnp.einsum("bpde,bpd->bpe", vectors, v)
        return values, rotate(moment), rotate(x)


def least_squares(x: jax.Array, y: jax.Array) -> jax.Array:
    """Least squares, of minimum norm where the prefix has fewer points than dimensions."""
    values, moment, query = _spectrum(x, y)
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


def nearest_neighbours(x: jax.Array, y: jax.Array, neighbours: int = 3) -> jax.Array:
    """The mean label of the nearest points of the prefix, or of all where it has fewer."""
    points = x.shape[1]
    neighbours = min(neighbours, points)
    squared = (x**2).sum(axis=-1)
    with jax.default_matmul_precision("highest"):
        distance = squared[:, None, :] - 2 * jnp.einsum("bid,bjd->bij", x, x)
    earlier = jnp.tril(jnp.ones((points, points), bool), -1)
    closeness, chosen = jax.lax.top_k(jnp.where(earlier, -distance, -jnp.inf), neighbours)
    found = jnp.isfinite(closeness)
    labels = jax.vmap(lambda labels, index: labels[index])(y, chosen)
    total = jnp.where(found, labels, 0).sum(axis=-1)
    return total / jnp.maximum(found.sum(axis=-1), 1)


def zero(x: jax.Array, y: jax.Array) -> jax.Array:
    """Always 0."""
    return jnp.zeros_like(y)
