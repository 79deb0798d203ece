"""Families whose labels are -1 or 1: half-spaces and parities."""

import dataclasses

import jax
import jax.numpy as jnp

from ..ranges import Range, check_ranges
from .base import Data, Difficulty, FunctionFamily, choose_coordinates
from .draws import normal
from .labels import Signs


@dataclasses.dataclass(frozen=True)
class LinearClassification(FunctionFamily):
    """y = sign(w.x) with w ~ N(0, I): in the public code of Garg et al. 2022, not in the paper.

    A task is w, `[dim]`.
    """

    @property
    def label_kind(self) -> Signs:
        return Signs()

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return normal(key, (self.dim,))

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where((x * jnp.broadcast_to(task, x.shape)).sum(axis=-1) > 0, 1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class Parity(FunctionFamily):
    """The product of `relevant` coordinates of x in {-1, 1}^dim (Park et al. 2024, section 3).

    Each prompt draws its own coordinates, uniformly among the coordinates in use; the public code
    draws one set for a whole batch. A task is the set of multiplied coordinates, bool `[dim]`.
    """

    dim: int = 10
    """Dimension of the inputs x."""
    points: int = 140
    """Number of (x, y) points in a prompt."""
    relevant: int = 2
    """Number of coordinates that are multiplied."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, relevant=Range(1, self.dim))

    @property
    def label_kind(self) -> Signs:
        return Signs()

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return choose_coordinates(key, self.dim, self.relevant, difficulty)

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(task, x, 1.0).prod(axis=-1)

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        return jax.random.rademacher(key, (self.points, self.dim), jnp.float32)
