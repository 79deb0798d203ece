"""A stack of flax.nnx LSTM layers (Hochreiter and Schmidhuber 1997)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..ranges import SIZE, check_ranges
from .base import Model, ModelConfig, uniform


@dataclasses.dataclass(frozen=True)
class LSTMConfig(ModelConfig):
    """Settings of the model."""

    title: ClassVar[str] = "LSTM"

    layers: int = 3
    """Number of stacked LSTM layers."""
    width: int = 256
    """Number of features of a token between layers, and of the state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, width=SIZE)

    def activations(self, in_width: int) -> int:
        return 4 * self.width

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        return 2 * self.layers * self.width

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "LSTM":
        return LSTM(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total = batch * tokens
        return {
            "ends": 6.0 * (in_width + 1) * self.width * total,
            "recurrence": 6.0 * 8 * self.layers * self.width**2 * total,
        }


class LSTM(Model):
    """Maps prompts of any length to one prediction a token.

    The layers have flax's initial weights (orthogonal recurrent weights, zero biases). Read-in and
    read-out are initialised as in the transformer.

    Args:
      in_width: number of features of a token.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self, in_width: int, config: LSTMConfig, *, outputs: int | None = None, rngs: nnx.Rngs
    ):
        self.dtype = jnp.dtype(config.dtype)
        width = config.width
        self.read_in = nnx.Linear(in_width, width, rngs=rngs, **uniform(in_width))
        self.layers = nnx.List([self._layer(width, rngs) for _ in range(config.layers)])
        self.scalar = outputs is None
        self.read_out = nnx.Linear(width, outputs or 1, rngs=rngs, **uniform(width))

    def _layer(self, width: int, rngs: nnx.Rngs) -> nnx.RNN:
        cell = nnx.OptimizedLSTMCell(width, width, dtype=self.dtype, rngs=rngs)
        # Parameters closed over by the scan, not carried through it, save a quarter of the time.
        beside: Any = {...: None}
        return nnx.RNN(cell, rngs=False, state_axes=beside)

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        x: Any = self.read_in(tokens).astype(self.dtype)
        # Made from x, so that under shard_map it varies over devices as x does.
        start = jnp.zeros_like(x[:, 0])
        for layer in self.layers:
            x = layer(x, initial_carry=(start, start))
        predictions = self.read_out(x[:, read].astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions
