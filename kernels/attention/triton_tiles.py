"""Device functions that the row and the tiled attention kernels share.

Query, key, value and their gradients are read and written as in `../tiles.py`; bias and mask are a
pointer and a constexpr tuple of strides in elements, (batch, head, query, key), 0 to broadcast.
"""

import triton
import triton.language as tl

from ..tiles import load_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_scores(
    pointer,
    b,
    n,
    rows,
    columns,
    STRIDES: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
):
    """A tile of the bias or the mask, 0 past T and S."""
    start = pointer + b * STRIDES[0] + n * STRIDES[1]
    pointers = start + rows[:, None] * STRIDES[2] + columns[None, :] * STRIDES[3]
    inside = (rows[:, None] < T) & (columns[None, :] < S)
    return tl.load(pointers, mask=inside, other=0)


@triton.jit
def store_scores(
    pointer,
    scores,
    b,
    n,
    rows,
    columns,
    STRIDES: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
):
    """Writes a tile of the gradient of the scores, without scale."""
    start = pointer + b * STRIDES[0] + n * STRIDES[1]
    pointers = start + rows[:, None] * STRIDES[2] + columns[None, :] * STRIDES[3]
    tl.store(pointers, scores, mask=(rows[:, None] < T) & (columns[None, :] < S))


@triton.jit
def pairs_allowed(
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
    """Boolean `[rows, columns]`: which keys each query may see."""
    allowed = columns[None, :] < key_length
    if IS_CAUSAL:
        allowed = allowed & (columns[None, :] <= rows[:, None])
    if LEFT is not None:
        allowed = allowed & (columns[None, :] >= rows[:, None] - LEFT)
    if RIGHT is not None:
        allowed = allowed & (columns[None, :] <= rows[:, None] + RIGHT)
    if HAS_QUERY_LENGTHS:
        allowed = allowed & (rows[:, None] < query_length)
    elif S > T:
        # Rows of the last block that are no queries must not see keys that no query sees.
        allowed = allowed & (rows[:, None] < T)
    if HAS_MASK:
        allowed = allowed & (load_scores(mask, b, n, rows, columns, MASK, T, S) != 0)
    return allowed


@triton.jit
def load_keys_and_values(
    key,
    value,
    b,
    head,
    columns,
    features,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    S: tl.constexpr,
    H: tl.constexpr,
    EXACT: tl.constexpr,
    HIDES: tl.constexpr,
):
    """Keys, values, and what to add to the scores of each key.

    A product with a probability of 0 would carry the NaN of a hidden key or value to every query.
    So what is not finite is taken out, and a key that held any gets a score of NaN, which reaches
    only the queries that see it.
    """
    k = load_tile(key, b, head, columns, features, KEY, S, H, EXACT)
    v = load_tile(value, b, head, columns, features, VALUE, S, H, EXACT)
    poison = tl.zeros([columns.shape[0]], tl.float32)
    if HIDES:
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
    q,
    k,
    poison,
    bias,
    mask,
    b,
    n,
    rows,
    columns,
    query_length,
    key_length,
    BIAS: tl.constexpr,
    MASK: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    SCALE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_QUERY_LENGTHS: tl.constexpr,
    HIDES: tl.constexpr,
    OVERHANGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(scale * q k^T + bias) for `exponential`, -inf where hidden, and which pairs are allowed.

    OVERHANGS: the columns may pass S.
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if HAS_BIAS:
        extra = load_scores(bias, b, n, rows, columns, BIAS, T, S)
        scores = scores * SCALE + extra.to(tl.float32)
    else:
        scores = scores * (SCALE * LOG2E)
    allowed = pairs_allowed(
        mask, b, n, rows, columns, query_length, key_length,
        MASK, T, S, IS_CAUSAL, LEFT, RIGHT, HAS_MASK, HAS_QUERY_LENGTHS,
    )  # fmt: skip
    if HIDES:
        scores = tl.where(allowed, scores + poison[None, :], float("-inf"))
    elif OVERHANGS:
        scores = tl.where(columns[None, :] < S, scores, float("-inf"))
    return scores, allowed


@triton.jit
def exponential(differences, HAS_BIAS: tl.constexpr):
    """exp of a difference of two of `scores_of`, which hold the factor log2(e) unless biased.

    A bias may be the largest number there is, so what is multiplied is the difference.
    """
    if HAS_BIAS:
        differences = differences * LOG2E
    return tl.exp2(differences)


@triton.jit
def gradient_of_scores(
    weights, d_weights, delta, allowed, FACTOR: tl.constexpr, HIDES: tl.constexpr
):
    """FACTOR times the gradient of the scores; the factor costs no instruction of its own."""
    d_scores = weights * (d_weights * FACTOR - (delta * FACTOR)[:, None])
    if HIDES:
        d_scores = tl.where(allowed, d_scores, 0.0)
    return d_scores
