"""Stacks of flax.nnx recurrent layers: an LSTM and a vanilla RNN."""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..ranges import SIZE, check_ranges
from .base import ModelConfig
from .stack import Stack


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Settings that all stacks of recurrent layers share."""

    gates: ClassVar[int]  # vectors that a layer computes from the token and its output before
    carries: ClassVar[int]  # vectors that a layer keeps for the next token

    layers: int = 3
    """Number of stacked recurrent layers."""
    width: int = 256
    """Number of features of a token between layers, and of the state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, width=SIZE)

    def activations(self, in_width: int) -> int:
        return self.gates * self.width

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        return self.carries * self.layers * self.width

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total = batch * tokens
        return {
            "ends": 6.0 * (in_width + 1) * self.width * total,
            "recurrence": 6.0 * 2 * self.gates * self.layers * self.width**2 * total,
        }


@dataclasses.dataclass(frozen=True)
class LSTMConfig(RecurrentConfig):
    """Settings of the model."""

    title: ClassVar[str] = "LSTM"
    gates: ClassVar[int] = 4
    carries: ClassVar[int] = 2

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "LSTM":
        return LSTM(in_width, self, outputs=outputs, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class RNNConfig(RecurrentConfig):
    """Settings of the model."""

    title: ClassVar[str] = "RNN"
    gates: ClassVar[int] = 1
    carries: ClassVar[int] = 1

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "RNN":
        return RNN(in_width, self, outputs=outputs, rngs=rngs)


class Recurrent(Stack):
    """A stack of flax's recurrent layers, with flax's initial weights.

    Recurrent weights are orthogonal, and biases zero.
    """

    def _new_layers(self, config: RecurrentConfig, rngs: nnx.Rngs) -> Iterator[nnx.Module]:
        # Parameters closed over by the scan, not carried through it, save a quarter of the time.
        beside: Any = {...: None}
        for _ in range(config.layers):
            yield nnx.RNN(self._cell(config.width, rngs), rngs=False, state_axes=beside)

    @abstractmethod
    def _cell(self, width: int, rngs: nnx.Rngs) -> Any:
        """The flax.nnx cell of a layer."""

    @abstractmethod
    def _carry(self, start: jax.Array) -> Any:
        """The cell's first carry, made of vectors like `start`, `[B, width]`."""

    def _apply(self, layer: Any, x: jax.Array) -> jax.Array:
        # Made from x, so that under shard_map it varies over devices as x does.
        return layer(x, initial_carry=self._carry(jnp.zeros_like(x[:, 0])))


class LSTM(Recurrent):
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997)."""

    def _cell(self, width: int, rngs: nnx.Rngs) -> nnx.OptimizedLSTMCell:
        return nnx.OptimizedLSTMCell(width, width, dtype=self.dtype, rngs=rngs)

    def _carry(self, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        return start, start


class RNN(Recurrent):
    """A stack of layers h_t = tanh(W x_t + U h_{t-1} + b) (Elman 1990)."""

    def _cell(self, width: int, rngs: nnx.Rngs) -> nnx.SimpleCell:
        return nnx.SimpleCell(width, width, dtype=self.dtype, rngs=rngs)

    def _carry(self, start: jax.Array) -> jax.Array:
        return start
