"""What a task family is: a pure sampler of tasks, and of episodes of a task.

Everything here is for one prompt; `jax.vmap` makes batches (see `sampling.py`).
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import SIZE, check_ranges
from .draws import normal


class Difficulty(NamedTuple):
    """How much of the full shape is in use; traced, so that a curriculum recompiles nothing."""

    dim: int | jax.Array  # coordinates of x in use; the others are 0
    points: int | jax.Array  # points that count


class Episode(NamedTuple):
    """Points of one task."""

    x: jax.Array  # [points, dim]
    y: jax.Array  # [points], or [points, outputs] where labels are vectors
    counts: jax.Array  # bool [points]: which positions are trained on and evaluated
    label_tokens: jax.Array | None = None  # [points, dim]; None for (y, 0, ..., 0)


class Measure(NamedTuple):
    """How training shows its loss."""

    label: str  # beside a number of a progress bar, and in metrics.jsonl
    name: str  # what the number is, in words
    scale: float  # what the loss is divided by


@dataclasses.dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over functions from R^dim to R (or R^outputs), and over their inputs.

    A family is its settings: a frozen dataclass whose methods are pure and jittable.
    """

    every_point_counts: ClassVar[bool] = True  # at full difficulty

    dim: int = 20
    """Dimension of the inputs x."""
    points: int = 41
    """Number of (x, y) points in a prompt."""

    def __post_init__(self) -> None:
        check_ranges("task", self, dim=SIZE, points=SIZE)

    @property
    def full(self) -> Difficulty:
        """The difficulty at which every coordinate and every point is in use."""
        return Difficulty(self.dim, self.points)

    @property
    def outputs(self) -> int | None:
        """How many numbers a label is, where it is a vector; None for a scalar."""
        return None

    @property
    def error_scale(self) -> float:
        """What errors are divided by: the mean squared label, the error of predicting 0.

        At full difficulty; `error_name` tells what it leaves out.
        """
        return 1.0

    @property
    def error_name(self) -> str:
        """What `error` is, in words."""
        return "squared error / mean squared label"

    @property
    def training_measure(self) -> Measure:
        """How training shows its loss: as an error where it is one but for a factor."""
        return Measure("error", self.error_name, self.error_scale / (self.outputs or 1))

    @abstractmethod
    def sample_task(self, key: jax.Array, difficulty: Difficulty) -> Any:
        """Draws a task (a pytree of arrays). The key is consumed."""

    @abstractmethod
    def label(self, task: Any, x: jax.Array) -> jax.Array:
        """The noiseless label of inputs `[..., dim]`, `[...]` or `[..., outputs]`: the oracle."""

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        """Draws inputs `[points, dim]`, standard normal unless a family says otherwise."""
        return normal(key, (self.points, self.dim))

    def sample_episode(self, key: jax.Array, task: Any, difficulty: Difficulty) -> Episode:
        """Draws the points of a task. The key is consumed."""
        x = jnp.where(jnp.arange(self.dim) < difficulty.dim, self.sample_inputs(key), 0)
        counts = jnp.arange(self.points) < difficulty.points
        return Episode(x, self.label(task, x), counts)

    def loss(self, prediction: jax.Array, y: jax.Array) -> jax.Array:
        """What training minimises, `[..., points]`; mean squared error by default.

        Args:
          prediction: the model's outputs, of the shape of y.
          y: labels, `[..., points]` or `[..., points, outputs]`.
        """
        squared = (prediction - y) ** 2
        return squared if self.outputs is None else squared.mean(axis=-1)

    def error(self, prediction: Any, y: Any) -> Any:
        """What evaluation reports, `[..., points]`; NumPy or JAX arrays, shapes as for `loss`."""
        squared = (prediction - y) ** 2
        return (squared if self.outputs is None else squared.sum(axis=-1)) / self.error_scale


def choose_coordinates(key: jax.Array, dim: int, count: int, difficulty: Difficulty) -> jax.Array:
    """Bool `[dim]`: so many of the coordinates in use, or all of them where they are fewer.

    The key is consumed.
    """
    scores = jax.random.uniform(key, (dim,))
    scores = jnp.where(jnp.arange(dim) < difficulty.dim, scores, -1)
    lowest = jax.lax.top_k(scores, count)[0][-1]
    return (scores >= lowest) & (scores >= 0)
