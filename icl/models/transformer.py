"""A GPT-2-style pre-norm transformer (Radford et al. 2019) over continuous tokens.

Sizes, initial weights and read-in and read-out are those of Garg et al. 2022 (appendix A.1).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.linear import linear_dot_general
from ..layers.mixers import MIXERS
from ..layers.norm import LayerNorm

INIT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size of the model. `xs`, `small` and `standard` below are Garg et al.'s."""

    layers: int = 12
    """Number of blocks."""
    heads: int = 8
    """Attention heads a block."""
    width: int = 256
    """Features of the residual stream."""
    max_tokens: int | None = None
    """Learned positions; None for as many as the prompts of the task have."""
    mixer: str = "attention"
    """Token mixer, by its name in icl.layers.MIXERS."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, statistics and the loss stay float32."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")
        if self.mixer not in MIXERS:
            raise ValueError(f"no mixer called {self.mixer!r}; there are {sorted(MIXERS)}")


XS = TransformerConfig(layers=3, heads=2, width=64, max_tokens=101)
SMALL = TransformerConfig(layers=6, heads=4, width=128, max_tokens=101)
STANDARD = TransformerConfig(layers=12, heads=8, width=256, max_tokens=101)


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) with a GELU MLP four times as wide."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        # GPT-2 shrinks what is added to the residual stream by its number of additions.
        out_init = nnx.initializers.normal(INIT_STD / (2 * config.layers) ** 0.5)
        kernel_init = nnx.initializers.normal(INIT_STD)
        options: dict[str, Any] = dict(dtype=dtype, dot_general=linear_dot_general, rngs=rngs)
        self.mixer_norm = LayerNorm(config.width)
        self.mixer = MIXERS[config.mixer](
            config.width,
            config.heads,
            dtype=dtype,
            kernel_init=kernel_init,
            out_init=out_init,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(config.width)
        self.up = nnx.Linear(config.width, 4 * config.width, kernel_init=kernel_init, **options)
        self.down = nnx.Linear(4 * config.width, config.width, kernel_init=out_init, **options)

    def __call__(self, x: jax.Array, read: slice = slice(None)) -> jax.Array:
        x = x[:, read] + self.mixer(self.mixer_norm(x), read)
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=True))


class Transformer(nnx.Module):
    """Maps prompts to a prediction a token.

    Args:
      in_width: features of a token.
      tokens: length of the prompts it is built for.
      config: size of the model.
      outputs: numbers of a prediction; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        tokens: int,
        config: TransformerConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        positions = config.max_tokens or tokens
        if positions < tokens:
            raise ValueError(
                f"prompts of {tokens} tokens do not fit {positions} learned positions; "
                "raise max_tokens, or leave it None"
            )
        self.dtype = jnp.dtype(config.dtype)
        self.read_in = nnx.Linear(in_width, config.width, rngs=rngs, **_uniform(in_width))
        self.positions = nnx.Param(
            INIT_STD * jax.random.normal(rngs.params(), (positions, config.width))
        )
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = LayerNorm(config.width)
        self.scalar = outputs is None
        self.read_out = nnx.Linear(config.width, outputs or 1, rngs=rngs, **_uniform(config.width))

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        """Predictions after each token that `read` selects.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions whose predictions are wanted; what follows the last
            layer's attention runs on these alone.

        Returns:
          float32 `[B, number of positions read]`, with a last axis `outputs` where not None.
        """
        length = tokens.shape[1]
        if length > self.positions.shape[0]:
            raise ValueError(
                f"a prompt of {length} tokens is longer than the {self.positions.shape[0]} "
                "positions this model has learned"
            )
        x = (self.read_in(tokens) + self.positions[:length]).astype(self.dtype)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            x = block(x, read if index == last else slice(None))
        predictions = self.read_out(self.norm(x).astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions


def _uniform(fan_in: int) -> dict[str, Any]:
    """PyTorch's default for linear layers, which Garg et al. use at both ends."""
    bound = fan_in**-0.5
    init = lambda key, shape, dtype, out_sharding=None: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )
    return dict(kernel_init=init, bias_init=init)


def parameter_count(model: nnx.Module) -> int:
    """How many numbers the model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
