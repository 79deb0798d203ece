"""Estimators of the labels of tables' rows, which learn from the examples of each prompt.

Each takes x `[B, P, D]` with NaN for missing values, targets `[B, P, K]`, and `context`, bool
`[B, P]`, whether a row is an example; and returns predictions `[B, P, K]` for all rows. A missing
value counts as 0, the mean of a standardised column.
"""

import jax
import jax.numpy as jnp


def mean_of_examples(x: jax.Array, targets: jax.Array, context: jax.Array) -> jax.Array:
    """The mean target of the examples, for every row; 0 if there is no example."""
    shown = jnp.where(context[..., None], targets, 0)
    count = jnp.maximum(context.sum(axis=1), 1).astype(targets.dtype)
    mean = shown.sum(axis=1, keepdims=True) / count[:, None, None]
    return jnp.broadcast_to(mean, targets.shape)


def nearest_example(x: jax.Array, targets: jax.Array, context: jax.Array) -> jax.Array:
    """The target of the nearest example (Cover and Hart 1967)."""
    x = jnp.nan_to_num(x)
    products = jnp.einsum("bid,bjd->bij", x, x, precision="highest")
    norms = jnp.einsum("bjd,bjd->bj", x, x, precision="highest")
    distances = jnp.where(context[:, None], norms[:, None] - 2 * products, jnp.inf)
    nearest = distances.argmin(axis=-1)
    return jnp.take_along_axis(targets, nearest[..., None], axis=1)


def ridge_of_examples(
    x: jax.Array, targets: jax.Array, context: jax.Array, penalty: float = 1.0
) -> jax.Array:
    """Ridge regression from x to the targets minus their mean over the examples."""
    x = jnp.nan_to_num(x)
    mean = mean_of_examples(x, targets, context)
    rows = jnp.where(context[..., None], x, 0)
    gram = jnp.einsum("bpi,bpj->bij", rows, rows, precision="highest")
    moments = jnp.einsum("bpi,bpk->bik", rows, targets - mean, precision="highest")
    penalised = gram + penalty * jnp.eye(x.shape[-1], dtype=x.dtype)[None]
    weights = jnp.linalg.solve(penalised, moments)
    return mean + jnp.einsum("bpi,bik->bpk", x, weights, precision="highest")
