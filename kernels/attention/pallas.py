"""Attention in Pallas: a head's keys and values on chip, forward and backward in one call each.

A program owns one key head of one batch row, holds its keys and values and all queries of the
heads that share it, and takes these heads one after the other. As in triton_row.py a whole row of
scores is on chip, so nothing is saved for the backward pass: it recomputes the softmax, takes delta
as rowsum(P * dP), and writes each gradient once. Runs on TPU, and in Pallas' interpreter anywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import fused
from ..pallas_call import call_refusal, padded, pallas_call, products, readable, wide
from ..untyped import broadcasted_iota
from .problem import Dimensions, Operands, Problem, hides, pack, unpack
from .reference import attention as definition


def _softmax(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Exponentials, their sum (1 for a row that sees nothing), and which rows see nothing."""
    highest = scores.max(axis=1, keepdims=True)
    highest = jnp.where(highest > -jnp.inf, highest, 0.0)
    weights = jnp.exp(scores - highest)
    total = weights.sum(axis=1, keepdims=True)
    return weights, jnp.where(total == 0, 1.0, total), total == 0


def _forward_kernel(problem: Problem, hidden: bool, operands: Operands, out: Any) -> None:
    dot = products(problem.precision, out.dtype)
    k, v, poison = _keys_and_values(operands, hidden)
    for member in range(out.shape[0]):
        q = operands.query[member]
        scores, _ = _scores(problem, operands, member, dot(q, k, (1, 1)), poison)
        weights, total, _ = _softmax(scores)
        out[member] = (dot(weights, v, (1, 0)) / total).astype(out.dtype)


def _backward_kernel(
    problem: Problem, hidden: bool, operands: Operands, d_out: Any, gradient: Operands
) -> None:
    dot = products(problem.precision, d_out.dtype)
    k, v, poison = _keys_and_values(operands, hidden)
    dk = dv = jnp.zeros(k.shape, jnp.float32)
    for member in range(d_out.shape[0]):
        q, do = operands.query[member], d_out[member]
        scores, allowed = _scores(problem, operands, member, dot(q, k, (1, 1)), poison)
        weights, total, blind = _softmax(scores)
        weights = weights / total
        if hidden:
            # NaN in a query that sees nothing must not reach the keys.
            q, do = (jnp.where(blind, 0.0, wide(tile)).astype(tile.dtype) for tile in (q, do))
        dv += dot(weights, do, (0, 0))
        d_weights = dot(do, v, (1, 1))
        delta = (weights * d_weights).sum(axis=1, keepdims=True)
        d_scores = weights * (d_weights - delta)
        if hidden:
            d_scores = jnp.where(allowed, d_scores, 0.0)
        if gradient.bias is not None:
            gradient.bias[member] = d_scores
        dk += dot(d_scores, q, (0, 0))
        dq = dot(d_scores, k, (1, 0)) * problem.scale
        gradient.query[member] = dq.astype(gradient.query.dtype)
    gradient.key[0] = (dk * problem.scale).astype(gradient.key.dtype)
    gradient.value[0] = dv.astype(gradient.value.dtype)


def _keys_and_values(operands: Operands, hidden: bool) -> tuple[jax.Array, jax.Array, Any]:
    """Keys, values, and what to add to the scores of each key; see `reference.keep_finite`."""
    k, v = operands.key[0], operands.value[0]
    if not hidden:
        return k, v, None
    finite = [jnp.abs(wide(tile)) < jnp.inf for tile in (k, v)]
    broken = jnp.where(finite[0] & finite[1], 0.0, 1.0)
    # A product with ones gives a row of sums; a reduction would give a column.
    ones = jnp.ones((1, k.shape[1]), jnp.float32)
    count = products("default", jnp.float32)(ones, broken, (1, 1))
    poison = jnp.where(count > 0, jnp.nan, 0.0)
    k, v = (jnp.where(f, wide(tile), 0.0).astype(tile.dtype) for f, tile in zip(finite, (k, v)))
    return k, v, poison


def _scores(
    problem: Problem, operands: Operands, member: int, products: jax.Array, poison: Any
) -> tuple[jax.Array, Any]:
    """scale * q k^T + bias, -inf where hidden, and which pairs are allowed."""
    scores = products * problem.scale
    if operands.bias is not None:
        scores += wide(_of_member(operands.bias, member))
    if poison is None:
        return scores, None
    allowed = _pairs_allowed(problem, operands, member, scores.shape)
    return jnp.where(allowed, scores + poison, -jnp.inf), allowed


def _pairs_allowed(
    problem: Problem, operands: Operands, member: int, shape: tuple[int, ...]
) -> jax.Array:
    """Boolean `[T, S]`: which keys each query may see."""
    rows = broadcasted_iota(jnp.int32, shape, 0)
    columns = broadcasted_iota(jnp.int32, shape, 1)
    allowed = columns <= rows if problem.is_causal else columns >= 0
    if problem.left is not None:
        allowed &= columns >= rows - problem.left
    if problem.right is not None:
        allowed &= columns <= rows + problem.right
    if operands.query_lengths is not None:
        allowed &= rows < operands.query_lengths[0, 0, 0]
    if operands.key_lengths is not None:
        allowed &= columns < operands.key_lengths[0, 0, 0]
    if operands.mask is not None:
        allowed &= _of_member(operands.mask, member).astype(jnp.int32) != 0
    return allowed


def _of_member(scores: Any, member: int) -> jax.Array:
    """A query head's bias or mask; one may serve all heads."""
    return scores[member if scores.shape[0] > 1 else 0]


def _forward(problem: Problem, operands: Operands) -> tuple[jax.Array, tuple[()]]:
    sizes, inputs = Dimensions.of(operands), _heads_first(operands)
    kernel = partial(_forward_kernel, problem, hides(problem, operands))
    shape = (sizes.B, sizes.N, sizes.T, sizes.H)
    outputs = (jax.ShapeDtypeStruct(shape, inputs.query.dtype),)
    [out] = pallas_call(kernel, (sizes.B, sizes.K), (inputs,), outputs)
    return out.swapaxes(1, 2).astype(operands.query.dtype), ()


def _backward(problem: Problem, operands: Operands, saved: tuple[()], d_out: jax.Array) -> Operands:
    """The gradient; that of the bias is not yet summed over its broadcast axes."""
    sizes, inputs = Dimensions.of(operands), _heads_first(operands)
    kernel = partial(_backward_kernel, problem, hides(problem, operands))
    gradient_of: Callable[[jax.Array], jax.ShapeDtypeStruct] = lambda array: jax.ShapeDtypeStruct(
        (sizes.B, *array.shape[1:]), array.dtype
    )
    d_bias = None
    if operands.bias is not None:
        d_bias = jax.ShapeDtypeStruct((sizes.B, sizes.N, sizes.T, sizes.S), jnp.float32)
    d_query, d_key, d_value = map(gradient_of, inputs[:3])
    outputs = Operands(d_query, d_key, d_value, d_bias)
    inputs = inputs, readable(d_out.swapaxes(1, 2))
    [gradient] = pallas_call(kernel, (sizes.B, sizes.K), inputs, (outputs,))
    back: Callable[[jax.Array], jax.Array] = lambda array: array.swapaxes(1, 2).astype(
        operands.query.dtype
    )
    query, key, value = map(back, gradient[:3])
    gradient = Operands(query, key, value, gradient.bias)
    return pack(gradient) if operands.is_packed else gradient


def _heads_first(operands: Operands) -> Operands:
    """Arrays of four axes, `[B, heads, length, H]`, so that blocks are whole in the last two."""
    *first, bias, mask, query_lengths, key_lengths = unpack(operands)
    first = [array.swapaxes(1, 2) for array in first]
    lengths = [a if a is None else a.reshape(-1, 1, 1, 1) for a in (query_lengths, key_lengths)]
    return jax.tree.map(readable, Operands._make([*first, bias, mask, *lengths]))


def _refusal(here: Target, problem: Problem, operands: Operands) -> str | None:
    needed = _bytes_on_chip(operands)
    return call_refusal(here, "a key head with its queries and scores", needed, *operands[:3])


def _bytes_on_chip(operands: Operands) -> int:
    """About the size of the backward pass: blocks, twice to load the next, and float32 tiles."""
    sizes = Dimensions.of(operands)
    group = sizes.N // sizes.K
    queries, keys = padded(sizes.T, sizes.H), padded(sizes.S, sizes.H)
    scores = padded(sizes.T, sizes.S)
    blocks = (3 * group * queries + 4 * keys) * (2 if operands.query.dtype == jnp.bfloat16 else 4)
    for array, width in ((operands.bias, 4), (operands.mask, 1)):
        if array is not None:
            blocks += max(1, array.shape[1] // sizes.K) * padded(*array.shape[2:]) * width
    if operands.bias is not None:
        blocks += group * scores * 4
    return 2 * blocks + 4 * (4 * scores + 3 * queries + 4 * keys)


IMPLEMENTATION = Implementation(
    # Never timed on a TPU, so only taken if asked for.
    **fused(_forward, _backward, definition, "tpu"),
    refusal=_refusal,
)
