"""Attention in XLA operations, with a backward pass that saves only the probabilities.

Left to itself JAX keeps the scores, their exponentials and the probabilities of every
layer. Written out, the backward pass needs the probabilities P alone (FlashAttention,
Dao et al. 2022, appendix B.2): dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dP * P)).
"""

import jax
import jax.numpy as jnp

from ..dispatch import Implementation
from ..numerics import einsum, sum_to
from ..wiring import differentiable
from .masks import allowed_pairs
from .problem import Dimensions, Operands, Problem, hides, may_blind, pack
from .reference import attention as definition
from .reference import keep_finite, share_heads


def _forward(problem: Problem, operands: Operands):
    apart = share_heads(operands)
    query, key, value, bias = apart[:4]
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    product = einsum(problem.precision, dtype)
    scores = product("btnh,bsnh->bnts", query, key) * problem.scale
    if bias is not None:
        scores = scores + bias.astype(dtype)
    if hides(problem, operands):
        _, value, poison = keep_finite(key, value)
        scores = jnp.where(
            allowed_pairs(problem, operands), scores + poison.astype(dtype), -jnp.inf
        )
    highest = scores.max(axis=-1, keepdims=True)
    # A row of NaN or of -inf alone: NaN stays in its columns, and nothing else becomes NaN.
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    weights = jnp.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    # Without the barrier XLA computes the softmax again inside each of its users.
    weights = jax.lax.optimization_barrier(weights)
    result = jnp.matmul(
        weights.astype(value.dtype),
        value.swapaxes(1, 2),
        precision=product.keywords["precision"],
        preferred_element_type=dtype,
    )
    return result.swapaxes(1, 2).astype(query.dtype), weights


def _backward(problem: Problem, operands: Operands, weights: jax.Array, cotangent: jax.Array):
    sizes = Dimensions.of(operands)
    query, key, value, bias = share_heads(operands)[:4]
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    product = einsum(problem.precision, dtype)
    if hides(problem, operands):
        key, value, _ = keep_finite(key, value)
        allowed = allowed_pairs(problem, operands)
    if may_blind(problem, operands):
        sees = allowed.any(axis=-1).swapaxes(1, 2)[..., None]
        query, cotangent = jnp.where(sees, query, 0), jnp.where(sees, cotangent, 0)
    d_value = product("bnts,btnh->bsnh", weights.astype(value.dtype), cotangent)
    d_weights = product("btnh,bsnh->bnts", cotangent, value)
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
    if hides(problem, operands):
        d_scores = jnp.where(allowed, d_scores, 0)
    d_bias = None if bias is None else sum_to(d_scores, bias.shape).astype(bias.dtype)
    d_scores = (d_scores * problem.scale).astype(query.dtype)
    d_query = product("bnts,bsnh->btnh", d_scores, key)
    d_key = product("bnts,btnh->bsnh", d_scores, query)
    if sizes.K != sizes.N:
        shared = (sizes.B, sizes.S, sizes.K, sizes.N // sizes.K, sizes.H)
        d_key, d_value = (d.reshape(shared).sum(axis=3) for d in (d_key, d_value))
    gradient = Operands(
        d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), d_bias
    )
    return pack(gradient) if operands.is_packed else gradient


attention = differentiable(_forward, _backward, definition)

IMPLEMENTATION = Implementation(attention)
