"""Linear regression in one of several bases: a mixture of sparse regressions (Han et al. 2024)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..ranges import NOT_NEGATIVE, Range, check_ranges
from .base import Data, Difficulty, Episode, FunctionFamily, with_noise
from .draws import normal
from .labels import Scalar


class WeightsInBasis(NamedTuple):
    """Weights that are 0 outside a basis."""

    weights: jax.Array  # [dim]
    basis: jax.Array  # int []


@dataclasses.dataclass(frozen=True)
class BasisRegression(FunctionFamily):
    """y = w.x + noise * e, where the nonzero coordinates of w are those of a basis.

    A basis is a set of `rank` coordinates, and each task draws one uniformly. w ~ N(0, I) in the
    basis, e ~ N(0, 1) and x ~ N(0, I). The bases are the concepts of Han et al. 2024 (arXiv
    2412.12276, section 3.3 and appendix D.2). A task is a `WeightsInBasis`. Under a curriculum of
    dimensions a basis may have no coordinate in use; its labels are noise then.
    """

    points: int = 21
    """Number of (x, y) points in a prompt."""
    dim: int = 16
    """Dimension of the inputs x."""
    bases: int = 4
    """Number of bases."""
    rank: int | None = None
    """Number of coordinates of a basis; None for dim / bases, or for dim / 4 if bases overlap."""
    overlapping: bool = False
    """Let bases overlap: half of them are in the first half of the coordinates, the others in the
    second (appendix E.2). Otherwise no two bases share a coordinate."""
    noise: float = 0.0
    """Standard deviation of the label noise, in units of y."""

    def __post_init__(self) -> None:
        super().__post_init__()
        halves = 1 + self.overlapping
        check_ranges("task", self, noise=NOT_NEGATIVE, bases=Range(1, self.dim))
        if self.dim % halves or self.bases % halves:
            raise ValueError(
                "overlapping bases are in two halves of the coordinates: task.dim and task.bases "
                f"must be even, got {self.dim} and {self.bases}"
            )
        most = self.dim // 2 if self.overlapping else self.dim // self.bases
        check_ranges("task", self, rank=Range(1, most))

    @property
    def size(self) -> int:
        """Number of coordinates of a basis."""
        if self.rank is not None:
            return self.rank
        return max(1, self.dim // 4) if self.overlapping else self.dim // self.bases

    @property
    def coordinates(self) -> np.ndarray:
        """The coordinates of each basis, int `[bases, size]`.

        The bases of a half, or of all coordinates, are neighbouring coordinates that start at even
        distances; the first coordinate comes after the last.
        """
        halves = 1 + self.overlapping
        width, each = self.dim // halves, self.bases // halves
        start = width * np.arange(each) // each
        within = (start[:, None] + np.arange(self.size)) % width
        return np.concatenate([within + half * width for half in range(halves)])

    @property
    def label_kind(self) -> Scalar:
        without = " without noise" * (self.noise > 0)
        return Scalar(float(self.size), f"mean squared label{without}")

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(f"basis {number}" for number in range(1, self.bases + 1))

    def concept(self, task: WeightsInBasis) -> jax.Array:
        return task.basis

    def sample_task(
        self, key: jax.Array, difficulty: Difficulty, data: Data = None
    ) -> WeightsInBasis:
        weight_key, basis_key = jax.random.split(key)
        basis = jax.random.randint(basis_key, (), 0, self.bases)
        masks = np.zeros((self.bases, self.dim), bool)
        np.put_along_axis(masks, self.coordinates, True, axis=1)
        weights = normal(weight_key, (self.dim,))
        return WeightsInBasis(jnp.where(jnp.asarray(masks)[basis], weights, 0), basis)

    def label(self, task: WeightsInBasis, x: jax.Array) -> jax.Array:
        return (x * jnp.broadcast_to(task.weights, x.shape)).sum(axis=-1)

    def sample_episode(
        self, key: jax.Array, task: WeightsInBasis, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        x_key, noise_key = jax.random.split(key)
        episode = super().sample_episode(x_key, task, difficulty)
        return with_noise(noise_key, episode, self.noise) if self.noise else episode
