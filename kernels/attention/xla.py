"""Attention in XLA operations, with a backward pass that saves only the probabilities.

JAX's own derivative keeps the scores, their exponentials and the probabilities of every
layer. This backward pass needs the probabilities P alone (FlashAttention,
Dao et al. 2022, appendix B.2): dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dP * P)).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..dispatch import Implementation
from ..numerics import accumulation_dtype, sum_to
from ..untyped import dot_general, finfo, optimization_barrier
from ..wiring import differentiable
from .masks import allowed_pairs
from .problem import Dimensions, Operands, Problem, hides, may_blind, pack
from .reference import attention as definition
from .reference import share_heads


def _product(
    problem: Problem, dtype: jnp.dtype, a: jax.Array, b: jax.Array, axes: tuple[int, int]
) -> jax.Array:
    """A product for each batch row and head of `[B, N, ., .]`, contracting one axis of each."""
    return dot_general(
        a,
        b,
        ((axes[:1], axes[1:]), ((0, 1), (0, 1))),
        precision=problem.precision or jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )


def _finite(array: jax.Array) -> jax.Array:
    """The array with 0 for NaN and infinity, which times a probability of 0 would be NaN."""
    return jnp.where(jnp.isfinite(array), array, 0)


def _poisoned(key: jax.Array, value: jax.Array) -> jax.Array:
    """Keys with NaN for entries not finite in key or value, for the scores of the key."""
    return jnp.where(jnp.isfinite(key) & jnp.isfinite(value), key, jnp.nan)


def _heads_first(array: jax.Array) -> jax.Array:
    """`[B, T, N, H]` as `[B, N, T, H]`, or back."""
    return array.swapaxes(1, 2)


def _forward(problem: Problem, operands: Operands) -> tuple[jax.Array, jax.Array]:
    apart = share_heads(operands)
    query, key, value, bias = apart[:4]
    dtype = accumulation_dtype(query.dtype)
    product = partial(_product, problem, dtype)
    hidden = hides(problem, operands)
    if hidden:
        key, value = _poisoned(key, value), _finite(value)
    scores = product(_heads_first(query), _heads_first(key), (3, 3)) * problem.scale
    if bias is not None:
        scores = scores + bias.astype(dtype)
    if hidden:
        scores = jnp.where(allowed_pairs(problem, operands), scores, -jnp.inf)
    # Two maxima make a row of -inf alone 0; in other rows the largest weight is 1. XLA's CPU
    # backend would not fuse selects with the softmax.
    highest = jnp.maximum(scores.max(axis=-1, keepdims=True), finfo(dtype).min)
    weights = jnp.exp(scores - highest)
    weights = weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)
    # Without the barrier XLA computes the softmax again inside each of its users.
    weights = optimization_barrier(weights)
    result = product(weights.astype(value.dtype), _heads_first(value), (3, 2))
    return _heads_first(result).astype(query.dtype), weights


def _backward(
    problem: Problem, operands: Operands, weights: jax.Array, cotangent: jax.Array
) -> Operands:
    sizes = Dimensions.of(operands)
    query, key, value, bias = share_heads(operands)[:4]
    dtype = accumulation_dtype(query.dtype)
    product = partial(_product, problem, dtype)
    if hides(problem, operands):
        key, value = _finite(key), _finite(value)
    if may_blind(problem, operands):
        sees = allowed_pairs(problem, operands).any(axis=-1).swapaxes(1, 2)[..., None]
        query, cotangent = jnp.where(sees, query, 0), jnp.where(sees, cotangent, 0)
    query, key, value, cotangent = map(_heads_first, (query, key, value, cotangent))
    d_weights = product(cotangent, value, (3, 3))
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
    d_bias = None
    if bias is not None:
        seen = d_scores
        if hides(problem, operands):
            seen = jnp.where(allowed_pairs(problem, operands), d_scores, 0)
        d_bias = sum_to(seen, bias.shape).astype(bias.dtype)
    # In half precision small gradients must be scaled before the cast. In float32 the products are
    # scaled: XLA's CPU backend would write out a factor for each score.
    early, late = (problem.scale, 1.0) if query.dtype != dtype else (1.0, problem.scale)
    d_scores = (d_scores * early).astype(query.dtype)
    d_query = _heads_first(product(d_scores, key, (3, 2))) * late
    # The query comes first: the CPU's matrix library takes no transposed scores.
    d_key = product(query.swapaxes(2, 3), d_scores, (3, 2)).transpose(0, 3, 1, 2) * late
    d_value = product(cotangent.swapaxes(2, 3), weights.astype(value.dtype), (3, 2))
    d_value = d_value.transpose(0, 3, 1, 2)
    if sizes.K != sizes.N:
        shared = (sizes.B, sizes.S, sizes.K, sizes.N // sizes.K, sizes.H)
        d_key, d_value = (d.reshape(shared).sum(axis=3) for d in (d_key, d_value))
    gradient = Operands(
        d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), d_bias
    )
    if not operands.is_packed:
        return gradient
    # Without the barrier XLA packs the gradient again inside each of its users.
    return optimization_barrier(pack(gradient))


attention: Callable[[Any, Any], jax.Array] = differentiable(_forward, _backward, definition)

IMPLEMENTATION = Implementation(attention)
