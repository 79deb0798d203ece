"""Models with a linear read-in, layers one after the other, and a linear read-out."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.taps import tap
from .base import Model, uniform


class Stack(Model):
    """Maps prompts of any length to one prediction a token.

    Read-in and read-out are initialised as in the transformer, and computed in float32.

    Args:
      in_width: number of features of a token.
      config: settings of the model, among them `width`.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    reads_all = True  # False if a prediction depends on its own token alone

    def __init__(
        self, in_width: int, config: Any, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> None:
        self.dtype = jnp.dtype(config.dtype)
        self.read_in = nnx.Linear(in_width, config.width, rngs=rngs, **uniform(in_width))
        self.layers = nnx.List(self._new_layers(config, rngs))
        self.scalar = outputs is None
        self.read_out = nnx.Linear(config.width, outputs or 1, rngs=rngs, **uniform(config.width))

    def _new_layers(self, config: Any, rngs: nnx.Rngs) -> Iterable[nnx.Module]:
        """The layers with initial parameters."""
        raise NotImplementedError

    def _enter(self, x: jax.Array) -> jax.Array:
        """The input `[B, T, width]` of the first layer, from the read-in tokens."""
        return x

    def _apply(self, layer: Any, x: jax.Array) -> jax.Array:
        """The output `[B, T, width]` of a layer."""
        raise NotImplementedError

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        before, after = (slice(None), read) if self.reads_all else (read, slice(None))
        x = tap("residual", self._enter(self.read_in(tokens[:, before])).astype(self.dtype))
        for layer in self.layers:
            x = tap("residual", self._apply(layer, x))
        predictions = self.read_out(x[:, after].astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions
