"""Regression with functions of four kinds, which a prompt does not name (Han et al. 2024)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import NOT_NEGATIVE, Range, check_ranges
from .base import Data, Difficulty, Episode, FunctionFamily, choose_coordinates, with_noise
from .draws import normal
from .labels import Scalar

KINDS = ("linear", "sparse linear", "leaky ReLU", "quadratic")
SLOPE = 0.5  # of a leaky ReLU below 0


class FunctionOfKind(NamedTuple):
    """Weights of a function, and its kind."""

    weights: jax.Array  # [dim]; of a sparse linear function, few are not 0
    matrix: jax.Array  # [dim, dim], of a quadratic function
    kind: jax.Array  # int [], index in KINDS


@dataclasses.dataclass(frozen=True)
class MixedRegression(FunctionFamily):
    """y = f(x) + noise * e, with f of a kind that is drawn uniformly for each task.

    The kinds are w.x with w ~ N(0, I), w.x with `nonzeros` coordinates of w, a leaky ReLU of w.x
    with slope 1/2 below 0, and x^T W x / sqrt(dim) with all entries of W ~ N(0, 1). They are the
    functions of Kim et al. 2024 (arXiv 2410.05448) and of its public code, which Han et al. 2024
    (arXiv 2412.12276, section 3.3) mix; x ~ N(0, I). A task is a `FunctionOfKind`.
    """

    points: int = 21
    """Number of (x, y) points in a prompt."""
    dim: int = 16
    """Dimension of the inputs x."""
    nonzeros: int | None = None
    """Number of nonzero coordinates of a sparse linear function; None for dim / 4."""
    noise: float = 0.0
    """Standard deviation of the label noise, in units of y."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, noise=NOT_NEGATIVE, nonzeros=Range(1, self.dim))

    @property
    def sparsity(self) -> int:
        """Number of nonzero coordinates of a sparse linear function."""
        return max(1, self.dim // 4) if self.nonzeros is None else self.nonzeros

    @property
    def label_kind(self) -> Scalar:
        sizes = (self.dim, self.sparsity, self.dim * (1 + SLOPE**2) / 2, self.dim + 2)
        without = " without noise" * (self.noise > 0)
        return Scalar(float(sum(sizes) / len(sizes)), f"mean squared label{without}")

    @property
    def concepts(self) -> tuple[str, ...]:
        return KINDS

    def concept(self, task: FunctionOfKind) -> jax.Array:
        return task.kind

    def sample_task(
        self, key: jax.Array, difficulty: Difficulty, data: Data = None
    ) -> FunctionOfKind:
        kind_key, weight_key, matrix_key, choice_key = jax.random.split(key, 4)
        kind = jax.random.randint(kind_key, (), 0, len(KINDS))
        chosen = choose_coordinates(choice_key, self.dim, self.sparsity, difficulty)
        sparse = kind == KINDS.index("sparse linear")
        weights = jnp.where(chosen | ~sparse[None], normal(weight_key, (self.dim,)), 0)
        return FunctionOfKind(weights, normal(matrix_key, (self.dim, self.dim)), kind)

    def label(self, task: FunctionOfKind, x: jax.Array) -> jax.Array:
        linear = (x * jnp.broadcast_to(task.weights, x.shape)).sum(axis=-1)
        leaky = jnp.maximum(linear, SLOPE * linear)
        quadratic = (jnp.matmul(x, task.matrix, precision="highest") * x).sum(axis=-1)
        values = jnp.stack([linear, linear, leaky, quadratic / self.dim**0.5])
        return jnp.take(values, task.kind, axis=0)

    def sample_episode(
        self, key: jax.Array, task: FunctionOfKind, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        x_key, noise_key = jax.random.split(key)
        episode = super().sample_episode(x_key, task, difficulty)
        return with_noise(noise_key, episode, self.noise) if self.noise else episode
