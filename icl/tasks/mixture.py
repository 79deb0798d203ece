"""A mixture of task families, as in pretraining on many kinds of tasks (Brown et al. 2020).

GPT-3's pretraining (arXiv 2005.14165, section 2) is an outer loop over sequences of many tasks,
whose inner loop is learning in context. Here each prompt is of one registered family.
"""

import dataclasses
import json
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import POSITIVE, Range, check_range, check_ranges
from .base import Data, Difficulty, Episode, FunctionFamily, TaskFamily
from .inputs import Vectors
from .labels import LabelKind, Scalar, Vector


class MixtureTask(NamedTuple):
    """A task of one family of the mixture, among tasks of all of them."""

    member: jax.Array  # int32 []: index of the family
    tasks: tuple[Any, ...]  # a task of each family; only that of `member` is shown


@dataclasses.dataclass(frozen=True)
class Mixture(FunctionFamily):
    """Each prompt is of one of several families, drawn by the shares.

    Labels that are numbers or vectors are divided by a constant of their family, the root of its
    mean squared label. So labels of each family have mean square 1, losses weigh the families by
    their shares alone, and errors are as those of the family by itself. Inputs are not changed.
    """

    dim: int = 3
    """Dimension of the inputs x."""
    points: int = 21
    """Number of (x, y) points in a prompt."""
    families: tuple[str, ...] = ("linear_regression", "quadratic_regression", "relu_network")
    """Registered names of the families that prompts are drawn from."""
    shares: tuple[float, ...] = ()
    """Relative frequencies of the families, one for each; none for equal ones."""
    held_out: tuple[str, ...] = ()
    """Registered names of families that are not trained on, for the analysis few-shot; none for
    all registered families whose inputs and labels fit."""
    options: tuple[str, ...] = ()
    """Settings of families, trained on or held out, each as decision_tree.depth=2."""
    fewest_points: int | None = None
    """Smallest number of points of a training prompt: each draws its number uniformly from here to
    `points`, the others are padding. None for prompts of `points` points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("families", "shares", "held_out", "options"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list if read from JSON
        check_ranges("task", self, fewest_points=Range(max(self.hidden_queries, 1), self.points))
        if not self.families:
            raise ValueError("task.families must name at least one task family")
        for share in self.shares:
            check_range("task.shares", share, POSITIVE)
        if self.shares and len(self.shares) != len(self.families):
            raise ValueError(
                f"task.shares must be {len(self.families)} numbers, one for each family, or none; "
                f"got {self.shares}"
            )
        named = (*self.families, *self.held_out)
        if len(set(named)) < len(named):
            raise ValueError(f"task.families and task.held_out name a family twice: {named}")
        for option in self.options:
            if option.partition(".")[0] not in named:
                raise ValueError(
                    f"task.options has {option!r}, of none of the families {', '.join(named)}; "
                    "write family.setting=value"
                )
        for name in named:
            self.member(name)

    def member(self, name: str) -> TaskFamily:
        """The family of that name with the sizes and the options of the mixture.

        Raises:
          ValueError: there is no such family, it refuses the sizes or an option, or its inputs,
            labels or queries are unlike those of the first family.
        """
        from . import FAMILIES  # late, since that module imports this one

        if name not in FAMILIES or FAMILIES[name] is Mixture:
            known = ", ".join(sorted(one for one in FAMILIES if FAMILIES[one] is not Mixture))
            raise ValueError(f"no task family {name!r} for a mixture; there are {known}")
        kind = FAMILIES[name]
        fields = {field.name for field in dataclasses.fields(kind)}
        settings: dict[str, Any] = {"points": self.points}
        settings |= {"dim": self.dim} if "dim" in fields else {}
        settings |= {} if self.queries is None else {"queries": self.queries}
        settings |= _options_of(name, self.options)
        if unknown := set(settings) - fields:
            raise ValueError(f"the family {name} has no setting {', '.join(sorted(unknown))}")
        try:
            member = kind(**settings)
        except ValueError as error:
            raise ValueError(f"the family {name} of the mixture: {error}") from error
        if problem := self._unfit(name, member):
            raise ValueError(f"the family {name} does not fit the mixture: {problem}")
        return member

    def _unfit(self, name: str, member: TaskFamily) -> str | None:
        """Why a family cannot be part of the mixture; None if it can."""
        if member.data_source is not None:
            return "it reads data from files"
        if not member.every_point_is_query or member.only_last_is_query:
            return "not every point of its prompts is a query"
        if member.input_kind != Vectors(self.dim):
            return f"its inputs are {member.input_kind}, not {Vectors(self.dim)}"
        if name == self.families[0]:
            return None
        first = self.member(self.families[0]).label_kind
        if _without_scale(member.label_kind) != _without_scale(first):
            return f"its labels are {member.label_kind}, those of {self.families[0]} are {first}"
        return None

    @property
    def members(self) -> tuple[TaskFamily, ...]:
        """The families, in the order of their names."""
        return tuple(map(self.member, self.families))

    def alone(self, name: str, **changes: Any) -> "Mixture":
        """A mixture of that family only, with the sizes, options and labels of this one."""
        own = tuple(option for option in self.options if option.partition(".")[0] == name)
        changes = dict(families=(name,), shares=(), held_out=(), options=own) | changes
        return dataclasses.replace(self, **changes)

    @property
    def label_kind(self) -> LabelKind:
        kinds = [member.label_kind for member in self.members]
        first = kinds[0]
        if not isinstance(first, (Scalar, Vector)):
            return first
        names = {kind.scale_name for kind in kinds if isinstance(kind, (Scalar, Vector))}
        name = names.pop() if len(names) == 1 else "mean squared label of the family"
        return dataclasses.replace(first, scale=1.0, scale_name=name)

    @property
    def evaluation(self) -> "Mixture":
        return dataclasses.replace(self, fewest_points=None)

    @property
    def may_pad(self) -> bool:
        return self.fewest_points is not None

    @property
    def concepts(self) -> tuple[str, ...]:
        return self.families

    def concept(self, task: MixtureTask) -> jax.Array:
        return task.member

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> MixtureTask:
        member_key, *keys = jax.random.split(key, 1 + len(self.families))
        shares = jnp.array(self.shares or [1.0] * len(self.families), jnp.float32)
        member = jax.random.categorical(member_key, jnp.log(shares))
        drawn = (one.sample_task(own, difficulty) for one, own in zip(self.members, keys))
        return MixtureTask(member.astype(jnp.int32), tuple(drawn))

    def label(self, task: MixtureTask, x: jax.Array) -> jax.Array:
        def of(index: int, member: Any) -> jax.Array:
            return member.label(task.tasks[index], x) / label_root(member)

        parts = [partial(of, index, member) for index, member in enumerate(self.members)]
        return jax.lax.switch(task.member, parts)

    def sample_episode(
        self, key: jax.Array, task: MixtureTask, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        if self.fewest_points is not None:
            key, points_key = jax.random.split(key)
            drawn = jax.random.randint(points_key, (), self.fewest_points, self.points + 1)
            difficulty = difficulty._replace(points=jnp.minimum(drawn, difficulty.points))

        drawn = []
        keys = jax.random.split(key, len(self.families))
        for name, member, own, of in zip(self.families, self.members, keys, task.tasks):
            episode = member.sample_episode(own, of, difficulty)
            if episode.label_tokens is not None or episode.weights is not None:
                raise ValueError(
                    f"the family {name} does not fit a mixture: its episodes have label tokens or "
                    "weights"
                )
            if isinstance(member.label_kind, (Scalar, Vector)):
                episode = episode._replace(y=episode.y / label_root(member))
            drawn.append(episode)
        # Stacked, since vmap of `lax.switch` draws all of them too.
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[task.member], *drawn)


def label_root(member: TaskFamily) -> float:
    """Root of the mean squared label of a family, the divisor of its labels in a mixture."""
    return getattr(member.label_kind, "scale", 1.0) ** 0.5


def _without_scale(kind: LabelKind) -> LabelKind:
    if isinstance(kind, (Scalar, Vector)):
        return dataclasses.replace(kind, scale=1.0, scale_name="")
    return kind


def _options_of(name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a family among options such as decision_tree.depth=2."""
    found: dict[str, Any] = {}
    for option in options:
        setting, equals, text = option.partition("=")
        family, dot, setting = setting.partition(".")
        if not (equals and dot and setting and text):
            raise ValueError(f"cannot read {option!r} in task.options: write family.setting=value")
        if family == name:
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            found[setting] = tuple(value) if isinstance(value, list) else value
    return found
