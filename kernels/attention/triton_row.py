"""Attention with a head's keys and values on chip: one launch forward, one backward.

A program owns one key head of one batch row (or of ROWS batch rows, one after the other). It holds
the keys and values, in one tile or in several, and takes the queries a tile at a time. Pairs of
tiles in which nothing is visible are left out, such as those above the diagonal of a causal call.
A whole row of scores is in registers, so nothing is saved for the backward pass: it recomputes
the softmax, takes delta as rowsum(P * dP) (FlashAttention, Dao et al. 2022, appendix B.2, has
rowsum(dO * O), which is equal), and writes each gradient once. Each tensor moves to or from memory
once: four forward, seven backward. No atomics: two runs give the same bits.

Narrow heads share a tile of 16 features, HEADS heads in each (see `row_tiles.heads_together`). A
product of two such tiles adds up the features of one head, since those of the others are 0 in one
of them.
"""

# pyright: basic
# A kernel is in Triton's language, whose parameters have no types.

import triton
import triton.language as tl

from ..tiles import Tensor, load_length, store_tile
from .triton_tiles import (
    Queries,
    exponential,
    finite_if,
    gradient_of_scores,
    load_head,
    load_keys_and_values,
    of_head_if,
    scores_of,
    store_scores,
    without_nan,
)


@triton.jit
def _load_keys_and_values(key, value, b, head, features, length, CALL: tl.constexpr):
    """Tiles of keys and of values, and whether each pair of them is broken: see `triton_tiles`."""
    k, v, broken = (), (), ()
    for j in tl.static_range(len(CALL.KEYS)):
        columns = CALL.KEYS[j].first + tl.arange(0, CALL.KEYS[j].size)
        keys, values, not_finite = load_keys_and_values(
            key, value, b, head, columns, features, length, CALL.KEYS[j].is_exact, CALL
        )
        k, v, broken = k + (keys,), v + (values,), broken + (not_finite,)
    return k, v, broken


@triton.jit
def _meets(queries, J: tl.constexpr, CALL: tl.constexpr):
    """Whether any query of the tile may see any key of the tile J, by the lengths."""
    # A row without any key is rare, and a branch for it would spill registers before Hopper.
    if len(CALL.KEYS) == 1 and not CALL.HAS_QUERY_LENGTHS:
        return True
    elif CALL.HAS_KEY_LENGTHS or CALL.HAS_QUERY_LENGTHS:
        return (CALL.KEYS[J].first < queries.key_length) & (queries.start < queries.query_length)
    else:
        return True


@triton.jit
def _own_tiles(tensor, tiles, broken, b, head, length, CALL: tl.constexpr):
    """The tiles of keys or values for each head that shares them, 0 in place of other heads."""
    HEADS: tl.constexpr = CALL.HEADS
    if HEADS == 1:
        return tiles
    else:
        own = ()
        for member in tl.static_range(HEADS):
            for j in tl.static_range(len(CALL.KEYS)):
                columns = CALL.KEYS[j].first + tl.arange(0, CALL.KEYS[j].size)
                tile = load_head(tensor, b, head, columns, length, False, member, CALL)
                own = own + (finite_if(tile, broken[j], CALL),)
        return own


@triton.jit
def _replaced(tiles, J: tl.constexpr, tile):
    """The tiles with another one at J: an entry of a tuple cannot be assigned."""
    found = ()
    for j in tl.static_range(len(tiles)):
        if j == J:
            found = found + (tile,)
        else:
            found = found + (tiles[j],)
    return found


@triton.jit
def _in_head(new, old, MEMBER: tl.constexpr, CALL: tl.constexpr):
    """`new` in the features of one head, `old` in those of the heads that share its tile."""
    if CALL.HEADS == 1:
        return new
    else:
        is_own = tl.arange(0, CALL.BLOCK_H) // CALL.H == MEMBER
        return tl.where(is_own[None, :], new, old)


@triton.jit
def _plus_product(total, a, b, MEMBER: tl.constexpr, CALL: tl.constexpr):
    """total + a b, where b is 0 outside the features of one head."""
    if CALL.HEADS == 1:
        return tl.dot(a, b, total, input_precision=CALL.PRECISION)
    else:
        # Without the selection NaN in a would pass to the other heads.
        product = tl.dot(a, b, input_precision=CALL.PRECISION)
        return _in_head(total + product, total, MEMBER, CALL)


@triton.jit
def _zeros(CALL: tl.constexpr):
    """A sum for each tile of keys."""
    tiles = ()
    for j in tl.static_range(len(CALL.KEYS)):
        tiles = tiles + (tl.full([CALL.KEYS[j].size, CALL.BLOCK_H], 0.0, tl.float32),)
    return tiles


@triton.jit
def _store_finished(
    d_key, d_value, dk, dv, b, head, I: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr
):
    """Writes the gradients of those tiles of keys and values that no queries before tile I see."""
    features = tl.arange(0, CALL.BLOCK_H)
    WIDTH: tl.constexpr = CALL.H * CALL.HEADS
    for j in tl.static_range(len(CALL.KEYS)):
        if CALL.FIRST_SEEN[j] == I:
            columns = CALL.KEYS[j].first + tl.arange(0, CALL.KEYS[j].size)
            store_tile(
                Tensor(d_key, STRIDES.D_KEY), dk[j] * CALL.LATE, b, head, columns, features,
                CALL.S, WIDTH, CALL.KEYS[j].is_exact,
            )  # fmt: skip
            store_tile(
                Tensor(d_value, STRIDES.D_VALUE), dv[j], b, head, columns, features,
                CALL.S, WIDTH, CALL.KEYS[j].is_exact,
            )  # fmt: skip


@triton.jit
def _softmax(
    q, k, broken, queries,
    I: tl.constexpr, MEMBER: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr,
):  # fmt: skip
    """Exponentials of the scores by tiles of keys in sight, the inverse of their sum, blind rows.

    The inverse is 1 for a row that sees nothing.
    """
    SIZE: tl.constexpr = CALL.QUERIES[I].size
    BEGIN: tl.constexpr = CALL.SIGHT[I][0]
    END: tl.constexpr = CALL.SIGHT[I][1]
    scores = ()
    highest = tl.full([SIZE], float("-inf"), tl.float32)
    for j in tl.static_range(BEGIN, END):
        columns = CALL.KEYS[j].first + tl.arange(0, CALL.KEYS[j].size)
        tile = tl.full([SIZE, CALL.KEYS[j].size], float("-inf"), tl.float32)
        if _meets(queries, j, CALL):
            tile = scores_of(
                q, k[j], broken[j], queries, columns, CALL.WHOLE[I][j], MEMBER, STRIDES, CALL
            )
        highest = tl.maximum(highest, tl.max(tile, axis=1))
        scores = scores + (tile,)
    if CALL.MAY_BLIND or CALL.HIDES:
        # Nothing is visible, or nothing but NaN.
        highest = tl.where(highest > float("-inf"), highest, 0.0)
    weights = ()
    total = tl.full([SIZE], 0.0, tl.float32)
    for j in tl.static_range(END - BEGIN):
        exponentials = exponential(scores[j] - highest[:, None], CALL)
        total += tl.sum(exponentials, axis=1)
        weights = weights + (exponentials,)
    blind = total == 0
    if CALL.MAY_BLIND:
        total = tl.where(blind, 1.0, total)
    return weights, 1.0 / total, blind


@triton.jit
def _attend(
    query, out, k, own_v, broken, queries,
    I: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr,
):  # fmt: skip
    """Writes the output of a tile of queries."""
    features = tl.arange(0, CALL.BLOCK_H)
    b, n, rows = queries.b, queries.n, queries.rows
    BEGIN: tl.constexpr = CALL.SIGHT[I][0]
    END: tl.constexpr = CALL.SIGHT[I][1]
    HEADS: tl.constexpr = CALL.HEADS
    WIDTH: tl.constexpr = CALL.H * HEADS
    EXACT: tl.constexpr = CALL.QUERIES[I].is_exact
    result = tl.full([CALL.QUERIES[I].size, CALL.BLOCK_H], 0.0, tl.float32)
    for member in tl.static_range(HEADS):
        q = load_head(Tensor(query, STRIDES.QUERY), b, n, rows, CALL.T, EXACT, member, CALL)
        weights, inverse, _ = _softmax(q, k, broken, queries, I, member, STRIDES, CALL)
        mixed = tl.full([CALL.QUERIES[I].size, CALL.BLOCK_H], 0.0, tl.float32)
        for j in tl.static_range(BEGIN, END):
            values = own_v[member * len(CALL.KEYS) + j]
            if _meets(queries, j, CALL):
                w = weights[j - BEGIN].to(values.dtype)
                mixed = _plus_product(mixed, w, values, member, CALL)
        result = _in_head(mixed * inverse[:, None], result, member, CALL)
    store_tile(Tensor(out, STRIDES.OUT), result, b, n, rows, features, CALL.T, WIDTH, EXACT)


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
    program = tl.program_id(0)
    TOGETHER: tl.constexpr = CALL.K // CALL.HEADS
    head = program % TOGETHER * CALL.HEADS
    features = tl.arange(0, CALL.BLOCK_H)
    for row in range(CALL.ROWS):
        b = (program // TOGETHER).to(tl.int64) * CALL.ROWS + row
        query_length = load_length(
            Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
        )
        key_length = load_length(
            Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
        )
        k, v, broken = _load_keys_and_values(
            Tensor(key, STRIDES.KEY), Tensor(value, STRIDES.VALUE), b, head, features,
            key_length, CALL,
        )  # fmt: skip
        own_v = _own_tiles(Tensor(value, STRIDES.VALUE), v, broken, b, head, key_length, CALL)
        for member in range(CALL.GROUP):
            n = head * CALL.GROUP + member
            for i in tl.static_range(len(CALL.QUERIES)):
                for start in range(
                    CALL.QUERIES[i].first, CALL.QUERIES[i].end, CALL.QUERIES[i].size
                ):
                    queries = Queries(
                        key=key, value=value, bias=bias, mask=mask, b=b, n=n, head=head,
                        start=start, rows=start + tl.arange(0, CALL.QUERIES[i].size),
                        query_length=query_length, key_length=key_length,
                    )  # fmt: skip
                    _attend(query, out, k, own_v, broken, queries, i, STRIDES, CALL)


@triton.jit
def _attend_back(
    query, d_out, d_query, d_bias, k, own_k, v, dk, dv, bias_sum, broken, queries,
    I: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a tile of queries; returns the sums with its part of the others."""
    features = tl.arange(0, CALL.BLOCK_H)
    b, n, rows = queries.b, queries.n, queries.rows
    BEGIN: tl.constexpr = CALL.SIGHT[I][0]
    END: tl.constexpr = CALL.SIGHT[I][1]
    HEADS: tl.constexpr = CALL.HEADS
    WIDTH: tl.constexpr = CALL.H * HEADS
    EXACT: tl.constexpr = CALL.QUERIES[I].is_exact
    dq = tl.full([CALL.QUERIES[I].size, CALL.BLOCK_H], 0.0, tl.float32)
    for member in tl.static_range(HEADS):
        q = load_head(Tensor(query, STRIDES.QUERY), b, n, rows, CALL.T, EXACT, member, CALL)
        do = load_head(Tensor(d_out, STRIDES.D_OUT), b, n, rows, CALL.T, EXACT, member, CALL)
        exponentials, inverse, blind = _softmax(q, k, broken, queries, I, member, STRIDES, CALL)
        inverse = without_nan(inverse, CALL)
        if CALL.MAY_BLIND:
            # NaN in a query that sees nothing must not reach the keys.
            q = tl.where(blind[:, None], 0.0, q).to(q.dtype)
            do = tl.where(blind[:, None], 0.0, do).to(do.dtype)
        weights = ()
        d_weights = ()
        delta = tl.full([CALL.QUERIES[I].size], 0.0, tl.float32)
        for j in tl.static_range(BEGIN, END):
            w = exponentials[j - BEGIN] * inverse[:, None]
            values = of_head_if(v[j], broken[j], member, CALL)
            dw = tl.full([CALL.QUERIES[I].size, CALL.KEYS[j].size], 0.0, tl.float32)
            d_values = dv[j]
            if _meets(queries, j, CALL):
                dw = tl.dot(do, tl.trans(values), input_precision=CALL.PRECISION)
                delta += tl.sum(w * dw, axis=1)
                d_values = _plus_product(d_values, tl.trans(w.to(do.dtype)), do, member, CALL)
            dv = _replaced(dv, j, d_values)
            weights = weights + (w,)
            d_weights = d_weights + (dw,)
        delta = without_nan(delta, CALL)
        for j in tl.static_range(BEGIN, END):
            d_scores = gradient_of_scores(
                weights[j - BEGIN], d_weights[j - BEGIN], delta,
                1.0 if CALL.HAS_BIAS else CALL.EARLY, CALL,
            )  # fmt: skip
            if CALL.SUMS_BIAS:
                bias_sum += d_scores
            elif CALL.HAS_BIAS:
                columns = CALL.KEYS[j].first + tl.arange(0, CALL.KEYS[j].size)
                store_scores(
                    Tensor(d_bias, STRIDES.D_BIAS), d_scores, b, n + member, rows, columns, CALL
                )
            if CALL.HAS_BIAS:
                d_scores *= CALL.EARLY
            d_scores = d_scores.to(q.dtype)
            d_keys, keys = dk[j], own_k[member * len(CALL.KEYS) + j]
            if _meets(queries, j, CALL):
                d_keys = _plus_product(d_keys, tl.trans(d_scores), q, member, CALL)
                dq = _plus_product(dq, d_scores, keys, member, CALL)
            dk = _replaced(dk, j, d_keys)
    if CALL.HAS_BIAS and not CALL.SUMS_BIAS:
        for j in tl.static_range(len(CALL.KEYS)):
            if j < BEGIN or j >= END:
                columns = CALL.KEYS[j].first + tl.arange(0, CALL.KEYS[j].size)
                unseen = tl.full([CALL.QUERIES[I].size, CALL.KEYS[j].size], 0.0, tl.float32)
                store_scores(Tensor(d_bias, STRIDES.D_BIAS), unseen, b, n, rows, columns, CALL)
    store_tile(
        Tensor(d_query, STRIDES.D_QUERY), dq * CALL.LATE, b, n, rows, features,
        CALL.T, WIDTH, EXACT,
    )  # fmt: skip
    return dk, dv, bias_sum


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
    if CALL.PACKED:
        d_key = d_query
        d_value = d_query
    # The bias's gradient is summed over rows only if one tile holds all pairs.
    tl.static_assert(
        not CALL.SUMS_BIAS
        or (CALL.QUERIES[0].size >= CALL.T and len(CALL.KEYS) == 1 and CALL.GROUP * CALL.HEADS == 1)
    )
    program = tl.program_id(0)
    TOGETHER: tl.constexpr = CALL.K // CALL.HEADS
    head = program % TOGETHER * CALL.HEADS
    features = tl.arange(0, CALL.BLOCK_H)
    bias_sum = 0.0
    if CALL.SUMS_BIAS:
        bias_sum = tl.full([CALL.QUERIES[0].size, CALL.KEYS[0].size], 0.0, tl.float32)
    for row in range(CALL.ROWS):
        b = (program // TOGETHER).to(tl.int64) * CALL.ROWS + row
        query_length = load_length(
            Tensor(query_lengths, STRIDES.QUERY_LENGTHS), b, CALL.HAS_QUERY_LENGTHS, CALL.T
        )
        key_length = load_length(
            Tensor(key_lengths, STRIDES.KEY_LENGTHS), b, CALL.HAS_KEY_LENGTHS, CALL.S
        )
        k, v, broken = _load_keys_and_values(
            Tensor(key, STRIDES.KEY), Tensor(value, STRIDES.VALUE), b, head, features,
            key_length, CALL,
        )  # fmt: skip
        own_k = _own_tiles(Tensor(key, STRIDES.KEY), k, broken, b, head, key_length, CALL)
        dk = _zeros(CALL)
        dv = _zeros(CALL)
        # From the last queries to the first: the last keys of a causal call are finished early.
        for i in tl.static_range(len(CALL.QUERIES) - 1, -1, -1):
            for member in range(CALL.GROUP):
                n = head * CALL.GROUP + member
                for start in range(
                    CALL.QUERIES[i].first, CALL.QUERIES[i].end, CALL.QUERIES[i].size
                ):
                    queries = Queries(
                        key=key, value=value, bias=bias, mask=mask, b=b, n=n, head=head,
                        start=start, rows=start + tl.arange(0, CALL.QUERIES[i].size),
                        query_length=query_length, key_length=key_length,
                    )  # fmt: skip
                    dk, dv, bias_sum = _attend_back(
                        query, d_out, d_query, d_bias, k, own_k, v, dk, dv, bias_sum, broken,
                        queries, i, STRIDES, CALL,
                    )  # fmt: skip
            _store_finished(d_key, d_value, dk, dv, b, head, i, STRIDES, CALL)
    if CALL.SUMS_BIAS:
        first = (program // TOGETHER).to(tl.int64)
        rows = tl.arange(0, CALL.QUERIES[0].size)
        columns = tl.arange(0, CALL.KEYS[0].size)
        store_scores(Tensor(d_bias, STRIDES.D_BIAS), bias_sum, first, head, rows, columns, CALL)
