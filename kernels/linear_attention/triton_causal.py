"""Causal linear attention and the delta rule, the state on chip: one launch forward, one backward.

A program owns one head of one batch row (or of ROWS batch rows, one after the other) and walks its
steps BLOCK_T at a time. Within such a chunk all steps are taken at once, as attention without a
softmax; the state passes from chunk to chunk in registers. With T <= BLOCK_T that is one chunk, and
nothing but inputs and outputs is moved. Beyond, the forward pass also saves the state before each
chunk, in the query's dtype, as that is what products take of it, and the backward pass walks the
chunks from the last to the first. No atomics: two runs give the same bits.

`u` is what a step adds to the state: its value, or what the delta rule makes of it. The same in
plain JAX is `xla.py`.
"""

import triton
import triton.language as tl

from ..tiles import load_length, load_tile, store_tile
from .triton_tiles import (
    LOWEST,
    NEVER,
    decays,
    load_beta,
    load_decay,
    load_finite,
    load_state,
    solution,
    store_numbers,
    store_state,
    unit_lower_inverse,
)


@triton.jit
def _times(tile, decay, HAS_DECAY: tl.constexpr):
    """A tile with each row, or all of it, times a decay; as it is where nothing decays."""
    if HAS_DECAY:
        tile = (tile.to(tl.float32) * decay).to(tile.dtype)
    return tile


@triton.jit
def _weights(
    q,
    k,
    between,
    SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What each query of a chunk takes of what each of its steps added, `[SIZE, SIZE]`."""
    weights = tl.dot(q, tl.trans(k), input_precision=PRECISION) * SCALE
    seen = tl.arange(0, SIZE)[:, None] >= tl.arange(0, SIZE)[None, :]
    return tl.where(seen, _times(weights, between, HAS_DECAY), 0.0).to(k.dtype)


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    beta,
    log_decay,
    key_lengths,
    initial_state,
    out,
    state,
    states,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BETA: tl.constexpr,
    LOG_DECAY: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    INITIAL: tl.constexpr,
    OUT: tl.constexpr,
    T: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    RETURNS_STATE: tl.constexpr,
    SAVE_EVERY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % N
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    i = tl.arange(0, BLOCK_T)[:, None]
    j = tl.arange(0, BLOCK_T)[None, :]
    EXACT: tl.constexpr = T % BLOCK_T == 0
    WHOLE: tl.constexpr = EXACT and not HAS_KEY_LENGTHS
    HAS_BEFORE: tl.constexpr = HAS_INITIAL or T > BLOCK_T
    HAS_AFTER: tl.constexpr = RETURNS_STATE or T > BLOCK_T
    SAVED: tl.constexpr = (T + SAVE_EVERY - 1) // SAVE_EVERY
    W: tl.constexpr = V + 1 if NORMALIZE else V
    for row in range(ROWS):
        b = (program // N).to(tl.int64) * ROWS + row
        length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, T)
        s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        z = tl.zeros([BLOCK_H], tl.float32)
        if HAS_INITIAL:
            s, z = load_state(
                initial_state, b, head, features, columns, H, INITIAL, H, V, NORMALIZE
            )
        first = NEVER
        for start in range(0, T, BLOCK_T):
            if SAVED > 1:
                # The first is the one that was given, or 0.
                if (start > 0) & (start % SAVE_EVERY == 0):
                    store_state(
                        states, s, z, b, head * SAVED + start // SAVE_EVERY, features, columns,
                        N * SAVED * H * W, H, V, NORMALIZE,
                    )  # fmt: skip
            rows = start + tl.arange(0, BLOCK_T)
            k, first = load_finite(key, b, head, rows, features, first, KEY, length, H, WHOLE)
            u, first = load_finite(value, b, head, rows, columns, first, VALUE, length, V, WHOLE)
            between, from_start, to_end, whole = 1.0, 1.0, 1.0, 1.0
            if HAS_DECAY:
                coarse, fine, _, first = load_decay(
                    log_decay, b, head, rows, first, LOG_DECAY, length
                )
                between, from_start, to_end, whole = decays(coarse, fine, BLOCK_T)
            if HAS_BETA:
                bt, first = load_beta(beta, b, head, rows, first, BETA, length)
                overlap = tl.dot(k, tl.trans(k), input_precision=PRECISION)
                overlap = tl.where(i > j, _times(overlap, between, HAS_DECAY) * bt[:, None], 0.0)
                wanted = u.to(tl.float32)
                if HAS_BEFORE:
                    predicted = tl.dot(k, s.to(k.dtype), input_precision=PRECISION)
                    wanted -= _times(predicted, from_start, HAS_DECAY)
                inverse, rest = unit_lower_inverse(overlap, k.dtype, BLOCK_T, PRECISION)
                u = solution(inverse, rest, wanted * bt[:, None], PRECISION).to(k.dtype)
            q = load_tile(query, b, head, rows, features, QUERY, T, H, EXACT)
            weights = _weights(q, k, between, BLOCK_T, SCALE, HAS_DECAY, PRECISION)
            result = tl.dot(weights, u, input_precision=PRECISION)
            if HAS_BEFORE:
                seen = tl.dot(q, s.to(q.dtype), input_precision=PRECISION)
                result += _times(seen, from_start, HAS_DECAY) * SCALE
            if NORMALIZE:
                total = tl.sum(weights.to(tl.float32), axis=1, keep_dims=True)
                read = tl.sum(q.to(tl.float32) * z[None, :], axis=1, keep_dims=True)
                total += _times(read, from_start, HAS_DECAY) * SCALE
                result *= tl.where(total == 0, 0.0, 1 / total)
            result = tl.where((rows >= first)[:, None], float("nan"), result)
            store_tile(out, result, b, head, rows, columns, OUT, T, V, EXACT)
            if HAS_AFTER:
                left = _times(k, to_end, HAS_DECAY)
                s = _times(s, whole, HAS_DECAY)
                s += tl.dot(tl.trans(left), u, input_precision=PRECISION)
                if NORMALIZE:
                    z = _times(z, whole, HAS_DECAY) + tl.sum(left.to(tl.float32), axis=0)
        if RETURNS_STATE:
            s = tl.where(first < NEVER, float("nan"), s)
            z = tl.where(first < NEVER, float("nan"), z)
            store_state(state, s, z, b, head, features, columns, N * H * W, H, V, NORMALIZE)


@triton.jit
def backward_kernel(
    query,
    key,
    value,
    beta,
    log_decay,
    key_lengths,
    initial_state,
    d_out,
    d_state,
    states,
    d_query,
    d_key,
    d_value,
    d_beta,
    d_log_decay,
    d_initial,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BETA: tl.constexpr,
    LOG_DECAY: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    INITIAL: tl.constexpr,
    D_OUT: tl.constexpr,
    D_STATE: tl.constexpr,
    D_QUERY: tl.constexpr,
    D_VALUE: tl.constexpr,
    D_NUMBERS: tl.constexpr,
    T: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    RETURNS_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % N
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    i = tl.arange(0, BLOCK_T)[:, None]
    j = tl.arange(0, BLOCK_T)[None, :]
    CHUNKS: tl.constexpr = (T + BLOCK_T - 1) // BLOCK_T
    EXACT: tl.constexpr = T % BLOCK_T == 0
    WHOLE: tl.constexpr = EXACT and not HAS_KEY_LENGTHS
    W: tl.constexpr = V + 1 if NORMALIZE else V
    HAS_BEFORE: tl.constexpr = HAS_INITIAL or CHUNKS > 1
    HAS_AFTER: tl.constexpr = RETURNS_STATE or CHUNKS > 1
    for row in range(ROWS):
        b = (program // N).to(tl.int64) * ROWS + row
        length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, T)
        ds = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        dz = tl.zeros([BLOCK_H], tl.float32)
        if RETURNS_STATE:
            ds, dz = load_state(d_state, b, head, features, columns, H, D_STATE, H, V, NORMALIZE)
        for passed in tl.range(0, CHUNKS, disable_licm=True):
            chunk = CHUNKS - 1 - passed
            rows = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
            k, _ = load_finite(key, b, head, rows, features, NEVER, KEY, length, H, WHOLE)
            between, from_start, to_end, whole = 1.0, 1.0, 1.0, 1.0
            if HAS_DECAY:
                coarse, fine, given, _ = load_decay(
                    log_decay, b, head, rows, NEVER, LOG_DECAY, length
                )
                between, from_start, to_end, whole = decays(coarse, fine, BLOCK_T)
            if HAS_BETA:
                bt, _ = load_beta(beta, b, head, rows, NEVER, BETA, length)
                overlap = tl.dot(k, tl.trans(k), input_precision=PRECISION)
                overlap = tl.where(i > j, _times(overlap, between, HAS_DECAY), 0.0)
                system = overlap * bt[:, None]
                overlap = overlap.to(k.dtype)
                inverse, rest = unit_lower_inverse(system, k.dtype, BLOCK_T, PRECISION)
            s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
            z = tl.zeros([BLOCK_H], tl.float32)
            if HAS_INITIAL:
                s, z = load_state(
                    initial_state, b, head, features, columns, (1 - tl.minimum(chunk, 1)) * H,
                    INITIAL, H, V, NORMALIZE,
                )  # fmt: skip
            if CHUNKS > 1:
                saved, saved_z = load_state(
                    states, b, head * CHUNKS + chunk, features, columns, tl.minimum(chunk, 1) * H,
                    N * CHUNKS * H * W, H, V, NORMALIZE,
                )  # fmt: skip
                s += saved
                z += saved_z
            narrow_s = s.to(k.dtype)
            v, _ = load_finite(value, b, head, rows, columns, NEVER, VALUE, length, V, WHOLE)
            u = v
            if HAS_BETA:
                error = v.to(tl.float32)
                if HAS_BEFORE:
                    predicted = tl.dot(k, narrow_s, input_precision=PRECISION)
                    error -= _times(predicted, from_start, HAS_DECAY)
                u = solution(inverse, rest, error * bt[:, None], PRECISION).to(k.dtype)
                error = (error - tl.dot(overlap, u, input_precision=PRECISION)).to(k.dtype)
            # Back from this chunk's outputs, to the queries and to what was added.
            q = load_tile(query, b, head, rows, features, QUERY, T, H, EXACT)
            do = load_tile(d_out, b, head, rows, columns, D_OUT, T, V, EXACT)
            if NORMALIZE:
                weights = _weights(q, k, between, BLOCK_T, SCALE, HAS_DECAY, PRECISION)
                result = tl.dot(weights, u, input_precision=PRECISION)
                total = tl.sum(weights.to(tl.float32), axis=1, keep_dims=True)
                if HAS_BEFORE:
                    seen = tl.dot(q, narrow_s, input_precision=PRECISION)
                    result += _times(seen, from_start, HAS_DECAY) * SCALE
                    read = tl.sum(q.to(tl.float32) * z[None, :], axis=1, keep_dims=True)
                    total += _times(read, from_start, HAS_DECAY) * SCALE
                inverse_total = tl.where(total == 0, 0.0, 1 / total)
                do = (do.to(tl.float32) * inverse_total).to(do.dtype)
                # Of the rounded one: large numbers that cancel must have one rounding.
                d_total = -tl.sum(do.to(tl.float32) * result, axis=1, keep_dims=True)
                d_total *= inverse_total
            d_scores = tl.dot(do, tl.trans(u), input_precision=PRECISION)
            if NORMALIZE:
                d_scores += d_total
            d_scores = tl.where(i >= j, _times(d_scores, between, HAS_DECAY) * SCALE, 0.0)
            d_scores = d_scores.to(q.dtype)
            dq = tl.dot(d_scores, k, input_precision=PRECISION)
            dk = tl.dot(tl.trans(d_scores), q, input_precision=PRECISION)
            # Again where normalised, rather than in registers until here.
            weights = _weights(q, k, between, BLOCK_T, SCALE, HAS_DECAY, PRECISION)
            du = tl.dot(tl.trans(weights), do, input_precision=PRECISION)
            if HAS_BEFORE:
                read = tl.dot(do, tl.trans(narrow_s), input_precision=PRECISION)
                if NORMALIZE:
                    read += d_total * z[None, :]
                dq += _times(read, from_start, HAS_DECAY) * SCALE
            store_tile(d_query, dq, b, head, rows, features, D_QUERY, T, H, EXACT)
            if HAS_DECAY:
                d_decay = tl.sum(q.to(tl.float32) * dq, axis=1)
            if HAS_AFTER:
                # Back from what later chunks made of the state.
                left = _times(k, to_end, HAS_DECAY)
                kept = tl.dot(left, ds.to(k.dtype), input_precision=PRECISION)
                du += kept
                if HAS_DECAY:
                    d_end = tl.sum(tl.sum(kept * u.to(tl.float32), axis=1))
                    d_end += tl.sum(tl.sum(left.to(tl.float32) * dz[None, :], axis=1))
                    d_end += whole * (tl.sum(tl.sum(ds * s, axis=1)) + tl.sum(dz * z))
                left = _times(u, to_end, HAS_DECAY)
                dk += tl.dot(left, tl.trans(ds.to(u.dtype)), input_precision=PRECISION)
                if NORMALIZE:
                    dk += _times(tl.zeros([BLOCK_T, 1], tl.float32) + 1, to_end, HAS_DECAY) * dz
            if HAS_BEFORE:
                read_q = _times(q, from_start, HAS_DECAY)
                read = tl.dot(tl.trans(read_q), do, input_precision=PRECISION)
                ds = _times(ds, whole, HAS_DECAY) + read * SCALE
                if NORMALIZE:
                    read = tl.sum(read_q.to(tl.float32) * d_total, axis=0)
                    dz = _times(dz, whole, HAS_DECAY) + read * SCALE
            if HAS_BETA:
                # Back through the system, to keys, values and beta.
                dr = solution(tl.trans(inverse), tl.trans(rest), du, PRECISION)
                d_numbers = tl.sum(dr * error.to(tl.float32), axis=1)
                if HAS_KEY_LENGTHS:
                    d_numbers = tl.where(rows < length, d_numbers, 0.0)
                store_numbers(d_beta, d_numbers, b, head, rows, D_NUMBERS, T)
                du = dr * bt[:, None]
            if HAS_KEY_LENGTHS:
                du = tl.where((rows < length)[:, None], du, 0.0)
            store_tile(d_value, du, b, head, rows, columns, D_VALUE, T, V, EXACT)
            if HAS_BETA:
                dv = du.to(k.dtype)
                d_overlap = tl.dot(dv, tl.trans(u), input_precision=PRECISION)
                d_overlap = tl.where(i > j, _times(d_overlap, between, HAS_DECAY), 0.0)
                d_overlap = d_overlap.to(k.dtype)
                dk -= tl.dot(tl.trans(d_overlap), k, input_precision=PRECISION)
                if HAS_DECAY:
                    d_decay -= tl.sum(k.to(tl.float32) * dk, axis=1)
                    dk_before = dk
                # And to keys by what they were predicted from.
                dk -= tl.dot(d_overlap, k, input_precision=PRECISION)
                if HAS_BEFORE:
                    read = tl.dot(dv, tl.trans(narrow_s), input_precision=PRECISION)
                    dk -= _times(read, from_start, HAS_DECAY)
                if HAS_DECAY:
                    d_decay += tl.sum(k.to(tl.float32) * (dk - dk_before), axis=1)
                if HAS_BEFORE:
                    read_k = _times(k, from_start, HAS_DECAY)
                    ds -= tl.dot(tl.trans(read_k), dv, input_precision=PRECISION)
            elif HAS_DECAY:
                d_decay -= tl.sum(k.to(tl.float32) * dk, axis=1)
            if HAS_DECAY:
                d_given = tl.cumsum(d_decay, 0, reverse=True)
                if HAS_AFTER:
                    d_given += d_end
                d_given = tl.where((rows < length) & (given > LOWEST), d_given, 0.0)
                store_numbers(d_log_decay, d_given, b, head, rows, D_NUMBERS, T)
            if HAS_KEY_LENGTHS:
                dk = tl.where((rows < length)[:, None], dk, 0.0)
            store_tile(d_key, dk, b, head, rows, features, D_QUERY, T, H, EXACT)
        if HAS_INITIAL:
            store_state(d_initial, ds, dz, b, head, features, columns, N * H * W, H, V, NORMALIZE)
