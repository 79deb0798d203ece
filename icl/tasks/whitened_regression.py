"""Linear regression in which the covariance of w is the inverse of the covariance of x.

Ahn et al. 2023, "Transformers learn to implement preconditioned gradient descent for in-context
learning" (arXiv 2306.00297, section 6).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ..ranges import POSITIVE, SEED, check_range, check_ranges
from .base import Data, Difficulty, FunctionFamily
from .draws import normal
from .labels import Scalar


@dataclasses.dataclass(frozen=True)
class WhitenedRegression(FunctionFamily):
    """y = w.x with x ~ N(0, U D^2 U^T) and w ~ N(0, U D^-2 U^T), D diagonal, U a rotation.

    A task is w, `[dim]`.
    """

    dim: int = 5
    """Dimension of the inputs x."""
    points: int = 21
    """Number of (x, y) points in a prompt. Layouts with a single query predict the last point."""
    scales: tuple[float, ...] = (1.0, 1.0, 0.5, 0.25, 1.0)
    """Diagonal of D: standard deviations of the inputs along the columns of U."""
    rotation_seed: int | None = None
    """Seed of the random rotation U; None for the identity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scales", tuple(self.scales))  # a list if read from JSON
        check_ranges("task", self, rotation_seed=SEED)
        for scale in self.scales:
            check_range("task.scales", scale, POSITIVE)
        if len(self.scales) != self.dim:
            raise ValueError(
                f"task.scales must be {self.dim} positive numbers, one for each dimension; got "
                f"{self.scales}"
            )

    @property
    def label_kind(self) -> Scalar:
        return Scalar(float(self.dim))

    def rotation(self) -> jax.Array:
        """U, `[dim, dim]`."""
        if self.rotation_seed is None:
            return jnp.eye(self.dim)
        return jax.random.orthogonal(jax.random.key(self.rotation_seed), self.dim)

    def root(self, power: int = 1) -> jax.Array:
        """U D^power, `[dim, dim]`."""
        return self.rotation() * jnp.array([self.scales], jnp.float32) ** power

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return jnp.matmul(self.root(-1), normal(key, (self.dim,)), precision="highest")

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return (x * jnp.broadcast_to(task, x.shape)).sum(axis=-1)

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        return jnp.matmul(super().sample_inputs(key), self.root().T, precision="highest")
