"""Linear regression: y = w.x + noise (Garg et al. 2022, section 3)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from ..ranges import NOT_NEGATIVE, POSITIVE, Range, check_ranges
from .base import Data, Difficulty, Episode, FunctionFamily, with_noise
from .draws import normal, uniform
from .labels import Scalar

# Mean square of an input coordinate at `input_scale` 1.
INPUTS = {"normal": 1.0, "uniform": 1 / 3, "exponential": 2.0, "laplace": 2.0}


@dataclasses.dataclass(frozen=True)
class LinearRegression(FunctionFamily):
    """y = w.x + noise * e with w ~ N(0, I), e ~ N(0, 1) and x ~ N(0, C), trace C = dim.

    The other input distributions and the scales of x and w follow von Oswald et al. 2023. A task is
    w, `[dim]`.
    """

    noise: float = 0.0
    """Standard deviation of the label noise, in units of y."""
    covariance_decay: float = 0.0
    """Eigenvalue i of the input covariance is proportional to i^-decay, in a fixed random basis.
    0 gives the identity; 2 gives Garg et al.'s skewed covariance (section 4.2)."""
    renormalize: bool = False
    """Scale labels to a mean square of dim, by a constant from their expected mean square.
    The option `renormalize_ys` of Garg et al.'s public code for noisy regression instead divides by
    the standard deviation of the labels of a batch."""
    inputs: Literal["normal", "uniform", "exponential", "laplace"] = "normal"
    """Distribution of each coordinate of x: N(0, 1), U(-1, 1), Exponential(1) or Laplace(1)."""
    input_scale: float = 1.0
    """Factor on x. Uniform inputs are from -input_scale to input_scale."""
    task_scale: float = 1.0
    """Factor on w."""
    random_labels: int = 0
    """Number of labels at the start of a prompt that are N(0, 1), independent of x: the noisy
    contexts of von Oswald et al."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "task",
            self,
            noise=NOT_NEGATIVE,
            covariance_decay=Range(0.0, 100.0),
            input_scale=POSITIVE,
            task_scale=POSITIVE,
            random_labels=Range(0, self.points - 1),
        )
        if self.inputs not in INPUTS:
            raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, got {self.inputs!r}")
        if self.inputs != "normal" and self.covariance_decay:
            raise ValueError(
                f"covariance_decay must be 0 unless inputs are normal; inputs are {self.inputs}"
            )

    @property
    def label_size(self) -> float:
        """Mean square of w_i x_i for a nonzero coordinate i of w."""
        return INPUTS[self.inputs] * (self.input_scale * self.task_scale) ** 2

    def signal(self, dim: int | jax.Array) -> float | jax.Array:
        """Mean square of w.x with the first `dim` coordinates in use."""
        if not self.covariance_decay:
            return self.label_size * dim
        variances = (self._covariance_root() ** 2).sum(axis=1)
        used = jnp.arange(self.dim, dtype=jnp.float32) < dim
        return self.label_size * jnp.where(used, variances, 0).sum()

    def label_factor(self, dim: int | jax.Array) -> float | jax.Array:
        """Factor on labels with `dim` coordinates in use; 1 unless `renormalize`.

        All prompts share the factor. One computed from a prompt's own labels would leak information
        about the labels still to be predicted.
        """
        if not self.renormalize:
            return 1.0
        if isinstance(dim, jax.Array):
            dim = dim.astype(jnp.float32)
        return (self.dim / (self.signal(dim) + self.noise**2)) ** 0.5

    @property
    def label_kind(self) -> Scalar:
        left_out = ["noise"] * (self.noise > 0 and not self.renormalize)
        left_out += ["random ones"] * (self.random_labels > 0)
        without = " without " * bool(left_out) + " and ".join(left_out)
        return Scalar(self.mean_squared_label, f"mean squared label{without}")

    @property
    def mean_squared_label(self) -> float:
        """Divisor of errors. Leaves out the noise, as in Garg et al., unless `renormalize`."""
        return float(self.dim) if self.renormalize else self.dim * self.label_size

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return self.task_scale * normal(key, (self.dim,))

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return (x * jnp.broadcast_to(task, x.shape)).sum(axis=-1)

    def covariance(self) -> jax.Array:
        """The covariance C of normal inputs at scale 1, `[dim, dim]`, with trace dim."""
        root = self._covariance_root()
        return root @ root.T

    def _covariance_root(self) -> jax.Array:
        scales = jnp.arange(1.0, self.dim + 1) ** (-0.5 * self.covariance_decay)
        scales = scales * jnp.sqrt(self.dim / (scales**2).sum())
        if not self.covariance_decay:
            return jnp.diag(scales)
        basis = jax.random.orthogonal(jax.random.key(0), self.dim)
        return (basis * scales[None]) @ basis.T

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        shape = (self.points, self.dim)
        match self.inputs:
            case "uniform":
                return uniform(key, shape, -self.input_scale, self.input_scale)
            case "exponential":
                return self.input_scale * jax.random.exponential(key, shape)
            case "laplace":
                return self.input_scale * jax.random.laplace(key, shape)
        x = self.input_scale * super().sample_inputs(key)
        if not self.covariance_decay:
            return x
        return jnp.matmul(x, self._covariance_root(), precision="highest")

    def sample_episode(
        self, key: jax.Array, task: jax.Array, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        label_key = None
        if self.random_labels:
            key, label_key = jax.random.split(key)
        x_key, noise_key = jax.random.split(key) if self.noise else (key, key)
        episode = super().sample_episode(x_key, task, difficulty)
        y = with_noise(noise_key, episode, self.noise).y if self.noise else episode.y
        if self.renormalize:
            y = y * self.label_factor(difficulty.dim)
        if label_key is not None:
            first = jnp.arange(self.points) < self.random_labels
            y = jnp.where(first, normal(label_key, y.shape), y)
        return episode._replace(y=y)
