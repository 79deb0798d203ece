"""Linear attention in which every query sees every key: one launch forward, one backward.

A program owns one head of one batch row (or of ROWS batch rows, one after the other). It adds up
the state over the keys and then reads it for the queries, BLOCK_T keys or queries at a time. The
backward pass needs the state for the queries first. With S <= BLOCK_T it recomputes the state from
keys and values that stay on chip, else the forward pass saves it. Each tensor is read or written
once, unless a key or value is NaN or infinite: see `triton_tiles.py`.
"""

# pyright: basic
# A kernel is in Triton's language, whose parameters have no types.

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
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    program = tl.program_id(0)
    broken = 1
    for guards in tl.range(0, 2, disable_licm=True):
        if broken:
            probe = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
            for row in range(CALL.ROWS):
                probe += _forward_row(
                    Tensor(query, STRIDES.QUERY),
                    Tensor(key, STRIDES.KEY),
                    Tensor(value, STRIDES.VALUE),
                    Tensor(key_lengths, STRIDES.KEY_LENGTHS),
                    Tensor(initial_state, STRIDES.INITIAL_STATE),
                    Tensor(out, STRIDES.OUT),
                    Tensor(state, STRIDES.STATE),
                    Tensor(states, STRIDES.STATES),
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
    key_lengths,
    initial_state,
    out,
    state,
    states,
    b,
    head,
    guards,
    CALL: tl.constexpr,
):
    """The forward pass of one head; returns a probe of the state, `[BLOCK_H, BLOCK_V]`."""
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_T == 0
    WHOLE: tl.constexpr = S_EXACT and not CALL.HAS_KEY_LENGTHS
    length = load_length(key_lengths, b, CALL.HAS_KEY_LENGTHS, CALL.S)
    s = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_H], tl.float32)
    if CALL.HAS_INITIAL:
        s, z = load_state(initial_state, b, head, features, columns, CALL.H, CALL)
    first = NEVER
    for start in range(0, CALL.S, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        k, first = load_finite(key, b, head, rows, features, guards, first, length, CALL.H, WHOLE)
        v, first = load_finite(value, b, head, rows, columns, guards, first, length, CALL.V, WHOLE)
        s += tl.dot(tl.trans(k), v, input_precision=CALL.PRECISION)
        z += tl.sum(k.to(tl.float32), axis=0)
    # NaN or infinity in a key or value is now in the state too.
    probe = s * 0.0
    if CALL.S > BLOCK_T:
        store_state(states, s, z, b, head, features, columns, CALL)
    if CALL.RETURNS_STATE:
        given, keys = s, z
        if guards:
            given = tl.where(first < NEVER, float("nan"), s)
            keys = tl.where(first < NEVER, float("nan"), z)
        store_state(state, given, keys, b, head, features, columns, CALL)
    for start in range(0, CALL.T, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        q = load_tile(query, b, head, rows, features, CALL.T, CALL.H, T_EXACT)
        result = tl.dot(q, s.to(q.dtype), input_precision=CALL.PRECISION) * CALL.SCALE
        if CALL.NORMALIZE:
            total = CALL.SCALE * tl.sum(q.to(tl.float32) * z[None, :], axis=1)
            result *= tl.where(total == 0, 0.0, 1 / total)[:, None]
        if guards:
            result = tl.where(first < NEVER, float("nan"), result)
        store_tile(out, result, b, head, rows, columns, CALL.T, CALL.V, T_EXACT)
    return probe


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
    program = tl.program_id(0)
    broken = 1
    for guards in tl.range(0, 2, disable_licm=True):
        if broken:
            probe = tl.zeros([BLOCK_T], tl.float32)
            for row in range(CALL.ROWS):
                probe += _backward_row(
                    Tensor(query, STRIDES.QUERY),
                    Tensor(key, STRIDES.KEY),
                    Tensor(value, STRIDES.VALUE),
                    Tensor(key_lengths, STRIDES.KEY_LENGTHS),
                    Tensor(initial_state, STRIDES.INITIAL_STATE),
                    Tensor(d_out, STRIDES.D_OUT),
                    Tensor(d_state, STRIDES.D_STATE),
                    Tensor(states, STRIDES.STATES),
                    Tensor(d_query, STRIDES.D_QUERY),
                    Tensor(d_key, STRIDES.D_KEY),
                    Tensor(d_value, STRIDES.D_VALUE),
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
    b,
    head,
    guards,
    CALL: tl.constexpr,
):
    """The backward pass of one head; returns a probe of keys and values, `[BLOCK_T]`."""
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    BLOCK_V: tl.constexpr = CALL.BLOCK_V
    features = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_V)
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_T == 0
    WHOLE: tl.constexpr = S_EXACT and not CALL.HAS_KEY_LENGTHS
    length = load_length(key_lengths, b, CALL.HAS_KEY_LENGTHS, CALL.S)
    first = NEVER
    if CALL.S > BLOCK_T:
        s, z = load_state(states, b, head, features, columns, CALL.H, CALL)
    else:
        rows = tl.arange(0, BLOCK_T)
        k, first = load_finite(key, b, head, rows, features, guards, first, length, CALL.H, WHOLE)
        v, first = load_finite(value, b, head, rows, columns, guards, first, length, CALL.V, WHOLE)
        s = tl.dot(tl.trans(k), v, input_precision=CALL.PRECISION)
        z = tl.sum(k.to(tl.float32), axis=0)
        if CALL.HAS_INITIAL:
            before, z_before = load_state(initial_state, b, head, features, columns, CALL.H, CALL)
            s += before
            z += z_before
    ds = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
    dz = tl.zeros([BLOCK_H], tl.float32)
    if CALL.RETURNS_STATE:
        ds, dz = load_state(d_state, b, head, features, columns, CALL.H, CALL)
    for start in range(0, CALL.T, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        q = load_tile(query, b, head, rows, features, CALL.T, CALL.H, T_EXACT)
        do = load_tile(d_out, b, head, rows, columns, CALL.T, CALL.V, T_EXACT)
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
        store_tile(d_query, dq, b, head, rows, features, CALL.T, CALL.H, T_EXACT)
        ds += tl.dot(tl.trans(q), do, input_precision=CALL.PRECISION) * CALL.SCALE
    probe = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, CALL.S, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        if CALL.S > BLOCK_T:
            k, first = load_finite(
                key, b, head, rows, features, guards, first, length, CALL.H, WHOLE
            )
            v, first = load_finite(
                value, b, head, rows, columns, guards, first, length, CALL.V, WHOLE
            )
        dk = tl.dot(v, tl.trans(ds.to(v.dtype)), input_precision=CALL.PRECISION) + dz[None, :]
        dv = tl.dot(k, ds.to(k.dtype), input_precision=CALL.PRECISION)
        probe += tl.sum(dk * 0.0, axis=1) + tl.sum(dv * 0.0, axis=1)
        if CALL.HAS_KEY_LENGTHS:
            dk = tl.where((rows < length)[:, None], dk, 0.0)
            dv = tl.where((rows < length)[:, None], dv, 0.0)
        store_tile(d_key, dk, b, head, rows, features, CALL.S, CALL.H, S_EXACT)
        store_tile(d_value, dv, b, head, rows, columns, CALL.S, CALL.V, S_EXACT)
    if CALL.HAS_INITIAL:
        store_state(d_initial_state, ds, dz, b, head, features, columns, CALL)
    return probe
