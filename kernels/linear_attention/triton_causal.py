"""Causal linear attention, the state on chip: one launch forward, one backward.

A program owns one head of one batch row (or of ROWS batch rows, one after the other) and walks the
steps BLOCK_T at a time. Within such a chunk all steps are taken at once, as attention without a
softmax; the state passes from chunk to chunk in registers. With T <= BLOCK_T there is one chunk,
and only inputs and outputs move. With more chunks, the forward pass also saves the state before
each chunk, in the dtype of the query, which products take. The backward pass walks the chunks from
the last to the first. There are no atomics, so two runs give the same bits.

Few long rows are cut into segments (`segments.py`), which are rows of a batch to the kernels. With
ONLY_STATES a kernel finds the state, or its derivative, at the end of each, and writes nothing
else.

`xla.py` has the same computation in plain JAX.
"""

# pyright: basic
# A kernel is in Triton's language, whose parameters have no types.

import triton
import triton.language as tl

from ..tiles import Tensor, load_length, load_tile, store_tile
from .triton_tiles import (
    LOWEST,
    NEVER,
    decays,
    load_decay,
    load_finite,
    load_state,
    store_numbers,
    store_state,
    times,
    weights_of,
)


def _name(direction, call):
    """The kernel's name in a profile."""
    states = "_states" if call.constants["CALL"].ONLY_STATES else ""
    return f"linear_attention_causal_{direction}{states}"


@triton.jit(repr=lambda call: _name("forward", call))
def forward_kernel(
    query,
    key,
    value,
    log_decay,
    key_lengths,
    initial_state,
    broken_before,
    out,
    state,
    states,
    broken,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    inputs = (query, key, value, log_decay, key_lengths, initial_state, broken_before)
    outputs = (out, state, states, broken)
    again = 1
    if CALL.STAGES > 1:
        # Triton loads chunks early only if loads have no guards: one copy of the code is without.
        for guards in tl.static_range(2):
            if again:
                again = _forward_rows(inputs, outputs, guards, STRIDES, CALL)
    else:
        for guards in tl.range(0, 2, disable_licm=True):
            if again:
                again = _forward_rows(inputs, outputs, guards, STRIDES, CALL)


@triton.jit
def _forward_rows(inputs, outputs, guards, STRIDES: tl.constexpr, CALL: tl.constexpr):
    """The forward pass of a program's rows; returns whether they need guards."""
    query, key, value, log_decay, key_lengths, initial_state, broken_before = inputs
    out, state, states, broken = outputs
    HEIGHT: tl.constexpr = (
        CALL.BLOCK_H if CALL.RETURNS_STATE or CALL.T > CALL.BLOCK_T else CALL.BLOCK_T
    )
    WIDTH: tl.constexpr = CALL.BLOCK_V
    program = tl.program_id(0)
    probe = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for row in range(CALL.ROWS):
        probe += _forward_row(
            Tensor(query, STRIDES.QUERY),
            Tensor(key, STRIDES.KEY),
            Tensor(value, STRIDES.VALUE),
            Tensor(log_decay, STRIDES.LOG_DECAY),
            Tensor(key_lengths, STRIDES.KEY_LENGTHS),
            Tensor(initial_state, STRIDES.INITIAL_STATE),
            broken_before,
            Tensor(out, STRIDES.OUT),
            Tensor(state, STRIDES.STATE),
            Tensor(states, STRIDES.STATES),
            broken,
            (program // CALL.N).to(tl.int64) * CALL.ROWS + row,
            program % CALL.N,
            guards,
            CALL,
        )
    return (tl.sum(probe) != 0).to(tl.int32)


@triton.jit
def _forward_row(
    query,
    key,
    value,
    log_decay,
    key_lengths,
    initial_state,
    broken_before,
    out,
    state,
    states,
    broken,
    b,
    head,
    guards,
    CALL: tl.constexpr,
):
    """The forward pass of one head; returns a probe of what went into it, `[HEIGHT, BLOCK_V]`."""
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    WHOLE: tl.constexpr = EXACT and not CALL.HAS_KEY_LENGTHS
    HAS_BEFORE: tl.constexpr = CALL.HAS_INITIAL or CALL.T > BLOCK_T
    HAS_AFTER: tl.constexpr = CALL.RETURNS_STATE or CALL.T > BLOCK_T
    HEIGHT: tl.constexpr = BLOCK_H if HAS_AFTER else BLOCK_T
    SAVED: tl.constexpr = (CALL.T + CALL.SAVE_EVERY - 1) // CALL.SAVE_EVERY
    length = load_length(key_lengths, b, CALL.HAS_KEY_LENGTHS, CALL.T)
    s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_H], tl.float32)
    if CALL.HAS_INITIAL:
        s, z = load_state(initial_state, b, head, features, columns, CALL.H, CALL)
    first = NEVER
    probe = tl.zeros([HEIGHT, BLOCK_V], tl.float32)
    if CALL.HAS_BROKEN_BEFORE:
        was_broken = tl.load(broken_before + b * CALL.N + head) != 0
        first = tl.where(was_broken, -1, NEVER)
        probe += tl.where(was_broken, float("nan"), 0.0)
    for start in range(0, CALL.T, BLOCK_T):
        if SAVED > 1 and not CALL.ONLY_STATES:
            # The first state is the initial one, which is not saved.
            if (start > 0) & (start % CALL.SAVE_EVERY == 0):
                index = head * SAVED + start // CALL.SAVE_EVERY
                store_state(states, s, z, b, index, features, columns, CALL)
        rows = start + tl.arange(0, BLOCK_T)
        k, first = load_finite(key, b, head, rows, features, guards, first, length, CALL.H, WHOLE)
        u, first = load_finite(value, b, head, rows, columns, guards, first, length, CALL.V, WHOLE)
        between, from_start, to_end, whole = 1.0, 1.0, 1.0, 1.0
        if CALL.HAS_DECAY:
            coarse, fine, _, first = load_decay(log_decay, b, head, rows, guards, first, length)
            between, from_start, to_end, whole = decays(coarse, fine, BLOCK_T)
        q = load_tile(query, b, head, rows, features, CALL.T, CALL.H, EXACT)
        weights = weights_of(q, k, between, CALL)
        result = tl.dot(weights, u, input_precision=CALL.PRECISION)
        if HAS_BEFORE:
            seen = tl.dot(q, s.to(q.dtype), input_precision=CALL.PRECISION)
            result += times(seen, from_start, CALL) * CALL.SCALE
        if CALL.NORMALIZE:
            total = tl.sum(weights.to(tl.float32), axis=1, keep_dims=True)
            read = tl.sum(q.to(tl.float32) * z[None, :], axis=1, keep_dims=True)
            total += times(read, from_start, CALL) * CALL.SCALE
            result *= tl.where(total == 0, 0.0, 1 / total)
        if not HAS_AFTER:
            probe += result * 0.0
        if guards:
            result = tl.where((rows >= first)[:, None], float("nan"), result)
        if not CALL.ONLY_STATES:
            store_tile(out, result, b, head, rows, columns, CALL.T, CALL.V, EXACT)
        if HAS_AFTER:
            left = times(k, to_end, CALL)
            s = times(s, whole, CALL)
            s += tl.dot(tl.trans(left), u, input_precision=CALL.PRECISION)
            if CALL.NORMALIZE:
                z = times(z, whole, CALL) + tl.sum(left.to(tl.float32), axis=0)
    if HAS_AFTER:
        probe += s * 0.0
    if CALL.ONLY_STATES:
        tl.store(broken + b * CALL.N + head, (first < NEVER).to(tl.int32))
    elif CALL.RETURNS_STATE:
        if guards:
            s = tl.where(first < NEVER, float("nan"), s)
            z = tl.where(first < NEVER, float("nan"), z)
    if CALL.RETURNS_STATE:
        store_state(state, s, z, b, head, features, columns, CALL)
    return probe


@triton.jit(repr=lambda call: _name("backward", call))
def backward_kernel(
    query,
    key,
    value,
    log_decay,
    key_lengths,
    initial_state,
    d_out,
    d_state,
    states,
    d_query,
    d_key,
    d_value,
    d_log_decay,
    d_initial_state,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    program = tl.program_id(0)
    again = 1
    for guards in tl.range(0, 2, disable_licm=True):
        if again:
            probe = tl.zeros([BLOCK_T], tl.float32)
            for row in range(CALL.ROWS):
                probe += _backward_row(
                    Tensor(query, STRIDES.QUERY),
                    Tensor(key, STRIDES.KEY),
                    Tensor(value, STRIDES.VALUE),
                    Tensor(log_decay, STRIDES.LOG_DECAY),
                    Tensor(key_lengths, STRIDES.KEY_LENGTHS),
                    Tensor(initial_state, STRIDES.INITIAL_STATE),
                    Tensor(d_out, STRIDES.D_OUT),
                    Tensor(d_state, STRIDES.D_STATE),
                    Tensor(states, STRIDES.STATES),
                    Tensor(d_query, STRIDES.D_QUERY),
                    Tensor(d_key, STRIDES.D_KEY),
                    Tensor(d_value, STRIDES.D_VALUE),
                    Tensor(d_log_decay, STRIDES.D_NUMBERS),
                    Tensor(d_initial_state, STRIDES.STATE),
                    (program // CALL.N).to(tl.int64) * CALL.ROWS + row,
                    program % CALL.N,
                    guards,
                    CALL,
                )
            again = (tl.sum(probe) != 0).to(tl.int32)


@triton.jit
def _backward_row(
    query,
    key,
    value,
    log_decay,
    key_lengths,
    initial_state,
    d_out,
    d_state,
    states,
    d_query,
    d_key,
    d_value,
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
    EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    WHOLE: tl.constexpr = EXACT and not CALL.HAS_KEY_LENGTHS
    HAS_BEFORE: tl.constexpr = CALL.HAS_INITIAL or CHUNKS > 1
    HAS_AFTER: tl.constexpr = CALL.RETURNS_STATE or CHUNKS > 1
    length = load_length(key_lengths, b, CALL.HAS_KEY_LENGTHS, CALL.T)
    ds = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
    dz = tl.zeros([BLOCK_H], tl.float32)
    if CALL.RETURNS_STATE:
        ds, dz = load_state(d_state, b, head, features, columns, CALL.H, CALL)
    probe = tl.zeros([BLOCK_T], tl.float32)
    for passed in tl.range(0, CHUNKS, disable_licm=True):
        chunk = CHUNKS - 1 - passed
        rows = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
        k, _ = load_finite(key, b, head, rows, features, guards, NEVER, length, CALL.H, WHOLE)
        between, from_start, to_end, whole = 1.0, 1.0, 1.0, 1.0
        if CALL.HAS_DECAY:
            coarse, fine, given, _ = load_decay(log_decay, b, head, rows, guards, NEVER, length)
            between, from_start, to_end, whole = decays(coarse, fine, BLOCK_T)
        s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        z = tl.zeros([BLOCK_H], tl.float32)
        if CALL.HAS_INITIAL:
            height = (1 - tl.minimum(chunk, 1)) * CALL.H
            s, z = load_state(
                initial_state,
                b,
                head,
                features,
                columns,
                height,
                CALL,
            )
        if CHUNKS > 1:
            index = head * CHUNKS + chunk
            height = tl.minimum(chunk, 1) * CALL.H
            saved, saved_z = load_state(states, b, index, features, columns, height, CALL)
            s += saved
            z += saved_z
        narrow_s = s.to(k.dtype)
        u, _ = load_finite(value, b, head, rows, columns, guards, NEVER, length, CALL.V, WHOLE)
        # Back from the outputs of this chunk, to the queries and to u.
        q = load_tile(query, b, head, rows, features, CALL.T, CALL.H, EXACT)
        do = load_tile(d_out, b, head, rows, columns, CALL.T, CALL.V, EXACT)
        if CALL.NORMALIZE:
            weights = weights_of(q, k, between, CALL)
            result = tl.dot(weights, u, input_precision=CALL.PRECISION)
            total = tl.sum(weights.to(tl.float32), axis=1, keep_dims=True)
            if HAS_BEFORE:
                seen = tl.dot(q, narrow_s, input_precision=CALL.PRECISION)
                result += times(seen, from_start, CALL) * CALL.SCALE
                read = tl.sum(q.to(tl.float32) * z[None, :], axis=1, keep_dims=True)
                total += times(read, from_start, CALL) * CALL.SCALE
            inverse_total = tl.where(total == 0, 0.0, 1 / total)
            do = (do.to(tl.float32) * inverse_total).to(do.dtype)
            # From the rounded `do`: large numbers that cancel must have one rounding.
            d_total = -tl.sum(do.to(tl.float32) * result, axis=1, keep_dims=True)
            d_total *= inverse_total
        d_scores = tl.dot(do, tl.trans(u), input_precision=CALL.PRECISION)
        if CALL.NORMALIZE:
            d_scores += d_total
        d_scores = tl.where(i >= j, times(d_scores, between, CALL) * CALL.SCALE, 0.0)
        d_scores = d_scores.to(q.dtype)
        dq = tl.dot(d_scores, k, input_precision=CALL.PRECISION)
        dk = tl.dot(tl.trans(d_scores), q, input_precision=CALL.PRECISION)
        # If normalised, computed twice rather than kept in registers.
        weights = weights_of(q, k, between, CALL)
        du = tl.dot(tl.trans(weights), do, input_precision=CALL.PRECISION)
        if HAS_BEFORE:
            read = tl.dot(do, tl.trans(narrow_s), input_precision=CALL.PRECISION)
            if CALL.NORMALIZE:
                read += d_total * z[None, :]
            dq += times(read, from_start, CALL) * CALL.SCALE
        if not CALL.ONLY_STATES:
            store_tile(d_query, dq, b, head, rows, features, CALL.T, CALL.H, EXACT)
            probe += tl.sum(dq * 0.0, axis=1)
        else:
            if CALL.NORMALIZE:
                probe += tl.sum(d_total * 0.0, axis=1)
            if CALL.HAS_DECAY:
                probe += tl.sum(from_start * whole * 0.0, axis=1)
        if CALL.HAS_DECAY:
            d_decay = tl.sum(q.to(tl.float32) * dq, axis=1)
        if HAS_AFTER:
            # Back from the use of the state by later chunks.
            left = times(k, to_end, CALL)
            kept = tl.dot(left, ds.to(k.dtype), input_precision=CALL.PRECISION)
            du += kept
            if CALL.HAS_DECAY:
                d_end = tl.sum(tl.sum(kept * u.to(tl.float32), axis=1))
                d_end += tl.sum(tl.sum(left.to(tl.float32) * dz[None, :], axis=1))
                d_end += whole * (tl.sum(tl.sum(ds * s, axis=1)) + tl.sum(dz * z))
            left = times(u, to_end, CALL)
            dk += tl.dot(left, tl.trans(ds.to(u.dtype)), input_precision=CALL.PRECISION)
            if CALL.NORMALIZE:
                ones = tl.zeros([BLOCK_T, 1], tl.float32) + 1
                dk += times(ones, to_end, CALL) * dz
        if HAS_BEFORE:
            read_q = times(q, from_start, CALL)
            read = tl.dot(tl.trans(read_q), do, input_precision=CALL.PRECISION)
            ds = times(ds, whole, CALL) + read * CALL.SCALE
            if CALL.NORMALIZE:
                read = tl.sum(read_q.to(tl.float32) * d_total, axis=0)
                dz = times(dz, whole, CALL) + read * CALL.SCALE
        if CALL.HAS_KEY_LENGTHS:
            du = tl.where((rows < length)[:, None], du, 0.0)
        if not CALL.ONLY_STATES:
            store_tile(d_value, du, b, head, rows, columns, CALL.T, CALL.V, EXACT)
        if CALL.HAS_DECAY and not CALL.ONLY_STATES:
            d_decay -= tl.sum(k.to(tl.float32) * dk, axis=1)
            d_given = tl.cumsum(d_decay, 0, reverse=True)
            if HAS_AFTER:
                d_given += d_end
            d_given = tl.where((rows < length) & (given > LOWEST), d_given, 0.0)
            store_numbers(d_log_decay, d_given, b, head, rows, CALL.T)
        if CALL.HAS_KEY_LENGTHS:
            dk = tl.where((rows < length)[:, None], dk, 0.0)
        if not CALL.ONLY_STATES:
            store_tile(d_key, dk, b, head, rows, features, CALL.T, CALL.H, EXACT)
    if CALL.HAS_INITIAL:
        store_state(d_initial_state, ds, dz, b, head, features, columns, CALL)
    return probe
