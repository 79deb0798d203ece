"""The delta rule, the state on chip: one launch forward, one backward.

A program owns one head of one batch row (or of ROWS batch rows, one after the other) and walks the
steps BLOCK_T at a time, as in `triton_causal.py`. What a step adds to the state, `u`, solves a
triangular system of the chunk: `xla.py` has the same computation in plain JAX.

The state and `u` are kept transposed, `[V, H]` and `[V, BLOCK_T]`. Then a result of a product is,
in the registers where it lies, an operand of the next product.

The forward pass saves the errors, `[B, T, N, V]` in the dtype of the query: a step's value less the
prediction for its key, which times beta is `u`. The backward pass reads them in place of the
values. It starts from saved states, one for every SAVE_EVERY steps, and computes those in between.
"""

# pyright: basic
# A kernel is in Triton's language, whose parameters have no types.

import triton
import triton.language as tl

from ..tiles import Tensor, load_tile, store_tile
from .triton_tiles import (
    LOWEST,
    NEVER,
    decays,
    flipped,
    load_beta,
    load_decay,
    load_finite,
    load_state,
    solution,
    store_numbers,
    store_state,
    times,
    transposed,
    unit_lower_inverse,
    weights_of,
)


@triton.jit(repr=lambda call: "delta_rule_forward")
def forward_kernel(
    query,
    key,
    value,
    beta,
    log_decay,
    initial_state,
    out,
    state,
    states,
    errors,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    HEIGHT: tl.constexpr = CALL.BLOCK_V
    WIDTH: tl.constexpr = (
        CALL.BLOCK_H if CALL.RETURNS_STATE or CALL.T > CALL.BLOCK_T else CALL.BLOCK_T
    )
    program = tl.program_id(0)
    broken = 1
    for guards in tl.range(0, 2, disable_licm=True):
        if broken:
            probe = tl.zeros([HEIGHT, WIDTH], tl.float32)
            for row in range(CALL.ROWS):
                probe += _forward_row(
                    Tensor(query, STRIDES.QUERY),
                    Tensor(key, STRIDES.KEY),
                    Tensor(value, STRIDES.VALUE),
                    Tensor(beta, STRIDES.BETA),
                    Tensor(log_decay, STRIDES.LOG_DECAY),
                    Tensor(initial_state, STRIDES.INITIAL_STATE),
                    Tensor(out, STRIDES.OUT),
                    Tensor(state, STRIDES.STATE),
                    Tensor(states, STRIDES.STATES),
                    Tensor(errors, STRIDES.ERRORS),
                    (program // CALL.N).to(tl.int64) * CALL.ROWS + row,
                    program % CALL.N,
                    guards,
                    CALL,
                )
            broken = (tl.sum(probe) != 0).to(tl.int32)


@triton.jit
def _forward_row(
    query,
    key,
    value,
    beta,
    log_decay,
    initial_state,
    out,
    state,
    states,
    errors,
    b,
    head,
    guards,
    CALL: tl.constexpr,
):
    """The forward pass of one head; returns a probe of what went into it, `[HEIGHT, WIDTH]`."""
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    HAS_BEFORE: tl.constexpr = CALL.HAS_INITIAL or CALL.T > BLOCK_T
    HAS_AFTER: tl.constexpr = CALL.RETURNS_STATE or CALL.T > BLOCK_T
    WIDTH: tl.constexpr = BLOCK_H if HAS_AFTER else BLOCK_T
    SAVED: tl.constexpr = (CALL.T + CALL.SAVE_EVERY - 1) // CALL.SAVE_EVERY
    s = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
    if CALL.HAS_INITIAL:
        s = _load_state(initial_state, b, head, features, columns, CALL.H, CALL)
    first = NEVER
    probe = tl.zeros([BLOCK_V, WIDTH], tl.float32)
    for start in tl.range(0, CALL.T, BLOCK_T, disable_licm=True):
        if SAVED > 1:
            # The first state is the initial one, which is not saved.
            if (start > 0) & (start % CALL.SAVE_EVERY == 0):
                index = head * SAVED + start // CALL.SAVE_EVERY
                _store_state(states, s, b, index, features, columns, CALL)
        rows = start + tl.arange(0, BLOCK_T)
        k, bt, decay, first = _load_steps(
            key, beta, log_decay, b, head, rows, features, guards, first, CALL
        )
        between, from_start, _, _, _ = decay
        v, first = load_finite(value, b, head, rows, columns, guards, first, CALL.T, CALL.V, EXACT)
        wanted = tl.trans(v).to(tl.float32)
        if HAS_BEFORE:
            predicted = tl.dot(s.to(k.dtype), tl.trans(k), input_precision=CALL.PRECISION)
            wanted -= _times_columns(predicted, from_start, CALL)
        inverse, rest = _inverse(k, bt[None, :], between, CALL)
        error = solution(wanted, inverse, rest, CALL)
        u = (error * bt[None, :]).to(k.dtype)
        store_tile(errors, tl.trans(error), b, head, rows, columns, CALL.T, CALL.V, EXACT)
        q = load_tile(query, b, head, rows, features, CALL.T, CALL.H, EXACT)
        result = tl.zeros([BLOCK_V, BLOCK_T], tl.float32)
        if HAS_BEFORE:
            seen = tl.dot(s.to(q.dtype), tl.trans(q), input_precision=CALL.PRECISION)
            result = _times_columns(seen, from_start, CALL) * CALL.SCALE
        weights = flipped(weights_of(q, k, between, CALL))
        result = tl.dot(u, weights, result, input_precision=CALL.PRECISION)
        if not HAS_AFTER:
            probe += result * 0.0
        if guards:
            result = tl.where((rows >= first)[None, :], float("nan"), result)
        result = tl.trans(result)
        store_tile(out, result, b, head, rows, columns, CALL.T, CALL.V, EXACT)
        if HAS_AFTER:
            s = _after(s, k, u, decay, CALL)
    if HAS_AFTER:
        probe += s * 0.0
    if CALL.RETURNS_STATE:
        if guards:
            s = tl.where(first < NEVER, float("nan"), s)
        _store_state(state, s, b, head, features, columns, CALL)
    return probe


@triton.jit(repr=lambda call: "delta_rule_backward")
def backward_kernel(
    query,
    key,
    beta,
    log_decay,
    initial_state,
    d_out,
    d_state,
    states,
    errors,
    d_query,
    d_key,
    d_value,
    d_beta,
    d_log_decay,
    d_initial_state,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    program = tl.program_id(0)
    broken = 1
    for guards in tl.range(0, 2, disable_licm=True):
        if broken:
            probe = tl.zeros([BLOCK_T], tl.float32)
            for row in range(CALL.ROWS):
                probe += _backward_row(
                    Tensor(query, STRIDES.QUERY),
                    Tensor(key, STRIDES.KEY),
                    Tensor(beta, STRIDES.BETA),
                    Tensor(log_decay, STRIDES.LOG_DECAY),
                    Tensor(initial_state, STRIDES.INITIAL_STATE),
                    Tensor(d_out, STRIDES.D_OUT),
                    Tensor(d_state, STRIDES.D_STATE),
                    Tensor(states, STRIDES.STATES),
                    Tensor(errors, STRIDES.ERRORS),
                    Tensor(d_query, STRIDES.D_QUERY),
                    Tensor(d_key, STRIDES.D_KEY),
                    Tensor(d_value, STRIDES.D_VALUE),
                    Tensor(d_beta, STRIDES.D_NUMBERS),
                    Tensor(d_log_decay, STRIDES.D_NUMBERS),
                    Tensor(d_initial_state, STRIDES.STATE),
                    (program // CALL.N).to(tl.int64) * CALL.ROWS + row,
                    program % CALL.N,
                    guards,
                    CALL,
                )
            broken = (tl.sum(probe) != 0).to(tl.int32)


@triton.jit
def _backward_row(
    query,
    key,
    beta,
    log_decay,
    initial_state,
    d_out,
    d_state,
    states,
    errors,
    d_query,
    d_key,
    d_value,
    d_beta,
    d_log_decay,
    d_initial_state,
    b,
    head,
    guards,
    CALL: tl.constexpr,
):
    """The backward pass of one head; returns a probe of its inputs, `[BLOCK_T]`."""
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    i = tl.arange(0, BLOCK_T)[:, None]
    j = tl.arange(0, BLOCK_T)[None, :]
    CHUNKS: tl.constexpr = (CALL.T + BLOCK_T - 1) // BLOCK_T
    SAVED: tl.constexpr = (CALL.T + CALL.SAVE_EVERY - 1) // CALL.SAVE_EVERY
    EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    HAS_BEFORE: tl.constexpr = CALL.HAS_INITIAL or CHUNKS > 1
    HAS_AFTER: tl.constexpr = CALL.RETURNS_STATE or CHUNKS > 1
    ds = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
    if CALL.RETURNS_STATE:
        ds = _load_state(d_state, b, head, features, columns, CALL.H, CALL)
    first = NEVER
    probe = tl.zeros([BLOCK_T], tl.float32)
    for passed in tl.range(0, CHUNKS, disable_licm=True):
        chunk = CHUNKS - 1 - passed
        start = chunk * BLOCK_T
        index = start // CALL.SAVE_EVERY
        s = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
        if CALL.HAS_INITIAL:
            height = (1 - tl.minimum(index, 1)) * CALL.H
            s = _load_state(initial_state, b, head, features, columns, height, CALL)
        if SAVED > 1:
            height = tl.minimum(index, 1) * CALL.H
            s += _load_state(states, b, head * SAVED + index, features, columns, height, CALL)
        if CHUNKS > SAVED:
            for before in tl.range(index * CALL.SAVE_EVERY, start, BLOCK_T, disable_licm=True):
                rows = before + tl.arange(0, BLOCK_T)
                k, bt, decay, first = _load_steps(
                    key, beta, log_decay, b, head, rows, features, guards, first, CALL
                )
                error = load_tile(errors, b, head, rows, columns, CALL.T, CALL.V, EXACT)
                s = _after(s, k, tl.trans(_scaled(error, bt)), decay, CALL)
        rows = start + tl.arange(0, BLOCK_T)
        k, bt, decay, first = _load_steps(
            key, beta, log_decay, b, head, rows, features, guards, first, CALL
        )
        between, from_start, to_end, whole, given = decay
        right_s = flipped(transposed(s.to(k.dtype), CALL))
        error = load_tile(errors, b, head, rows, columns, CALL.T, CALL.V, EXACT)
        u = _scaled(error, bt)
        # Back from the outputs of this chunk, to the queries and to u.
        q = load_tile(query, b, head, rows, features, CALL.T, CALL.H, EXACT)
        do = load_tile(d_out, b, head, rows, columns, CALL.T, CALL.V, EXACT)
        d_scores = tl.dot(do, tl.trans(u), input_precision=CALL.PRECISION)
        d_scores = tl.where(i >= j, times(d_scores, between, CALL) * CALL.SCALE, 0.0).to(k.dtype)
        dq = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
        if HAS_BEFORE:
            read = tl.dot(do, right_s, input_precision=CALL.PRECISION)
            dq = times(read, from_start, CALL) * CALL.SCALE
        dq = tl.dot(d_scores, k, dq, input_precision=CALL.PRECISION)
        probe += tl.sum(dq * 0.0, axis=1)
        store_tile(d_query, dq, b, head, rows, features, CALL.T, CALL.H, EXACT)
        if CALL.HAS_DECAY:
            d_decay = tl.sum(q.to(tl.float32) * dq, axis=1)
        dk = tl.dot(transposed(d_scores, CALL), q, input_precision=CALL.PRECISION)
        weights = transposed(weights_of(q, k, between, CALL), CALL)
        du = tl.dot(tl.trans(do), flipped(weights), input_precision=CALL.PRECISION)
        if HAS_AFTER:
            # Back from the use of the state by later chunks.
            narrow_ds = ds.to(k.dtype)
            left_k = tl.trans(times(k, to_end, CALL))
            if CALL.HAS_DECAY:
                kept = tl.dot(narrow_ds, left_k, input_precision=CALL.PRECISION)
                d_end = tl.sum(tl.sum(kept * tl.trans(u).to(tl.float32), axis=1))
                d_end += whole * tl.sum(tl.sum(ds * s, axis=1))
            du = tl.dot(narrow_ds, left_k, du, input_precision=CALL.PRECISION)
            left_u = times(u, to_end, CALL)
            right = flipped(transposed(narrow_ds, CALL))
            dk = tl.dot(left_u, right, dk, input_precision=CALL.PRECISION)
        if HAS_BEFORE:
            read_q = times(q, from_start, CALL)
            read = tl.dot(tl.trans(do), read_q, input_precision=CALL.PRECISION)
            ds = times(ds, whole, CALL) + read * CALL.SCALE
        # Back through the system, to keys, values and beta.
        inverse, rest = _inverse(k, bt[:, None], between, CALL)
        dr = solution(du, transposed(inverse, CALL), transposed(rest, CALL), CALL)
        d_numbers = tl.sum(dr * tl.trans(error).to(tl.float32), axis=0)
        store_numbers(d_beta, d_numbers, b, head, rows, CALL.T)
        dv = dr * bt[None, :]
        store_tile(d_value, tl.trans(dv), b, head, rows, columns, CALL.T, CALL.V, EXACT)
        # What follows is subtracted.
        dv = (-dv).to(k.dtype)
        dv_rows = transposed(dv, CALL)
        d_overlap = tl.dot(dv_rows, tl.trans(u), input_precision=CALL.PRECISION)
        d_overlap = tl.where(i > j, times(d_overlap, between, CALL), 0.0).to(k.dtype)
        dk = tl.dot(transposed(d_overlap, CALL), k, dk, input_precision=CALL.PRECISION)
        if CALL.HAS_DECAY:
            d_decay -= tl.sum(k.to(tl.float32) * dk, axis=1)
            dk_before = dk
        # And to keys, through the predictions by them.
        dk = tl.dot(d_overlap, k, dk, input_precision=CALL.PRECISION)
        if HAS_BEFORE:
            read_dv = times(dv_rows, from_start, CALL)
            dk = tl.dot(read_dv, right_s, dk, input_precision=CALL.PRECISION)
        if CALL.HAS_DECAY:
            d_decay += tl.sum(k.to(tl.float32) * (dk - dk_before), axis=1)
            d_given = tl.cumsum(d_decay, 0, reverse=True)
            if HAS_AFTER:
                d_given += d_end
            d_given = tl.where((rows < CALL.T) & (given > LOWEST), d_given, 0.0)
            store_numbers(d_log_decay, d_given, b, head, rows, CALL.T)
        store_tile(d_key, dk, b, head, rows, features, CALL.T, CALL.H, EXACT)
        if HAS_BEFORE:
            ds = tl.dot(dv, times(k, from_start, CALL), ds, input_precision=CALL.PRECISION)
    if CALL.HAS_INITIAL:
        _store_state(d_initial_state, ds, b, head, features, columns, CALL)
    return probe


@triton.jit
def _load_steps(key, beta, log_decay, b, head, rows, features, guards, first, CALL: tl.constexpr):
    """Keys and numbers of a chunk.

    Returns:
      k: `[BLOCK_T, H]`.
      bt: `[BLOCK_T]`, beta.
      decay: what `decays` returns, and the log decay itself, `[BLOCK_T]`; 1 and 0 if nothing
        decays.
      first: the first broken row, as `load_finite`.
    """
    EXACT: tl.constexpr = CALL.T % CALL.BLOCK_T == 0
    k, first = load_finite(key, b, head, rows, features, guards, first, CALL.T, CALL.H, EXACT)
    bt, first = load_beta(beta, b, head, rows, guards, first, CALL.T)
    decay = 1.0, 1.0, 1.0, 1.0, 0.0
    if CALL.HAS_DECAY:
        coarse, fine, given, first = load_decay(log_decay, b, head, rows, guards, first, CALL.T)
        between, from_start, to_end, whole = decays(coarse, fine, CALL.BLOCK_T)
        decay = between, from_start, to_end, whole, given
    return k, bt, decay, first


@triton.jit
def _inverse(k, bt, between, CALL: tl.constexpr):
    """The inverse of a chunk's system, in two parts as `unit_lower_inverse`.

    The system is the identity plus the products of keys with earlier ones, decayed, times `bt`:
    beta of each column for the errors, of each row for the transposed system of the backward pass.
    """
    later = tl.arange(0, CALL.BLOCK_T)[:, None] > tl.arange(0, CALL.BLOCK_T)[None, :]
    overlap = tl.dot(k, tl.trans(k), input_precision=CALL.PRECISION)
    lower = tl.where(later, times(overlap, between, CALL) * bt, 0.0)
    return unit_lower_inverse(lower, k.dtype, CALL)


@triton.jit
def _scaled(error, bt):
    """u, `[BLOCK_T, V]`."""
    return (error.to(tl.float32) * bt[:, None]).to(error.dtype)


@triton.jit
def _after(s, k, u, decay, CALL: tl.constexpr):
    """The state after a chunk."""
    _, _, to_end, whole, _ = decay
    left = _times_columns(u, to_end, CALL)
    return tl.dot(left, k, times(s, whole, CALL), input_precision=CALL.PRECISION)


@triton.jit
def _times_columns(tile, decay, CALL: tl.constexpr):
    """As `times`, with a decay of each column."""
    if CALL.HAS_DECAY:
        decay = tl.trans(decay)
    return times(tile, decay, CALL)


@triton.jit
def _load_state(tensor, b, head, features, columns, height, CALL: tl.constexpr):
    """`[V, H]`, as `load_state`."""
    s, _ = load_state(tensor, b, head, features, columns, height, CALL)
    return tl.trans(s)


@triton.jit
def _store_state(tensor, s, b, head, features, columns, CALL: tl.constexpr):
    store_state(tensor, tl.trans(s), features, b, head, features, columns, CALL)
