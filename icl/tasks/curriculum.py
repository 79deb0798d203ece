"""Curricula: the difficulty as a function of the training step, at a fixed shape."""

import dataclasses

import jax
import jax.numpy as jnp

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
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {self.interval}")
        for name in ("dim_start", "points_start"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 or None, got {getattr(self, name)}")

    def at(self, step: jax.Array | int, family: TaskFamily) -> Difficulty:
        """The difficulty at a step; traced when the step is."""
        grown = jnp.asarray(step) // self.interval
        ramp = lambda start, increment, full: (
            full if start is None else jnp.minimum(start + increment * grown, full)
        )
        return Difficulty(
            ramp(self.dim_start, self.dim_increment, family.dim),
            ramp(self.points_start, self.points_increment, family.points),
        )


def garg_curriculum(points_start: int = 11, points_increment: int = 2) -> Curriculum:
    """Garg et al.'s schedule; trees and ReLU networks start at 26 points and add 5."""
    return Curriculum(
        dim_start=5, points_start=points_start, points_increment=points_increment, interval=2000
    )
