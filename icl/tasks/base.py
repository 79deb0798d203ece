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
from .inputs import InputKind, Vectors
from .labels import LabelKind, Scalar

Data = Any  # a pytree of arrays that samplers draw from; None for a family without


class Difficulty(NamedTuple):
    """How much of the full shape is in use; traced, so that a curriculum recompiles nothing."""

    dim: int | jax.Array  # coordinates of x in use, the others are 0; 0 for inputs without any
    points: int | jax.Array  # points in use, the others are padding


class Episode(NamedTuple):
    """Points of one task, and the role of each of them.

    This is the one place that says which points are what; layouts, losses, evaluation and lengths
    read it. A point may have both roles: in a layout that predicts every label, a point is a query
    first, and context for the points after it. A point without a role is padding.
    """

    x: jax.Array  # [points, *family.input_kind.shape]
    y: jax.Array  # [points, *family.label_kind.shape]
    queries: jax.Array  # bool [points]: the label is predicted, trained on and evaluated
    context: jax.Array  # bool [points]: shown with the label to the points after it
    label_tokens: jax.Array | None = None  # [points, W]; None for those of the label kind

    @property
    def length(self) -> jax.Array:
        """Points up to the last one that is not padding, int `[]`; a batch has `[B]`."""
        used = self.queries | self.context
        return used.shape[-1] - jnp.argmax(used[..., ::-1], axis=-1)

    @property
    def last_query(self) -> jax.Array:
        """Position of the last query, int `[]`; a batch has `[B]`."""
        return self.queries.shape[-1] - 1 - jnp.argmax(self.queries[..., ::-1], axis=-1)


@dataclasses.dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over tasks, and over the points of a task.

    A family is its settings: a frozen dataclass whose methods are pure and jittable, but for
    `load_data`. Register it (`icl.tasks.register_family`), so that runs of it can be read back.
    """

    every_point_is_query: ClassVar[bool] = True  # at full difficulty

    points: int = 41
    """Number of (x, y) points in a prompt."""

    def __post_init__(self) -> None:
        check_ranges("task", self, points=SIZE)

    @property
    @abstractmethod
    def input_kind(self) -> InputKind:
        """What the inputs x are."""

    @property
    @abstractmethod
    def label_kind(self) -> LabelKind:
        """What the labels y are; it owns the loss and the error."""

    @property
    def full(self) -> Difficulty:
        """The difficulty at which everything is in use."""
        return Difficulty(0, self.points)

    @property
    def data_source(self) -> str | None:
        """Where `load_data` reads, as a path or a name, for config.json and for errors."""
        return None

    def load_data(self) -> Data:
        """Arrays that the samplers draw from, a pytree of NumPy arrays, read once on the host.

        They are arguments of compiled programs, held by every device, and not in checkpoints.
        config.json keeps their source and checksum, and a run refuses other data.
        """
        return None

    @abstractmethod
    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Any:
        """Draws a task (a pytree of arrays). The key is consumed."""

    @abstractmethod
    def sample_episode(
        self, key: jax.Array, task: Any, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        """Draws the points of a task. The key is consumed."""


@dataclasses.dataclass(frozen=True)
class FunctionFamily(TaskFamily):
    """A distribution over functions of vectors, and over their inputs."""

    dim: int = 20
    """Dimension of the inputs x."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, dim=SIZE)

    @property
    def input_kind(self) -> Vectors:
        return Vectors(self.dim)

    @property
    def label_kind(self) -> LabelKind:
        return Scalar()

    @property
    def full(self) -> Difficulty:
        return Difficulty(self.dim, self.points)

    @abstractmethod
    def label(self, task: Any, x: jax.Array) -> jax.Array:
        """The noiseless labels of inputs `[..., dim]`: the oracle."""

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        """Draws inputs `[points, dim]`, standard normal unless a family says otherwise."""
        return normal(key, (self.points, self.dim))

    def sample_episode(
        self, key: jax.Array, task: Any, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        x = jnp.where(jnp.arange(self.dim) < difficulty.dim, self.sample_inputs(key), 0)
        used = jnp.arange(self.points) < difficulty.points
        return Episode(x, self.label(task, x), used, used)


def choose_coordinates(key: jax.Array, dim: int, count: int, difficulty: Difficulty) -> jax.Array:
    """Chooses `count` of the coordinates in use, or all of them if they are fewer: bool `[dim]`.

    The key is consumed.
    """
    scores = jax.random.uniform(key, (dim,))
    scores = jnp.where(jnp.arange(dim) < difficulty.dim, scores, -1)
    lowest = jax.lax.top_k(scores, count)[0][-1]
    return (scores >= lowest) & (scores >= 0)
