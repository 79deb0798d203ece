"""Known classes whose labels the task decides: in-context meta-learning (Minegishi et al. 2025).

"Beyond induction heads: in-context meta learning induces multi-phase circuit emergence" (arXiv
2505.16694, section 3). The context seldom shows the class of the query, so its label cannot be
copied: a learner has to find out the task, and to know the label of the class under each task.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import SIZE, Range, check_ranges
from .base import Difficulty, Episode, TaskFamily
from .class_draws import Group, order
from .class_items import class_key
from .draws import normal, normal_at, uniform_at
from .inputs import Vectors
from .labels import Classes

SHARE = Range(0.0, 1.0)
EXPONENT = Range(0.0, 100.0)
FIRST_TABLE = 2**31  # row of the labels of task 0, after the rows of the means of all classes


class Relabelling(NamedTuple):
    """The task of a prompt, and the classes and labels of its points; the last is the query."""

    task: jax.Array  # int32 []
    classes: jax.Array  # int32 [points]
    labels: jax.Array  # int32 [points]


@dataclasses.dataclass(frozen=True)
class RelabelledClasses(TaskFamily):
    """Gaussian items of classes, each with its label under the task of the prompt.

    A prompt has one of `tasks` tasks. The context shows items of different classes, and the query
    is an item of any class. An item is (mu + spread * eta) / sqrt(1 + spread^2), with mu of its
    class and mu, eta ~ N(0, I / dim). Means and labels of classes are fixed: they depend on the
    numbers of class and task alone.
    """

    every_point_is_query: ClassVar[bool] = False
    only_last_is_query: ClassVar[bool] = True

    points: int = 5
    """Number of items in a prompt, the query included."""
    tasks: int = 3
    """Number of tasks."""
    classes: int = 64
    """Number of classes."""
    labels: int = 32
    """Number of labels, which classes share."""
    labelling: Literal["independent", "shifted"] = "independent"
    """How tasks differ: each class has an independent uniform label under each task, or the labels
    of task t are those of task 0 moved on by t, as in earlier versions of the public code."""
    dim: int = 63
    """Number of coordinates of an item."""
    spread: float = 0.1
    """Standard deviation of items about the mean of their class, over that of means."""
    shots: int = 1
    """Number of items of each class that the context shows; a divisor of points - 1."""
    p_supported: float = 0.0
    """Probability that the query's class is drawn from those of the context, and not from all; 1
    minus p_bursty in the public code."""
    zipf_exponent: float = 0.0
    """Exponent of the Zipf distribution over classes, whose first is the most frequent; 0 for a
    uniform one."""
    task_zipf_exponent: float = 0.0
    """Exponent of the Zipf distribution over tasks."""
    shuffled_labels: bool = False
    """Show the labels of the context in a random order, so that only their set tells the task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "task", self, tasks=SIZE, classes=SIZE, labels=SIZE._replace(low=2), dim=Range(1, 1000),
            spread=Range(0.0, 1e6), shots=SIZE, p_supported=SHARE, zipf_exponent=EXPONENT,
            task_zipf_exponent=EXPONENT,
        )  # fmt: skip
        if self.labelling not in ("independent", "shifted"):
            raise ValueError("task.labelling must be independent or shifted")
        if self.points < 2:
            raise ValueError("a prompt needs an example besides the query: raise task.points")
        if (self.points - 1) % self.shots:
            raise ValueError(
                f"{self.points - 1} examples cannot be {self.shots} of each class: set task.shots "
                "to a divisor of task.points - 1"
            )
        if self.shown > self.classes:
            raise ValueError(
                f"a context of {self.shown} different classes needs as many: raise task.classes, "
                f"which is {self.classes}, or lower task.points"
            )

    @property
    def shown(self) -> int:
        """Number of different classes of a context."""
        return (self.points - 1) // self.shots

    @property
    def input_kind(self) -> Vectors:
        return Vectors(self.dim)

    @property
    def label_kind(self) -> Classes:
        return Classes(self.labels)

    def label_of(self, task: jax.Array | int, classes: jax.Array) -> jax.Array:
        """The labels of classes `[n]` under a task, int32 `[n]`."""
        table = 0 if self.labelling == "shifted" else task
        row = jnp.asarray(table, jnp.uint32) + jnp.uint32(FIRST_TABLE)
        number = jax.vmap(lambda one: uniform_at(class_key(), 1, one, row)[0])(classes)
        label = jnp.minimum((number * self.labels).astype(jnp.int32), self.labels - 1)
        return label if self.labelling == "independent" else (label + task) % self.labels

    def table(self) -> jax.Array:
        """The label of each class under each task, int32 `[tasks, classes]`."""
        return jax.vmap(lambda task: self.label_of(task, jnp.arange(self.classes)))(
            jnp.arange(self.tasks)
        )

    def means(self) -> jax.Array:
        """The mean mu of each class, `[classes, dim]`."""
        one = lambda number: normal_at(class_key(), self.dim, row=number)
        return jax.vmap(one)(jnp.arange(self.classes)) / self.dim**0.5

    def task_probabilities(self) -> jax.Array:
        """The probability of each task, float32 `[tasks]`."""
        return _zipf(self.tasks, self.task_zipf_exponent)

    def class_probabilities(self) -> jax.Array:
        """The probability of each class as the first of a prompt, float32 `[classes]`."""
        return _zipf(self.classes, self.zipf_exponent)

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: None = None) -> Relabelling:
        examples = self.points - 1
        # All numbers at once: each call adds the rounds of threefry to the program.
        numbers = uniform_at(key, 4 + self.shown + 2 * examples)
        ends = (4, 4 + self.shown, 4 + self.shown + examples)
        single, which, where, mixed = jnp.split(numbers, ends)
        # The last class of a group is its most frequent one.
        tasks = Group(0, self.tasks, self.task_zipf_exponent, total=self.tasks)
        classes = Group(0, self.classes, self.zipf_exponent, total=self.classes)
        task = self.tasks - 1 - tasks.draw(single[0])
        each: list[jax.Array] = []
        for number in which:
            each.append(classes.draw(number, each))
        context = jnp.stack(each)[order(where) % self.shown]
        place = jnp.minimum((single[1] * examples).astype(jnp.int32), examples - 1)
        supported = single[2] < self.p_supported
        query = jnp.where(supported, context[place], classes.draw(single[3]))
        drawn = self.classes - 1 - jnp.append(context, query)
        labels = self.label_of(task, drawn)
        if self.shuffled_labels:
            labels = labels[jnp.append(order(mixed), examples)]
        return Relabelling(task, drawn, labels)

    def sample_episode(
        self, key: jax.Array, task: Relabelling, difficulty: Difficulty, data: None = None
    ) -> Episode:
        # A table of all means is made once a batch, and not once a prompt.
        noise = normal(key, (self.points, self.dim)) / self.dim**0.5
        x = (self.means()[task.classes] + self.spread * noise) / (1 + self.spread**2) ** 0.5
        query = jnp.arange(self.points) == self.points - 1
        return Episode(x, task.labels, query, ~query)


def _zipf(count: int, exponent: float) -> jax.Array:
    """Probabilities of a Zipf distribution, float32 `[count]`."""
    weights = jnp.arange(1, count + 1, dtype=jnp.float32) ** -exponent
    return weights / weights.sum()
