"""Sine waves (Finn et al. 2017, MAML, section 5.1; von Oswald et al. 2023, section 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ranges import NOT_NEGATIVE, POSITIVE, check_ranges
from .base import Data, Difficulty, FunctionFamily
from .draws import uniform
from .labels import Scalar

FREQUENCIES = 1001  # over which the mean squared label is averaged


@dataclasses.dataclass(frozen=True)
class SineRegression(FunctionFamily):
    """y = a sin(frequency x + phase), with a, frequency, x and phase uniform.

    A task is (a, phase, frequency), `[3]`, drawn independently. The public code of von Oswald et
    al. draws a and phase from one key, so that phase rises with a.
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
    low_frequency: float = 1.0
    """Smallest frequency, in radians for a unit of x."""
    high_frequency: float = 1.0
    """Largest frequency."""
    input_range: float = 5.0
    """x is from -input_range to input_range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim != 1:
            raise ValueError(f"task.dim must be 1 for a sine, got {self.dim}")
        names = ("low_amplitude", "high_amplitude", "high_phase", "input_range")
        check_ranges("task", self, **dict.fromkeys(names, POSITIVE))
        names = ("low_frequency", "high_frequency")
        check_ranges("task", self, **dict.fromkeys(names, NOT_NEGATIVE))
        for name in ("amplitude", "frequency"):
            low, high = getattr(self, f"low_{name}"), getattr(self, f"high_{name}")
            if low > high:
                raise ValueError(
                    f"task.low_{name} must not exceed task.high_{name}; got {low} and {high}"
                )

    @property
    def label_kind(self) -> Scalar:
        low, high = self.low_amplitude, self.high_amplitude
        # E sin^2(f x + phase) = (1 - E cos(2 f x + 2 phase)) / 2; E cos is a product of two means.
        frequencies = np.linspace(self.low_frequency, self.high_frequency, FREQUENCIES)
        cosine = np.sinc(2 * frequencies * self.input_range / np.pi).mean()
        cosine *= np.sin(2 * self.high_phase) / (2 * self.high_phase)
        return Scalar(float((low**2 + low * high + high**2) / 3 * (1 - cosine) / 2))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        a, phase, frequency = uniform(key, (3,), 0, 1)
        between = lambda low, high, share: low + (high - low) * share
        return jnp.stack(
            [
                between(self.low_amplitude, self.high_amplitude, a),
                self.high_phase * phase,
                between(self.low_frequency, self.high_frequency, frequency),
            ]
        )

    def label(self, task: Any, x: jax.Array) -> jax.Array:
        a, phase, frequency = task
        return a * jnp.sin(frequency * x[..., 0] + phase)

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        return uniform(key, (self.points, 1), -self.input_range, self.input_range)


def fast_sines(points: int, queries: int) -> SineRegression:
    """Sines of many frequencies on [-1, 1], of the notebook for Kirsch et al. 2022."""
    return SineRegression(
        points=points, queries=queries, low_amplitude=0.1, high_amplitude=5.0, low_frequency=0.0,
        high_frequency=8.0, high_phase=3.0, input_range=1.0,
    )  # fmt: skip
