"""Estimators that are layers: the delta rule (least mean squares) and the mesa-layer (ridge)."""

import jax
import jax.numpy as jnp

from ...kernels import delta_rule
from ...layers.mesa import mesa_attention


def least_mean_squares(x: jax.Array, y: jax.Array, rate: float = 1.0) -> jax.Array:
    """Normalised least mean squares from w = 0, one pass in the order of the points.

    `w += rate * (y_i - w.x_i) x_i / |x_i|^2` (Widrow and Hoff 1960; normalised by Nagumo and Noda
    1967), which is what DeltaNet's delta rule does in context. At rate 1 it is Kaczmarz's
    projection (1937): each step fits its point.

    Args:
      x: `[B, P, D]`.
      y: `[B, P]`.
      rate: between 0 and 2, where without noise no step takes w away from the true one.
    """
    if not 0 < rate < 2:
        raise ValueError(f"rate must be between 0 and 2, got {rate}")
    key = _earlier(x)
    size = (key**2).sum(axis=-1)
    beta = rate / jnp.where(size > 0, size, 1)
    with jax.default_matmul_precision("highest"):
        return delta_rule(
            x[..., None, :], key[..., None, :], _earlier(y)[..., None, None], beta[..., None],
            scale=1.0,
        )[..., 0, 0]  # fmt: skip


def mesa(x: jax.Array, y: jax.Array, penalty: float = 1.0) -> jax.Array:
    """`ridge` as one mesa-layer computes it (`icl.layers.mesa`), with one head.

    Args:
      x: `[B, P, D]`.
      y: `[B, P]`.
      penalty: as of `ridge`, positive.
    """
    return mesa_attention(
        x[..., None, :], _earlier(x)[..., None, :], _earlier(y)[..., None, None], penalty
    )[..., 0, 0]


def _earlier(array: jax.Array) -> jax.Array:
    """Each point's predecessor along axis 1, zeros for the first."""
    return jnp.roll(array, 1, axis=1).at[:, 0].set(0)
