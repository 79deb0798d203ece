"""The nearest-neighbour estimator."""

import jax
import jax.numpy as jnp


def nearest_neighbours(x: jax.Array, y: jax.Array, neighbours: int = 3) -> jax.Array:
    """Mean label of the nearest points of the prefix; of all its points if it has fewer."""
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
    return total / jnp.maximum(found.sum(axis=-1, dtype=y.dtype), 1)
