"""Attention for any length: keys and values pass by in tiles (FlashAttention-2, Dao 2023).

Forward: a program owns BLOCK_T queries of one head, keeps a running maximum and sum, and saves
both: their log-sum-exp in one number would lose the sum of scores as large as 1e9. Backward: one
kernel owns BLOCK_T queries, takes delta = rowsum(O * dO) and adds up dQ; another owns BLOCK_S keys
and adds up dK and dV over the queries of all heads that share them; no atomics, so two runs give
the same bits. Tiles that causality, the window or the lengths hide are never visited, and tiles
that a mask hides are visited but not computed.

In half precision delta needs more digits than the output has. So what rounding took from the output
is saved too, and the sum is that of the rounded weights: the output is then a true mean of values,
whose common part leaves no error in dP - delta. With a bias, whose gradient is in float32, delta is
rowsum(P * dP), and the keys pass by once more.
"""

import triton
import triton.language as tl

from ..tiles import load_length, load_tile, store_tile
from .triton_tiles import (
    exponential,
    gradient_of_scores,
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
    rest,
    highest_scores,
    inverse_sums,
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
            weights = exponential(scores - base[:, None], HAS_BIAS)
            rounded = weights.to(v.dtype)
            if not HAS_BIAS:
                weights = rounded.to(tl.float32)
            shrink = exponential(highest - base, HAS_BIAS)
            total = total * shrink + tl.sum(weights, axis=1)
            mixed = mixed * shrink[:, None]
            mixed = tl.dot(rounded, v, mixed, input_precision=PRECISION)
            highest = new_highest
    blind = total == 0
    total = tl.where(blind, 1.0, total)
    mixed = mixed / total[:, None]
    store_tile(out, mixed, b, n, rows, features, OUT, T, H, T % BLOCK_T == 0)
    if q.dtype != tl.float32 and not HAS_BIAS:
        lost = mixed - mixed.to(q.dtype).to(tl.float32)
        store_tile(rest, lost, b, n, rows, features, OUT, T, H, T % BLOCK_T == 0)
    saved = (b * (K * GROUP) + n) * T + rows
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    tl.store(highest_scores + saved, highest, mask=rows < T)
    # An inverse of 0 makes every recomputed probability of a blind row 0.
    tl.store(inverse_sums + saved, tl.where(blind, 0.0, 1.0 / total), mask=rows < T)


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
    out,
    rest,
    highest_scores,
    inverse_sums,
    d_query,
    delta,
    d_bias,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    D_OUT: tl.constexpr,
    OUT: tl.constexpr,
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
    highest = tl.load(highest_scores + saved, mask=rows < T, other=0.0)
    inverse = tl.load(inverse_sums + saved, mask=rows < T, other=0.0)
    PASSES: tl.constexpr = 2 if HAS_BIAS and q.dtype != tl.float32 else 1
    if PASSES == 2:
        row_delta = tl.zeros([BLOCK_T], tl.float32)
    else:
        mixed = load_tile(out, b, n, rows, features, OUT, T, H, T % BLOCK_T == 0).to(tl.float32)
        if q.dtype != tl.float32:
            lost = load_tile(rest, b, n, rows, features, OUT, T, H, T % BLOCK_T == 0)
            mixed += lost.to(tl.float32)
        row_delta = tl.sum(mixed * do.to(tl.float32), axis=1)
    # The cotangent of a query that sees nothing may hold anything.
    blind = inverse == 0
    row_delta = tl.where(blind, 0.0, row_delta)
    dq = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    begin, end = _keys_in_sight(
        first, first + BLOCK_T - 1, query_length, key_length, IS_CAUSAL, LEFT, RIGHT, BLOCK_S
    )
    if D_BIAS is not None:
        # The gradient of the bias is written everywhere, so no tile is left out.
        begin = 0
        end = S
    for step in tl.static_range(PASSES):
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
                weights = exponential(scores - highest[:, None], HAS_BIAS) * inverse[:, None]
                d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                if step == 0 and PASSES == 2:
                    row_delta += tl.where(blind, 0.0, tl.sum(weights * d_weights, axis=1))
                else:
                    if D_BIAS is None:
                        d_scores = gradient_of_scores(
                            weights, d_weights, row_delta, allowed, EARLY, HIDES
                        )
                    else:
                        d_scores = gradient_of_scores(
                            weights, d_weights, row_delta, allowed, 1.0, HIDES
                        )
                        store_scores(d_bias, d_scores, b, n, rows, columns, D_BIAS, T, S)
                        d_scores *= EARLY
                    dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision=PRECISION)
    tl.store(delta + saved, row_delta, mask=rows < T)
    store_tile(d_query, dq * LATE, b, n, rows, features, D_QUERY, T, H, T % BLOCK_T == 0)


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
    highest_scores,
    inverse_sums,
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
                highest = tl.load(highest_scores + saved + rows, mask=rows < T, other=0.0)
                inverse = tl.load(inverse_sums + saved + rows, mask=rows < T, other=0.0)
                row_delta = tl.load(delta + saved + rows, mask=rows < T, other=0.0)
                scores, allowed = scores_of(
                    q, k, poison, bias, mask, b, n, rows, columns, query_length, key_length,
                    BIAS, MASK, T, S, SCALE, IS_CAUSAL, LEFT, RIGHT, HAS_BIAS, HAS_MASK,
                    HAS_QUERY_LENGTHS, HIDES, S % BLOCK_S != 0, PRECISION,
                )  # fmt: skip
                weights = exponential(scores - highest[:, None], HAS_BIAS) * inverse[:, None]
                if HIDES:
                    # A broken row has a sum of NaN, and hidden keys must not see it.
                    weights = tl.where(allowed, weights, 0.0)
                    blind = inverse == 0
                    q = tl.where(blind[:, None], 0.0, q.to(tl.float32)).to(q.dtype)
                    do = tl.where(blind[:, None], 0.0, do.to(tl.float32)).to(do.dtype)
                dv = tl.dot(tl.trans(weights.to(do.dtype)), do, dv, input_precision=PRECISION)
                d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
                d_scores = gradient_of_scores(weights, d_weights, row_delta, allowed, EARLY, HIDES)
                d_scores = d_scores.to(q.dtype)
                dk = tl.dot(tl.trans(d_scores), q, dk, input_precision=PRECISION)
    store_tile(d_key, dk * LATE, b, head, columns, features, D_KEY, S, H, S % BLOCK_S == 0)
    store_tile(d_value, dv, b, head, columns, features, D_VALUE, S, H, S % BLOCK_S == 0)
