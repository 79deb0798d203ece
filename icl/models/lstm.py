"""A stack of LSTM layers (Hochreiter and Schmidhuber 1997), as flax.nnx has them."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..ranges import SIZE, check_ranges
from .base import Model, ModelConfig, uniform


@dataclasses.dataclass(frozen=True)
class LSTMConfig(ModelConfig):
    """Size of the model."""

    title: ClassVar[str] = "LSTM"

    layers: int = 3
    """LSTM layers, one on top of the other."""
    width: int = 256
    """Features of a token between layers, and of the state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, width=SIZE)

    def activations(self, in_width: int) -> int:
        return 4 * self.width

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
    """Maps prompts of any length to a prediction a token.

    Initial weights of the layers are flax's (recurrent ones orthogonal, biases 0), those of
    read-in and read-out the transformer's.

    Args:
      in_width: features of a token.
      config: size of the model.
      outputs: numbers of a prediction; None for a scalar.
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
        # Parameters beside the scan, not carried through it, take a quarter off the time.
        beside: Any = {...: None}
        return nnx.RNN(cell, rngs=False, state_axes=beside)

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        x: Any = self.read_in(tokens).astype(self.dtype)
        # As x is, which under shard_map is another on every device.
        start = jnp.zeros_like(x[:, 0])
        for layer in self.layers:
            x = layer(x, initial_carry=(start, start))
        predictions = self.read_out(x[:, read].astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions
