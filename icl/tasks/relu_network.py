"""Two-layer ReLU networks (Garg et al. 2022, section 5 and appendix A.2)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import SIZE, check_ranges
from .base import Data, Difficulty, FunctionFamily
from .draws import normal
from .labels import Scalar


class Network(NamedTuple):
    """Weights of a two-layer network without biases."""

    hidden: jax.Array  # [dim, hidden]
    out: jax.Array  # [hidden]


@dataclasses.dataclass(frozen=True)
class ReLUNetwork(FunctionFamily):
    """y = sqrt(2 / hidden) * out . relu(x hidden), all weights N(0, 1).

    The mean squared label is dim, as in linear regression. A task is a `Network`.
    """

    points: int = 101
    """Number of (x, y) points in a prompt."""
    hidden: int = 100
    """Number of hidden units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, hidden=SIZE)

    @property
    def label_kind(self) -> Scalar:
        return Scalar(float(self.dim))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Network:
        hidden_key, out_key = jax.random.split(key)
        return Network(
            normal(hidden_key, (self.dim, self.hidden)),
            normal(out_key, (self.hidden,)),
        )

    def label(self, task: Network, x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(jnp.matmul(x, task.hidden, precision="highest"))
        return jnp.matmul(hidden, task.out, precision="highest") * (2 / self.hidden) ** 0.5
