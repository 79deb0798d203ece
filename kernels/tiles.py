"""How Triton kernels read and write the tensors of a batch of heads.

A tensor is a pointer and a constexpr tuple of strides in elements, (batch, length, head, offset). A
stride of 0 broadcasts; the offset finds one of several tensors that lie in one. `b` is int64, so
that a tensor may have more than 2^31 elements.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    pointer,
    b,
    head,
    rows,
    columns,
    STRIDES: tl.constexpr,
    LENGTH,
    H: tl.constexpr,
    EXACT: tl.constexpr,
):
    """`[rows, columns]` of one head, 0 past LENGTH and H. EXACT: the rows never pass LENGTH."""
    start = pointer + b * STRIDES[0] + head * STRIDES[2] + STRIDES[3]
    pointers = start + rows[:, None] * STRIDES[1] + columns[None, :]
    if EXACT and H == columns.shape[0]:
        return tl.load(pointers)
    elif H == columns.shape[0]:
        return tl.load(pointers, mask=rows[:, None] < LENGTH, other=0.0)
    else:
        inside = (rows[:, None] < LENGTH) & (columns[None, :] < H)
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_tile(
    pointer,
    tile,
    b,
    head,
    rows,
    columns,
    STRIDES: tl.constexpr,
    LENGTH: tl.constexpr,
    H: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes where `load_tile` reads, in the tensor's own dtype."""
    start = pointer + b * STRIDES[0] + head * STRIDES[2] + STRIDES[3]
    pointers = start + rows[:, None] * STRIDES[1] + columns[None, :]
    tile = tile.to(pointer.dtype.element_ty)
    if EXACT and H == columns.shape[0]:
        tl.store(pointers, tile)
    else:
        inside = (rows[:, None] < LENGTH) & (columns[None, :] < H)
        tl.store(pointers, tile, mask=inside)


@triton.jit
def load_length(pointer, b, STRIDE: tl.constexpr, GIVEN: tl.constexpr, LENGTH: tl.constexpr):
    """How many queries or keys of this batch row count: at most LENGTH."""
    length = LENGTH
    if GIVEN:
        length = tl.minimum(tl.load(pointer + b * STRIDE), LENGTH)
    return length
