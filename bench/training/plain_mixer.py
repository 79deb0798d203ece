"""The mixer `plain_attention`: ours with attention in plain JAX in its middle."""

import jax

from icl.layers.mixers import MIXERS, CausalSelfAttention

from ..common.plain_attention import plain_attention


class PlainAttention(CausalSelfAttention):
    """Causal self-attention by `plain_attention`."""

    def mix(self, x: jax.Array, qkv: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return plain_attention(*(qkv[:, :, part] for part in range(3)), is_causal=True)


def register() -> None:
    """Adds the mixer to `MIXERS`; in a contestant's process alone, since the registry is global."""
    MIXERS["plain_attention"] = PlainAttention
