"""Linear attention and the delta rule by chunks, in XLA operations.

Inside a chunk all steps are taken at once, as attention without a softmax; only the state passes
from chunk to chunk (Hua et al. 2022, section 3.2). The delta rule first solves a triangular system
for what each step adds to the state, u (the WY form of Yang et al. 2024, section 3.2), and is then
linear attention to u. Memory is linear in the length, and every derivative is JAX's own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..dispatch import Implementation
from ..numerics import einsum
from .problem import Operands, Problem, Result
from .reference import finish, prepare

CHUNK = 64


def chunked(problem: Problem, operands: Operands, chunk: int = CHUNK) -> Result:
    """As `reference.recurrence`, `chunk` steps at once."""
    clean, poison = prepare(problem, operands)
    state = clean.initial_state
    exact = einsum(problem.precision, state.dtype)
    # Products are of numbers as narrow as the inputs, which is where tensor cores are fast.
    product = lambda formula, *arrays: exact(
        formula, *(array.astype(operands.query.dtype) for array in arrays)
    )
    if problem.is_causal:
        out, state = _causal(problem, clean, chunk, product)
    else:
        state = state + product("bsnh,bsnv->bnhv", clean.key, clean.value)
        out = product("btnh,bnhv->btnv", clean.query, state) * problem.scale
    return finish(problem, operands, out, state, poison)


def _causal(
    problem: Problem, clean: Operands, chunk: int, product: Callable
) -> tuple[jax.Array, jax.Array]:
    length = clean.query.shape[1]
    chunk = max(1, min(chunk, length))
    cut = functools.partial(_cut, chunk=chunk)
    query, key, value, beta, log_decay = map(cut, clean[:5])
    if log_decay is None:
        log_decay = jnp.zeros((1, 1, *key.shape[2:4]), key.dtype)
    between, from_start, to_end, whole = decays(log_decay)
    weights = product("bncth,bncsh->bncts", query, key) * between * problem.scale
    keys_to_end = key * to_end[..., None]
    system = None
    if beta is not None:
        overlap = product("bncth,bncsh->bncts", key, key) * between
        system = jnp.tril(overlap * beta[..., None], -1)

    def step(state, now):
        key, keys_to_end, value, beta, system, from_start, whole = now
        if beta is not None:
            predicted = product("bnth,bnhv->bntv", key, state) * from_start[..., None]
            value = _solve(system, (value - predicted) * beta[..., None])
        added = product("bnth,bntv->bnhv", keys_to_end, value)
        return whole[..., None, None] * state + added, (state, value)

    now = key, keys_to_end, value, beta, system, from_start, whole
    state, (states, value) = _scan_chunks(step, clean.initial_state, now)
    out = product("bncts,bncsv->bnctv", weights, value)
    seen = product("bncth,bnchv->bnctv", query, states)
    out = out + seen * (from_start[..., None] * problem.scale)
    out = jnp.moveaxis(out, 1, 3)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length], state


def _cut(array: jax.Array | None, chunk: int) -> jax.Array | None:
    """`[B, T, N, ...]` as `[B, N, chunks, chunk, ...]`, 0 past T."""
    if array is None:
        return None
    batch, length, *rest = array.shape
    missing = -length % chunk
    array = jnp.pad(array, [(0, 0), (0, missing), *[(0, 0)] * len(rest)])
    return jnp.moveaxis(array.reshape(batch, -1, chunk, *rest), 3, 1)


def decays(log_decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Decays within chunks, each to rounding.

    The difference of two sums over a chunk loses what a large decay before both has added. So the
    sums are of multiples of 1/512, which float32 adds without error, and of what is left.

    Args:
      log_decay: `[..., C]`.

    Returns:
      between: `[..., C, C]`, from after step s to step t; 0 for later s.
      from_start: `[..., C]`, from before the chunk to each step.
      to_end: `[..., C]`, from after each step to the chunk's end.
      whole: `[...]`.
    """
    # What is below decays to 0 in this dtype anyway, and infinities have no differences.
    lowest = 1.5 * jnp.log(jnp.finfo(log_decay.dtype).tiny)
    log_decay = jnp.maximum(log_decay, lowest)
    coarse = jax.lax.stop_gradient(jnp.round(log_decay * 512) / 512)
    earlier = jnp.tri(log_decay.shape[-1], dtype=bool)
    # A cumulative sum as a product, which is faster.
    add = functools.partial(jnp.einsum, "...s,ts->...t", precision=jax.lax.Precision.HIGHEST)
    sums = [add(part, earlier.astype(part.dtype)) for part in (coarse, log_decay - coarse)]
    passed = sum(s[..., :, None] - s[..., None, :] for s in sums)
    between = jnp.exp(jnp.where(earlier, passed, -jnp.inf))
    return (
        between,
        jnp.exp(sum(sums)),
        jnp.exp(sum(s[..., -1:] - s for s in sums)),
        jnp.exp(sum(s[..., -1] for s in sums)),
    )


def _solve(system: jax.Array, side: jax.Array) -> jax.Array:
    """`u` of `u_t + sum_{s<t} system_ts u_s = side_t`: what each step of a chunk adds.

    Args:
      system: `[..., C, C]`, 0 but below the diagonal.
      side: `[..., C, V]`.
    """
    solve = functools.partial(
        jax.lax.linalg.triangular_solve, system, left_side=True, lower=True, unit_diagonal=True
    )
    # Its derivatives are solutions again; those of triangular_solve take XLA's CPU minutes.
    return jax.lax.custom_linear_solve(
        lambda u: u + jnp.matmul(system, u, precision=jax.lax.Precision.HIGHEST),
        side,
        lambda _, side: solve(side),
        lambda _, side: solve(side, transpose_a=True),
    )


def _scan_chunks(step: Callable, state: jax.Array, now: Any) -> tuple[jax.Array, Any]:
    """`jax.lax.scan` over axis 2; a single chunk needs no loop."""
    chunks = now[0].shape[2]
    if chunks == 1:
        state, found = step(state, jax.tree.map(lambda array: array[:, :, 0], now))
        return state, jax.tree.map(lambda array: array[:, :, None], found)
    chunks_first = jax.tree.map(lambda array: jnp.moveaxis(array, 2, 0), now)
    state, found = jax.lax.scan(step, state, chunks_first)
    return state, jax.tree.map(lambda array: jnp.moveaxis(array, 0, 2), found)


IMPLEMENTATION = Implementation(chunked)
