"""The public attention functions: arguments checked, implementation chosen."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import dispatch
from ..arguments import (
    as_flag,
    as_scale,
    as_window,
    check_floating,
    check_tensors,
    flat,
    flat_lengths,
    flat_rows,
)
from ..numerics import accumulation_dtype
from . import cudnn, pallas, reference, triton, xla
from .problem import Dimensions, Operands, Problem

IMPLEMENTATIONS = {
    "cudnn": cudnn.IMPLEMENTATION,
    "triton": triton.IMPLEMENTATION,
    "pallas": pallas.IMPLEMENTATION,
    "xla": xla.IMPLEMENTATION,
    "reference": reference.IMPLEMENTATION,
}


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """Scaled dot-product attention with the arguments of `jax.nn.dot_product_attention`.

    `softmax(scale * query @ key^T + bias) @ value` over the keys that the mask allows
    (Vaswani et al. 2017, section 3.2.1). Softmax and sums are in float32, or float64
    for float64 inputs. Unlike in JAX's own, a query that may attend to no key gives 0 with
    zero gradients. So does a query whose bias is -inf for every key. NaN or infinity in a hidden
    key or value changes nothing. If the call has anything that can hide a key (mask, causality,
    window or lengths), a query that sees NaN or infinity in a key or value gets NaN in its whole
    result. Otherwise NaN and infinity spread as in the formula: NaN in a value spoils its own
    feature alone, and a key with a score of -inf has no weight.

    Differentiable in reverse mode any number of times. For `jax.jvp`, `jacfwd`, `hessian` and
    `linearize`, ask for `implementation="reference"`.

    Args:
      query: `[..., T, N, H]`; T queries, N heads, H features a head, any leading batch.
      key: `[..., S, K, H]`; S keys, K heads, with N a multiple of K.
      value: `[..., S, K, H]`.
      bias: added to the scores; broadcastable to `[..., N, T, S]`.
      mask: boolean, True where a query may attend; broadcastable to `[..., N, T, S]`.
      scale: factor of the scores; `1 / sqrt(H)` when None.
      is_causal: a query attends to keys at its own position and before.
      query_seq_lengths: int `[...]`; queries at or past it give 0.
      key_value_seq_lengths: int `[...]`; keys at or past it are hidden.
      local_window_size: `w` or `(left, right)`; query t attends to keys from `t - left`
        to `t + right`.
      implementation: None for the best one here, which always works; a name, which is taken or
        refused; or a sequence of names, the first of which that can take the call is taken.
        "triton": fused, on a GPU. "cudnn": JAX's own, on an NVIDIA GPU. "pallas": fused, on a
        TPU. "xla": everywhere. "reference": the definition, everywhere, every derivative.

    Returns:
      `[..., T, N, H]` in the dtype of `query`.

    Raises:
      ValueError: shapes that do not fit, a scale that is not finite, a negative window, or no
        implementation of that name.
      TypeError: inputs that are not floating point, a mask that is not boolean, or an option of
        the wrong type.
      NotImplementedError: the implementation asked for cannot take the call here; says why.
    """
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _check_shapes(query, key, value)
    batch = query.shape[:-3]
    heads, length, key_length = query.shape[-2], query.shape[-3], key.shape[-3]
    operands = Operands(flat(query), flat(key), flat(value))
    out = _attend(
        operands, batch, (heads, length, key_length), bias, mask, scale, is_causal,
        query_seq_lengths, key_value_seq_lengths, local_window_size, implementation,
    )  # fmt: skip
    return out.reshape(query.shape)


def packed_dot_product_attention(
    qkv: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """`dot_product_attention` of query, key and value packed in one array.

    A fused projection returns such an array. The kernels read it and write its gradient in place;
    to split it first would copy all three.

    Args:
      qkv: `[..., T, 3, N, H]`; query, key and value, any leading batch.
      bias, mask and all options: as in `dot_product_attention`.

    Returns:
      `[..., T, N, H]` in the dtype of `qkv`.

    Raises:
      ValueError, TypeError, NotImplementedError: as `dot_product_attention`.
    """
    qkv = jnp.asarray(qkv)
    if qkv.ndim < 4 or qkv.shape[-3] != 3:
        raise ValueError(f"qkv must be [..., length, 3, heads, head_dim], got {qkv.shape}")
    check_floating("qkv", qkv)
    *batch, length, _, heads, width = qkv.shape
    out = _attend(
        Operands(qkv.reshape(math.prod(batch), *qkv.shape[-4:])), tuple(batch),
        (heads, length, length), bias, mask, scale, is_causal, query_seq_lengths,
        key_value_seq_lengths, local_window_size, implementation,
    )  # fmt: skip
    return out.reshape(*batch, length, heads, width)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
) -> jax.Array:
    """The weights with which `dot_product_attention` sums the values, to look at them.

    They are computed by the reference; the fused kernels never store them. A query that may attend
    to no key has weights of 0.

    Args:
      query, key, bias, mask and all options: as in `dot_product_attention`.

    Returns:
      `[..., N, T, S]`, float32, or float64 for float64 inputs.

    Raises:
      ValueError, TypeError: as `dot_product_attention`.
    """
    query, key = jnp.asarray(query), jnp.asarray(key)
    _check_shapes(query, key, key)
    batch = query.shape[:-3]
    heads, length, key_length = query.shape[-2], query.shape[-3], key.shape[-3]
    problem, operands = _prepared(
        Operands(flat(query), flat(key), flat(key)), batch, (heads, length, key_length), bias,
        mask, scale, is_causal, query_seq_lengths, key_value_seq_lengths, local_window_size,
    )  # fmt: skip
    if 0 in operands.query.shape or 0 in operands.key.shape:
        shape = (*batch, heads, length, key_length)
        return jnp.zeros(shape, accumulation_dtype(query.dtype))
    weights = reference.attention_weights(problem, operands)
    return weights.reshape(*batch, heads, length, key_length)


def _attend(
    operands: Operands, batch: tuple[int, ...], scores: tuple[int, int, int], *options: Any
) -> jax.Array:
    """Checks the arguments of both functions and runs; `scores` is (N, T, S)."""
    *others, implementation = options
    problem, operands = _prepared(operands, batch, scores, *others)
    if any(0 in array.shape for array in (operands.query, operands.key) if array is not None):
        dispatch.names_of("attention", IMPLEMENTATIONS, implementation)
        return jnp.zeros_like(operands.query[:, :, 0] if operands.is_packed else operands.query)
    return dispatch.run(
        "attention", IMPLEMENTATIONS, implementation, problem, operands, forward_mode="reference"
    )


def _prepared(
    operands: Operands,
    batch: tuple[int, ...],
    scores: tuple[int, int, int],
    bias: Any,
    mask: Any,
    scale: Any,
    is_causal: bool,
    query_seq_lengths: Any,
    key_value_seq_lengths: Any,
    local_window_size: Any,
) -> tuple[Problem, Operands]:
    """The call, after its arguments are checked."""
    if mask is not None and jnp.asarray(mask).dtype != jnp.bool_:
        dtype = jnp.asarray(mask).dtype
        raise TypeError(f"mask must be boolean (True attends), got {dtype}; use bias")
    if bias is not None:
        check_floating("bias", jnp.asarray(bias))
    operands = operands._replace(
        bias=flat_rows("bias", bias, batch, scores, "N, T, S"),
        mask=flat_rows("mask", mask, batch, scores, "N, T, S"),
        query_lengths=flat_lengths("query_seq_lengths", query_seq_lengths, batch),
        key_lengths=flat_lengths("key_value_seq_lengths", key_value_seq_lengths, batch),
    )
    problem = Problem(
        scale=as_scale(scale, Dimensions.of(operands).H),
        is_causal=as_flag("is_causal", is_causal),
        window=as_window(local_window_size),
        precision=dispatch.setting("jax_default_matmul_precision"),
    )
    return problem, operands


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    check_tensors("head_dim", query=query, key=key, value=value)
    if key.shape != value.shape:
        raise ValueError(f"key {key.shape} and value {value.shape} must have the same shape")
    if query.shape[:-3] != key.shape[:-3] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} must agree in batch and head dimensions"
        )
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"{query.shape[-2]} query heads cannot share {key.shape[-2]} key heads evenly"
        )
