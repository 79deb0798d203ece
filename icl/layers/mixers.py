"""Token mixers: the part of a transformer block that moves information between tokens.

A mixer is built as `Mixer(width, heads, dtype=..., kernel_init=..., out_init=..., rngs=...)`
and maps `[B, T, width]` to the same shape, causally. Add one to `MIXERS` to use it by name.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import packed_dot_product_attention
from .linear import linear_dot_general

Initializer = jax.nn.initializers.Initializer


class CausalSelfAttention(nnx.Module):
    """Softmax attention to the token itself and those before (Vaswani et al. 2017)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype: Any = jnp.float32,
        kernel_init: Initializer,
        out_init: Initializer,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split into {heads} heads")
        self.heads = heads
        options = dict(dtype=dtype, dot_general=linear_dot_general, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=kernel_init, **options)
        self.out = nnx.Linear(width, width, kernel_init=out_init, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        mixed = packed_dot_product_attention(qkv, is_causal=True)
        return self.out(mixed.reshape(batch, length, width))


MIXERS: dict[str, Callable[..., Any]] = {"attention": CausalSelfAttention}
