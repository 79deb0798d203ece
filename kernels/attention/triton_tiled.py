"""Attention for any length: keys and values pass by in tiles (FlashAttention-2, Dao 2023).

Forward: a program owns BLOCK_T queries of one head, keeps a running maximum and sum, and saves
the log-sum-exp. Backward: one kernel owns BLOCK_S keys and adds up dK and dV over the queries of
all heads that share them, another owns BLOCK_T queries and adds up dQ; no atomics, so two runs
give the same bits. Tiles that causality, the window or the lengths hide are never visited, and
tiles that a mask hides are visited but not computed.
"""

import triton
import triton.language as tl

from ..tiles import load_length, load_tile, store_tile
from .triton_tiles import (
    load_keys_and_values,
    pairs_allowed,
    scores_of,
    store_scores,
)


@triton.jit
def _keys_in_sight(
    first,
    last,
    query_length,
    key_length,
    IS_CAUSAL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Range of keys, from a multiple of BLOCK, that queries first..last may see."""
    begin = 0
    end = key_length
    if IS_CAUSAL:
        end = tl.minimum(end, last + 1)
    if RIGHT is not None:
        end = tl.minimum(end, last + 1 + RIGHT)
    if LEFT is not None:
        begin = tl.maximum(first - LEFT, 0) // BLOCK * BLOCK
    return begin, tl.where(first < query_length, end, 0)


@triton.jit
def _queries_in_sight(
    first,
    last,
    query_length,
    key_length,
    IS_CAUSAL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Range of queries, from a multiple of BLOCK, that may see keys first..last."""
    begin = 0
    end = query_length
    if IS_CAUSAL:
        begin = first // BLOCK * BLOCK
    if RIGHT is not None:
        begin = tl.maximum(begin, tl.maximum(first - RIGHT, 0) // BLOCK * BLOCK)
    if LEFT is not None:
        end = tl.minimum(end, last + 1 + LEFT)
    return begin, tl.where(first < key_length, end, 0)


@triton.jit
def _anything_visible(
    mask,
    b,
    n,
    rows,
    columns,
    query_length,
    key_length,
    MASK: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_QUERY_LENGTHS: tl.constexpr,
):
    visible = 1
    if HAS_MASK:
        allowed = pairs_allowed(
            mask, b, n, rows, columns, query_length, key_length,
            MASK, T, S, IS_CAUSAL, LEFT, RIGHT, HAS_MASK, HAS_QUERY_LENGTHS,
        )  # fmt: skip
        visible = tl.max(tl.max(allowed.to(tl.int32), axis=1), axis=0)
    return visible


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
    log_sum_exp,
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
):
    blocks: tl.constexpr = (T + BLOCK_T - 1) // BLOCK_T
    program = tl.program_id(0)
    # The last queries of a causal row see the most keys: they start first.
    first = (blocks - 1 - program % blocks) * BLOCK_T
    n = program // blocks % (K * GROUP)
    b = (program // blocks // (K * GROUP)).to(tl.int64)
    rows = first + tl.arange(0, BLOCK_T)
    features = tl.arange(0, BLOCK_H)
    query_length = load_length(query_lengths, b, QUERY_LENGTH, HAS_QUERY_LENGTHS, T)
    key_length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
    q = load_tile(query, b, n, rows, features, QUERY, T, H, T % BLOCK_T == 0)
    highest = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    mixed = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    begin, end = _keys_in_sight(
        first, first + BLOCK_T - 1, query_length, key_length, IS_CAUSAL, LEFT, RIGHT, BLOCK_S
    )
    for start in range(begin, end, BLOCK_S):
        columns = start + tl.arange(0, BLOCK_S)
        visible = _anything_visible(
            mask, b, n, rows, columns, query_length, key_length,
            MASK, T, S, IS_CAUSAL, LEFT, RIGHT, HAS_MASK, HAS_QUERY_LENGTHS,
        )  # fmt: skip
        if visible != 0:
            k, v, poison = load_keys_and_values(
                key, value, b, n // GROUP, columns, features, KEY, VALUE, S, H,
                S % BLOCK_S == 0, HIDES,
            )  # fmt: skip
            scores, _ = scores_of(
                q, k, poison, bias, mask, b, n, rows, columns, query_length, key_length,
                BIAS, MASK, T, S, SCALE, IS_CAUSAL, LEFT, RIGHT, HAS_BIAS, HAS_MASK,
                HAS_QUERY_LENGTHS, HIDES, S % BLOCK_S != 0, PRECISION,
            )  # fmt: skip
            # Not a number is no maximum: it must stay in its own columns until the sum.
            block_highest = tl.max(tl.where(scores == scores, scores, float("-inf")), axis=1)
            new_highest = tl.maximum(highest, block_highest)
            base = tl.where(new_highest > float("-inf"), new_highest, 0.0)
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(highest - base)
            total = total * shrink + tl.sum(weights, axis=1)
            mixed = mixed * shrink[:, None]
            mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision=PRECISION)
            highest = new_highest
    blind = total == 0
    mixed = mixed / tl.where(blind, 1.0, total)[:, None]
    store_tile(out, mixed, b, n, rows, features, OUT, T, H, T % BLOCK_T == 0)
    # +inf makes every recomputed probability of a blind row 0.
    saved = tl.where(blind, float("inf"), highest + tl.log2(tl.where(blind, 1.0, total)))
    pointers = log_sum_exp + (b * (K * GROUP) + n) * T + rows
    tl.store(pointers, saved, mask=rows < T)


@triton.jit
def backward_keys_kernel(
    query,
    key,
    value,
    bias,
    mask,
    query_lengths,
    key_lengths,
    d_out,
    log_sum_exp,
    delta,
    d_key,
    d_value,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    D_OUT: tl.constexpr,
    D_KEY: tl.constexpr,
    D_VALUE: tl.constexpr,
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
):
    blocks: tl.constexpr = (S + BLOCK_S - 1) // BLOCK_S
    program = tl.program_id(0)
    first = program % blocks * BLOCK_S
    head = program // blocks % K
    b = (program // blocks // K).to(tl.int64)
    columns = first + tl.arange(0, BLOCK_S)
    features = tl.arange(0, BLOCK_H)
    query_length = load_length(query_lengths, b, QUERY_LENGTH, HAS_QUERY_LENGTHS, T)
    key_length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
    k, v, poison = load_keys_and_values(
        key, value, b, head, columns, features, KEY, VALUE, S, H, S % BLOCK_S == 0, HIDES
    )
    dk = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
    dv = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
    begin, end = _queries_in_sight(
        first, first + BLOCK_S - 1, query_length, key_length, IS_CAUSAL, LEFT, RIGHT, BLOCK_T
    )
    for member in range(GROUP):
        n = head * GROUP + member
        saved = (b * (K * GROUP) + n) * T
        for start in range(begin, end, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            visible = _anything_visible(
                mask, b, n, rows, columns, query_length, key_length,
                MASK, T, S, IS_CAUSAL, LEFT, RIGHT, HAS_MASK, HAS_QUERY_LENGTHS,
            )  # fmt: skip
            if visible != 0:
                q = load_tile(query, b, n, rows, features, QUERY, T, H, T % BLOCK_T == 0)
                do = load_tile(d_out, b, n, rows, features, D_OUT, T, H, T % BLOCK_T == 0)
                lse = tl.load(log_sum_exp + saved + rows, mask=rows < T, other=float("inf"))
                row_delta = tl.load(delta + saved + rows, mask=rows < T, other=0.0)
                scores, allowed = scores_of(
                    q, k, poison, bias, mask, b, n, rows, columns, query_length, key_length,
                    BIAS, MASK, T, S, SCALE, IS_CAUSAL, LEFT, RIGHT, HAS_BIAS, HAS_MASK,
                    HAS_QUERY_LENGTHS, HIDES, S % BLOCK_S != 0, PRECISION,
                )  # fmt: skip
                weights = tl.exp2(scores - lse[:, None])
                if HIDES:
                    # A broken row has a log-sum-exp of NaN, and hidden keys must not see it.
                    weights = tl.where(allowed, weights, 0.0)
                    blind = lse == float("inf")
                    q = tl.where(blind[:, None], 0.0, q.to(tl.float32)).to(q.dtype)
                    do = tl.where(blind[:, None], 0.0, do.to(tl.float32)).to(do.dtype)
                dv = tl.dot(tl.trans(weights.to(do.dtype)), do, dv, input_precision=PRECISION)
                d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                d_scores = weights * (d_weights - row_delta[:, None])
                if HIDES:
                    d_scores = tl.where(allowed, d_scores, 0.0)
                d_scores = d_scores.to(q.dtype)
                dk = tl.dot(tl.trans(d_scores), q, dk, input_precision=PRECISION)
    store_tile(d_key, dk * SCALE, b, head, columns, features, D_KEY, S, H, S % BLOCK_S == 0)
    store_tile(d_value, dv, b, head, columns, features, D_VALUE, S, H, S % BLOCK_S == 0)


@triton.jit
def backward_queries_kernel(
    query,
    key,
    value,
    bias,
    mask,
    query_lengths,
    key_lengths,
    d_out,
    log_sum_exp,
    delta,
    d_query,
    d_bias,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    D_OUT: tl.constexpr,
    D_QUERY: tl.constexpr,
    D_BIAS: tl.constexpr,
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
):
    blocks: tl.constexpr = (T + BLOCK_T - 1) // BLOCK_T
    program = tl.program_id(0)
    first = (blocks - 1 - program % blocks) * BLOCK_T
    n = program // blocks % (K * GROUP)
    b = (program // blocks // (K * GROUP)).to(tl.int64)
    rows = first + tl.arange(0, BLOCK_T)
    features = tl.arange(0, BLOCK_H)
    query_length = load_length(query_lengths, b, QUERY_LENGTH, HAS_QUERY_LENGTHS, T)
    key_length = load_length(key_lengths, b, KEY_LENGTH, HAS_KEY_LENGTHS, S)
    q = load_tile(query, b, n, rows, features, QUERY, T, H, T % BLOCK_T == 0)
    do = load_tile(d_out, b, n, rows, features, D_OUT, T, H, T % BLOCK_T == 0)
    saved = (b * (K * GROUP) + n) * T + rows
    lse = tl.load(log_sum_exp + saved, mask=rows < T, other=float("inf"))
    row_delta = tl.load(delta + saved, mask=rows < T, other=0.0)
    dq = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    begin, end = _keys_in_sight(
        first, first + BLOCK_T - 1, query_length, key_length, IS_CAUSAL, LEFT, RIGHT, BLOCK_S
    )
    if D_BIAS is not None:
        # The gradient of the bias is written everywhere, so no tile is left out.
        begin = 0
        end = S
    for start in range(begin, end, BLOCK_S):
        columns = start + tl.arange(0, BLOCK_S)
        visible = 1
        if D_BIAS is None:
            visible = _anything_visible(
                mask, b, n, rows, columns, query_length, key_length,
                MASK, T, S, IS_CAUSAL, LEFT, RIGHT, HAS_MASK, HAS_QUERY_LENGTHS,
            )  # fmt: skip
        if visible != 0:
            k, v, poison = load_keys_and_values(
                key, value, b, n // GROUP, columns, features, KEY, VALUE, S, H,
                S % BLOCK_S == 0, HIDES,
            )  # fmt: skip
            scores, allowed = scores_of(
                q, k, poison, bias, mask, b, n, rows, columns, query_length, key_length,
                BIAS, MASK, T, S, SCALE, IS_CAUSAL, LEFT, RIGHT, HAS_BIAS, HAS_MASK,
                HAS_QUERY_LENGTHS, HIDES, S % BLOCK_S != 0, PRECISION,
            )  # fmt: skip
            weights = tl.exp2(scores - lse[:, None])
            d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            d_scores = weights * (d_weights - row_delta[:, None])
            if HIDES:
                d_scores = tl.where(allowed, d_scores, 0.0)
            if D_BIAS is not None:
                store_scores(d_bias, d_scores, b, n, rows, columns, D_BIAS, T, S)
            dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision=PRECISION)
    store_tile(d_query, dq * SCALE, b, n, rows, features, D_QUERY, T, H, T % BLOCK_T == 0)
