"""Device functions of the linear attention kernels."""

import triton
import triton.language as tl

from ..tiles import load_tile

NEVER = tl.constexpr(2**30)
# Below this exp is 0 in float32, and sums of so many steps stay exact.
LOWEST = tl.constexpr(-131.0)


@triton.jit
def load_finite(
    pointer,
    b,
    head,
    rows,
    columns,
    first,
    STRIDES: tl.constexpr,
    LENGTH,
    WIDTH: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A tile with 0 for what is not finite, and the first broken row, `first` or one of these."""
    tile = load_tile(pointer, b, head, rows, columns, STRIDES, LENGTH, WIDTH, EXACT)
    wide = tile.to(tl.float32)
    finite = tl.abs(wide) < float("inf")
    broken = tl.max(tl.where(finite, 0, 1), axis=1)
    first = tl.minimum(first, tl.min(tl.where(broken > 0, rows, NEVER)))
    return tl.where(finite, wide, 0.0).to(tile.dtype), first


@triton.jit
def load_numbers(pointer, b, head, rows, STRIDES: tl.constexpr, LENGTH):
    """`[rows]` of a number for each step and head, float32, 0 past LENGTH."""
    start = pointer + b * STRIDES[0] + head * STRIDES[2]
    return tl.load(start + rows * STRIDES[1], mask=rows < LENGTH, other=0.0).to(tl.float32)


@triton.jit
def store_numbers(pointer, numbers, b, head, rows, STRIDES: tl.constexpr, LENGTH: tl.constexpr):
    start = pointer + b * STRIDES[0] + head * STRIDES[2]
    tl.store(start + rows * STRIDES[1], numbers, mask=rows < LENGTH)


@triton.jit
def load_beta(pointer, b, head, rows, first, STRIDES: tl.constexpr, LENGTH):
    """beta of each step with 0 for what is not finite, and the first broken row."""
    beta = load_numbers(pointer, b, head, rows, STRIDES, LENGTH)
    finite = tl.abs(beta) < float("inf")
    first = tl.minimum(first, tl.min(tl.where(finite, NEVER, rows)))
    return tl.where(finite, beta, 0.0), first


@triton.jit
def load_decay(pointer, b, head, rows, first, STRIDES: tl.constexpr, LENGTH):
    """Sums of the log decay over a chunk, and the first broken row.

    Returns:
      coarse, fine: `[rows]`; together the sum up to each row and with it. The difference of two
        sums loses what a large decay before both has added, but multiples of 1/512 add exactly.
      log_decay: `[rows]`.
      first: the first broken row, `first` or one of these.
    """
    log_decay = load_numbers(pointer, b, head, rows, STRIDES, LENGTH)
    fine = log_decay < float("inf")
    first = tl.minimum(first, tl.min(tl.where(fine, NEVER, rows)))
    log_decay = tl.where(fine, log_decay, 0.0)
    kept = tl.maximum(log_decay, LOWEST)
    coarse = tl.floor(kept * 512 + 0.5) / 512
    return tl.cumsum(coarse, 0), tl.cumsum(kept - coarse, 0), log_decay, first


@triton.jit
def decays(coarse, fine, SIZE: tl.constexpr):
    """What is left after the steps of a chunk, from the sums of `load_decay`.

    Returns:
      between: `[SIZE, SIZE]`, from after step s to step t; anything for later s.
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
def state_pointers(pointer, b, head, features, columns, STEP: tl.constexpr, H: tl.constexpr, W):
    """Of a state `[H, W]` of `[B, N, H, W]`, in which a batch row takes STEP elements."""
    start = pointer + b * STEP + head * H * W
    return start + features[:, None] * W + columns[None, :]


@triton.jit
def load_state(
    pointer,
    b,
    head,
    features,
    columns,
    height,
    STEP: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """`[H, V]` and the column after it, `[H]`, float32; 0 from row `height`, at most H, on."""
    W: tl.constexpr = V + 1 if NORMALIZE else V
    inside = (features[:, None] < height) & (columns[None, :] < V)
    pointers = state_pointers(pointer, b, head, features, columns, STEP, H, W)
    state = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    keys = tl.zeros([features.shape[0]], tl.float32)
    if NORMALIZE:
        last = pointer + b * STEP + head * H * W + features * W + V
        keys = tl.load(last, mask=features < height, other=0.0).to(tl.float32)
    return state, keys


@triton.jit
def store_state(
    pointer,
    state,
    keys,
    b,
    head,
    features,
    columns,
    STEP: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Writes where `load_state` reads, in the tensor's own dtype."""
    W: tl.constexpr = V + 1 if NORMALIZE else V
    dtype: tl.constexpr = pointer.dtype.element_ty
    inside = (features[:, None] < H) & (columns[None, :] < V)
    pointers = state_pointers(pointer, b, head, features, columns, STEP, H, W)
    tl.store(pointers, state.to(dtype), mask=inside)
    if NORMALIZE:
        last = pointer + b * STEP + head * H * W + features * W + V
        tl.store(last, keys.to(dtype), mask=features < H)


@triton.jit
def unit_lower_inverse(lower, dtype: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """`(I + lower)^-1` of a strictly lower triangular matrix.

    The inverses of the blocks on the diagonal, twice as large each time: that of [[A, 0], [C, B]]
    has -B^-1 C A^-1 below its diagonal. A series of powers would be shorter, and lose all digits
    where keys are alike.

    Products are of `dtype`, sums float32. Narrow products lose a digit or two where beta is near 2,
    which a step of Newton's method finds again.

    Returns:
      inverse, rest: of `dtype`; their sum is the inverse, and the rest is not used in float32.
    """
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, lower, 0.0)
    high = lower.to(dtype)
    low = (lower - high.to(tl.float32)).to(dtype)
    size = 2
    # Not unrolled, which would keep the masks of all sizes in registers.
    while size < SIZE:
        corner = (i // size != j // size) & (i // (2 * size) == j // (2 * size))
        narrow = inverse.to(dtype)
        product = tl.dot(narrow, tl.where(corner, high, 0.0), input_precision=PRECISION)
        inverse -= tl.dot(product.to(dtype), narrow, input_precision=PRECISION)
        size *= 2
    inverse = inverse.to(dtype)
    rest = inverse
    if dtype != tl.float32:
        product = tl.dot(low, inverse, input_precision=PRECISION)
        product = tl.dot(high, inverse, product, input_precision=PRECISION)
        left = tl.where(i == j, 1.0, 0.0) - (product + inverse.to(tl.float32))
        rest = tl.dot(inverse, left.to(dtype), input_precision=PRECISION).to(dtype)
    return inverse, rest


@triton.jit
def solution(inverse, rest, side, PRECISION: tl.constexpr):
    """The inverse, in the two parts of `unit_lower_inverse`, times a float32 `side`: float32."""
    narrow = side.to(inverse.dtype)
    if inverse.dtype == tl.float32:
        found = tl.dot(inverse, narrow, input_precision=PRECISION)
    else:
        low = (side - narrow.to(tl.float32)).to(inverse.dtype)
        found = tl.dot(rest, narrow, input_precision=PRECISION)
        found = tl.dot(inverse, low, found, input_precision=PRECISION)
        found = tl.dot(inverse, narrow, found, input_precision=PRECISION)
    return found
