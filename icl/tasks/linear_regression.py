"""Linear regression: y = w.x + noise (Garg et al. 2022, section 3)."""

import dataclasses

import jax
import jax.numpy as jnp

from .base import Difficulty, Episode, TaskFamily
from .draws import normal


@dataclasses.dataclass(frozen=True)
class LinearRegression(TaskFamily):
    """y = w.x + noise * e with w ~ N(0, I), e ~ N(0, 1) and x ~ N(0, C), trace C = dim.

    A task is w, `[dim]`.
    """

    noise: float = 0.0
    """Standard deviation of the label noise, in units of y."""
    covariance_decay: float = 0.0
    """Eigenvalues of the input covariance fall as i^-decay, in a fixed random basis.
    0 is the identity; Garg et al.'s skewed covariance (section 4.2) is 2."""
    renormalize: bool = False
    """Divide the labels of a prompt by their standard deviation, times sqrt(dim): the option
    `renormalize_ys` of Garg et al.'s public code for noisy regression."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ValueError(f"noise is a standard deviation and cannot be {self.noise}")

    @property
    def error_scale(self) -> float:
        return float(self.dim)

    def sample_task(self, key: jax.Array, difficulty: Difficulty) -> jax.Array:
        return normal(key, (self.dim,))

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return (x * task).sum(axis=-1)

    def covariance(self) -> jax.Array:
        """The covariance C of the inputs, `[dim, dim]`, with trace dim."""
        root = self._covariance_root()
        return root @ root.T

    def _covariance_root(self) -> jax.Array:
        scales = jnp.arange(1, self.dim + 1) ** (-0.5 * self.covariance_decay)
        scales = scales * jnp.sqrt(self.dim / (scales**2).sum())
        if not self.covariance_decay:
            return jnp.diag(scales)
        basis = jax.random.orthogonal(jax.random.key(0), self.dim)
        return (basis * scales) @ basis.T

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        x = super().sample_inputs(key)
        if not self.covariance_decay:
            return x
        return jnp.matmul(x, self._covariance_root(), precision="highest")

    def sample_episode(self, key: jax.Array, task: jax.Array, difficulty: Difficulty) -> Episode:
        x_key, noise_key = jax.random.split(key) if self.noise else (key, key)
        episode = super().sample_episode(x_key, task, difficulty)
        y = episode.y
        if self.noise:
            y = y + self.noise * normal(noise_key, y.shape)
        if self.renormalize:
            y = y * self.dim**0.5 / y.std()
        return episode._replace(y=y)
