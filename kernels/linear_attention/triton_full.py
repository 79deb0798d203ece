"""Linear attention where every query sees every key: one launch forward, one backward.

A program owns one head of one batch row (or of ROWS batch rows, one after the other). It adds up
the state over the keys and then reads it for the queries, BLOCK_T of either at a time. The
backward pass needs the state for the queries first: with S <= BLOCK_T it is made again from keys
and values that stay on chip, else the forward pass saves it. Each tensor is read or written once.
"""

import triton
import triton.language as tl

from ..tiles import load_length, load_tile, store_tile
from .triton_tiles import NEVER, load_finite, load_state, store_state


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    key_lengths,
    initial_state,
    out,
    state,
    states,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    INITIAL: tl.constexpr,
    OUT: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    NORMALIZE: tl.constexpr,
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
    EXACT: tl.constexpr = S % BLOCK_T == 0 and not HAS_KEY_LENGTHS
    W: tl.constexpr = V + 1 if NORMALIZE else V
    for row in range(ROWS):
        b = (program // N).to(tl.int64) * ROWS + row
        length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
        s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        z = tl.zeros([BLOCK_H], tl.float32)
        if HAS_INITIAL:
            s, z = load_state(
                initial_state, b, head, features, columns, H, INITIAL, H, V, NORMALIZE
            )
        first = NEVER
        for start in range(0, S, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            k, first = load_finite(key, b, head, rows, features, first, KEY, length, H, EXACT)
            v, first = load_finite(value, b, head, rows, columns, first, VALUE, length, V, EXACT)
            s += tl.dot(tl.trans(k), v, input_precision=PRECISION)
            z += tl.sum(k.to(tl.float32), axis=0)
        if S > BLOCK_T:
            store_state(states, s, z, b, head, features, columns, N * H * W, H, V, NORMALIZE)
        broken = first < NEVER
        if RETURNS_STATE:
            given = tl.where(broken, float("nan"), s)
            keys = tl.where(broken, float("nan"), z)
            store_state(state, given, keys, b, head, features, columns, N * H * W, H, V, NORMALIZE)
        for start in range(0, T, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            q = load_tile(query, b, head, rows, features, QUERY, T, H, T % BLOCK_T == 0)
            result = tl.dot(q, s.to(q.dtype), input_precision=PRECISION) * SCALE
            if NORMALIZE:
                total = SCALE * tl.sum(q.to(tl.float32) * z[None, :], axis=1)
                result *= tl.where(total == 0, 0.0, 1 / total)[:, None]
            result = tl.where(broken, float("nan"), result)
            store_tile(out, result, b, head, rows, columns, OUT, T, V, T % BLOCK_T == 0)


@triton.jit
def backward_kernel(
    query,
    key,
    value,
    key_lengths,
    initial_state,
    d_out,
    d_state,
    states,
    d_query,
    d_key,
    d_value,
    d_initial,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    INITIAL: tl.constexpr,
    D_OUT: tl.constexpr,
    D_STATE: tl.constexpr,
    D_QUERY: tl.constexpr,
    D_KEY: tl.constexpr,
    D_VALUE: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    NORMALIZE: tl.constexpr,
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
    EXACT: tl.constexpr = S % BLOCK_T == 0 and not HAS_KEY_LENGTHS
    W: tl.constexpr = V + 1 if NORMALIZE else V
    for row in range(ROWS):
        b = (program // N).to(tl.int64) * ROWS + row
        length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
        if S > BLOCK_T:
            s, z = load_state(states, b, head, features, columns, H, N * H * W, H, V, NORMALIZE)
        else:
            rows = tl.arange(0, BLOCK_T)
            k, _ = load_finite(key, b, head, rows, features, NEVER, KEY, length, H, EXACT)
            v, _ = load_finite(value, b, head, rows, columns, NEVER, VALUE, length, V, EXACT)
            s = tl.dot(tl.trans(k), v, input_precision=PRECISION)
            z = tl.sum(k.to(tl.float32), axis=0)
            if HAS_INITIAL:
                before, z_before = load_state(
                    initial_state, b, head, features, columns, H, INITIAL, H, V, NORMALIZE
                )
                s += before
                z += z_before
        ds = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        dz = tl.zeros([BLOCK_H], tl.float32)
        if RETURNS_STATE:
            ds, dz = load_state(d_state, b, head, features, columns, H, D_STATE, H, V, NORMALIZE)
        for start in range(0, T, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            q = load_tile(query, b, head, rows, features, QUERY, T, H, T % BLOCK_T == 0)
            do = load_tile(d_out, b, head, rows, columns, D_OUT, T, V, T % BLOCK_T == 0)
            if NORMALIZE:
                wide = q.to(tl.float32)
                result = tl.dot(q, s.to(q.dtype), input_precision=PRECISION) * SCALE
                total = SCALE * tl.sum(wide * z[None, :], axis=1)
                inverse_total = tl.where(total == 0, 0.0, 1 / total)
                do = (do.to(tl.float32) * inverse_total[:, None]).to(do.dtype)
                # Of the rounded one: large numbers that cancel must have one rounding.
                d_total = -tl.sum(do.to(tl.float32) * result, axis=1) * inverse_total
                dz += SCALE * tl.sum(wide * d_total[:, None], axis=0)
            dq = tl.dot(do, tl.trans(s.to(do.dtype)), input_precision=PRECISION)
            if NORMALIZE:
                dq += d_total[:, None] * z[None, :]
            store_tile(
                d_query, dq * SCALE, b, head, rows, features, D_QUERY, T, H, T % BLOCK_T == 0
            )
            ds += tl.dot(tl.trans(q), do, input_precision=PRECISION) * SCALE
        for start in range(0, S, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            if S > BLOCK_T:
                k, _ = load_finite(key, b, head, rows, features, NEVER, KEY, length, H, EXACT)
                v, _ = load_finite(value, b, head, rows, columns, NEVER, VALUE, length, V, EXACT)
            dk = tl.dot(v, tl.trans(ds.to(v.dtype)), input_precision=PRECISION) + dz[None, :]
            dv = tl.dot(k, ds.to(k.dtype), input_precision=PRECISION)
            if HAS_KEY_LENGTHS:
                dk = tl.where((rows < length)[:, None], dk, 0.0)
                dv = tl.where((rows < length)[:, None], dv, 0.0)
            store_tile(d_key, dk, b, head, rows, features, D_KEY, S, H, S % BLOCK_T == 0)
            store_tile(d_value, dv, b, head, rows, columns, D_VALUE, S, V, S % BLOCK_T == 0)
        if HAS_INITIAL:
            store_state(d_initial, ds, dz, b, head, features, columns, N * H * W, H, V, NORMALIZE)
