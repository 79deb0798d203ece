"""Attention in plain jax.numpy, with XLA's fusion and automatic differentiation."""

import jax
import jax.numpy as jnp


def plain_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    is_causal: bool,
    key_value_seq_lengths: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of `[B, T, N, H]` arrays, with the softmax in float32.

    Keys at or past the lengths `[B]` are hidden.
    """
    length, features = query.shape[1], query.shape[-1]
    scores = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    scores = scores * features**-0.5
    if is_causal:
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    if key_value_seq_lengths is not None:
        seen = jnp.arange(length)[None] < key_value_seq_lengths[:, None]
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)
