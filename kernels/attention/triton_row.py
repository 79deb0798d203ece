"""Attention with a head's keys and values on chip: one launch forward, one backward.

A program owns one key head of one batch row (or of ROWS batch rows, one after the other). It holds
the keys and values and walks the queries BLOCK_T at a time; with T <= BLOCK_T that is one step.
A whole row of scores is in registers, so nothing is saved for the backward pass: it recomputes
the softmax, takes delta as rowsum(P * dP) (FlashAttention, Dao et al. 2022, appendix B.2, has
rowsum(dO * O), which is equal), and writes each gradient once. Each tensor is read or written
once: four forward, seven backward. No atomics: two runs give the same bits.
"""

import triton
import triton.language as tl

from ..tiles import Tensor, load_length, load_tile, store_tile
from .triton_tiles import (
    Pairs,
    exponential,
    gradient_of_scores,
    load_keys_and_values,
    scores_of,
    store_scores,
)


@triton.jit
def _softmax(scores, CALL: tl.constexpr):
    """Exponentials, their sum (1 for a row that sees nothing), and which rows see nothing."""
    highest = tl.max(scores, axis=1)
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    weights = exponential(scores - highest[:, None], CALL)
    total = tl.sum(weights, axis=1)
    return weights, tl.where(total == 0, 1.0, total), total == 0


@triton.jit(repr=lambda call: "attention_row_forward")
def forward_kernel(
    query,
    key,
    value,
    bias,
    mask,
    query_lengths,
    key_lengths,
    out,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_S: tl.constexpr = CALL.BLOCK_S
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    OVERHANGS: tl.constexpr = BLOCK_S != CALL.S
    program = tl.program_id(0)
    head = program % CALL.K
    columns = tl.arange(0, BLOCK_S)
    features = tl.arange(0, BLOCK_H)
    for row in range(CALL.ROWS):
        b = (program // CALL.K).to(tl.int64) * CALL.ROWS + row
        query_length = load_length(
            Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
        )
        key_length = load_length(
            Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
        )
        k, v, poison = load_keys_and_values(
            Tensor(key, STRIDES.KEY), Tensor(value, STRIDES.VALUE), b, head, columns, features,
            not OVERHANGS, CALL,
        )  # fmt: skip
        for member in range(CALL.GROUP):
            n = head * CALL.GROUP + member
            for start in range(0, CALL.T, BLOCK_T):
                rows = start + tl.arange(0, BLOCK_T)
                pairs = Pairs(
                    bias=bias, mask=mask, b=b, n=n, rows=rows, columns=columns,
                    query_length=query_length, key_length=key_length,
                )  # fmt: skip
                q = load_tile(
                    Tensor(query, STRIDES.QUERY), b, n, rows, features, CALL.T, CALL.H, EXACT
                )
                scores, _ = scores_of(q, k, poison, pairs, OVERHANGS, STRIDES, CALL)
                weights, total, _ = _softmax(scores, CALL)
                mixed = tl.dot(weights.to(v.dtype), v, input_precision=CALL.PRECISION)
                mixed = mixed / total[:, None]
                store_tile(
                    Tensor(out, STRIDES.OUT), mixed, b, n, rows, features, CALL.T, CALL.H, EXACT
                )


@triton.jit(repr=lambda call: "attention_row_backward")
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
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_S: tl.constexpr = CALL.BLOCK_S
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    if CALL.PACKED:
        d_key = d_query
        d_value = d_query
    EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    OVERHANGS: tl.constexpr = BLOCK_S != CALL.S
    # The bias's gradient is summed over rows only for one query head and one block of queries.
    tl.static_assert(not CALL.SUMS_BIAS or (CALL.GROUP == 1 and BLOCK_T >= CALL.T))
    program = tl.program_id(0)
    head = program % CALL.K
    columns = tl.arange(0, BLOCK_S)
    features = tl.arange(0, BLOCK_H)
    if CALL.SUMS_BIAS:
        bias_sum = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    for row in range(CALL.ROWS):
        b = (program // CALL.K).to(tl.int64) * CALL.ROWS + row
        query_length = load_length(
            Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
        )
        key_length = load_length(
            Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
        )
        k, v, poison = load_keys_and_values(
            Tensor(key, STRIDES.KEY), Tensor(value, STRIDES.VALUE), b, head, columns, features,
            not OVERHANGS, CALL,
        )  # fmt: skip
        dk = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
        dv = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
        for member in range(CALL.GROUP):
            n = head * CALL.GROUP + member
            for start in range(0, CALL.T, BLOCK_T):
                rows = start + tl.arange(0, BLOCK_T)
                pairs = Pairs(
                    bias=bias, mask=mask, b=b, n=n, rows=rows, columns=columns,
                    query_length=query_length, key_length=key_length,
                )  # fmt: skip
                q = load_tile(
                    Tensor(query, STRIDES.QUERY), b, n, rows, features, CALL.T, CALL.H, EXACT
                )
                do = load_tile(
                    Tensor(d_out, STRIDES.D_OUT), b, n, rows, features, CALL.T, CALL.H, EXACT
                )
                scores, allowed = scores_of(q, k, poison, pairs, OVERHANGS, STRIDES, CALL)
                weights, total, blind = _softmax(scores, CALL)
                weights = weights / total[:, None]
                if CALL.HIDES:
                    # NaN in a query that sees nothing must not reach the keys.
                    q = tl.where(blind[:, None], 0.0, q.to(tl.float32)).to(q.dtype)
                    do = tl.where(blind[:, None], 0.0, do.to(tl.float32)).to(do.dtype)
                dv = tl.dot(tl.trans(weights.to(do.dtype)), do, dv, input_precision=CALL.PRECISION)
                d_weights = tl.dot(do, tl.trans(v), input_precision=CALL.PRECISION)
                delta = tl.sum(weights * d_weights, axis=1)
                if CALL.HAS_BIAS:
                    d_scores = gradient_of_scores(weights, d_weights, delta, allowed, 1.0, CALL)
                    if CALL.SUMS_BIAS:
                        bias_sum += d_scores
                    else:
                        store_scores(Tensor(d_bias, STRIDES.D_BIAS), d_scores, pairs, CALL)
                    d_scores *= CALL.EARLY
                else:
                    d_scores = gradient_of_scores(
                        weights, d_weights, delta, allowed, CALL.EARLY, CALL
                    )
                d_scores = d_scores.to(q.dtype)
                dk = tl.dot(tl.trans(d_scores), q, dk, input_precision=CALL.PRECISION)
                dq = tl.dot(d_scores, k, input_precision=CALL.PRECISION) * CALL.LATE
                store_tile(
                    Tensor(d_query, STRIDES.D_QUERY),
                    dq,
                    b,
                    n,
                    rows,
                    features,
                    CALL.T,
                    CALL.H,
                    EXACT,
                )
        dk = dk * CALL.LATE
        store_tile(
            Tensor(d_key, STRIDES.D_KEY),
            dk,
            b,
            head,
            columns,
            features,
            CALL.S,
            CALL.H,
            not OVERHANGS,
        )
        store_tile(
            Tensor(d_value, STRIDES.D_VALUE),
            dv,
            b,
            head,
            columns,
            features,
            CALL.S,
            CALL.H,
            not OVERHANGS,
        )
    if CALL.SUMS_BIAS:
        first = (program // CALL.K).to(tl.int64)
        pairs = Pairs(
            bias=bias, mask=mask, b=first, n=head, rows=tl.arange(0, BLOCK_T),
            columns=columns, query_length=CALL.T, key_length=CALL.S,
        )  # fmt: skip
        store_scores(Tensor(d_bias, STRIDES.D_BIAS), bias_sum, pairs, CALL)
