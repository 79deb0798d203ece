"""Attention in plain jax.numpy, with XLA's fusion and automatic differentiation."""

import jax
import jax.numpy as jnp


def plain_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool
) -> jax.Array:
    """Softmax attention of `[B, T, N, H]` arrays, with the softmax in float32."""
    length, features = query.shape[1], query.shape[-1]
    scores = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    scores = scores * features**-0.5
    if is_causal:
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)
