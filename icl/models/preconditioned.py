"""Linear attention with fixed zeros: each layer is a step of preconditioned gradient descent.

Ahn et al. 2023, "Transformers learn to implement preconditioned gradient descent for in-context
learning" (arXiv 2306.00297, section 4, equation 12).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import linear_attention
from ..layers.taps import tap, tap_heads
from ..ranges import NOT_NEGATIVE, check_ranges
from .base import HeadWeights, Model, ModelConfig


@dataclasses.dataclass(frozen=True)
class PreconditionedConfig(ModelConfig):
    """Settings of the model; computed in float32 with products at highest precision."""

    title: ClassVar[str] = "preconditioned attention"
    causal: ClassVar[bool] = False
    takes_points: ClassVar[bool] = True

    layers: int = 3
    """Number of layers, each with its own matrices."""
    transforms_inputs: bool = True
    """Layers also change the inputs, by a learned P; else P is 0 and each layer is a gradient step
    on the weights (section 4.1)."""
    init_std: float = 1e-4
    """Standard deviation of the initial matrices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, init_std=NOT_NEGATIVE)
        if self.dtype != "float32":
            raise ValueError(f"{self.title} is computed in float32, not {self.dtype}")

    def activations(self, in_width: int) -> int:
        return 3 * in_width

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "PreconditionedAttention":
        return PreconditionedAttention(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total, dim = batch * tokens, in_width - 1
        projections = 1 + self.transforms_inputs
        return {
            "projections": 6.0 * projections * self.layers * dim**2 * total,
            "attention": 12.0 * self.layers * dim * in_width * total,
        }


class PreconditionedAttention(Model):
    """Z <- Z + (1/N) (Z Q Z^T) M (Z P^T), with a mask M that selects the N examples.

    The rows of Z are (x_i, y_i). In each layer the blocks of Q and P on the inputs are learned
    d x d matrices, and the entry of P on the labels is 1. The predicted label of the query is minus
    the last entry of the query's row.

    Args:
      in_width: number of features of a token (x, y).
      config: settings of the model.
      outputs: must be None, for scalar labels.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        config: PreconditionedConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        if outputs is not None:
            raise ValueError(f"{config.title} predicts only scalar labels")
        self.config = config
        shape = (config.layers, in_width - 1, in_width - 1)
        draw = lambda: nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape))
        self.query = draw()
        if config.transforms_inputs:
            self.values = draw()

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        return -self._hidden(tokens, self.config.layers)[:, read, -1]

    def _hidden(self, tokens: jax.Array, layers: int) -> jax.Array:
        """The tokens after the first `layers` layers."""
        heads = lambda rows: rows[:, :, None]
        examples = tokens.shape[1] - 1
        with jax.default_matmul_precision("highest"):
            z = tap("residual", tokens)
            for layer in range(layers):
                x, y = z[..., :-1], z[..., -1:]
                query = jnp.einsum("btd,de->bte", x, self.query[layer])
                added = jnp.zeros_like(x)
                if self.config.transforms_inputs:
                    added = jnp.einsum("btd,ed->bte", x, self.values[layer])
                value = jnp.concatenate([added, y], axis=-1)
                mixed = linear_attention(
                    heads(query), heads(x[:, :-1]), heads(value[:, :-1]),
                    is_causal=False, scale=1 / examples,
                )  # fmt: skip
                pattern = lambda q=query, x=x: jnp.einsum("bte,bse->bts", q, x[:, :-1]) / examples
                mixed = tap_heads(
                    mixed, lambda v=value: heads(v[:, :-1]), lambda p=pattern: p()[:, None]
                )
                z = tap("residual", z + mixed[:, :, 0])
        return z

    def heads(self) -> list[HeadWeights]:
        dim = self.query.shape[-1]
        see_x = jnp.eye(dim + 1, dim)
        label = jnp.zeros((dim + 1, dim + 1)).at[dim, dim].set(1)
        layers = range(self.config.layers)
        added = lambda layer: self.values[layer].T if self.config.transforms_inputs else 0.0
        return [
            HeadWeights(
                (see_x @ self.query[layer])[None], see_x[None],
                label.at[:dim, :dim].set(added(layer))[None], jnp.eye(dim + 1)[None],
            )
            for layer in layers
        ]  # fmt: skip

    def head_inputs(self, tokens: jax.Array) -> list[jax.Array]:
        return [self._hidden(tokens, layer) for layer in range(self.config.layers)]
