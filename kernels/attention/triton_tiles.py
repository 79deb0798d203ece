"""Device functions that the row and the tiled attention kernels share.

Query, key, value and their gradients are read and written by `../tiles.py`. The strides of a bias
or mask are a constexpr tuple of numbers of elements, (batch, head, query, key), 0 to broadcast.
STRIDES and CALL are
those of `triton.py`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..tiles import Tensor, load_tile

LOG2E = tl.constexpr(1.4426950408889634)


class Pairs(NamedTuple):
    """A tile of pairs of queries and keys, and what the call gives about them.

    bias, mask: pointers, of all pairs; their strides are STRIDES.BIAS and STRIDES.MASK.
    b, n: batch row and query head.
    rows, columns: indices of the queries and the keys.
    query_length, key_length: numbers of valid queries and keys of the batch row.
    """

    bias: Any
    mask: Any
    b: Any
    n: Any
    rows: Any
    columns: Any
    query_length: Any
    key_length: Any


@triton.jit
def _score_pointers(tensor, pairs, CALL: tl.constexpr):
    strides: tl.constexpr = tensor.strides
    start = tensor.pointer + pairs.b * strides[0] + pairs.n.to(tl.int64) * strides[1]
    rows = pairs.rows
    if CALL.T * strides[2] >= 2**31:
        rows = rows.to(tl.int64)
    return start + rows[:, None] * strides[2] + pairs.columns[None, :] * strides[3]


@triton.jit
def load_scores(tensor, pairs, CALL: tl.constexpr):
    """A tile of the bias or the mask, 0 past T and S."""
    inside = (pairs.rows[:, None] < CALL.T) & (pairs.columns[None, :] < CALL.S)
    return tl.load(_score_pointers(tensor, pairs, CALL), mask=inside, other=0)


@triton.jit
def store_scores(tensor, scores, pairs, CALL: tl.constexpr):
    """Writes a tile of the gradient of the scores, without scale."""
    inside = (pairs.rows[:, None] < CALL.T) & (pairs.columns[None, :] < CALL.S)
    tl.store(_score_pointers(tensor, pairs, CALL), scores, mask=inside)


@triton.jit
def pairs_allowed(pairs, STRIDES: tl.constexpr, CALL: tl.constexpr):
    """Boolean `[rows, columns]`: which keys each query may see."""
    rows = pairs.rows[:, None]
    columns = pairs.columns[None, :]
    allowed = columns < pairs.key_length
    if CALL.IS_CAUSAL:
        allowed = allowed & (columns <= rows)
    if CALL.LEFT is not None:
        allowed = allowed & (columns >= rows - CALL.LEFT)
    if CALL.RIGHT is not None:
        allowed = allowed & (columns <= rows + CALL.RIGHT)
    if CALL.HAS_QUERY_LENGTHS:
        allowed = allowed & (rows < pairs.query_length)
    elif CALL.S > CALL.T:
        # Rows of the last block that are no queries must not see keys that no query sees.
        allowed = allowed & (rows < CALL.T)
    if CALL.HAS_MASK:
        given = load_scores(Tensor(pairs.mask, STRIDES.MASK), pairs, CALL)
        allowed = allowed & (given != 0)
    return allowed


@triton.jit
def load_keys_and_values(
    key, value, b, head, columns, features, EXACT: tl.constexpr, CALL: tl.constexpr
):
    """Keys, values, and what to add to the scores of each key.

    A product with a probability of 0 would carry the NaN of a hidden key or value to every query.
    So entries that are not finite become 0, and the scores of their key become NaN, which reaches
    only the queries that see the key.
    """
    k = load_tile(key, b, head, columns, features, CALL.S, CALL.H, EXACT)
    v = load_tile(value, b, head, columns, features, CALL.S, CALL.H, EXACT)
    poison = tl.zeros([columns.shape[0]], tl.float32)
    if CALL.HIDES:
        wide_k = k.to(tl.float32)
        wide_v = v.to(tl.float32)
        k_finite = tl.abs(wide_k) < float("inf")
        v_finite = tl.abs(wide_v) < float("inf")
        broken = tl.max(tl.where(k_finite & v_finite, 0, 1), axis=1)
        poison = tl.where(broken > 0, float("nan"), 0.0)
        k = tl.where(k_finite, wide_k, 0.0).to(k.dtype)
        v = tl.where(v_finite, wide_v, 0.0).to(v.dtype)
    return k, v, poison


@triton.jit
def scores_of(
    q, k, poison, pairs, OVERHANGS: tl.constexpr, STRIDES: tl.constexpr, CALL: tl.constexpr
):
    """(scale * q k^T + bias) for `exponential`, -inf for hidden pairs, and which pairs are allowed.

    OVERHANGS: some columns may be past S.
    """
    scores = tl.dot(q, tl.trans(k), input_precision=CALL.PRECISION)
    if CALL.HAS_BIAS:
        extra = load_scores(Tensor(pairs.bias, STRIDES.BIAS), pairs, CALL)
        scores = scores * CALL.SCALE + extra.to(tl.float32)
    else:
        scores = scores * (CALL.SCALE * LOG2E)
    allowed = pairs_allowed(pairs, STRIDES, CALL)
    if CALL.HIDES:
        scores = tl.where(allowed, scores + poison[None, :], float("-inf"))
    elif OVERHANGS:
        scores = tl.where(pairs.columns[None, :] < CALL.S, scores, float("-inf"))
    return scores, allowed


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
def gradient_of_scores(
    weights, d_weights, delta, allowed, FACTOR: tl.constexpr, CALL: tl.constexpr
):
    """FACTOR times the gradient of the scores; the factor costs no instruction of its own."""
    d_scores = weights * (d_weights * FACTOR - (delta * FACTOR)[:, None])
    if CALL.HIDES:
        d_scores = tl.where(allowed, d_scores, 0.0)
    return d_scores
