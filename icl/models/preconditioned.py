"""Linear attention with the zeros of its optimum: one step of preconditioned descent a layer.

Ahn et al. 2023, "Transformers learn to implement preconditioned gradient descent for in-context
learning" (arXiv 2306.00297, section 4, equation 12).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import linear_attention
from ..ranges import NOT_NEGATIVE, check_ranges
from .base import HeadWeights, Model, ModelConfig


@dataclasses.dataclass(frozen=True)
class PreconditionedConfig(ModelConfig):
    """Size of the model; computed in float32 with exact products."""

    title: ClassVar[str] = "preconditioned attention"
    causal: ClassVar[bool] = False
    takes_points: ClassVar[bool] = True

    layers: int = 3
    """Layers, each with matrices of its own."""
    transforms_inputs: bool = True
    """Layers change the inputs too, by P; without, P is 0 (section 4.1: steps of the weights)."""
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
    """Z <- Z + (1/N) (Z Q Z^T) M (Z P^T), over the examples alone by the mask M.

    With rows (x_i, y_i) of Z, Q and P free d x d matrices of the inputs a layer, and P of the
    labels fixed to 1. The query's label is predicted as minus the last entry of its row.

    Args:
      in_width: features of a token (x, y).
      config: size of the model.
      outputs: must be None.
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
            raise ValueError(f"{config.title} predicts scalar labels alone")
        self.config = config
        shape = (config.layers, in_width - 1, in_width - 1)
        draw = lambda: nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape))
        self.query = draw()
        if config.transforms_inputs:
            self.values = draw()

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        return -self._hidden(tokens, self.config.layers)[:, read, -1]

    def _hidden(self, tokens: jax.Array, layers: int) -> jax.Array:
        """The tokens after so many layers."""
        heads = lambda rows: rows[:, :, None]
        examples = tokens.shape[1] - 1
        with jax.default_matmul_precision("highest"):
            z = tokens
            for layer in range(layers):
                x, y = z[..., :-1], z[..., -1:]
                query = jnp.einsum("btd,de->bte", x, self.query[layer])
                added = jnp.zeros_like(x)
                if self.config.transforms_inputs:
                    added = jnp.einsum("btd,ed->bte", x, self.values[layer])
                value = jnp.concatenate([added, y], axis=-1)
                z = z + linear_attention(
                    heads(query), heads(x[:, :-1]), heads(value[:, :-1]),
                    is_causal=False, scale=1 / examples,
                )[:, :, 0]  # fmt: skip
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
