"""Curricula: the difficulty as a function of the training step, at a fixed shape."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..ranges import SIZE, STEPS, check_ranges
from .base import Difficulty, TaskFamily


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Difficulty that grows by a fixed amount every `interval` steps up to the full one.

    Garg et al. 2022 (appendix A.2) start linear regression at 5 coordinates and 11 points
    and add 1 and 2 every 2,000 steps.
    """

    dim_start: int | None = None
    """Coordinates in use at step 0; None for all of them throughout."""
    dim_increment: int = 1
    """Coordinates added at each interval."""
    points_start: int | None = None
    """Points that count at step 0; None for all of them throughout."""
    points_increment: int = 2
    """Points added at each interval."""
    interval: int = 2000
    """Steps between two additions."""

    def __post_init__(self) -> None:
        names = ("dim_start", "dim_increment", "points_start", "points_increment")
        check_ranges("curriculum", self, interval=STEPS, **dict.fromkeys(names, SIZE))

    def check_for(self, family: TaskFamily) -> None:
        """Raises ValueError where a start is beyond what the family has."""
        dim = family.full.dim
        if not dim and self.dim_start is not None:
            raise ValueError(
                f"the inputs of {type(family).__name__} have no coordinates to begin with: leave "
                "curriculum.dim_start None"
            )
        check_ranges("curriculum", self, points_start=SIZE._replace(high=family.points))
        if dim:
            check_ranges("curriculum", self, dim_start=SIZE._replace(high=int(dim)))

    def at(self, step: jax.Array | int, family: TaskFamily) -> Difficulty:
        """The difficulty at a step; traced when the step is."""
        grown = jnp.asarray(step) // self.interval

        def ramp(start: int | None, increment: int, full: Any) -> Any:
            if start is None:
                return full
            # No more additions than are needed, whose product cannot overflow.
            needed = max(0, -(-(full - start) // increment))
            return jnp.minimum(start + increment * jnp.minimum(grown, needed), full)

        return Difficulty(
            ramp(self.dim_start, self.dim_increment, family.full.dim),
            ramp(self.points_start, self.points_increment, family.points),
        )


def garg_curriculum(points_start: int = 11, points_increment: int = 2) -> Curriculum:
    """Garg et al.'s schedule; trees and ReLU networks start at 26 points and add 5."""
    return Curriculum(
        dim_start=5, points_start=points_start, points_increment=points_increment, interval=2000
    )
