"""Sine waves (Finn et al. 2017, MAML, section 5.1; von Oswald et al. 2023, section 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ranges import POSITIVE, check_ranges
from .base import Data, Difficulty, FunctionFamily
from .draws import uniform
from .labels import Scalar


@dataclasses.dataclass(frozen=True)
class SineRegression(FunctionFamily):
    """y = a sin(x + phase), with a, x and phase uniform.

    A task is (a, phase), `[2]`, drawn independently. The public code of von Oswald et al. draws
    both from one key, so that phase rises with a.
    """

    dim: int = 1
    """Dimension of the inputs x; always 1."""
    points: int = 11
    """Number of (x, y) points in a prompt. Layouts with a single query predict the last point."""
    low_amplitude: float = 0.1
    """Smallest amplitude a."""
    high_amplitude: float = 5.0
    """Largest amplitude a; 0.5 in the public code."""
    high_phase: float = np.pi
    """Largest phase, in radians; the smallest phase is 0."""
    input_range: float = 5.0
    """x is from -input_range to input_range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim != 1:
            raise ValueError(f"task.dim must be 1 for a sine, got {self.dim}")
        names = ("low_amplitude", "high_amplitude", "high_phase", "input_range")
        check_ranges("task", self, **dict.fromkeys(names, POSITIVE))
        if self.low_amplitude > self.high_amplitude:
            raise ValueError(
                "task.low_amplitude must not exceed task.high_amplitude; got "
                f"{self.low_amplitude} and {self.high_amplitude}"
            )

    @property
    def label_kind(self) -> Scalar:
        low, high = self.low_amplitude, self.high_amplitude
        # E sin^2(x + phase) = (1 - E cos(2x + 2 phase)) / 2; E cos is a product of two means.
        cosine = np.sin(2 * self.input_range) / (2 * self.input_range)
        cosine *= np.sin(2 * self.high_phase) / (2 * self.high_phase)
        return Scalar(float((low**2 + low * high + high**2) / 3 * (1 - cosine) / 2))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        a, phase = uniform(key, (2,), 0, 1)
        spread = self.high_amplitude - self.low_amplitude
        return jnp.stack([self.low_amplitude + spread * a, self.high_phase * phase])

    def label(self, task: Any, x: jax.Array) -> jax.Array:
        a, phase = task
        return a * jnp.sin(x[..., 0] + phase)

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        return uniform(key, (self.points, 1), -self.input_range, self.input_range)
