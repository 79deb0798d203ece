"""Quadratic regression: linear in the squares of x (public code of Garg et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp

from .base import Data, Difficulty, FunctionFamily
from .draws import normal
from .labels import Scalar


@dataclasses.dataclass(frozen=True)
class QuadraticRegression(FunctionFamily):
    """y = w.(x * x) / sqrt(3) with w ~ N(0, I).

    The mean squared label is dim, as in linear regression. The public code has this family, the
    paper does not. A task is w, `[dim]`.
    """

    @property
    def label_kind(self) -> Scalar:
        return Scalar(float(self.dim))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return normal(key, (self.dim,))

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return (x**2 * jnp.broadcast_to(task, x.shape)).sum(axis=-1) / 3**0.5
