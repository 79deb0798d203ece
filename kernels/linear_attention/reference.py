"""The definition of linear attention and the delta rule: the recurrence, step by step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..dispatch import Implementation
from ..numerics import accumulation_dtype, einsum
from .problem import Dimensions, Operands, Problem, Result


def prepare(problem: Problem, operands: Operands) -> tuple[Operands, jax.Array]:
    """Operands in the dtype of the state, without entries that are hidden or not finite.

    Steps past the lengths become zeros, which leave the state unchanged. If the call is normalised,
    a column of ones joins the values, so that the last column of the state sums the keys.

    Returns:
      operands: with an initial state, and with no lengths.
      poison: `[B, S, N]`, NaN from the first step that held NaN or infinity, else 0. In the
        operands such entries are 0, since a product with 0 would carry NaN to earlier steps.
    """
    sizes = Dimensions.of(operands)
    dtype = accumulation_dtype(operands.query.dtype)
    step_arrays: dict[str, jax.Array] = {"key": operands.key, "value": operands.value}
    for name in ("beta", "log_decay"):
        array = getattr(operands, name)
        if array is not None:
            step_arrays[name] = array
    if operands.key_lengths is not None:
        counts = jnp.arange(sizes.S)[None] < operands.key_lengths[:, None]
        axes: Callable[[jax.Array], jax.Array] = lambda array: counts.reshape(
            *counts.shape, *(1,) * (array.ndim - 2)
        )
        step_arrays = {n: jnp.where(axes(a), a, 0) for n, a in step_arrays.items()}
    broken = jnp.zeros((sizes.B, sizes.S, sizes.N), bool)
    for name, array in step_arrays.items():
        fine = jnp.isfinite(array)
        if name == "log_decay":
            fine |= array == -jnp.inf
        step_arrays[name] = jnp.where(fine, array, 0)
        broken |= ~(fine.all(axis=-1) if fine.ndim == 4 else fine)
    steps = jnp.arange(sizes.S)[None, :, None]
    first = jnp.where(broken, steps, sizes.S).min(axis=1, keepdims=True, initial=sizes.S)
    step_arrays = {name: array.astype(dtype) for name, array in step_arrays.items()}
    value = step_arrays["value"]
    if problem.normalize:
        value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    shape = (sizes.B, sizes.N, sizes.H, value.shape[-1])
    state = jnp.zeros(shape, dtype)
    if operands.initial_state is not None:
        state = jnp.broadcast_to(operands.initial_state.astype(dtype), shape)
    query = operands.query.astype(dtype)
    clean = Operands(query, **step_arrays | {"value": value}, initial_state=state)
    return clean, jnp.where(steps >= first, jnp.nan, 0).astype(dtype)


def finish(
    problem: Problem, operands: Operands, out: jax.Array, state: jax.Array, poison: jax.Array
) -> Result:
    """Normalises the outputs of `prepare`d operands, and adds the poison to all that sees it."""
    if problem.normalize:
        out, total = out[..., :-1], out[..., -1:]
        out = jnp.where(total == 0, 0, out / jnp.where(total == 0, 1, total))
    last = poison.sum(axis=1, keepdims=True)
    out = out + (poison if problem.is_causal else last)[..., None]
    out = out.astype(operands.query.dtype)
    if not problem.returns_state:
        return Result(out)
    return Result(out, state + last[:, 0, :, None, None])


def recurrence(problem: Problem, operands: Operands) -> Result:
    """Yang et al. 2024, "Parallelizing linear transformers with the delta rule", section 2."""
    clean, poison = prepare(problem, operands)
    query, key, value, beta, log_decay, _, state = clean
    product = einsum(problem.precision, state.dtype)

    def step(state: jax.Array, now: Any) -> tuple[jax.Array, Any]:
        q, k, v, b, g = now
        if g is not None:
            state = _decay(state, g[..., None, None])
        if b is not None:
            v = b[..., None] * (v - product("bnhv,bnh->bnv", state, k))
        state = state + k[..., :, None] * v[..., None, :]
        return state, None if q is None else product("bnhv,bnh->bnv", state, q)

    query = query * problem.scale
    now = (query if problem.is_causal else None, key, value, beta, log_decay)
    steps_first = jax.tree.map(_steps_first, now)
    scanned: tuple[jax.Array, Any] = jax.lax.scan(step, state, steps_first)
    state, out = scanned
    if problem.is_causal:
        out = out.swapaxes(0, 1)
    else:
        out = product("btnh,bnhv->btnv", query, state)
    return finish(problem, operands, out, state, poison)


def _steps_first(array: jax.Array) -> jax.Array:
    return array.swapaxes(0, 1)


def _decay(state: jax.Array, log_decay: jax.Array) -> jax.Array:
    """`exp(log_decay) * state`.

    A decay near 1 has the same rounding error at every step, which adds up over thousands of steps.
    The part that it takes away is small, and so is the rounding error of that part.
    """
    weak = state + jnp.expm1(log_decay) * state
    return jnp.where(log_decay > -0.5, weak, jnp.exp(log_decay) * state)


IMPLEMENTATION = Implementation(recurrence)
