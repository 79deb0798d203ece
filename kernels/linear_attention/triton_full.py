"""Linear attention in which every query sees every key: one launch forward, one backward.

A program owns one head of one batch row (or of ROWS batch rows, one after the other). It adds up
the state over the keys and then reads it for the queries, BLOCK_T keys or queries at a time. The
backward pass needs the state for the queries first. With S <= BLOCK_T it recomputes the state from
keys and values that stay on chip, else the forward pass saves it. Each tensor is read or written
once.
"""

import triton
import triton.language as tl

from ..tiles import Tensor, load_length, load_tile, store_tile
from .triton_tiles import NEVER, load_finite, load_state, store_state


@triton.jit(repr=lambda call: "linear_attention_full_forward")
def forward_kernel(
    query,
    key,
    value,
    key_lengths,
    initial_state,
    out,
    state,
    states,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    program = tl.program_id(0)
    head = program % CALL.N
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_T == 0
    ALL_VALID: tl.constexpr = S_EXACT and not CALL.HAS_KEY_LENGTHS
    for row in range(CALL.ROWS):
        b = (program // CALL.N).to(tl.int64) * CALL.ROWS + row
        length = load_length(
            Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
        )
        s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        z = tl.zeros([BLOCK_H], tl.float32)
        if CALL.HAS_INITIAL:
            s, z = load_state(
                Tensor(initial_state, STRIDES.INITIAL_STATE),
                b,
                head,
                features,
                columns,
                CALL.H,
                CALL,
            )
        first = NEVER
        for start in range(0, CALL.S, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            k, first = load_finite(
                Tensor(key, STRIDES.KEY), b, head, rows, features, first, length, CALL.H, ALL_VALID
            )
            v, first = load_finite(
                Tensor(value, STRIDES.VALUE),
                b,
                head,
                rows,
                columns,
                first,
                length,
                CALL.V,
                ALL_VALID,
            )
            s += tl.dot(tl.trans(k), v, input_precision=CALL.PRECISION)
            z += tl.sum(k.to(tl.float32), axis=0)
        if CALL.S > BLOCK_T:
            store_state(Tensor(states, STRIDES.STATES), s, z, b, head, features, columns, CALL)
        broken = first < NEVER
        if CALL.RETURNS_STATE:
            given = tl.where(broken, float("nan"), s)
            keys = tl.where(broken, float("nan"), z)
            store_state(Tensor(state, STRIDES.STATE), given, keys, b, head, features, columns, CALL)
        for start in range(0, CALL.T, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            q = load_tile(
                Tensor(query, STRIDES.QUERY), b, head, rows, features, CALL.T, CALL.H, T_EXACT
            )
            result = tl.dot(q, s.to(q.dtype), input_precision=CALL.PRECISION) * CALL.SCALE
            if CALL.NORMALIZE:
                total = CALL.SCALE * tl.sum(q.to(tl.float32) * z[None, :], axis=1)
                result *= tl.where(total == 0, 0.0, 1 / total)[:, None]
            result = tl.where(broken, float("nan"), result)
            store_tile(
                Tensor(out, STRIDES.OUT), result, b, head, rows, columns, CALL.T, CALL.V, T_EXACT
            )


@triton.jit(repr=lambda call: "linear_attention_full_backward")
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
    d_initial_state,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    program = tl.program_id(0)
    head = program % CALL.N
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_T == 0
    ALL_VALID: tl.constexpr = S_EXACT and not CALL.HAS_KEY_LENGTHS
    for row in range(CALL.ROWS):
        b = (program // CALL.N).to(tl.int64) * CALL.ROWS + row
        length = load_length(
            Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
        )
        if CALL.S > BLOCK_T:
            s, z = load_state(
                Tensor(states, STRIDES.STATES), b, head, features, columns, CALL.H, CALL
            )
        else:
            rows = tl.arange(0, BLOCK_T)
            k, _ = load_finite(
                Tensor(key, STRIDES.KEY), b, head, rows, features, NEVER, length, CALL.H, ALL_VALID
            )
            v, _ = load_finite(
                Tensor(value, STRIDES.VALUE),
                b,
                head,
                rows,
                columns,
                NEVER,
                length,
                CALL.V,
                ALL_VALID,
            )
            s = tl.dot(tl.trans(k), v, input_precision=CALL.PRECISION)
            z = tl.sum(k.to(tl.float32), axis=0)
            if CALL.HAS_INITIAL:
                before, z_before = load_state(
                    Tensor(initial_state, STRIDES.INITIAL_STATE),
                    b,
                    head,
                    features,
                    columns,
                    CALL.H,
                    CALL,
                )
                s += before
                z += z_before
        ds = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
        dz = tl.zeros([BLOCK_H], tl.float32)
        if CALL.RETURNS_STATE:
            ds, dz = load_state(
                Tensor(d_state, STRIDES.D_STATE), b, head, features, columns, CALL.H, CALL
            )
        for start in range(0, CALL.T, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            q = load_tile(
                Tensor(query, STRIDES.QUERY), b, head, rows, features, CALL.T, CALL.H, T_EXACT
            )
            do = load_tile(
                Tensor(d_out, STRIDES.D_OUT), b, head, rows, columns, CALL.T, CALL.V, T_EXACT
            )
            if CALL.NORMALIZE:
                wide = q.to(tl.float32)
                result = tl.dot(q, s.to(q.dtype), input_precision=CALL.PRECISION) * CALL.SCALE
                total = CALL.SCALE * tl.sum(wide * z[None, :], axis=1)
                inverse_total = tl.where(total == 0, 0.0, 1 / total)
                do = (do.to(tl.float32) * inverse_total[:, None]).to(do.dtype)
                # From the rounded `do`: large numbers that cancel must have one rounding.
                d_total = -tl.sum(do.to(tl.float32) * result, axis=1) * inverse_total
                dz += CALL.SCALE * tl.sum(wide * d_total[:, None], axis=0)
            dq = tl.dot(do, tl.trans(s.to(do.dtype)), input_precision=CALL.PRECISION)
            if CALL.NORMALIZE:
                dq += d_total[:, None] * z[None, :]
            dq *= CALL.SCALE
            store_tile(
                Tensor(d_query, STRIDES.D_QUERY),
                dq,
                b,
                head,
                rows,
                features,
                CALL.T,
                CALL.H,
                T_EXACT,
            )
            ds += tl.dot(tl.trans(q), do, input_precision=CALL.PRECISION) * CALL.SCALE
        for start in range(0, CALL.S, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            if CALL.S > BLOCK_T:
                k, _ = load_finite(
                    Tensor(key, STRIDES.KEY),
                    b,
                    head,
                    rows,
                    features,
                    NEVER,
                    length,
                    CALL.H,
                    ALL_VALID,
                )
                v, _ = load_finite(
                    Tensor(value, STRIDES.VALUE),
                    b,
                    head,
                    rows,
                    columns,
                    NEVER,
                    length,
                    CALL.V,
                    ALL_VALID,
                )
            dk = tl.dot(v, tl.trans(ds.to(v.dtype)), input_precision=CALL.PRECISION) + dz[None, :]
            dv = tl.dot(k, ds.to(k.dtype), input_precision=CALL.PRECISION)
            if CALL.HAS_KEY_LENGTHS:
                dk = tl.where((rows < length)[:, None], dk, 0.0)
                dv = tl.where((rows < length)[:, None], dv, 0.0)
            store_tile(
                Tensor(d_key, STRIDES.D_KEY), dk, b, head, rows, features, CALL.S, CALL.H, S_EXACT
            )
            store_tile(
                Tensor(d_value, STRIDES.D_VALUE),
                dv,
                b,
                head,
                rows,
                columns,
                CALL.S,
                CALL.V,
                S_EXACT,
            )
        if CALL.HAS_INITIAL:
            store_state(
                Tensor(d_initial_state, STRIDES.STATE), ds, dz, b, head, features, columns, CALL
            )
