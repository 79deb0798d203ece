"""Random multilayer perceptrons as tasks, and lines to transfer to.

They are the functions of a public notebook on general-purpose in-context learning (Kirsch et al.
2022, arXiv 2212.04458). It draws one network for a whole call; here each prompt has its own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ranges import NOT_NEGATIVE, POSITIVE, SIZE, check_range, check_ranges
from .base import Data, Difficulty, FunctionFamily
from .draws import normal, uniform
from .labels import Scalar

# Each takes numpy or jax.numpy, and an array.
ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda xp, x: x,
    "relu": lambda xp, x: xp.maximum(x, 0),
    "sigmoid": lambda xp, x: 1 / (1 + xp.exp(-x)),
    "swish": lambda xp, x: x / (1 + xp.exp(-x)),
    "tanh": lambda xp, x: xp.tanh(x),
}
SCALE_NETWORKS, SCALE_POINTS = 4096, 16  # that estimate the scale of labels, at most
MOST_WEIGHTS = 2**24  # of these networks together

Weights = tuple[tuple[jax.Array, jax.Array], ...]


@dataclasses.dataclass(frozen=True)
class RandomNetwork(FunctionFamily):
    """y = network(x) / scale, with weights N(0, weight_std^2) and biases N(0, bias_std^2).

    The scale makes the mean squared label 1; it is estimated from at most 4,096 networks. A task is
    a tuple of (weights `[inputs, units]`, biases `[units]`), one for each layer.
    """

    dim: int = 1
    """Dimension of the inputs x."""
    points: int = 100
    """Number of (x, y) points in a prompt."""
    widths: tuple[int, ...] = (16, 16, 16)
    """Numbers of units of the hidden layers; none for a linear function and `output`."""
    activations: tuple[str, ...] = ("tanh", "swish", "relu")
    """Activations of the hidden layers: linear, relu, sigmoid, swish or tanh."""
    output: str = "linear"
    """Activation of the output."""
    weight_std: float = 1.0
    """Standard deviation of the weights."""
    bias_std: float = 1.0
    """Standard deviation of the biases."""
    input_range: float = 1.0
    """Coordinates of x are uniform from -input_range to input_range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, weight_std=POSITIVE, bias_std=NOT_NEGATIVE, input_range=POSITIVE)
        for width in self.widths:
            check_range("task.widths", width, SIZE)
        if len(self.activations) != len(self.widths):
            raise ValueError(
                f"task.widths has {len(self.widths)} layers and task.activations "
                f"{len(self.activations)}: give one activation for each hidden layer"
            )
        for name in (*self.activations, self.output):
            if name not in ACTIVATIONS:
                raise ValueError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")

    @property
    def label_kind(self) -> Scalar:
        return Scalar(1.0)

    @property
    def _sizes(self) -> list[int]:
        return [self.dim, *self.widths, 1]

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Weights:
        layers = []
        for index, (inputs, units) in enumerate(zip(self._sizes, self._sizes[1:])):
            drawn = normal(jax.random.fold_in(key, index), (inputs + 1, units))
            layers.append((self.weight_std * drawn[:-1], self.bias_std * drawn[-1]))
        return tuple(layers)

    def label(self, task: Weights, x: jax.Array) -> jax.Array:
        product = lambda x, weights: jnp.matmul(x, weights, precision="highest")
        return self._output(jnp, product, task, x) / _scale(
            dataclasses.replace(self, points=1, queries=None)
        )

    def sample_inputs(self, key: jax.Array) -> jax.Array:
        return uniform(key, (self.points, self.dim), -self.input_range, self.input_range)

    def _output(self, xp: Any, product: Any, layers: Any, x: Any) -> Any:
        """Outputs of a network, not scaled, with the functions of `numpy` or of `jax.numpy`."""
        for (weights, bias), name in zip(layers, (*self.activations, self.output)):
            x = product(x, weights)
            x = ACTIVATIONS[name](xp, x + xp.broadcast_to(bias, x.shape))
        return x[..., 0]


@functools.lru_cache(maxsize=32)
def _scale(family: RandomNetwork) -> float:
    """Root mean square of the outputs of a family's networks."""
    rng = np.random.default_rng(0)
    weights = sum(inputs * units for inputs, units in zip(family._sizes, family._sizes[1:]))
    networks = max(16, min(SCALE_NETWORKS, MOST_WEIGHTS // weights))
    x = rng.uniform(-1, 1, (networks, SCALE_POINTS, family.dim)) * family.input_range
    layers = [
        (
            family.weight_std * rng.normal(size=(networks, inputs, units)),
            family.bias_std * rng.normal(size=(networks, 1, units)),
        )
        for inputs, units in zip(family._sizes, family._sizes[1:])
    ]
    with np.errstate(over="ignore"):
        return float(np.sqrt((family._output(np, np.matmul, layers, x) ** 2).mean()))


@dataclasses.dataclass(frozen=True)
class Lines(FunctionFamily):
    """y = a x with a uniform and x ~ N(0, 1), the notebook's test of transfer.

    A task is a, `[]`.
    """

    dim: int = 1
    """Dimension of the inputs x; always 1."""
    points: int = 100
    """Number of (x, y) points in a prompt."""
    low: float = 0.1
    """Smallest slope a."""
    high: float = 0.5
    """Largest slope a."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, low=NOT_NEGATIVE, high=POSITIVE)
        if self.dim != 1 or self.low > self.high:
            raise ValueError(
                "task.dim must be 1 for lines, and task.low must not exceed task.high; got "
                f"{self.dim}, {self.low} and {self.high}"
            )

    @property
    def label_kind(self) -> Scalar:
        return Scalar((self.low**2 + self.low * self.high + self.high**2) / 3)

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return uniform(key, (1,), self.low, self.high)[0]

    def label(self, task: jax.Array, x: jax.Array) -> jax.Array:
        return task * x[..., 0]
