"""Attention as one would write it in JAX, left to XLA and to automatic differentiation."""

import jax
import jax.numpy as jnp

from icl.layers.mixers import MIXERS, CausalSelfAttention


class PlainAttention(CausalSelfAttention):
    """Our mixer with the scores, their softmax in float32 and two products in its middle."""

    def mix(self, x: jax.Array, qkv: jax.Array) -> jax.Array:
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        length, features = query.shape[1], query.shape[-1]
        scores = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
        causal = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(causal, scores * features**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bnts,bsnh->btnh", weights, value)


MIXERS["plain_attention"] = PlainAttention
