"""Attention in XLA operations, with a backward pass that saves only the probabilities.

Left to itself JAX keeps the scores, their exponentials and the probabilities of every
layer. Written out, the backward pass needs the probabilities P alone (FlashAttention,
Dao et al. 2022, appendix B.2): dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dP * P)).
"""

from functools import partial

import jax
import jax.numpy as jnp

from .reference import probabilities


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    allowed: jax.Array | None,
    scale: float,
) -> jax.Array:
    """As `reference.attention`; differentiable once, in reverse mode."""
    return _forward(query, key, value, bias, allowed, scale)[0]


def _heads_first(array: jax.Array) -> jax.Array:
    return jnp.swapaxes(array, -3, -2)


def _forward(query, key, value, bias, allowed, scale):
    weights = probabilities(query, key, bias, allowed, scale).astype(value.dtype)
    # Without the barrier XLA computes the softmax again inside each of its users.
    weights = jax.lax.optimization_barrier(weights)
    result = weights @ _heads_first(value)
    return _heads_first(result).astype(query.dtype), (query, key, value, bias, weights)


def _backward(scale, saved, cotangent):
    query, key, value, bias, weights = saved
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    einsum = partial(jnp.einsum, preferred_element_type=dtype)
    d_value = einsum("...nts,...tnh->...snh", weights, cotangent)
    d_weights = einsum("...tnh,...snh->...nts", cotangent, value)
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
    d_bias = None if bias is None else _sum_to(d_scores, bias.shape).astype(bias.dtype)
    d_scores = (d_scores * scale).astype(query.dtype)
    d_query = einsum("...nts,...snh->...tnh", d_scores, key)
    d_key = einsum("...nts,...tnh->...snh", d_scores, query)
    return (
        d_query.astype(query.dtype),
        d_key.astype(key.dtype),
        d_value.astype(value.dtype),
        d_bias,
        None,
    )


def _sum_to(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums `array` over the axes along which `shape` was broadcast."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and array.shape[i] != 1)
    return array.sum(axis=axes, keepdims=True)


attention.defvjp(_forward, _backward)
