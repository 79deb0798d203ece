"""What a task family is: a pure sampler of tasks, and of episodes of a task.

Everything here is for one prompt; `jax.vmap` makes batches (see `sampling.py`).
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Difficulty(NamedTuple):
    """How much of the full shape is in use; traced, so that a curriculum recompiles nothing."""

    dim: int | jax.Array  # coordinates of x in use; the others are 0
    points: int | jax.Array  # points that count


class Episode(NamedTuple):
    """Points of one task."""

    x: jax.Array  # [points, dim]
    y: jax.Array  # [points]
    counts: jax.Array  # bool [points]: which positions are trained on and evaluated


@dataclasses.dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over functions from R^dim to R, and over their inputs.

    A family is its settings: a frozen dataclass whose methods are pure and jittable.
    """

    dim: int = 20
    """Dimension of the inputs x."""
    points: int = 41
    """Number of (x, y) points in a prompt."""

    def __post_init__(self) -> None:
        for name in ("dim", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def full(self) -> Difficulty:
        """The difficulty at which every coordinate and every point is in use."""
        return Difficulty(self.dim, self.points)

    @property
    def error_scale(self) -> float:
        """What errors are divided by: the mean squared label, the error of predicting 0."""
        return 1.0

    @abstractmethod
    def sample_task(self, key: jax.Array, difficulty: Difficulty) -> Any:
        """Draws a task (a pytree of arrays). The key is consumed."""

    @abstractmethod
    def label(self, task: Any, x: jax.Array) -> jax.Array:
        """The noiseless label of inputs `[..., dim]`, as `[...]`: the oracle."""

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        """Draws inputs `[points, dim]`, standard normal unless a family says otherwise."""
        return jax.random.normal(key, (self.points, self.dim))

    def sample_episode(self, key: jax.Array, task: Any, difficulty: Difficulty) -> Episode:
        """Draws the points of a task. The key is consumed."""
        x = jnp.where(jnp.arange(self.dim) < difficulty.dim, self.sample_inputs(key), 0)
        counts = jnp.arange(self.points) < difficulty.points
        return Episode(x, self.label(task, x), counts)

    def loss(self, prediction: jax.Array, y: jax.Array) -> jax.Array:
        """What training minimises, elementwise; squared error unless a family says otherwise."""
        return (prediction - y) ** 2
