"""Task families: pure samplers of tasks, and of episodes (the points of a task).

All samplers here draw a single prompt; `jax.vmap` makes batches (see `sampling.py`).
"""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import SIZE, Range, check_ranges
from .draws import normal
from .inputs import InputKind, Vectors
from .labels import LabelKind, Scalar

Data = Any  # pytree of arrays that samplers draw from; None if the family has no data


class Difficulty(NamedTuple):
    """Numbers of coordinates, points and classes in use; traced: curricula never recompile."""

    dim: int | jax.Array  # coordinates of x in use, the others are 0; 0 if there are none
    points: int | jax.Array  # points in use, the others are padding
    classes: int | jax.Array = 0  # labels in use; 0 if the family does not vary their number


class Episode(NamedTuple):
    """Points of one task, and the roles of each point: query, context, both or neither.

    Layouts, losses, evaluation and lengths all read the roles from here. A point may have both
    roles: in a layout that predicts every label, each point is a query first, and then context for
    the points after it. A point without a role is padding.
    """

    x: jax.Array  # [points, *family.input_kind.shape]
    y: jax.Array  # [points, *family.label_kind.shape]
    queries: jax.Array  # bool [points]: the label is predicted, trained on and evaluated
    context: jax.Array  # bool [points]: shown with the label to the points after it
    label_tokens: jax.Array | None = None  # [points, W]; None: made by the label kind
    weights: jax.Array | None = None  # [points]: of the losses of queries; None: all are 1

    @property
    def length(self) -> jax.Array:
        """Number of points up to the last that is not padding, int `[]`; `[B]` for a batch."""
        used = self.queries | self.context
        return used.shape[-1] - jnp.argmax(used[..., ::-1], axis=-1)

    @property
    def last_query(self) -> jax.Array:
        """Position of the last query, int `[]`; `[B]` for a batch."""
        return self.queries.shape[-1] - 1 - jnp.argmax(self.queries[..., ::-1], axis=-1)


@dataclasses.dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over tasks, and over the points of a task.

    A family is a frozen dataclass of settings. Its methods are pure and jittable, except
    `load_data`. Register a family (`icl.tasks.register_family`), so that its runs can be reopened.
    """

    every_point_is_query: ClassVar[bool] = True  # at full difficulty
    hidden_queries: ClassVar[int] = 0  # number of last points that are queries and never context
    only_last_is_query: ClassVar[bool] = False  # whether the last point is the only query
    inputs_alone: ClassVar[bool] = False  # whether prompts are made of inputs, and show no label
    may_shorten: ClassVar[bool] = True  # whether prompts of fewer points have queries too

    points: int = 41
    """Number of (x, y) points in a prompt."""

    def __post_init__(self) -> None:
        check_ranges("task", self, points=SIZE)

    @property
    @abstractmethod
    def input_kind(self) -> InputKind:
        """Kind of the inputs x."""

    @property
    @abstractmethod
    def label_kind(self) -> LabelKind:
        """Kind of the labels y; defines the loss and the error."""

    @property
    def full(self) -> Difficulty:
        """The difficulty with all coordinates, points and classes in use."""
        return Difficulty(0, self.points)

    @property
    def concepts(self) -> Sequence[str]:
        """Names of the concepts that tasks belong to, such as bases; empty if there are none.

        A concept is what several tasks have in common and no prompt names (Han et al. 2024).
        """
        return ()

    @property
    def evaluation(self) -> "TaskFamily":
        """The family that evaluation draws from: this one, unless training differs on purpose."""
        return self

    @property
    def may_pad(self) -> bool:
        """Whether prompts may have padding at full difficulty, after the points in use."""
        return False

    @property
    def data_source(self) -> str | None:
        """Path or name of the data that `load_data` reads, for config.json and errors."""
        return None

    @property
    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """The files that `load_data` reads: the data are read again if one of them changes."""
        return () if self.data_source is None else (self.data_source,)

    def load_data(self) -> Data:
        """Reads the data that the samplers draw from, once, on the host: a pytree of NumPy arrays.

        Compiled programs take the data as an argument, every device holds all of it, and
        checkpoints leave it out. config.json records the source and a checksum of the data, and
        a run refuses data with another checksum.
        """
        return None

    def concept(self, task: Any) -> jax.Array:
        """The concept of a task, as its position among `concepts`: int `[]`."""
        raise NotImplementedError(f"tasks of {type(self).__name__} have no concepts")

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
    """A distribution over functions of vectors, and over the input vectors."""

    dim: int = 20
    """Dimension of the inputs x."""
    queries: int | None = None
    """Number of last points that are queries and never examples, for the layout masked; None
    to make each point a query and then an example for later points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, dim=SIZE, queries=Range(1, self.points - 1))

    @property
    def hidden_queries(self) -> int:
        return self.queries or 0

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
        """The oracle: noiseless labels of inputs `[..., dim]` under a task."""

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        """Draws inputs `[points, dim]`; standard normal unless overridden. The key is consumed."""
        return normal(key, (self.points, self.dim))

    def sample_episode(
        self, key: jax.Array, task: Any, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        x = jnp.where(jnp.arange(self.dim) < difficulty.dim, self.sample_inputs(key), 0)
        position = jnp.arange(self.points)
        used = position < difficulty.points
        y = self.label(task, x)
        if self.queries is None:
            return Episode(x, y, used, used)
        query = position >= difficulty.points - self.queries
        return Episode(x, y, used & query, used & ~query)


def with_noise(key: jax.Array, episode: Episode, size: float) -> Episode:
    """The episode with N(0, size^2) added to each label, a number. The key is consumed."""
    return episode._replace(y=episode.y + size * normal(key, episode.y.shape))


def on_device(data: Data) -> Data:
    """Data as JAX arrays; ValueError if there are none."""
    if data is None:
        raise ValueError("inputs are drawn from data: give the result of load_data")
    return jax.tree.map(jnp.asarray, data)


def choose_coordinates(key: jax.Array, dim: int, count: int, difficulty: Difficulty) -> jax.Array:
    """Chooses `count` of the coordinates in use, or all if fewer are in use: bool `[dim]`.

    The key is consumed.
    """
    scores = jax.random.uniform(key, (dim,))
    scores = jnp.where(jnp.arange(dim) < difficulty.dim, scores, -1)
    lowest = jax.lax.top_k(scores, count)[0][-1]
    return (scores >= lowest) & (scores >= 0)
