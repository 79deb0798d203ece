"""Estimators computed by layers: least mean squares (delta rule) and ridge (mesa-layer)."""

import jax
import jax.numpy as jnp

from ...kernels import delta_rule
from ...layers.mesa import mesa_attention


def least_mean_squares(x: jax.Array, y: jax.Array, rate: float = 1.0) -> jax.Array:
    """Normalised least mean squares from w = 0, one pass in the order of the points.

    The update is `w += rate * (y_i - w.x_i) x_i / |x_i|^2` (Widrow and Hoff 1960; normalised by
    Nagumo and Noda 1967), which is the delta rule of DeltaNet. At rate 1 it is Kaczmarz's
    projection (1937), after which w fits the point exactly.

    Args:
      x: points `[B, P, D]`.
      y: labels `[B, P]`.
      rate: step size between 0 and 2; without noise, no such step increases the error of w.

    Returns:
      `[B, P]`: entry i predicts y_i at x_i from the i points before it; 0 if i is 0.

    Raises:
      ValueError: `rate` is not between 0 and 2.
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
    """`ridge`, computed by a mesa-layer with one head (`icl.layers.mesa`).

    Args:
      x: points `[B, P, D]`.
      y: labels `[B, P]`.
      penalty: the penalty of `ridge`, positive.
    """
    return mesa_attention(
        x[..., None, :], _earlier(x)[..., None, :], _earlier(y)[..., None, None], penalty
    )[..., 0, 0]


def _earlier(array: jax.Array) -> jax.Array:
    """Shifts points by one along axis 1, with zeros first."""
    return jnp.roll(array, 1, axis=1).at[:, 0].set(0)
