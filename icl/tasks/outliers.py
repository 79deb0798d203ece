"""Linear regression among outliers (Park et al. 2024, "Can Mamba learn how to learn?").

An outlier is a point whose x and label tokens are both replaced by vectors that hold no information
about w. Outliers stay in the prompt as context, but their labels are not predicted.
"""

import dataclasses
from abc import abstractmethod
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..ranges import Range, check_ranges
from .base import Data, Difficulty, Episode
from .draws import normal
from .linear_regression import LinearRegression


@dataclasses.dataclass(frozen=True)
class _OutlierRegression(LinearRegression):
    """Linear regression in which each point is an outlier with probability `outliers`."""

    every_point_is_query: ClassVar[bool] = False

    outliers: float = 0.5
    """Probability that a point is an outlier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries is not None:
            raise ValueError("any inlier of this task may be a query: leave task.queries None")
        # Some points must remain to be predicted.
        check_ranges("task", self, outliers=Range(0.0, 0.999))

    @abstractmethod
    def sample_outliers(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws the replacements of x and of label tokens at outliers, each `[points, dim]`."""

    def sample_episode(
        self, key: jax.Array, task: jax.Array, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        point_key, which_key, outlier_key = jax.random.split(key, 3)
        clean = super().sample_episode(point_key, task, difficulty)
        used = jnp.arange(self.dim) < difficulty.dim
        replaced = jax.random.bernoulli(which_key, self.outliers, (self.points,))
        x, labels = self.sample_outliers(outlier_key, jnp.where(used, task, 0))
        shown = jnp.zeros_like(clean.x).at[:, 0].set(clean.y)
        pick = lambda outlier, point: jnp.where(replaced[:, None] & used[None], outlier, point)
        # The first entry of an inlier's label token holds y even if that coordinate is not in use.
        label_tokens = jnp.where(replaced[:, None], jnp.where(used, labels, 0), shown)
        y = jnp.where(replaced, label_tokens[:, 0], clean.y)
        return Episode(pick(x, clean.x), y, clean.queries & ~replaced, clean.context, label_tokens)


@dataclasses.dataclass(frozen=True)
class ManyOutlierRegression(_OutlierRegression):
    """The x and label tokens of an outlier are vectors of ones (appendix of Park et al.)."""

    points: int = 512
    """Number of (x, y) points in a prompt, outliers included."""
    outliers: float = 0.9
    """Probability that a point is an outlier."""

    def sample_outliers(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        ones = jnp.ones((self.points, self.dim))
        return ones, ones


@dataclasses.dataclass(frozen=True)
class OrthogonalOutlierRegression(_OutlierRegression):
    """Outliers are (a u + b v) / (a^2 + b^2), with u and v orthogonal to w and to each other.

    Each prompt has one pair u and v: standard normal vectors with the other directions projected
    out. a and b are N(0, 1), drawn separately for the x and for the label token of each outlier.
    The quotient has heavy tails, as in the public code.
    """

    points: int = 101
    """Number of (x, y) points in a prompt, outliers included."""

    def sample_outliers(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        direction_key, weight_key = jax.random.split(key)
        used = task != 0
        first, second = jnp.where(used, normal(direction_key, (2, self.dim)), 0)
        u = _without(first, task)
        v = _without(_without(second, task), u)
        a, b = normal(weight_key, (2, 2, self.points, 1))
        x, labels = (a * u[None, None] + b * v[None, None]) / (a**2 + b**2)
        return x, labels


def _without(vector: jax.Array, direction: jax.Array) -> jax.Array:
    """The component of a vector orthogonal to a direction."""
    squared = (direction**2).sum()
    return vector - direction * (vector * direction).sum() / jnp.where(squared > 0, squared, 1)
