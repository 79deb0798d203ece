"""Device functions that the row and the tiled attention kernels share.

Query, key, value and their gradients are read and written by `../tiles.py`. The strides of a bias
or mask are a constexpr tuple of numbers of elements, (batch, head, query, key), 0 to broadcast.
STRIDES and CALL are those of `triton.py`.

**NaN and infinity in keys and values.** A product with a probability of 0 would carry the NaN of a
hidden key to every query. So kernels ask of each tile whether anything in it is not finite
(`any_not_finite`), and if so go a longer way: such entries become 0 in the products, and the scores
of their key become NaN (`_poison`), which reaches only the queries that see the key.
"""

# pyright: basic
# A kernel is in Triton's language, whose parameters have no types.

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..tiles import (
    Tensor,
    any_not_finite,
    is_finite,
    load_tile,
    only_then,
    tile_pointers,
)

LOG2E = tl.constexpr(1.4426950408889634)


class Queries(NamedTuple):
    """A tile of queries, and what the call gives about their pairs with keys.

    key, value: pointers; their strides are STRIDES.KEY and STRIDES.VALUE.
    bias, mask: pointers, of all pairs; their strides are STRIDES.BIAS and STRIDES.MASK.
    b, n, head: batch row, query head and key head; the first, if several heads share a tile.
    start, rows: index of the first query, and of all.
    query_length, key_length: numbers of valid queries and keys of the batch row.
    """

    key: Any
    value: Any
    bias: Any
    mask: Any
    b: Any
    n: Any
    head: Any
    start: Any
    rows: Any
    query_length: Any
    key_length: Any


@triton.jit
def _score_pointers(tensor, b, n, rows, columns, CALL: tl.constexpr):
    strides: tl.constexpr = tensor.strides
    start = tensor.pointer + b * strides[0] + n.to(tl.int64) * strides[1]
    if CALL.T * strides[2] >= 2**31:
        rows = rows.to(tl.int64)
    return start + rows[:, None] * strides[2] + columns[None, :] * strides[3]


@triton.jit
def load_scores(tensor, queries, columns, MEMBER: tl.constexpr, CALL: tl.constexpr):
    """A tile of the bias or the mask, 0 past T and S."""
    rows = queries.rows
    inside = (rows[:, None] < CALL.T) & (columns[None, :] < CALL.S)
    pointers = _score_pointers(tensor, queries.b, queries.n + MEMBER, rows, columns, CALL)
    return tl.load(pointers, mask=inside, other=0)


@triton.jit
def store_scores(tensor, scores, b, n, rows, columns, CALL: tl.constexpr):
    """Writes a tile of the gradient of the scores, without scale."""
    inside = (rows[:, None] < CALL.T) & (columns[None, :] < CALL.S)
    tl.store(_score_pointers(tensor, b, n, rows, columns, CALL), scores, mask=inside)


@triton.jit
def pairs_allowed(
    queries, columns, MEMBER: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr
):
    """Boolean `[rows, columns]`: which keys each query may see."""
    rows = queries.rows[:, None]
    keys = columns[None, :]
    allowed = keys < queries.key_length
    if CALL.IS_CAUSAL:
        allowed = allowed & (keys <= rows)
    if CALL.LEFT is not None:
        allowed = allowed & (keys >= rows - CALL.LEFT)
    if CALL.RIGHT is not None:
        allowed = allowed & (keys <= rows + CALL.RIGHT)
    if CALL.HAS_QUERY_LENGTHS:
        allowed = allowed & (rows < queries.query_length)
    elif CALL.S > CALL.T:
        # Rows of the last tile that are no queries must not see keys that no query sees.
        allowed = allowed & (rows < CALL.T)
    if CALL.HAS_MASK:
        given = load_scores(Tensor(queries.mask, STRIDES.MASK), queries, columns, MEMBER, CALL)
        allowed = allowed & (given != 0)
    return allowed


@triton.jit
def of_head(tile, MEMBER: tl.constexpr, CALL: tl.constexpr):
    """The features of one of the heads that share a tile, 0 in place of the others."""
    if CALL.HEADS > 1:
        is_own = tl.arange(0, CALL.BLOCK_H) // CALL.H == MEMBER
        tile = tl.where(is_own[None, :], tile, 0.0).to(tile.dtype)
    return tile


@triton.jit
def load_head(
    tensor, b, head, rows, LENGTH, EXACT: tl.constexpr, MEMBER: tl.constexpr, CALL: tl.constexpr
):
    """Loads what `of_head` selects: a mask of the load costs less than a selection."""
    features = tl.arange(0, CALL.BLOCK_H)
    if CALL.HEADS == 1:
        return load_tile(tensor, b, head, rows, features, LENGTH, CALL.H, EXACT)
    else:
        own = (rows[:, None] < LENGTH) & (features[None, :] // CALL.H == MEMBER)
        return tl.load(tile_pointers(tensor, b, head, rows, features), mask=own, other=0.0)


@triton.jit
def load_keys_and_values(
    key, value, b, head, columns, features, length, EXACT: tl.constexpr, CALL: tl.constexpr
):
    """A tile of keys, one of values, and whether anything in them is NaN or infinite.

    length: number of valid keys; what lies past it is not read.

    If keys can be hidden, such entries are 0 in the tiles: see `scores_of`.
    """
    WIDTH: tl.constexpr = CALL.H * CALL.HEADS
    ALL: tl.constexpr = EXACT and not CALL.HAS_KEY_LENGTHS
    k = load_tile(key, b, head, columns, features, length, WIDTH, ALL)
    v = load_tile(value, b, head, columns, features, length, WIDTH, ALL)
    broken = False
    if CALL.HIDES or CALL.HEADS > 1:
        broken = any_not_finite(k, v)
    return finite_if(k, broken, CALL), finite_if(v, broken, CALL), broken


@triton.jit
def finite_if(tile, broken, CALL: tl.constexpr):
    """The tile, with 0 for NaN and infinity if it is broken and keys can be hidden."""
    if CALL.HIDES:
        if broken:
            only_then()
            tile = tl.where(is_finite(tile), tile, 0.0).to(tile.dtype)
    return tile


@triton.jit
def of_head_if(tile, broken, MEMBER: tl.constexpr, CALL: tl.constexpr):
    """The tile, or `of_head` if it is broken and a product would spoil the other heads."""
    if CALL.HEADS > 1 and not CALL.HIDES:
        if broken:
            only_then()
            tile = of_head(tile, MEMBER, CALL)
    return tile


@triton.jit
def _poison(queries, columns, MEMBER: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr):
    """What to add to the scores of each key: NaN if the key or its value is not finite, else 0."""
    features = tl.arange(0, CALL.BLOCK_H)
    b, head = queries.b, queries.head
    WIDTH: tl.constexpr = CALL.H * CALL.HEADS
    k = load_tile(
        Tensor(queries.key, STRIDES.KEY), b, head, columns, features, CALL.S, WIDTH, False
    )
    v = load_tile(
        Tensor(queries.value, STRIDES.VALUE), b, head, columns, features, CALL.S, WIDTH, False
    )
    finite = is_finite(of_head(k, MEMBER, CALL)) & is_finite(of_head(v, MEMBER, CALL))
    broken = tl.max(tl.where(finite, 0, 1), axis=1)
    return tl.where(broken > 0, float("nan"), 0.0)


@triton.jit
def scores_of(
    q,
    k,
    broken,
    queries,
    columns,
    whole,
    MEMBER: tl.constexpr,
    STRIDES: tl.constexpr,
    CALL: tl.constexpr,
):
    """(scale * q k^T + bias) for `exponential`, -inf for hidden pairs.

    broken: whether keys or values of the tile may be not finite.
    whole: whether every pair of the tile is visible; a constexpr or a scalar.
    MEMBER: which of several heads in a tile.
    """
    k = of_head_if(k, broken, MEMBER, CALL)
    scores = tl.dot(q, tl.trans(k), input_precision=CALL.PRECISION)
    if CALL.HIDES:
        if broken:
            only_then()
            scores += _poison(queries, columns, MEMBER, STRIDES, CALL)[None, :]
    if CALL.HAS_BIAS:
        extra = load_scores(Tensor(queries.bias, STRIDES.BIAS), queries, columns, MEMBER, CALL)
        scores = scores * CALL.SCALE + extra.to(tl.float32)
    else:
        scores = scores * (CALL.SCALE * LOG2E)
    if whole == False:  # noqa: E712 (a tensor)
        only_then()
        scores = _hide(scores, queries, columns, MEMBER, STRIDES, CALL)
    return scores


@triton.jit
def _hide(
    scores, queries, columns, MEMBER: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr
):
    """The scores, -inf for hidden pairs."""
    allowed = pairs_allowed(queries, columns, MEMBER, STRIDES, CALL)
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def exponential(differences, CALL: tl.constexpr):
    """exp of a difference of two results of `scores_of`.

    Without a bias those hold the factor log2(e) already. With one, which may be the largest finite
    number, only the difference is multiplied.
    """
    if CALL.HAS_BIAS:
        differences = differences * LOG2E
    return tl.exp2(differences)


@triton.jit
def without_nan(numbers, CALL: tl.constexpr):
    """0 in place of NaN, for numbers of rows: a query that sees NaN must not spoil other keys."""
    if CALL.HIDES:
        numbers = tl.where(numbers == numbers, numbers, 0.0)
    return numbers


@triton.jit
def gradient_of_scores(weights, d_weights, delta, FACTOR: tl.constexpr, CALL: tl.constexpr):
    """FACTOR times the gradient of the scores; the factor costs no instruction of its own."""
    d_scores = weights * (d_weights * FACTOR - (delta * FACTOR)[:, None])
    if CALL.HIDES and CALL.HAS_BIAS:
        # An infinite cotangent must not reach the bias of a hidden pair.
        d_scores = tl.where(weights == 0, 0.0, d_scores)
    return d_scores
