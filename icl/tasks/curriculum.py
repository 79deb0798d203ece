"""Curricula: the difficulty as a function of the training step; array shapes stay fixed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..ranges import SIZE, STEPS, check_ranges
from .base import Difficulty, TaskFamily


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Difficulty that grows by a fixed amount every `interval` steps, up to full difficulty.

    Garg et al. 2022 (appendix A.2) start linear regression with 5 coordinates and 11 points, and
    add 1 coordinate and 2 points every 2,000 steps.
    """

    dim_start: int | None = None
    """Number of coordinates in use at step 0; None to use all from the start."""
    dim_increment: int = 1
    """Number of coordinates added after each interval."""
    points_start: int | None = None
    """Number of points in use at step 0; None to use all from the start."""
    points_increment: int = 2
    """Number of points added after each interval."""
    classes_start: int | None = None
    """Number of classes in use at step 0; None to use all from the start."""
    classes_increment: int = 1
    """Number of classes added after each interval."""
    interval: int = 2000
    """Number of training steps between two additions."""

    def __post_init__(self) -> None:
        parts = ("dim", "points", "classes")
        names = [f"{part}_{end}" for part in parts for end in ("start", "increment")]
        check_ranges("curriculum", self, interval=STEPS, **dict.fromkeys(names, SIZE))

    def check_for(self, family: TaskFamily) -> None:
        """Raises ValueError if a start exceeds the coordinates, points or classes of the family."""
        dim, _, classes = family.full
        if not dim and self.dim_start is not None:
            raise ValueError(
                f"the inputs of {type(family).__name__} have no coordinates: set "
                "curriculum.dim_start to None"
            )
        if not classes and self.classes_start is not None:
            raise ValueError(
                f"{type(family).__name__} has no number of classes to vary: set "
                "curriculum.classes_start to None"
            )
        if not family.may_shorten and self.points_start is not None:
            raise ValueError(
                f"short prompts of {type(family).__name__} have no query: set "
                "curriculum.points_start to None"
            )
        if family.only_last_is_query and self.points_start is not None:
            raise ValueError(
                f"the last point of {type(family).__name__} is the query, so no point may be "
                "padding: set curriculum.points_start to None"
            )
        check_ranges("curriculum", self, points_start=SIZE._replace(high=family.points))
        if classes:
            check_ranges("curriculum", self, classes_start=SIZE._replace(high=int(classes)))
        if dim:
            check_ranges("curriculum", self, dim_start=SIZE._replace(high=int(dim)))

    def at(self, step: jax.Array | int, family: TaskFamily) -> Difficulty:
        """The difficulty at a training step; traced if the step is traced."""
        grown = jnp.asarray(step) // self.interval

        def ramp(start: int | None, increment: int, full: Any) -> Any:
            if start is None:
                return full
            # Limits the number of additions, so that the product cannot overflow.
            needed = max(0, -(-(full - start) // increment))
            return jnp.minimum(start + increment * jnp.minimum(grown, needed), full)

        return Difficulty(
            ramp(self.dim_start, self.dim_increment, family.full.dim),
            ramp(self.points_start, self.points_increment, family.points),
            ramp(self.classes_start, self.classes_increment, family.full.classes),
        )


def garg_curriculum(points_start: int = 11, points_increment: int = 2) -> Curriculum:
    """Garg et al.'s schedule. For trees and ReLU networks they start at 26 points and add 5."""
    return Curriculum(
        dim_start=5, points_start=points_start, points_increment=points_increment, interval=2000
    )
