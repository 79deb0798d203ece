"""An LSTM whose cell state is a matrix, updated by outer products and read by inner products.

It is the "outer-product LSTM" of Kirsch et al. 2022 (arXiv 2212.04458, section 4 and appendix):
its state grows with the square of its width, as in fast weight programmers (Schmidhuber 1992).
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


class FastWeightLSTM(Model):
    """Maps prompts of any length to one prediction a token; layers are added to their input.

    Args:
      in_width: number of features of a token.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        config: FastWeightLSTMConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.dtype = jnp.dtype(config.dtype)
        self.read_in = nnx.Linear(in_width, config.width, rngs=rngs, **uniform(in_width))
        self.layers = nnx.List(FastWeightLSTMLayer(config, rngs=rngs) for _ in range(config.layers))
        self.scalar = outputs is None
        self.read_out = nnx.Linear(config.width, outputs or 1, rngs=rngs, **uniform(config.width))

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        x = tap("residual", self.read_in(tokens).astype(self.dtype))
        for layer in self.layers:
            x = tap("residual", x + layer(x))
        predictions = self.read_out(x[:, read].astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions
