"""Attention for any length: keys and values pass by in tiles (FlashAttention-2, Dao 2023).

Forward: a program owns BLOCK_T queries of one head, keeps a running maximum and sum, and saves
both: their log-sum-exp in one number would lose the sum of scores as large as 1e9. Backward: one
kernel owns BLOCK_T queries, takes delta = rowsum(O * dO) and adds up dQ; another owns BLOCK_S keys
and adds up dK and dV over the queries of all heads that share them. There are no atomics, so two
runs give the same bits. Tiles hidden by causality, the window or the lengths are never visited.
Tiles hidden by a mask are visited but not computed.

In half precision delta needs more digits than the output has. So the rounding error of the output
is saved too. The sum is that of the rounded weights, so that the output is a true mean of values
and a common part of the values leaves no error in dP - delta. With a bias, whose gradient is in
float32, delta is rowsum(P * dP), and the keys pass by once more.
"""

# pyright: basic, reportAssignmentType=false
# A kernel is in Triton's language, whose parameters have no types.

import triton
import triton.language as tl

from ..tiles import Tensor, load_length, load_tile, only_then, store_tile
from .triton_tiles import (
    Queries,
    exponential,
    gradient_of_scores,
    load_keys_and_values,
    pairs_allowed,
    scores_of,
    store_scores,
    without_nan,
)


@triton.jit
def _keys_in_sight(first, last, query_length, key_length, CALL: tl.constexpr):
    """Range of keys, from a multiple of BLOCK_S, that queries first..last may see."""
    begin = 0
    end = key_length
    if CALL.IS_CAUSAL:
        end = tl.minimum(end, last + 1)
    if CALL.RIGHT is not None:
        end = tl.minimum(end, last + 1 + CALL.RIGHT)
    if CALL.LEFT is not None:
        begin = tl.maximum(first - CALL.LEFT, 0) // CALL.BLOCK_S * CALL.BLOCK_S
    return begin, tl.where(first < query_length, end, 0)


@triton.jit
def _queries_in_sight(first, last, query_length, key_length, CALL: tl.constexpr):
    """Range of queries, from a multiple of BLOCK_T, that may see keys first..last."""
    begin = 0
    end = query_length
    if CALL.IS_CAUSAL:
        begin = first // CALL.BLOCK_T * CALL.BLOCK_T
    if CALL.RIGHT is not None:
        begin = tl.maximum(begin, tl.maximum(first - CALL.RIGHT, 0) // CALL.BLOCK_T * CALL.BLOCK_T)
    if CALL.LEFT is not None:
        end = tl.minimum(end, last + 1 + CALL.LEFT)
    return begin, tl.where(first < key_length, end, 0)


@triton.jit
def _anything_visible(queries, columns, STRIDES: tl.constexpr, CALL: tl.constexpr):
    visible = 1
    if CALL.HAS_MASK:
        allowed = pairs_allowed(queries, columns, 0, STRIDES, CALL)
        visible = tl.max(tl.max(allowed.to(tl.int32), axis=1), axis=0)
    return visible


@triton.jit
def _all_visible(first, start, CALL: tl.constexpr):
    """Whether every query from `first` on sees every key from `start` on, for a tile of each."""
    ALWAYS: tl.constexpr = not CALL.HAS_MASK and not CALL.HAS_QUERY_LENGTHS
    visible = start + CALL.BLOCK_S <= CALL.S
    if CALL.IS_CAUSAL:
        visible = visible & (start + CALL.BLOCK_S - 1 <= first)
    if CALL.RIGHT is not None:
        visible = visible & (start + CALL.BLOCK_S - 1 <= first + CALL.RIGHT)
    if CALL.LEFT is not None:
        visible = visible & (start >= first + CALL.BLOCK_T - 1 - CALL.LEFT)
    return visible & (ALWAYS and not CALL.HAS_KEY_LENGTHS and CALL.S <= CALL.T)


@triton.jit
def _rounded(numbers, dtype: tl.constexpr):
    """float32 numbers of at least 0, rounded to the digits of a dtype; half goes up.

    A cast there and back would use the slow instruction for single conversions.
    """
    if dtype == tl.float32:
        return numbers
    else:
        LOST: tl.constexpr = 13 if dtype == tl.float16 else 16
        bits = numbers.to(tl.int32, bitcast=True) + (1 << (LOST - 1))
        return (bits & -(1 << LOST)).to(tl.float32, bitcast=True)


@triton.jit
def _highest(scores, broken, CALL: tl.constexpr):
    """The highest score of each row, NaN aside."""
    highest = tl.max(scores, axis=1)
    if CALL.HIDES:
        if broken:
            only_then()
            highest = tl.max(tl.where(scores == scores, scores, float("-inf")), axis=1)
    return highest


@triton.jit(repr=lambda call: "attention_tiled_forward")
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
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_S: tl.constexpr = CALL.BLOCK_S
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_S == 0
    blocks: tl.constexpr = (CALL.T + BLOCK_T - 1) // BLOCK_T
    program = tl.program_id(0)
    # The last queries of a causal row see the most keys, so they start first.
    first = (blocks - 1 - program % blocks) * BLOCK_T
    n = program // blocks % (CALL.K * CALL.GROUP)
    b = (program // blocks // (CALL.K * CALL.GROUP)).to(tl.int64)
    rows = first + tl.arange(0, BLOCK_T)
    features = tl.arange(0, BLOCK_H)
    query_length = load_length(
        Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
    )
    key_length = load_length(
        Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
    )
    q = load_tile(Tensor(query, STRIDES.QUERY), b, n, rows, features, CALL.T, CALL.H, T_EXACT)
    highest = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    mixed = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    queries = Queries(
        key=key, value=value, bias=bias, mask=mask, b=b, n=n, head=n // CALL.GROUP,
        start=first, rows=rows,
        query_length=query_length, key_length=key_length,
    )  # fmt: skip
    begin, end = _keys_in_sight(first, first + BLOCK_T - 1, query_length, key_length, CALL)
    for start in range(begin, end, BLOCK_S):
        columns = start + tl.arange(0, BLOCK_S)
        visible = _anything_visible(queries, columns, STRIDES, CALL)
        if visible != 0:
            k, v, broken = load_keys_and_values(
                Tensor(key, STRIDES.KEY),
                Tensor(value, STRIDES.VALUE),
                b,
                n // CALL.GROUP,
                columns,
                features,
                key_length,
                S_EXACT,
                CALL,
            )
            whole = _all_visible(first, start, CALL)
            scores = scores_of(q, k, broken, queries, columns, whole, 0, STRIDES, CALL)
            new_highest = tl.maximum(highest, _highest(scores, broken, CALL))
            base = tl.where(new_highest > float("-inf"), new_highest, 0.0)
            weights = exponential(scores - base[:, None], CALL)
            if not CALL.HAS_BIAS:
                weights = _rounded(weights, v.dtype)
            shrink = exponential(highest - base, CALL)
            total = total * shrink + tl.sum(weights, axis=1)
            mixed = mixed * shrink[:, None]
            mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision=CALL.PRECISION)
            highest = new_highest
    blind = total == 0
    total = tl.where(blind, 1.0, total)
    mixed = mixed / total[:, None]
    store_tile(Tensor(out, STRIDES.OUT), mixed, b, n, rows, features, CALL.T, CALL.H, T_EXACT)
    if q.dtype != tl.float32 and not CALL.HAS_BIAS:
        lost = mixed - mixed.to(q.dtype).to(tl.float32)
        store_tile(Tensor(rest, STRIDES.OUT), lost, b, n, rows, features, CALL.T, CALL.H, T_EXACT)
    saved = (b * (CALL.K * CALL.GROUP) + n) * CALL.T + rows
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    tl.store(highest_scores + saved, highest, mask=rows < CALL.T)
    # An inverse of 0 makes every recomputed probability of a blind row 0.
    tl.store(inverse_sums + saved, tl.where(blind, 0.0, 1.0 / total), mask=rows < CALL.T)


@triton.jit(repr=lambda call: "attention_tiled_backward_queries")
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
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_S: tl.constexpr = CALL.BLOCK_S
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_S == 0
    blocks: tl.constexpr = (CALL.T + BLOCK_T - 1) // BLOCK_T
    program = tl.program_id(0)
    first = (blocks - 1 - program % blocks) * BLOCK_T
    n = program // blocks % (CALL.K * CALL.GROUP)
    b = (program // blocks // (CALL.K * CALL.GROUP)).to(tl.int64)
    rows = first + tl.arange(0, BLOCK_T)
    features = tl.arange(0, BLOCK_H)
    query_length = load_length(
        Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
    )
    key_length = load_length(
        Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
    )
    q = load_tile(Tensor(query, STRIDES.QUERY), b, n, rows, features, CALL.T, CALL.H, T_EXACT)
    do = load_tile(Tensor(d_out, STRIDES.D_OUT), b, n, rows, features, CALL.T, CALL.H, T_EXACT)
    saved = (b * (CALL.K * CALL.GROUP) + n) * CALL.T + rows
    highest = tl.load(highest_scores + saved, mask=rows < CALL.T, other=0.0)
    inverse = without_nan(tl.load(inverse_sums + saved, mask=rows < CALL.T, other=0.0), CALL)
    PASSES: tl.constexpr = 2 if CALL.HAS_BIAS and q.dtype != tl.float32 else 1
    if PASSES == 2:
        row_delta = tl.zeros([BLOCK_T], tl.float32)
    else:
        mixed = load_tile(
            Tensor(out, STRIDES.OUT), b, n, rows, features, CALL.T, CALL.H, T_EXACT
        ).to(tl.float32)
        if q.dtype != tl.float32:
            lost = load_tile(
                Tensor(rest, STRIDES.OUT), b, n, rows, features, CALL.T, CALL.H, T_EXACT
            )
            mixed += lost.to(tl.float32)
        row_delta = without_nan(tl.sum(mixed * do.to(tl.float32), axis=1), CALL)
    blind = inverse == 0
    if CALL.MAY_BLIND:
        # A query that sees nothing, and its cotangent, may hold anything.
        row_delta = tl.where(blind, 0.0, row_delta)
        do = tl.where(blind[:, None], 0.0, do).to(do.dtype)
    dq = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    queries = Queries(
        key=key, value=value, bias=bias, mask=mask, b=b, n=n, head=n // CALL.GROUP,
        start=first, rows=rows,
        query_length=query_length, key_length=key_length,
    )  # fmt: skip
    begin, end = _keys_in_sight(first, first + BLOCK_T - 1, query_length, key_length, CALL)
    if CALL.HAS_BIAS:
        # The gradient of the bias is written everywhere, so no tile is left out.
        begin = 0
        end = CALL.S
    for step in tl.static_range(PASSES):
        for start in range(begin, end, BLOCK_S):
            columns = start + tl.arange(0, BLOCK_S)
            visible = 1
            if not CALL.HAS_BIAS:
                visible = _anything_visible(queries, columns, STRIDES, CALL)
            if visible != 0:
                k, v, broken = load_keys_and_values(
                    Tensor(key, STRIDES.KEY),
                    Tensor(value, STRIDES.VALUE),
                    b,
                    n // CALL.GROUP,
                    columns,
                    features,
                    key_length,
                    S_EXACT,
                    CALL,
                )
                whole = _all_visible(first, start, CALL)
                scores = scores_of(q, k, broken, queries, columns, whole, 0, STRIDES, CALL)
                weights = exponential(scores - highest[:, None], CALL) * inverse[:, None]
                d_weights = tl.dot(do, tl.trans(v), input_precision=CALL.PRECISION)
                if step == 0 and PASSES == 2:
                    row_delta += without_nan(tl.sum(weights * d_weights, axis=1), CALL)
                else:
                    if CALL.HAS_BIAS:
                        d_scores = gradient_of_scores(weights, d_weights, row_delta, 1.0, CALL)
                        store_scores(
                            Tensor(d_bias, STRIDES.D_BIAS), d_scores, b, n, rows, columns, CALL
                        )
                        d_scores *= CALL.EARLY
                    else:
                        d_scores = gradient_of_scores(
                            weights, d_weights, row_delta, CALL.EARLY, CALL
                        )
                    dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision=CALL.PRECISION)
    tl.store(delta + saved, row_delta, mask=rows < CALL.T)
    store_tile(
        Tensor(d_query, STRIDES.D_QUERY),
        dq * CALL.LATE,
        b,
        n,
        rows,
        features,
        CALL.T,
        CALL.H,
        T_EXACT,
    )


@triton.jit(repr=lambda call: "attention_tiled_backward_keys")
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
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    BLOCK_T: tl.constexpr = CALL.BLOCK_T
    BLOCK_S: tl.constexpr = CALL.BLOCK_S
    BLOCK_H: tl.constexpr = CALL.BLOCK_H
    T_EXACT: tl.constexpr = CALL.T % BLOCK_T == 0
    S_EXACT: tl.constexpr = CALL.S % BLOCK_S == 0
    blocks: tl.constexpr = (CALL.S + BLOCK_S - 1) // BLOCK_S
    program = tl.program_id(0)
    first = program % blocks * BLOCK_S
    head = program // blocks % CALL.K
    b = (program // blocks // CALL.K).to(tl.int64)
    columns = first + tl.arange(0, BLOCK_S)
    features = tl.arange(0, BLOCK_H)
    query_length = load_length(
        Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
    )
    key_length = load_length(
        Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
    )
    k, v, broken = load_keys_and_values(
        Tensor(key, STRIDES.KEY),
        Tensor(value, STRIDES.VALUE),
        b,
        head,
        columns,
        features,
        key_length,
        S_EXACT,
        CALL,
    )
    dk = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
    dv = tl.zeros([BLOCK_S, BLOCK_H], tl.float32)
    begin, end = _queries_in_sight(first, first + BLOCK_S - 1, query_length, key_length, CALL)
    for member in range(CALL.GROUP):
        n = head * CALL.GROUP + member
        saved = (b * (CALL.K * CALL.GROUP) + n) * CALL.T
        for start in range(begin, end, BLOCK_T):
            rows = start + tl.arange(0, BLOCK_T)
            queries = Queries(
                key=key, value=value, bias=bias, mask=mask, b=b, n=n, head=head,
                start=start, rows=rows,
                query_length=query_length, key_length=key_length,
            )  # fmt: skip
            visible = _anything_visible(queries, columns, STRIDES, CALL)
            if visible != 0:
                q = load_tile(
                    Tensor(query, STRIDES.QUERY), b, n, rows, features, CALL.T, CALL.H, T_EXACT
                )
                do = load_tile(
                    Tensor(d_out, STRIDES.D_OUT), b, n, rows, features, CALL.T, CALL.H, T_EXACT
                )
                highest = tl.load(highest_scores + saved + rows, mask=rows < CALL.T, other=0.0)
                inverse = tl.load(inverse_sums + saved + rows, mask=rows < CALL.T, other=0.0)
                inverse = without_nan(inverse, CALL)
                row_delta = tl.load(delta + saved + rows, mask=rows < CALL.T, other=0.0)
                whole = _all_visible(start, first, CALL)
                scores = scores_of(q, k, broken, queries, columns, whole, 0, STRIDES, CALL)
                weights = exponential(scores - highest[:, None], CALL) * inverse[:, None]
                if CALL.MAY_BLIND:
                    blind = inverse == 0
                    q = tl.where(blind[:, None], 0.0, q).to(q.dtype)
                    do = tl.where(blind[:, None], 0.0, do).to(do.dtype)
                dv = tl.dot(tl.trans(weights.to(do.dtype)), do, dv, input_precision=CALL.PRECISION)
                d_weights = tl.dot(do, tl.trans(v), input_precision=CALL.PRECISION)
                d_scores = gradient_of_scores(weights, d_weights, row_delta, CALL.EARLY, CALL)
                d_scores = d_scores.to(q.dtype)
                dk = tl.dot(tl.trans(d_scores), q, dk, input_precision=CALL.PRECISION)
    store_tile(
        Tensor(d_key, STRIDES.D_KEY),
        dk * CALL.LATE,
        b,
        head,
        columns,
        features,
        CALL.S,
        CALL.H,
        S_EXACT,
    )
    store_tile(
        Tensor(d_value, STRIDES.D_VALUE), dv, b, head, columns, features, CALL.S, CALL.H, S_EXACT
    )
