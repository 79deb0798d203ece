"""Attention as it is defined: plain jnp, any float dtype, every derivative."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..dispatch import Implementation
from ..numerics import accumulation_dtype, einsum
from ..untyped import finfo
from .masks import allowed_pairs
from .problem import Dimensions, Operands, Problem, unpack


def share_heads(operands: Operands) -> Operands:
    """Operands with query, key and value unpacked, and a key head for every query head."""
    sizes = Dimensions.of(operands)
    operands = unpack(operands)
    if sizes.K == sizes.N:
        return operands
    repeat: Callable[[jax.Array], jax.Array] = lambda array: jnp.repeat(
        array, sizes.N // sizes.K, axis=2
    )
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
    weights, value, sees = _weigh(problem, operands)
    product = einsum(problem.precision, weights.dtype)
    result = product("bnts,bsnh->btnh", weights.astype(value.dtype), value)
    if sees is not None:
        result = jnp.where(sees, result, 0)
    return result.astype(operands.query.dtype)


def attention_weights(problem: Problem, operands: Operands) -> jax.Array:
    """`softmax(scale * query @ key^T + bias)`, `[B, N, T, S]`; 0 for a query that sees no key."""
    return _weigh(problem, share_heads(operands))[0]


def _weigh(problem: Problem, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The weights `[B, N, T, S]`, the values to sum, and which queries see a key, if not all do."""
    query, key, value, bias = operands[:4]
    dtype = accumulation_dtype(query.dtype)
    product = einsum(problem.precision, dtype)
    allowed, sees, poison = allowed_pairs(problem, operands), None, None
    if allowed is not None:
        sees = allowed.any(axis=-1).swapaxes(1, 2)[..., None]
        query = jnp.where(sees, query, 0)
        key, value, poison = keep_finite(key, value)
    scores = product("btnh,bsnh->bnts", query, key) * problem.scale
    if bias is not None:
        scores = scores + bias.astype(dtype)
    lowest = finfo(dtype).min
    if allowed is not None and poison is not None:
        scores = jnp.where(allowed, scores + poison.astype(dtype), lowest)
    # Never -inf, so that a query whose scores are all -inf has weights of 0.
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.maximum(highest, lowest))
    if allowed is not None:
        weights = jnp.where(allowed, weights, 0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total), value, sees


IMPLEMENTATION = Implementation(attention)
