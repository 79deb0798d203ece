"""The public functions: arguments checked, implementation chosen."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import jax
import jax.numpy as jnp

from .. import dispatch
from ..arguments import (
    as_flag,
    as_scale,
    check_floating,
    check_tensors,
    flat,
    flat_lengths,
    flat_rows,
)
from . import pallas, reference, triton, xla
from .problem import Operands, Problem

IMPLEMENTATIONS = {
    "triton": triton.IMPLEMENTATION,
    "pallas": pallas.IMPLEMENTATION,
    "xla": xla.IMPLEMENTATION,
    "reference": reference.IMPLEMENTATION,
}


@overload
def linear_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool,
    log_decay: jax.Array | None = None, normalize: bool = False, scale: float | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    initial_state: jax.Array | None = None, return_state: Literal[False] = False,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array: ...  # fmt: skip
@overload
def linear_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool,
    log_decay: jax.Array | None = None, normalize: bool = False, scale: float | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    initial_state: jax.Array | None = None, return_state: Literal[True],
    implementation: str | Sequence[str] | None = None,
) -> tuple[jax.Array, jax.Array]: ...  # fmt: skip
@overload
def linear_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool,
    log_decay: jax.Array | None = None, normalize: bool = False, scale: float | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    initial_state: jax.Array | None = None, return_state: bool,
    implementation: str | Sequence[str] | None = None,
) -> Any: ...  # fmt: skip
def linear_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    is_causal: bool,
    normalize: bool = False,
    scale: float | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    initial_state: jax.Array | None = None,
    return_state: bool = False,
    implementation: str | Sequence[str] | None = None,
) -> Any:
    """Attention without a softmax (Katharopoulos et al. 2020, sections 3.2 and 3.3).

    Each head keeps a state `S [H, V]`. A step decays it and adds to it,
    `S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T`. A query reads `scale * S_t^T q_t`. If the call is
    not causal, every query reads the state after the last step, `scale * sum_s (q_t . k_s) v_s`.
    With the query token excluded by the lengths, that is the layer which does a step of gradient
    descent in context (von Oswald et al. 2023, section 2). RetNet has one decay per head; Mamba-2
    and simple gated linear attention have one per head and step.

    The state is float32 (float64 for float64 inputs). NaN or infinity in a key or value that a
    query may not see changes nothing. If the query sees it, its whole result is NaN.
    Differentiable in reverse mode any number of times. For `jax.jvp` and `jax.linearize`
    ask for `implementation="xla"` or `"reference"`.

    Args:
      query: `[..., T, N, H]`; T queries, N heads, H features a head, any leading batch. Apply a
        feature map to query and key beforehand.
      key: `[..., S, N, H]`; S is T if causal.
      value: `[..., S, N, V]`.
      log_decay: the logarithm of the factor by which a step decays the state, broadcastable to
        `[..., S, N]`: `[N]` for each head, `[..., S, N]` for each head and step. -inf forgets all,
        0 nothing. Only if causal.
      is_causal: a query reads the state after its own step, which includes its own key and value.
      normalize: divides by the sum of the weights, `scale * z_t . q_t` with z_t the sum of
        the keys, decayed like the state. The result is 0 if the divisor is 0. The state has one
        more column, the last, which is z.
      scale: factor of the weights; `1 / sqrt(H)` when None.
      key_value_seq_lengths: int `[...]`; steps at or past it leave the state as it is.
      initial_state: `[..., N, H, V]`, or `[..., N, H, V + 1]` if normalised, or without the
        batch axes; 0 if None.
      return_state: also returns the state after the last step.
      implementation: None for the best one here, which always works; a name, which is taken or
        refused; or a sequence of names, the first of which that can take the call is taken.
        "triton": fused, on a GPU. "pallas": fused, on a TPU. "xla": by chunks, everywhere.
        "reference": the recurrence, step by step, everywhere.

    Returns:
      `[..., T, N, V]` in the dtype of `query`; with `return_state` also the state, as
      `initial_state` with the batch axes.

    Raises:
      ValueError: shapes that do not fit, a decay in a call that is not causal, a scale that is not
        finite, or no implementation of that name.
      TypeError: inputs that are not floating point, lengths that are not integers, or an option of
        the wrong type.
      NotImplementedError: the implementation asked for cannot take the call here; says why.
    """
    is_causal, normalize = as_flag("is_causal", is_causal), as_flag("normalize", normalize)
    if log_decay is not None and not is_causal:
        raise ValueError(
            "log_decay needs is_causal=True; without an order of the steps nothing can decay"
        )
    return _attend(
        "linear_attention", query, key, value, None, log_decay, key_value_seq_lengths,
        initial_state, scale, is_causal, normalize, return_state, implementation,
    )  # fmt: skip


@overload
def delta_rule(
    query: jax.Array, key: jax.Array, value: jax.Array, beta: jax.Array, *,
    log_decay: jax.Array | None = None, scale: float | None = None,
    initial_state: jax.Array | None = None, return_state: Literal[False] = False,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array: ...  # fmt: skip
@overload
def delta_rule(
    query: jax.Array, key: jax.Array, value: jax.Array, beta: jax.Array, *,
    log_decay: jax.Array | None = None, scale: float | None = None,
    initial_state: jax.Array | None = None, return_state: Literal[True],
    implementation: str | Sequence[str] | None = None,
) -> tuple[jax.Array, jax.Array]: ...  # fmt: skip
@overload
def delta_rule(
    query: jax.Array, key: jax.Array, value: jax.Array, beta: jax.Array, *,
    log_decay: jax.Array | None = None, scale: float | None = None,
    initial_state: jax.Array | None = None, return_state: bool,
    implementation: str | Sequence[str] | None = None,
) -> Any: ...  # fmt: skip
def delta_rule(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    scale: float | None = None,
    initial_state: jax.Array | None = None,
    return_state: bool = False,
    implementation: str | Sequence[str] | None = None,
) -> Any:
    """Causal linear attention that corrects its state instead of adding to it.

    `S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T` and `out_t = scale * S_t^T q_t`,
    `a_t = exp(log_decay_t)` or 1: DeltaNet (Schlag et al. 2021, section 4.2; Yang et al. 2024),
    and with the decay gated DeltaNet (Yang et al. 2025, section 3.1).

    This is online gradient descent on the squared error in context, the least-mean-squares rule of
    Widrow and Hoff 1960. With `a_t` 1 a step is
    `S_t = S_{t-1} - beta_t * gradient of |S^T k_t - v_t|^2 / 2 at S_{t-1}`. So beta is the learning
    rate, k an input and v its label. With scale 1 the result is the prediction for q by the weights
    learned so far. With keys of length 1 the rule converges for beta between 0 and 2: 1 corrects
    the state wholly, 2 reflects it. Longer keys need a smaller beta, `beta * |k|^2 <= 2`; with a
    larger one the state grows without bound.

    Args:
      query: `[..., T, N, H]`; T steps, N heads, H features a head, any leading batch.
      key: `[..., T, N, H]`.
      value: `[..., T, N, V]`.
      beta: the learning rate of each step, broadcastable to `[..., T, N]`.
      log_decay, scale, initial_state, return_state, implementation: as in `linear_attention`.

    Returns:
      As `linear_attention`.

    Raises:
      ValueError, TypeError, NotImplementedError: as `linear_attention`; TypeError without beta too.
    """
    if cast(Any, beta) is None:
        raise TypeError("beta must be given: without it this is linear_attention")
    return _attend(
        "delta_rule", query, key, value, beta, log_decay, None,
        initial_state, scale, True, False, return_state, implementation,
    )  # fmt: skip


def _attend(
    op: str,
    query: Any,
    key: Any,
    value: Any,
    beta: Any,
    log_decay: Any,
    lengths: Any,
    initial_state: Any,
    scale: Any,
    is_causal: bool,
    normalize: bool,
    return_state: bool,
    implementation: Any,
) -> Any:
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _check_shapes(query, key, value, is_causal)
    *batch, length, heads, width = query.shape
    batch, steps = tuple(batch), (key.shape[-3], heads)
    columns = value.shape[-1] + normalize
    operands = Operands(
        flat(query),
        flat(key),
        flat(value),
        _flat_steps("beta", beta, batch, steps),
        _flat_steps("log_decay", log_decay, batch, steps),
        flat_lengths("key_value_seq_lengths", lengths, batch),
        _flat_state(initial_state, batch, (heads, width, columns)),
    )
    problem = Problem(
        scale=as_scale(scale, width),
        is_causal=is_causal,
        normalize=normalize,
        returns_state=as_flag("return_state", return_state),
        precision=dispatch.setting("jax_default_matmul_precision"),
    )
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        dispatch.names_of(op, IMPLEMENTATIONS, implementation)
        implementation = "reference"
    out, state = dispatch.run(
        op, IMPLEMENTATIONS, implementation, problem, operands, forward_mode="xla"
    )
    out = out.reshape(*batch, length, heads, value.shape[-1])
    return (out, state.reshape(*batch, *state.shape[1:])) if return_state else out


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array, is_causal: bool) -> None:
    check_tensors("features", query=query, key=key, value=value)
    if query.shape[:-3] != key.shape[:-3] or query.shape[-2:] != key.shape[-2:]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} must agree in all but the length; repeat the "
            "keys if query heads share them"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"key {key.shape} and value {value.shape} must agree in all but the features"
        )
    if is_causal and query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"causal needs as many queries as keys, got {query.shape[-3]} and {key.shape[-3]}"
        )


def _flat_steps(
    name: str, array: Any, batch: tuple[int, ...], steps: tuple[int, int]
) -> jax.Array | None:
    """`[B or 1, S, N]`."""
    if array is None:
        return None
    array = jnp.asarray(array)
    check_floating(name, array)
    rows: Any = flat_rows(name, array, batch, steps, "S, N")
    return jnp.broadcast_to(rows, (rows.shape[0], *steps))


def _flat_state(state: Any, batch: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array | None:
    """`[B or 1, N, H, V]`."""
    if state is None:
        return None
    state = jnp.asarray(state)
    check_floating("initial_state", state)
    if state.shape == shape:
        return state[None]
    if state.shape != (*batch, *shape):
        hint = "; if normalised, its last axis is one longer than the values" * (
            state.shape[-1:] == (shape[-1] - 1,)
        )
        raise ValueError(
            f"initial_state must be {(*batch, *shape)} or {shape}, got {state.shape}{hint}"
        )
    return state.reshape(math.prod(batch), *shape)
