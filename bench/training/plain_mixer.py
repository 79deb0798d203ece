"""The mixer `plain_attention`: our attention layer with attention in plain JAX."""

import jax

from icl.layers.mixers import MIXERS, SoftmaxAttention

from ..common.plain_attention import plain_attention


class PlainAttention(SoftmaxAttention):
    """Causal self-attention that calls `plain_attention`."""

    def mix(self, x: jax.Array, qkv: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return plain_attention(*(qkv[:, :, part] for part in range(3)), is_causal=True)


def register() -> None:
    """Adds the mixer to the global `MIXERS`; only for a contestant's own process."""
    MIXERS["plain_attention"] = PlainAttention
