"""An LSTM whose cell state is a matrix, updated by outer products and read by inner products.

It is the "outer-product LSTM" of Kirsch et al. 2022 (arXiv 2212.04458, section 4 and appendix):
its state grows with the square of its width, as in fast weight programmers (Schmidhuber 1992).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.linear import linear_dot_general
from ..ranges import SIZE, check_ranges
from .base import ModelConfig
from .stack import Stack


@dataclasses.dataclass(frozen=True)
class FastWeightLSTMConfig(ModelConfig):
    """Settings of the model."""

    title: ClassVar[str] = "outer-product LSTM"

    layers: int = 1
    """Number of stacked layers."""
    heads: int = 1
    """Number of matrices in the state of a layer."""
    width: int = 64
    """Number of features of a token between layers; each matrix has width / heads rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, heads=SIZE, width=SIZE)
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")

    @property
    def size(self) -> int:
        """Number of rows of each matrix of the state."""
        return self.width // self.heads

    def activations(self, in_width: int) -> int:
        return 4 * self.heads * self.size**2 + 8 * self.width

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        return self.layers * (self.heads * self.size**2 + self.width)

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "FastWeightLSTM":
        return FastWeightLSTM(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total = batch * tokens
        return {
            "ends": 6.0 * (in_width + 1) * self.width * total,
            "projections": 6.0 * 16 * self.layers * self.width**2 * total,
            "state": 3.0 * 12 * self.layers * self.heads * self.size**2 * total,
        }


class FastWeightLSTMLayer(nnx.Module):
    """Maps `[B, T, width]` to `[B, T, width]`, with a state `[B, heads, size, size]`."""

    def __init__(self, config: FastWeightLSTMConfig, *, rngs: nnx.Rngs):
        self.heads, self.size = config.heads, config.size
        gates = 8 * config.width
        options: dict[str, Any] = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
        self.from_input = nnx.Linear(config.width, gates, dot_general=linear_dot_general, **options)
        self.from_hidden = nnx.Linear(config.width, gates, use_bias=False, **options)
        self.key_scale = nnx.Param(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.from_hidden.kernel[...].astype(x.dtype)
        scale = jax.nn.softplus(self.key_scale[...]).astype(x.dtype)
        split = (3 * self.size, 6 * self.size, 7 * self.size)

        def step(state: tuple[jax.Array, jax.Array], given: jax.Array):
            hidden, cell = state
            gates = (given + hidden @ kernel).reshape(-1, self.heads, 8 * self.size)
            left, right, query, out = jnp.split(gates, split, axis=-1)
            three = (*left.shape[:2], 3, self.size)
            left, right = (jnp.tanh(side).reshape(three) for side in (left, right))
            add, value, keep = jnp.moveaxis(
                jnp.einsum("bnki,bnkj->bnkij", left * scale, right), 2, 0
            )
            cell = jax.nn.sigmoid(keep + 1) * cell + jax.nn.sigmoid(add) * value
            read = jnp.einsum("bnij,bni->bnj", cell, query)
            hidden = (jax.nn.sigmoid(out) * jnp.tanh(read)).reshape(hidden.shape)
            return (hidden, cell), hidden

        # Made from x, so that under shard_map the state varies over devices as x does.
        hidden = jnp.zeros_like(x[:, 0])
        rows = hidden.reshape(-1, self.heads, self.size)
        state = hidden, jnp.zeros_like(rows[..., None] * rows[..., None, :])
        outputs = jax.lax.scan(step, state, jnp.moveaxis(self.from_input(x), 1, 0))[1]
        return jnp.moveaxis(outputs, 0, 1)


class FastWeightLSTM(Stack):
    """A stack of these layers; each is added to its input."""

    def _new_layers(self, config: FastWeightLSTMConfig, rngs: nnx.Rngs) -> Iterator[nnx.Module]:
        return (FastWeightLSTMLayer(config, rngs=rngs) for _ in range(config.layers))

    def _apply(self, layer: FastWeightLSTMLayer, x: jax.Array) -> jax.Array:
        return x + layer(x)
