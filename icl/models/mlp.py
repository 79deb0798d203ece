"""A multilayer perceptron that reads one token at a time, so that it cannot learn in context.

It is the control of Kirsch et al. 2022 (arXiv 2212.04458, figure 2): it can memorise a task, but
it has no state that could hold examples.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from flax import nnx

from ..layers.linear import linear_dot_general
from ..ranges import SIZE, check_ranges
from .base import ModelConfig
from .stack import Stack


@dataclasses.dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """Settings of the model."""

    title: ClassVar[str] = "MLP"

    layers: int = 2
    """Number of hidden layers."""
    width: int = 256
    """Number of units of a hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, width=SIZE)

    def activations(self, in_width: int) -> int:
        return self.width

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        return 0

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "MLP":
        return MLP(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total = batch * tokens
        return {
            "ends": 6.0 * (in_width + 1) * self.width * total,
            "layers": 6.0 * (self.layers - 1) * self.width**2 * total,
        }


class MLP(Stack):
    """Maps each token to a prediction by itself; ReLU units (Nair and Hinton 2010)."""

    reads_all = False

    def _new_layers(self, config: MLPConfig, rngs: nnx.Rngs) -> Iterator[nnx.Module]:
        options: dict[str, Any] = dict(dtype=self.dtype, dot_general=linear_dot_general, rngs=rngs)
        for _ in range(config.layers - 1):
            yield nnx.Linear(config.width, config.width, **options)

    def _enter(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)

    def _apply(self, layer: nnx.Linear, x: jax.Array) -> jax.Array:
        return jax.nn.relu(layer(x))
