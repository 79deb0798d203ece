"""Vector retrieval: recall the value that was shown with a key (Park et al. 2024)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import SIZE, check_ranges
from .base import Data, Difficulty, Episode, FunctionFamily
from .draws import normal
from .labels import Vector


class Store(NamedTuple):
    """Keys and their values, all on the sphere of radius sqrt(number of coordinates in use)."""

    keys: jax.Array  # [points - 1, dim]
    values: jax.Array  # [points - 1, dim]


@dataclasses.dataclass(frozen=True)
class VectorRetrieval(FunctionFamily):
    """Pairs of a key x and its value y, then one of the keys again, whose value is predicted.

    This is associative recall with vectors in place of symbols, and one query a prompt. A task is a
    `Store`. Under a curriculum over points the query is the last point in use.
    """

    points: int = 65
    """Number of pairs plus 1, for the query."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, points=SIZE._replace(low=2))  # a pair and the query
        if self.queries is not None:
            raise ValueError("vector retrieval has one query, the last: leave task.queries None")

    @property
    def label_kind(self) -> Vector:
        return Vector(self.dim, float(self.dim))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Store:
        used = jnp.arange(self.dim) < difficulty.dim
        drawn = jnp.where(used, normal(key, (2, self.points - 1, self.dim)), 0)
        norm = jnp.sqrt((drawn**2).sum(axis=-1, keepdims=True))
        return Store(*(drawn * jnp.sqrt(difficulty.dim) / norm))

    def label(self, task: Store, x: jax.Array) -> jax.Array:
        closeness = jnp.einsum("...d,kd->...k", x, task.keys, precision="highest")
        return task.values[jnp.argmax(closeness, axis=-1)]

    def sample_episode(
        self, key: jax.Array, task: Store, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        query = difficulty.points - 1
        asked = jax.random.randint(key, (), 0, jnp.maximum(query, 1))
        position = jnp.arange(self.points)
        shown = jnp.where(position == query, asked, jnp.minimum(position, self.points - 2))
        used = jnp.arange(self.dim) < difficulty.dim
        x = jnp.where(used, task.keys[shown], 0)
        return Episode(x, task.values[shown], position == query, position < query)
