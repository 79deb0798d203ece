"""Linear attention and the delta rule by chunks, in XLA operations.

Inside a chunk all steps are taken at once, as attention without a softmax; only the state passes
from chunk to chunk (Hua et al. 2022, section 3.2). The delta rule first solves a triangular system
for u, the vectors that its steps add to the state (the WY form of Yang et al. 2024, section 3.2).
It is then linear attention with u as values. Memory is linear in the length: chunks are recomputed
for the derivatives, which are JAX's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import untyped
from ..dispatch import Implementation
from ..numerics import einsum
from ..untyped import checkpoint, custom_linear_solve, finfo, matmul, pad, platform_dependent
from .problem import Operands, Problem, Result
from .reference import finish, prepare

CHUNK = 64
BLOCK = 8  # rows of a triangular system that are inverted one by one


def chunked(problem: Problem, operands: Operands, chunk: int = CHUNK) -> Result:
    """As `reference.recurrence`, `chunk` steps at once."""
    clean, poison = prepare(problem, operands)
    state = clean.initial_state
    product = functools.partial(_narrow_product, problem.precision, operands.query.dtype)
    if not problem.is_causal:
        state = state + product("bsnh,bsnv->bnhv", clean.key, clean.value)
        out = product("btnh,bnhv->btnv", clean.query, state) * problem.scale
        return finish(problem, operands, out, state, poison)
    length = clean.query.shape[1]
    step = functools.partial(_step, product)
    chunks = jax.tree.map(functools.partial(_cut, chunk=max(1, min(chunk, length))), clean[:5])
    if length <= chunk:
        # Without a state before, its products are left out.
        first: Callable[[jax.Array], jax.Array] = lambda array: array[0]
        before = None if operands.initial_state is None else state
        state, out = step(before, jax.tree.map(first, chunks))
        out = out[None]
    else:
        scanned: Any = jax.lax.scan(checkpoint(step, prevent_cse=False), state, chunks)
        state, out = scanned
    out = out.transpose(1, 0, 3, 2, 4)
    out = out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length] * problem.scale
    return finish(problem, operands, out, state, poison)


def _narrow_product(
    precision: str | None, dtype: jnp.dtype, formula: str, *arrays: jax.Array
) -> jax.Array:
    """einsum of numbers cast to the dtype of the inputs, for which tensor cores are fast."""
    wide = arrays[0].dtype
    product = functools.partial(einsum(precision, wide), formula)
    if dtype == wide:
        return product(*arrays)
    narrow = [array.astype(dtype) for array in arrays]

    def widened(*narrow: jax.Array) -> jax.Array:
        return product(*(array.astype(wide) for array in narrow))

    # XLA's CPU backend cannot multiply some layouts of bfloat16; the numbers are the same.
    return platform_dependent(*narrow, cpu=widened, default=product)


def _step(
    product: Callable[..., jax.Array], state: jax.Array | None, chunk: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    """A chunk of C steps.

    Args:
      product: einsum of numbers cast to the dtype of the inputs.
      state: `[B, N, H, V]` before the chunk; None for 0.
      chunk: query and key `[B, N, C, H]`, value `[B, N, C, V]`, and beta and log_decay
        `[B or 1, N, C]`, or None.

    Returns:
      The state after the chunk, and its outputs without the scale, `[B, N, C, V]`.
    """
    query, key, value, beta, log_decay = chunk
    between, from_start, to_end, whole = None, None, None, None
    if log_decay is not None:
        between, from_start, to_end, whole = decays(log_decay)
    scaled: Callable[[Any, Any], Any] = lambda array, factor: (
        array if factor is None else array * factor[..., None]
    )
    earlier = jnp.tri(key.shape[2], dtype=bool)

    def pairs(rows: jax.Array) -> jax.Array:
        # Masked before the decay: 0 times an overflow would be NaN.
        found = jnp.where(earlier, product("bnth,bnsh->bnts", rows, key), 0)
        return found if between is None else found * between

    weights = pairs(query)
    if beta is not None:
        overlap = pairs(key)
        if state is not None:
            value = value - scaled(product("bnth,bnhv->bntv", key, state), from_start)
        value = _solve(jnp.tril(overlap * beta[..., None], -1), value * beta[..., None])
    out = product("bnts,bnsv->bntv", weights, value)
    added = product("bnth,bntv->bnhv", scaled(key, to_end), value)
    if state is None:
        return added, out
    out = out + scaled(product("bnth,bnhv->bntv", query, state), from_start)
    return scaled(state, whole) + added, out


def _cut(array: jax.Array, chunk: int) -> jax.Array:
    """`[B, T, N, ...]` as `[chunks, B, N, chunk, ...]`, 0 past T."""
    batch, length, *rest = array.shape
    array = pad(array, [(0, 0), (0, -length % chunk), *[(0, 0)] * len(rest)])
    array = array.reshape(batch, -1, chunk, *rest)
    return array.transpose(1, 0, 3, 2, *range(4, array.ndim))


def decays(log_decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Decays within chunks, each to rounding.

    The difference of two sums over a chunk loses digits to a large decay before both. So there are
    two kinds of sums: of multiples of 1/512, which float32 adds without error, and of the rest.

    Args:
      log_decay: `[..., C]`.

    Returns:
      between: `[..., C, C]`, from after step s to step t; 0 for later s.
      from_start: `[..., C]`, from before the chunk to each step.
      to_end: `[..., C]`, from after each step to the chunk's end.
      whole: `[..., 1]`.
    """
    # Lower values decay to 0 in this dtype too, and infinities have no differences.
    lowest = 1.5 * jnp.log(finfo(log_decay.dtype).tiny)
    log_decay = jnp.maximum(log_decay, lowest)
    coarse = jax.lax.stop_gradient(jnp.round(log_decay * 512) / 512)
    earlier = jnp.tri(log_decay.shape[-1], dtype=bool)
    # A cumulative sum as a product, which is faster.
    add = functools.partial(untyped.einsum, "...s,ts->...t", precision=jax.lax.Precision.HIGHEST)
    sums = [add(part, earlier.astype(part.dtype)) for part in (coarse, log_decay - coarse)]
    passed = sum(s[..., :, None] - s[..., None, :] for s in sums)
    between = jnp.exp(jnp.where(earlier, passed, -jnp.inf))
    return (
        between,
        jnp.exp(sum(sums)),
        jnp.exp(sum(s[..., -1:] - s for s in sums)),
        jnp.exp(sum(s[..., -1:] for s in sums)),
    )


def _solve(system: jax.Array, side: jax.Array) -> jax.Array:
    """Solves `u_t + sum_{s<t} system_ts u_s = side_t` for u.

    Args:
      system: `[..., C, C]`, 0 except below the diagonal.
      side: `[..., C, V]`.
    """
    inverse = _inverse(jax.lax.stop_gradient(system))
    # Derivatives of the solution are solutions too.
    apply: Callable[[jax.Array], jax.Array] = lambda u: u + _product(system, u)
    solve: Callable[[Any, jax.Array], jax.Array] = lambda _, side: _product(inverse, side)
    transposed: Callable[[Any, jax.Array], jax.Array] = lambda _, side: _product(inverse.mT, side)
    return custom_linear_solve(apply, side, solve, transposed)


def _inverse(system: jax.Array) -> jax.Array:
    """The inverse of the identity plus the system, by halves.

    Not by triangular_solve: two at once can deadlock on two CPU cores.
    """
    size = system.shape[-1]
    if size > BLOCK:
        top, bottom = slice(size // 2), slice(size // 2, None)
        first, last = _inverse(system[..., top, top]), _inverse(system[..., bottom, bottom])
        below = -_product(last, _product(system[..., bottom, top], first))
        return jnp.block([[first, jnp.zeros_like(below.mT)], [below, last]])
    # The batch comes last, for wide vectors.
    system = jnp.moveaxis(system, (-2, -1), (0, 1))
    rows: list[jax.Array] = []
    for t in range(size):
        row = jnp.zeros_like(system[t]).at[t].set(1)
        rows.append(row - sum(system[t, s][None] * earlier for s, earlier in enumerate(rows)))
    return jnp.moveaxis(jnp.stack(rows), (0, 1), (-2, -1))


_product = functools.partial(matmul, precision=jax.lax.Precision.HIGHEST)

IMPLEMENTATION = Implementation(chunked)
