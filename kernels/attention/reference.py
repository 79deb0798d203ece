"""Attention as it is defined: plain jnp, any float dtype, every derivative."""

import jax
import jax.numpy as jnp


def probabilities(
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array | None,
    allowed: jax.Array | None,
    scale: float,
) -> jax.Array:
    """Attention weights `[..., N, T, S]`, at least float32; 0 where nothing is allowed.

    Args:
      query: `[..., T, N, H]`.
      key: `[..., S, N, H]`.
      bias: broadcastable to `[..., N, T, S]`, or None.
      allowed: boolean, broadcastable to `[..., N, T, S]`, or None for all.
      scale: factor of the scores before the bias.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("...tnh,...snh->...nts", query, key, preferred_element_type=dtype) * scale
    if bias is not None:
        scores = scores + bias.astype(dtype)
    if allowed is None:
        return jax.nn.softmax(scores, axis=-1)
    lowest = jnp.finfo(dtype).min
    scores = jnp.where(allowed, scores, lowest)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True, initial=lowest))
    weights = jnp.where(allowed, jnp.exp(scores - highest), 0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    allowed: jax.Array | None,
    scale: float,
) -> jax.Array:
    """`probabilities(...) @ value`: `[..., T, N, H]` in the dtype of `query`."""
    weights = probabilities(query, key, bias, allowed, scale)
    dtype = weights.dtype
    result = jnp.einsum(
        "...nts,...snh->...tnh", weights.astype(value.dtype), value, preferred_element_type=dtype
    )
    return result.astype(query.dtype)
