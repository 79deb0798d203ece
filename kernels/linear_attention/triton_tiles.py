"""Device functions of the linear attention kernels. CALL is a `triton.Call`.

Besides tensors as in `../tiles.py` there are numbers, one per step and head, with strides (batch,
length, head), and states `[B, heads, H, W]`, whose stride is that of the batch alone.

NaN and infinity are rare, and to look for them in every number would take longer than the products.
So a kernel first takes its rows without guards, and probes a result into which every key, value and
number of a step goes: times 0 it is 0, or NaN if anything was broken. Only then it takes the rows
again, with guards: what is broken becomes 0, and the results that see it become NaN.
"""

import triton
import triton.language as tl

from ..tiles import load_tile

NEVER = tl.constexpr(2**30)
# Below this exp is 0 in float32, and sums over a chunk stay exact.
LOWEST = tl.constexpr(-131.0)


@triton.jit
def load_finite(
    tensor, b, head, rows, columns, guards, first, LENGTH, WIDTH: tl.constexpr, EXACT: tl.constexpr
):
    """A tile and `first`; if `guards`, with 0 for NaN and infinity, and the first broken row if it
    is one of these.
    """
    tile = load_tile(tensor, b, head, rows, columns, LENGTH, WIDTH, EXACT)
    first = tl.minimum(first, NEVER)
    if guards:
        # Keeps first results from arriving late, and the compiler from always doing what follows.
        tl.debug_barrier()
        wide = tile.to(tl.float32)
        finite = tl.abs(wide) < float("inf")
        broken = tl.max(tl.where(finite, 0, 1), axis=1)
        first = tl.minimum(first, tl.min(tl.where(broken > 0, rows, NEVER)))
        tile = tl.where(finite, wide, 0.0).to(tile.dtype)
    return tile, first


@triton.jit
def number_pointers(tensor, b, head, rows):
    strides: tl.constexpr = tensor.strides
    return tensor.pointer + b * strides[0] + head * strides[2] + rows * strides[1]


@triton.jit
def load_numbers(tensor, b, head, rows, LENGTH):
    """float32 `[rows]`, 0 past LENGTH."""
    pointers = number_pointers(tensor, b, head, rows)
    return tl.load(pointers, mask=rows < LENGTH, other=0.0).to(tl.float32)


@triton.jit
def store_numbers(tensor, numbers, b, head, rows, LENGTH: tl.constexpr):
    tl.store(number_pointers(tensor, b, head, rows), numbers, mask=rows < LENGTH)


@triton.jit
def load_beta(tensor, b, head, rows, guards, first, LENGTH):
    """beta of each step, and the first broken row, as `load_finite`."""
    beta = load_numbers(tensor, b, head, rows, LENGTH)
    first = tl.minimum(first, NEVER)
    if guards:
        finite = tl.abs(beta) < float("inf")
        first = tl.minimum(first, tl.min(tl.where(finite, NEVER, rows)))
        beta = tl.where(finite, beta, 0.0)
    return beta, first


@triton.jit
def load_decay(tensor, b, head, rows, guards, first, LENGTH):
    """Sums of the log decay over a chunk, and the first broken row, as `load_finite`.

    Returns:
      coarse, fine: `[rows]`, sums up to and including each row, of multiples of 1/512, which add
        exactly, and of the rest. A difference of whole sums would lose digits to a large decay
        before both.
      log_decay: `[rows]`.
      first: the first broken row.
    """
    log_decay = load_numbers(tensor, b, head, rows, LENGTH)
    first = tl.minimum(first, NEVER)
    if guards:
        fine = log_decay < float("inf")
        first = tl.minimum(first, tl.min(tl.where(fine, NEVER, rows)))
        log_decay = tl.where(fine, log_decay, 0.0)
    # A maximum would lose NaN.
    kept = tl.where(log_decay < LOWEST, LOWEST, log_decay)
    coarse = tl.floor(kept * 512 + 0.5) / 512
    return tl.cumsum(coarse, 0), tl.cumsum(kept - coarse, 0), log_decay, first


@triton.jit
def decays(coarse, fine, SIZE: tl.constexpr):
    """Decays within a chunk, from the sums of `load_decay`.

    Returns:
      between: `[SIZE, SIZE]`, from after step s to step t; undefined for later s.
      from_start: `[SIZE, 1]`, from before the chunk to each step.
      to_end: `[SIZE, 1]`, from after each step to the chunk's end.
      whole: a scalar.
    """
    last = tl.arange(0, SIZE) == SIZE - 1
    coarse_end = tl.sum(tl.where(last, coarse, 0.0))
    fine_end = tl.sum(tl.where(last, fine, 0.0))
    between = (coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :])
    to_end = (coarse_end - coarse) + (fine_end - fine)
    return (
        tl.exp(between),
        tl.exp(coarse + fine)[:, None],
        tl.exp(to_end)[:, None],
        tl.exp(coarse_end + fine_end),
    )


@triton.jit
def state_pointers(tensor, b, head, features, CALL: tl.constexpr):
    """The first column of each row of a state."""
    W: tl.constexpr = CALL.V + 1 if CALL.NORMALIZE else CALL.V
    start = tensor.pointer + b * tensor.strides + head.to(tl.int64) * (CALL.H * W)
    return start + features * W


@triton.jit
def load_state(tensor, b, head, features, columns, height, CALL: tl.constexpr):
    """`[H, V]` and the column after it, `[H]`, float32; 0 from row `height`, at most H, on."""
    pointers = state_pointers(tensor, b, head, features, CALL)
    inside = (features[:, None] < height) & (columns[None, :] < CALL.V)
    state = tl.load(pointers[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    keys = tl.zeros([features.shape[0]], tl.float32)
    if CALL.NORMALIZE:
        keys = tl.load(pointers + CALL.V, mask=features < height, other=0.0).to(tl.float32)
    return state, keys


@triton.jit
def store_state(tensor, state, keys, b, head, features, columns, CALL: tl.constexpr):
    """Writes what `load_state` reads, in the dtype of the tensor."""
    pointers = state_pointers(tensor, b, head, features, CALL)
    inside = (features[:, None] < CALL.H) & (columns[None, :] < CALL.V)
    dtype: tl.constexpr = tensor.pointer.dtype.element_ty
    tl.store(pointers[:, None] + columns[None, :], state.to(dtype), mask=inside)
    if CALL.NORMALIZE:
        tl.store(pointers + CALL.V, keys.to(dtype), mask=features < CALL.H)


@triton.jit
def unit_lower_inverse(lower, dtype: tl.constexpr, CALL: tl.constexpr):
    """`(I + lower)^-1` of a strictly lower triangular matrix.

    Inverts the blocks on the diagonal, twice as large each time: the inverse of [[A, 0], [C, B]]
    has -B^-1 C A^-1 below its diagonal. A series of powers would be shorter, but lose all digits if
    keys are alike.

    Products are of `dtype`, sums float32. Narrow products lose a digit or two if beta is near 2;
    a step of Newton's method recovers them.

    Returns:
      inverse, rest: of `dtype`; their sum is the inverse. The rest is not used in float32.
    """
    SIZE: tl.constexpr = CALL.BLOCK_T
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, lower, 0.0)
    high = lower.to(dtype)
    low = (lower - high.to(tl.float32)).to(dtype)
    size = 2
    # Unrolled, this would keep the masks of all sizes in registers.
    while size < SIZE:
        corner = (i // size != j // size) & (i // (2 * size) == j // (2 * size))
        narrow = inverse.to(dtype)
        product = tl.dot(narrow, tl.where(corner, high, 0.0), input_precision=CALL.PRECISION)
        inverse -= tl.dot(product.to(dtype), narrow, input_precision=CALL.PRECISION)
        size *= 2
    inverse = inverse.to(dtype)
    rest = inverse
    if dtype != tl.float32:
        product = tl.dot(low, inverse, input_precision=CALL.PRECISION)
        product = tl.dot(high, inverse, product, input_precision=CALL.PRECISION)
        left = tl.where(i == j, 1.0, 0.0) - (product + inverse.to(tl.float32))
        rest = tl.dot(inverse, left.to(dtype), input_precision=CALL.PRECISION).to(dtype)
    return inverse, rest


@triton.jit
def solution(inverse, rest, side, CALL: tl.constexpr):
    """The inverse, in the two parts of `unit_lower_inverse`, times a float32 `side`: float32."""
    narrow = side.to(inverse.dtype)
    if inverse.dtype == tl.float32:
        found = tl.dot(inverse, narrow, input_precision=CALL.PRECISION)
    else:
        low = (side - narrow.to(tl.float32)).to(inverse.dtype)
        found = tl.dot(rest, narrow, input_precision=CALL.PRECISION)
        found = tl.dot(inverse, low, found, input_precision=CALL.PRECISION)
        found = tl.dot(inverse, narrow, found, input_precision=CALL.PRECISION)
    return found
