"""A multilayer perceptron that reads one token at a time, so that it cannot learn in context.

It is the control of Kirsch et al. 2022 (arXiv 2212.04458, figure 2): it can memorise a task, but
it has no state that could hold examples.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.linear import linear_dot_general
from ..layers.taps import tap
from ..ranges import SIZE, check_ranges
from .base import Model, ModelConfig, uniform


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


class MLP(Model):
    """Maps each token to a prediction by itself; ReLU units (Nair and Hinton 2010).

    Args:
      in_width: number of features of a token.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self, in_width: int, config: MLPConfig, *, outputs: int | None = None, rngs: nnx.Rngs
    ):
        self.dtype = jnp.dtype(config.dtype)
        self.read_in = nnx.Linear(in_width, config.width, rngs=rngs, **uniform(in_width))
        options: dict[str, Any] = dict(dtype=self.dtype, dot_general=linear_dot_general, rngs=rngs)
        self.layers = nnx.List(
            nnx.Linear(config.width, config.width, **options) for _ in range(config.layers - 1)
        )
        self.scalar = outputs is None
        self.read_out = nnx.Linear(config.width, outputs or 1, rngs=rngs, **uniform(config.width))

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        x = tap("residual", jax.nn.relu(self.read_in(tokens[:, read])).astype(self.dtype))
        for layer in self.layers:
            x = tap("residual", jax.nn.relu(layer(x)))
        predictions = self.read_out(x.astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions
