"""Attention as it is defined: plain jnp, any float dtype, every derivative."""

import jax
import jax.numpy as jnp

from ..dispatch import Implementation
from ..numerics import accumulation_dtype, einsum
from .masks import allowed_pairs
from .problem import Dimensions, Operands, Problem, unpack


def share_heads(operands: Operands) -> Operands:
    """Operands with query, key and value unpacked, and a key head for every query head."""
    sizes = Dimensions.of(operands)
    operands = unpack(operands)
    if sizes.K == sizes.N:
        return operands
    repeat = lambda array: jnp.repeat(array, sizes.N // sizes.K, axis=2)
    return operands._replace(key=repeat(operands.key), value=repeat(operands.value))


def keep_finite(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys and values with 0 for NaN and infinity, and a term for the scores of each key.

    A product with a probability of 0 would carry the NaN of a hidden key or value to every
    query. A key that is not finite gets scores of NaN instead, for the queries that see it.

    Returns:
      key and value `[B, S, N, H]`, and `[B, N, 1, S]`.
    """
    key_finite, value_finite = jnp.isfinite(key), jnp.isfinite(value)
    whole = key_finite.all(-1) & value_finite.all(-1)
    poison = jnp.where(whole, 0.0, jnp.nan).swapaxes(1, 2)[:, :, None, :]
    return jnp.where(key_finite, key, 0), jnp.where(value_finite, value, 0), poison


def attention(problem: Problem, operands: Operands) -> jax.Array:
    """`softmax(scale * query @ key^T + bias) @ value`, `[B, T, N, H]` in the query's dtype."""
    operands = share_heads(operands)
    query, key, value, bias = operands[:4]
    dtype = accumulation_dtype(query.dtype)
    product = einsum(problem.precision, dtype)
    allowed = allowed_pairs(problem, operands)
    if allowed is not None:
        sees = allowed.any(axis=-1).swapaxes(1, 2)[..., None]
        query = jnp.where(sees, query, 0)
        key, value, poison = keep_finite(key, value)
    scores = product("btnh,bsnh->bnts", query, key) * problem.scale
    if bias is not None:
        scores = scores + bias.astype(dtype)
    lowest = jnp.finfo(dtype).min
    if allowed is not None:
        scores = jnp.where(allowed, scores + poison.astype(dtype), lowest)
    # Never -inf, so that a query whose scores are all -inf has weights of 0.
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.maximum(highest, lowest))
    if allowed is not None:
        weights = jnp.where(allowed, weights, 0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    result = product("bnts,bsnh->btnh", weights.astype(value.dtype), value)
    if allowed is not None:
        result = jnp.where(sees, result, 0)
    return result.astype(query.dtype)


IMPLEMENTATION = Implementation(attention)
