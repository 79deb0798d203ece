"""Bayesian linear regression with weights in one of several bases."""

import jax
import jax.numpy as jnp
import numpy as np

from .linear import _before


def in_bases(
    x: jax.Array, y: jax.Array, coordinates: np.ndarray, variance: float
) -> tuple[jax.Array, jax.Array]:
    """Predictions of each basis from every prefix, and how likely each basis made the labels.

    The weights are N(0, I) in a basis and 0 outside it. The posterior mean given a basis is a
    ridge regression on its coordinates.

    Args:
      x: `[B, P, D]`.
      y: `[B, P]`.
      coordinates: those of each basis, int `[K, rank]`.
      variance: variance of the label noise.

    Returns:
      The posterior means of y_i given the points before it, `[B, P, K]`; and their log predictive
      densities at y_i, `[B, P, K]`, whose sum over points is the log marginal likelihood.
    """
    with jax.default_matmul_precision("highest"):
        own = x[..., coordinates]
        gram = _before(own[..., :, None] * own[..., None, :])
        moment = _before(own * y[..., None, None])
        unit = jnp.eye(coordinates.shape[1], dtype=x.dtype)
        precision = gram + variance * jnp.broadcast_to(unit, gram.shape)
        sides = jnp.stack([moment, own], axis=-1)
        solved = jnp.linalg.solve(precision, sides)
        mean = (own * solved[..., 0]).sum(axis=-1)
        spread = variance * (1 + (own * solved[..., 1]).sum(axis=-1))
    surprise = (y[..., None] - mean) ** 2 / spread
    return mean, -(surprise + jnp.log(2 * jnp.pi * spread)) / 2


def mixture_of_ridges(
    x: jax.Array, y: jax.Array, coordinates: np.ndarray, variance: float
) -> jax.Array:
    """The posterior mean of each label if the basis is unknown and uniform, `[B, P]`.

    It is the optimal predictor of `BasisRegression`: the ridge regressions of the bases, weighted
    by the posterior probabilities of the bases given the points before. Arguments are those of
    `in_bases`.
    """
    mean, density = in_bases(x, y, coordinates, variance)
    return (jax.nn.softmax(_before(density), axis=-1) * mean).sum(axis=-1)


def ridge_in_basis(
    x: jax.Array, y: jax.Array, coordinates: np.ndarray, variance: float
) -> jax.Array:
    """Ridge regression in the basis that all points of the prompt make most likely, `[B, P]`.

    The labels to be predicted help to choose the basis, so this is not a predictor: it is what one
    could do if the basis were known. Arguments are those of `in_bases`.
    """
    mean, density = in_bases(x, y, coordinates, variance)
    best = jnp.argmax(density.sum(axis=1), axis=-1)
    return jnp.take_along_axis(mean, best[:, None, None], axis=-1)[..., 0]
