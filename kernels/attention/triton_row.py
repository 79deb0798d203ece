"""Attention with a head's keys and values on chip: one launch forward, one backward.

A program owns one key head of one batch row (or of ROWS batch rows, one after the other), holds
its keys and values, and walks the queries BLOCK_T at a time; with T <= BLOCK_T that is one step.
A whole row of scores is in registers, so nothing is saved for the backward pass: it recomputes
the softmax, takes delta as rowsum(P * dP) (FlashAttention, Dao et al. 2022, appendix B.2, has
rowsum(dO * O), which is equal), and writes each gradient once. Each tensor is read or written
once: four forward, seven backward. No atomics: two runs give the same bits.
"""

import triton
import triton.language as tl

from ..tiles import load_length, load_tile, store_tile
from .triton_tiles import (
    exponential,
    gradient_of_scores,
    load_keys_and_values,
    scores_of,
    store_scores,
)


@triton.jit
def _softmax(scores, HAS_BIAS: tl.constexpr):
    """Exponentials, their sum (1 for a row that sees nothing), and which rows see nothing."""
    highest = tl.max(scores, axis=1)
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    weights = exponential(scores - highest[:, None], HAS_BIAS)
    total = tl.sum(weights, axis=1)
    return weights, tl.where(total == 0, 1.0, total), total == 0


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    bias,
    mask,
    query_lengths,
    key_lengths,
    out,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    OUT: tl.constexpr,
    QUERY_LENGTH: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    SCALE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_QUERY_LENGTHS: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr,
    HIDES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % K
    columns = tl.arange(0, BLOCK_S)
    features = tl.arange(0, BLOCK_H)
    for row in range(ROWS):
        b = (program // K).to(tl.int64) * ROWS + row
        query_length = load_length(query_lengths, b, QUERY_LENGTH, HAS_QUERY_LENGTHS, T)
        key_length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
        k, v, poison = load_keys_and_values(
            key, value, b, head, columns, features, KEY, VALUE, S, H, BLOCK_S == S, HIDES
        )
        for member in range(GROUP):
            n = head * GROUP + member
            for start in range(0, T, BLOCK_T):
                rows = start + tl.arange(0, BLOCK_T)
                q = load_tile(query, b, n, rows, features, QUERY, T, H, T % BLOCK_T == 0)
                scores, _ = scores_of(
                    q, k, poison, bias, mask, b, n, rows, columns, query_length, key_length,
                    BIAS, MASK, T, S, SCALE, IS_CAUSAL, LEFT, RIGHT, HAS_BIAS, HAS_MASK,
                    HAS_QUERY_LENGTHS, HIDES, BLOCK_S != S, PRECISION,
                )  # fmt: skip
                weights, total, _ = _softmax(scores, HAS_BIAS)
                mixed = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
                mixed = mixed / total[:, None]
                store_tile(out, mixed, b, n, rows, features, OUT, T, H, T % BLOCK_T == 0)


@triton.jit
def backward_kernel(
    query,
    key,
    value,
    bias,
    mask,
    query_lengths,
    key_lengths,
    d_out,
    d_query,
    d_key,
    d_value,
    d_bias,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    D_OUT: tl.constexpr,
    D_QUERY: tl.constexpr,
    D_KEY: tl.constexpr,
    D_VALUE: tl.constexpr,
    D_BIAS: tl.constexpr,
    QUERY_LENGTH: tl.constexpr,
    KEY_LENGTH: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    SCALE: tl.constexpr,
    EARLY: tl.constexpr,
    LATE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_QUERY_LENGTHS: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr,
    HIDES: tl.constexpr,
    SUMS_BIAS: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % K
    columns = tl.arange(0, BLOCK_S)
    features = tl.arange(0, BLOCK_H)
    # One query head and one block of queries: the bias's gradient is added up over the rows.
    tl.static_assert(not SUMS_BIAS or (GROUP == 1 and BLOCK_T >= T))
    if PACKED:
        d_key = d_query
        d_value = d_query
    if SUMS_BIAS:
        bias_sum = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    for row in range(ROWS):
        b = (program // K).to(tl.int64) * ROWS + row
        query_length = load_length(query_lengths, b, QUERY_LENGTH, HAS_QUERY_LENGTHS, T)
        key_length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
        k, v, poison = load_keys_and_values(
            key, value, b, head, columns, features, KEY, VALUE, S, H, BLOCK_S == S, HIDES
        )
        dk = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
        dv = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
        for member in range(GROUP):
            n = head * GROUP + member
            for start in range(0, T, BLOCK_T):
                rows = start + tl.arange(0, BLOCK_T)
                q = load_tile(query, b, n, rows, features, QUERY, T, H, T % BLOCK_T == 0)
                do = load_tile(d_out, b, n, rows, features, D_OUT, T, H, T % BLOCK_T == 0)
                scores, allowed = scores_of(
                    q, k, poison, bias, mask, b, n, rows, columns, query_length, key_length,
                    BIAS, MASK, T, S, SCALE, IS_CAUSAL, LEFT, RIGHT, HAS_BIAS, HAS_MASK,
                    HAS_QUERY_LENGTHS, HIDES, BLOCK_S != S, PRECISION,
                )  # fmt: skip
                weights, total, blind = _softmax(scores, HAS_BIAS)
                weights = weights / total[:, None]
                if HIDES:
                    # What a query that sees nothing holds must not reach the keys.
                    q = tl.where(blind[:, None], 0.0, q.to(tl.float32)).to(q.dtype)
                    do = tl.where(blind[:, None], 0.0, do.to(tl.float32)).to(do.dtype)
                dv = tl.dot(tl.trans(weights.to(do.dtype)), do, dv, input_precision=PRECISION)
                d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                delta = tl.sum(weights * d_weights, axis=1)
                if D_BIAS is None:
                    d_scores = gradient_of_scores(weights, d_weights, delta, allowed, EARLY, HIDES)
                else:
                    d_scores = gradient_of_scores(weights, d_weights, delta, allowed, 1.0, HIDES)
                    if SUMS_BIAS:
                        bias_sum += d_scores
                    else:
                        store_scores(d_bias, d_scores, b, n, rows, columns, D_BIAS, T, S)
                    d_scores *= EARLY
                d_scores = d_scores.to(q.dtype)
                dk = tl.dot(tl.trans(d_scores), q, dk, input_precision=PRECISION)
                dq = tl.dot(d_scores, k, input_precision=PRECISION) * LATE
                store_tile(d_query, dq, b, n, rows, features, D_QUERY, T, H, T % BLOCK_T == 0)
        store_tile(d_key, dk * LATE, b, head, columns, features, D_KEY, S, H, BLOCK_S == S)
        store_tile(d_value, dv, b, head, columns, features, D_VALUE, S, H, BLOCK_S == S)
    if SUMS_BIAS:
        rows = tl.arange(0, BLOCK_T)
        first = (program // K).to(tl.int64)
        store_scores(d_bias, bias_sum, first, head, rows, columns, D_BIAS, T, S)
