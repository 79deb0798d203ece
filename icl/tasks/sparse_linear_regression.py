"""Sparse linear regression: few coordinates of w are nonzero (Garg et al. 2022, section 5)."""

import dataclasses

import jax
import jax.numpy as jnp

from ..ranges import Range, check_ranges
from .base import Data, Difficulty, choose_coordinates
from .linear_regression import LinearRegression


@dataclasses.dataclass(frozen=True)
class SparseLinearRegression(LinearRegression):
    """Linear regression with `nonzeros` coordinates of w drawn from N(0, 1), the others 0.

    The nonzero coordinates are uniform among the coordinates in use. A task is w, `[dim]`.
    """

    nonzeros: int = 3
    """Number of nonzero coordinates of w."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, nonzeros=Range(1, self.dim))

    def signal(self, dim: int | jax.Array) -> float | jax.Array:
        return super().signal(dim) * jnp.minimum(self.nonzeros, dim) / dim

    @property
    def mean_squared_label(self) -> float:
        return float(self.dim) if self.renormalize else self.nonzeros * self.label_size

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        weight_key, choice_key = jax.random.split(key)
        weights = super().sample_task(weight_key, difficulty)
        return jnp.where(
            choose_coordinates(choice_key, self.dim, self.nonzeros, difficulty), weights, 0
        )
