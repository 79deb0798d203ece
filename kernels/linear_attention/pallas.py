"""Linear attention and the delta rule in Pallas: a head's steps on chip, one call each way.

A program owns one head of one batch row and takes all its steps as a single chunk of xla.py. Pairs
of steps are products as in attention without a softmax; only before the first step and after the
last is there a state. Nothing is saved for the backward pass, which repeats the forward pass. Runs
on TPU, and in Pallas' interpreter anywhere.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import fused
from ..pallas_call import call_refusal, padded, pallas_call, products, readable, wide
from ..untyped import broadcasted_iota
from ..wiring import batch_rows
from .problem import Dimensions, Operands, Problem, Result
from .xla import chunked

# A decay to 0 in float32; a thousand of them add up without error.
LOWEST = -128.0

_Product: TypeAlias = Callable[[Any, Any, tuple[int, int]], jax.Array]
_exact = products(None, jnp.float32)


class _Clean(NamedTuple):
    """A tile with 0 for entries that do not count or are not finite.

    kept: mask of entries that count and are finite.
    first, last: `[1, 1]`, the first and last step with NaN or infinity in an entry that counts; inf
      and -1 if there is none.
    """

    tile: jax.Array
    kept: jax.Array
    first: jax.Array
    last: jax.Array


class _Decays(NamedTuple):
    """`xla.decays` of a single chunk: `[T, T]`, `[T, 1]`, `[T, 1]`, `[1, 1]`."""

    between: jax.Array
    from_start: Any = 1.0
    to_end: Any = 1.0
    whole: Any = 1.0


class _Forward(NamedTuple):
    """Results of a forward pass that the backward pass needs.

    out: float32 `[T, V]`, before the division.
    state: float32 `[H, V]`, after the last step.
    added: `[T, V]`, the u of each step.
    weights: `[T, T]`, scale * q k^T times the decay; 0 for later keys.
    overlap: `[T, T]`, k k^T times the decay; 0 except for earlier keys.
    inverse: `[T, T]`, of 1 + beta * overlap.
    missing: `[T, V]`, the values minus their prediction by the initial state.
    """

    out: jax.Array
    state: jax.Array
    added: Any = None
    decays: Any = None
    weights: Any = None
    overlap: Any = None
    inverse: Any = None
    missing: Any = None


def _forward_kernel(problem: Problem, operands: Operands, result: Result) -> None:
    given, _, first = _read(problem, operands)
    given = given._replace(query=operands.query[0])
    found = _run(problem, products(problem.precision, given.key.dtype), given)
    out = _divided(found.out)[0] if problem.normalize else found.out
    seen = first if problem.is_causal else jnp.where(first < jnp.inf, 0.0, jnp.inf)
    out = jnp.where(wide(_indices(out.shape)[0]) >= seen, jnp.nan, out)
    result.out[0] = out.astype(result.out.dtype)
    if result.state is not None:
        result.state[0] = found.state + jnp.where(first < jnp.inf, jnp.nan, 0.0)


def _backward_kernel(
    problem: Problem, operands: Operands, d_result: Result, gradient: Operands
) -> None:
    given, kept, _ = _read(problem, operands)
    query, d_out, d_state = _clean(operands.query[0]), _clean(d_result.out[0]), None
    last = jnp.maximum(query.last, d_out.last)
    if not problem.is_causal:
        last = jnp.where(last >= 0, jnp.inf, last)
    if d_result.state is not None:
        d_state, _, _, broken = _clean(d_result.state[0])
        last = jnp.where(broken >= 0, jnp.inf, last)
    given = given._replace(query=query.tile)
    product = products(problem.precision, given.key.dtype)
    found = _run(problem, product, given)
    d_sums = d_out.tile
    if problem.normalize:
        out, total = _divided(found.out)
        d_sums = wide(d_sums) / total
        d_sums = _with_column(d_sums, -(d_sums * out).sum(axis=1, keepdims=True))
        # Large numbers cancel, so products are exact, of the states that the forward pass rounded.
        product, dtype = _exact, given.key.dtype
        found = found._replace(state=found.state.astype(dtype))
        if given.initial_state is not None:
            given = given._replace(initial_state=given.initial_state.astype(dtype))
    pull_back = _pull_back if problem.is_causal else _pull_back_all
    d = pull_back(problem, product, given, found, d_sums, d_state)
    d = d._replace(value=d.value[:, : gradient.value.shape[2]])
    # NaN in queries and cotangents breaks the gradients of all steps that they saw.
    nan_in: Callable[[_Clean], jax.Array] = lambda clean: jnp.where(clean.kept, 0.0, jnp.nan).sum(
        axis=1, keepdims=True
    )
    gradient.query[0] = (d.query + nan_in(query) + nan_in(d_out)).astype(gradient.query.dtype)
    for name, axis in dict(key=0, value=0, beta=1, log_decay=1).items():
        ref, mine, tile = (getattr(each, name) for each in (gradient, kept, d))
        if ref is not None:
            tile = jnp.where(wide(_indices(tile.shape)[axis]) <= last, jnp.nan, tile)
            ref[0] = jnp.where(mine, tile, 0.0).astype(ref.dtype)
    if gradient.initial_state is not None:
        gradient.initial_state[0] = d.initial_state + jnp.where(last >= 0, jnp.nan, 0.0)


def _read(problem: Problem, operands: Operands) -> tuple[Operands, Operands, jax.Array]:
    """A program's inputs except the query, the masks of kept entries, and the first broken step."""
    length = None if operands.key_lengths is None else operands.key_lengths[0, 0, 0]
    own: Callable[[Any], jax.Array] = lambda ref: ref[0]
    *steps, log_decay = jax.tree.map(own, operands[1:5])
    if log_decay is not None:
        log_decay = jnp.where(log_decay < LOWEST, LOWEST, log_decay)
    cleaned = [
        None if tile is None else _clean(tile, axis, length)
        for tile, axis in zip((*steps, log_decay), (0, 0, 1, 1))
    ]
    of: Callable[[str], Operands] = lambda field: Operands(
        None, *(getattr(clean, field, None) for clean in cleaned)
    )
    given, first = of("tile"), reduce(jnp.minimum, jax.tree.leaves(of("first")))
    if problem.normalize:
        ones = jnp.ones((given.value.shape[0], 1), jnp.float32)
        given = given._replace(value=_with_column(given.value, ones).astype(given.value.dtype))
    if operands.initial_state is not None:
        given = given._replace(initial_state=operands.initial_state[0])
    return given, of("kept"), first


def _run(problem: Problem, product: _Product, given: Operands) -> _Forward:
    query, key, value, beta, log_decay, _, start = given
    if not problem.is_causal:
        state = product(key, value, (0, 0))
        state += 0.0 if start is None else start
        return _Forward(product(query, state, (1, 0)) * problem.scale, state)
    decays = _decays(log_decay, key.shape[0])
    rows, columns = _indices(decays.between.shape)
    # Masked before the decay: 0 times an overflow would be NaN.
    weights = jnp.where(columns <= rows, product(query, key, (1, 1)), 0.0)
    weights *= decays.between * problem.scale
    added, overlap, inverse, missing = value, None, None, None
    if beta is not None:
        overlap = jnp.where(columns < rows, product(key, key, (1, 1)), 0.0) * decays.between
        missing = wide(value)
        if start is not None:
            missing -= product(key, start, (1, 0)) * decays.from_start
        beta = _turned(beta)
        inverse = _inverse(beta * overlap)
        added = _exact(inverse, beta * missing, (1, 0))
    out = product(weights, added, (1, 0))
    state = product(wide(key) * decays.to_end, added, (0, 0))
    if start is not None:
        out += product(query, start, (1, 0)) * (decays.from_start * problem.scale)
        state += start * decays.whole
    return _Forward(out, state, added, decays, weights, overlap, inverse, missing)


def _pull_back_all(
    problem: Problem, product: _Product, given: Operands, found: _Forward, d_out: Any, d_state: Any
) -> Operands:
    """The gradient of a run that is not causal."""
    d_query = product(d_out, found.state, (1, 1)) * problem.scale
    d_start = product(given.query, d_out, (0, 0)) * problem.scale
    d_start += 0.0 if d_state is None else d_state
    d_key, d_value = product(given.value, d_start, (1, 1)), product(given.key, d_start, (1, 0))
    return Operands(d_query, d_key, d_value, initial_state=d_start)


def _pull_back(
    problem: Problem, product: _Product, given: Operands, found: _Forward, d_out: Any, d_state: Any
) -> Operands:
    """The gradient of a causal run, float32 `[T, ...]`; `[1, T]` for beta and log_decay."""
    query, key, _, beta, _, _, start = given
    between, from_start, to_end, whole = found.decays
    rows, columns = _indices(between.shape)
    d_weights = product(d_out, found.added, (1, 1))
    d_added = product(found.weights, d_out, (0, 0))
    d_pairs = jnp.where(columns <= rows, d_weights, 0.0) * between * problem.scale
    d_query, d_key = product(d_pairs, key, (1, 0)), product(d_pairs, query, (0, 0))
    # Gradients of the logarithms of all decays: between two steps, to and from the states.
    passed, d_start, d_beta, seen, written, through = d_weights * found.weights, 0.0, None, 0, 0, 0
    if d_state is not None:
        d_added += product(key, d_state, (1, 0)) * to_end
        d_written = product(found.added, d_state, (1, 1)) * to_end
        d_key += d_written
        d_start = d_state * whole
        written = (wide(key) * d_written).sum(axis=1, keepdims=True)
    if start is not None:
        d_seen = product(d_out, start, (1, 1)) * (from_start * problem.scale)
        d_query += d_seen
        if d_state is not None:
            through = (d_start * wide(start)).sum(axis=1, keepdims=True).sum(axis=0, keepdims=True)
        d_start += product(wide(query) * (from_start * problem.scale), d_out, (0, 0))
        seen = (wide(query) * d_seen).sum(axis=1, keepdims=True)
    d_value = d_added
    if beta is not None:
        d_side = _exact(found.inverse, d_added, (0, 0))
        side = found.missing - _exact(found.overlap, found.added, (1, 0))
        d_beta = _turned((d_side * side).sum(axis=1, keepdims=True))
        d_value = d_side * _turned(beta)
        d_overlap = product(d_value, found.added, (1, 1))
        passed -= d_overlap * found.overlap
        d_pairs = jnp.where(columns < rows, d_overlap * between, 0.0)
        d_key -= product(d_pairs, key, (1, 0)) + product(d_pairs, key, (0, 0))
        if start is not None:
            d_seen = product(d_value, start, (1, 1)) * from_start
            d_key -= d_seen
            d_start -= product(wide(key) * from_start, d_value, (0, 0))
            seen -= (wide(key) * d_seen).sum(axis=1, keepdims=True)
    d_log_decay = None
    if given.log_decay is not None:
        # A pair t, s contributes to the steps after s up to t, without differences of large sums.
        later = jnp.where(rows < columns, 1.0, 0.0)
        passed = _exact(passed, later, (1, 0)) + seen
        passed = jnp.where(rows < columns, written, passed)
        d_log_decay = passed.sum(axis=0, keepdims=True) + through
    return Operands(d_query, d_key, d_value, d_beta, d_log_decay, None, d_start)


def _clean(tile: jax.Array, axis: int = 0, length: Any = None) -> _Clean:
    """Cleans a tile; steps along `axis` at or past the length, if one is given, do not count."""
    steps = _indices(tile.shape)[axis]
    finite = jnp.abs(wide(tile)) < jnp.inf
    counts = steps >= 0 if length is None else steps < length
    broken = counts & jnp.logical_not(finite)
    where: Callable[[float], jax.Array] = lambda otherwise: jnp.where(
        broken, steps.astype(jnp.float32), otherwise
    )
    first = where(jnp.inf).min(axis=1, keepdims=True).min(axis=0, keepdims=True)
    last = where(-1.0).max(axis=1, keepdims=True).max(axis=0, keepdims=True)
    kept = counts & finite
    return _Clean(jnp.where(kept, wide(tile), 0.0).astype(tile.dtype), kept, first, last)


def _decays(log_decay: jax.Array | None, length: int) -> _Decays:
    """Decays of `[1, T]`, from sums of multiples of 1/128 and of the rest as in `xla.decays`."""
    rows, columns = _indices((length, length))
    if log_decay is None:
        return _Decays(jnp.where(columns <= rows, 1.0, 0.0))
    coarse = jnp.round(log_decay * 128) / 128
    between = from_start = to_end = whole = 0.0
    for part in (coarse, log_decay - coarse):
        passed = jnp.where(columns <= rows, part, 0.0).sum(axis=1, keepdims=True)
        total = part.sum(axis=1, keepdims=True)
        between += passed - _turned(passed)
        from_start += passed
        to_end += total - passed
        whole += total
    between = jnp.exp(jnp.where(columns <= rows, between, -jnp.inf))
    return _Decays(between, jnp.exp(from_start), jnp.exp(to_end), jnp.exp(whole))


def _inverse(system: jax.Array) -> jax.Array:
    """The inverse of 1 + `system`, which is 0 except below the diagonal.

    Diagonal blocks of 1, 2, 4 and so on are inverted: the block below the first of two neighbours
    is multiplied by both of their inverses. Sums of powers would lose all digits if keys are alike.
    """
    rows, columns = _indices(system.shape)
    inverse = jnp.where(rows == columns, 1.0, 0.0)
    for bit in range((system.shape[0] - 1).bit_length()):
        corner = jnp.where((rows ^ columns) >> bit == 1, system, 0.0)
        if bit:
            corner = _exact(inverse, _exact(corner, inverse, (1, 0)), (1, 0))
        inverse -= corner
    return inverse


def _divided(sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums divided by their last column, and that column; 0 and inf if the column is 0."""
    is_last = _indices(sums.shape)[1] == sums.shape[1] - 1
    total = jnp.where(is_last, sums, 0.0).sum(axis=1, keepdims=True)
    total = jnp.where(total == 0, jnp.inf, total)
    return sums[:, :-1] / total, total


def _with_column(tile: jax.Array, column: jax.Array) -> jax.Array:
    """float32 `[T, V]` and `[T, 1]` as `[T, V + 1]`."""
    rows, columns = _indices((tile.shape[1], tile.shape[1] + 1))
    # A product, since Mosaic cannot concatenate inside a row of 128.
    wider = _exact(wide(tile), jnp.where(rows == columns, 1.0, 0.0), (1, 0))
    return jnp.where(_indices(wider.shape)[1] == tile.shape[1], column, wider)


def _indices(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Each element's row and column."""
    return broadcasted_iota(jnp.int32, shape, 0), broadcasted_iota(jnp.int32, shape, 1)


def _turned(vector: jax.Array) -> jax.Array:
    """`[1, T]` as `[T, 1]`, or the other way around."""
    rows, columns = _indices((vector.size, vector.size))
    axis = 1 - vector.shape.index(1)
    return jnp.where(rows == columns, vector, 0.0).sum(axis=axis, keepdims=True)


def _forward(problem: Problem, operands: Operands) -> tuple[Result, tuple[()]]:
    sizes, inputs = Dimensions.of(operands), _heads_first(operands)
    value = inputs.value
    out = jax.ShapeDtypeStruct((sizes.B, sizes.N, sizes.T, sizes.V), value.dtype)
    state = None
    if problem.returns_state:
        shape = (sizes.B, sizes.N, sizes.H, sizes.V + problem.normalize)
        state = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = partial(_forward_kernel, problem)
    [(out, state)] = pallas_call(kernel, (sizes.B, sizes.N), (inputs,), (Result(out, state),))
    return Result(out.swapaxes(1, 2).astype(operands.query.dtype), state), ()


def _backward(problem: Problem, operands: Operands, saved: tuple[()], d_result: Result) -> Operands:
    inputs = _heads_first(operands)
    d_inputs = Result(readable(d_result.out.swapaxes(1, 2)), d_result.state)
    rows = batch_rows((inputs, d_inputs))
    gradient_of: Callable[[jax.Array], jax.ShapeDtypeStruct] = lambda array: jax.ShapeDtypeStruct(
        (rows, *array.shape[1:]), array.dtype
    )
    outputs = jax.tree.map(gradient_of, inputs._replace(key_lengths=None))
    kernel = partial(_backward_kernel, problem)
    grid = rows, inputs.query.shape[1]
    [gradient] = pallas_call(kernel, grid, (inputs, d_inputs), (outputs,))
    first = (array.swapaxes(1, 2).astype(operands.query.dtype) for array in gradient[:3])
    steps = (a if a is None else a[:, :, 0].swapaxes(1, 2) for a in gradient[3:5])
    return Operands._make([*first, *steps, None, gradient.initial_state])


def _heads_first(operands: Operands) -> Operands:
    """`[B or 1, N, length, features]`; beta and log_decay rows, lengths `[B or 1, 1, 1, 1]`."""
    *first, beta, log_decay, lengths, state = operands
    first = [readable(array.swapaxes(1, 2)) for array in first]
    row: Callable[[jax.Array], jax.Array] = lambda array: array.swapaxes(1, 2)[:, :, None].astype(
        jnp.float32
    )
    steps = [None if array is None else row(array) for array in (beta, log_decay)]
    lengths = None if lengths is None else lengths.reshape(-1, 1, 1, 1)
    return Operands._make([*first, *steps, lengths, None if state is None else wide(state)])


def _refusal(here: Target, problem: Problem, operands: Operands) -> str | None:
    needed = _bytes_on_chip(problem, operands)
    return call_refusal(here, "a head with all its steps", needed, *operands[:3])


def _bytes_on_chip(problem: Problem, operands: Operands) -> int:
    """About the size of the backward pass: blocks, twice to load the next, and float32 tiles."""
    sizes = Dimensions.of(operands)
    columns = sizes.V + problem.normalize
    queries, keys = padded(sizes.T, sizes.H), padded(sizes.S, sizes.H)
    values, outs = padded(sizes.S, columns), padded(sizes.T, columns)
    state = padded(sizes.H, columns)
    width = 2 if operands.query.dtype == jnp.bfloat16 else 4
    blocks = (2 * (queries + keys + values) + outs) * width
    blocks += 4 * (2 * (operands.initial_state is not None) + problem.returns_state) * state
    pairs = padded(sizes.T, sizes.S) * problem.is_causal
    # Pairs held at once: weights and decays, then the system and its inverse.
    pairs *= 4 + (operands.log_decay is not None) + 3 * (operands.beta is not None)
    return 2 * blocks + 4 * (pairs + 2 * (queries + keys + values + outs + state))


IMPLEMENTATION = Implementation(
    # Never timed on a TPU, so only taken if asked for.
    **fused(_forward, _backward, chunked, "tpu"),
    refusal=_refusal,
)
