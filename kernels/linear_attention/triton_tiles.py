"""Device functions of the linear attention kernels. CALL is a `triton.Call`.

Besides tensors as in `../tiles.py` there are numbers, one per step and head, with strides (batch,
length, head), and states `[B, heads, H, W]`, whose stride is that of the batch alone.

NaN and infinity are rare, and to look for them in every number would take longer than the products.
So a kernel first takes its rows without guards, and probes a result into which all goes that
matters: times 0 it is 0, or NaN if anything was broken. If so, the kernel takes the rows again,
with guards: what is broken becomes 0, and the results that see it become NaN.
"""

# pyright: basic
# A kernel is in Triton's language, whose parameters have no types.

import triton
import triton.language as tl

from ..tiles import is_finite, load_tile, only_then

NEVER = tl.constexpr(2**30)
# Below this exp is 0 in float32, and sums over a chunk stay exact.
LOWEST = tl.constexpr(-131.0)


@triton.jit
def load_finite(
    tensor, b, head, rows, columns, guards, first, LENGTH, WIDTH: tl.constexpr, EXACT: tl.constexpr
):
    """A tile and `first`.

    If `guards`, the tile has 0 for NaN and infinity, and `first` becomes its first broken row if
    that is earlier.
    """
    tile = load_tile(tensor, b, head, rows, columns, LENGTH, WIDTH, EXACT)
    first = tl.minimum(first, NEVER)
    if guards:
        # Its barrier also keeps results of the first pass from arriving late.
        only_then()
        finite = is_finite(tile)
        broken = tl.max(tl.where(finite, 0, 1), axis=1)
        first = tl.minimum(first, tl.min(tl.where(broken > 0, rows, NEVER)))
        tile = tl.where(finite, tile, 0.0).to(tile.dtype)
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
def times(tile, decay, CALL: tl.constexpr):
    """A tile times a decay of each row, or of all rows; the tile itself if nothing decays."""
    if CALL.HAS_DECAY:
        tile = (tile.to(tl.float32) * decay).to(tile.dtype)
    return tile


@triton.jit
def weights_of(q, k, between, CALL: tl.constexpr):
    """The weight of each step of a chunk in the result of each query, `[BLOCK_T, BLOCK_T]`."""
    weights = tl.dot(q, tl.trans(k), input_precision=CALL.PRECISION) * CALL.SCALE
    seen = tl.arange(0, CALL.BLOCK_T)[:, None] >= tl.arange(0, CALL.BLOCK_T)[None, :]
    return tl.where(seen, times(weights, between, CALL), 0.0).to(k.dtype)


@triton.jit
def flipped(tile):
    """The transpose of a product's result, as the second operand of another product.

    Triton moves a narrow transpose through shared memory; a wide one stays in its registers.
    """
    return tl.trans(tile.to(tl.float32)).to(tile.dtype)


@triton.jit
def transposed(tile, CALL: tl.constexpr):
    """The transpose of a product's result, as such a result: a product with the identity."""
    if tile.dtype == tl.float32:
        # Exact products are slow, and others round.
        tile = tl.trans(tile)
    else:
        SIZE: tl.constexpr = tile.shape[1]
        same = tl.arange(0, SIZE)[:, None] == tl.arange(0, SIZE)[None, :]
        unit = tl.where(same, 1.0, 0.0).to(tile.dtype)
        tile = tl.dot(unit, flipped(tile)).to(tile.dtype)
    return tile


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
    unit = tl.where(i == j, 1.0, 0.0)
    # Steps i and j first share a block of the least power of 2 above this number.
    apart = i ^ j
    wide = unit - tl.where(apart < 2, lower, 0.0)
    inverse = wide.to(dtype)
    high = lower.to(dtype)
    upper = transposed((-lower).to(dtype), CALL)
    LEVELS: tl.constexpr = SIZE.bit_length() - 2
    for level in tl.static_range(LEVELS):
        corner = (apart >= 2 << level) & (apart < 4 << level)
        product = tl.dot(
            inverse, flipped(tl.where(corner, upper, 0.0)), input_precision=CALL.PRECISION
        )
        right = flipped(transposed(inverse, CALL))
        wide = tl.dot(product.to(dtype), right, wide, input_precision=CALL.PRECISION)
        inverse = wide.to(dtype)
    rest = inverse
    if dtype != tl.float32:
        low = (lower - high.to(tl.float32)).to(dtype)
        right = flipped(transposed(inverse, CALL))
        error = inverse.to(tl.float32) - unit
        error = tl.dot(low, right, error, input_precision=CALL.PRECISION)
        error = tl.dot(high, right, error, input_precision=CALL.PRECISION)
        right = flipped(transposed((-error).to(dtype), CALL))
        rest = tl.dot(inverse, right, input_precision=CALL.PRECISION).to(dtype)
    return inverse, rest


@triton.jit
def solution(side, inverse, rest, CALL: tl.constexpr):
    """A float32 `side` times the transpose of an inverse in two parts: float32.

    That is the transpose of the solution for the transpose of `side`.
    """
    narrow = side.to(inverse.dtype)
    right = flipped(inverse)
    if inverse.dtype == tl.float32:
        found = tl.dot(narrow, right, input_precision=CALL.PRECISION)
    else:
        low = (side - narrow.to(tl.float32)).to(inverse.dtype)
        found = tl.dot(narrow, flipped(rest), input_precision=CALL.PRECISION)
        found = tl.dot(low, right, found, input_precision=CALL.PRECISION)
        found = tl.dot(narrow, right, found, input_precision=CALL.PRECISION)
    return found
