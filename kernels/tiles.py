"""How Triton kernels read and write the tensors of a batch of heads.

Strides are a constexpr tuple of numbers of elements, (batch, length, head, offset). A stride of 0
broadcasts. The offset finds one of several tensors that share an array. `b` is int64, so that a
tensor may have more than 2^31 elements.
"""

# pyright: basic, reportAssignmentType=false
# A kernel is in Triton's language, whose parameters have no types.

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Tensor(NamedTuple):
    """A pointer, and the constexpr strides by which it is read."""

    pointer: Any
    strides: Any


@triton.jit
def tile_pointers(tensor, b, head, rows, columns):
    strides: tl.constexpr = tensor.strides
    start = tensor.pointer + b * strides[0] + head * strides[2] + strides[3]
    return start + rows[:, None] * strides[1] + columns[None, :]


@triton.jit
def load_tile(tensor, b, head, rows, columns, LENGTH, WIDTH: tl.constexpr, EXACT: tl.constexpr):
    """`[rows, columns]` of one head, 0 past LENGTH and WIDTH.

    EXACT: no row is past LENGTH.
    """
    pointers = tile_pointers(tensor, b, head, rows, columns)
    if EXACT and WIDTH == columns.shape[0]:
        return tl.load(pointers)
    elif WIDTH == columns.shape[0]:
        return tl.load(pointers, mask=rows[:, None] < LENGTH, other=0.0)
    else:
        inside = (rows[:, None] < LENGTH) & (columns[None, :] < WIDTH)
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_tile(
    tensor, tile, b, head, rows, columns, LENGTH, WIDTH: tl.constexpr, EXACT: tl.constexpr
):
    """Writes what `load_tile` reads, in the dtype of the tensor."""
    pointers = tile_pointers(tensor, b, head, rows, columns)
    tile = tile.to(tensor.pointer.dtype.element_ty)
    if EXACT and WIDTH == columns.shape[0]:
        tl.store(pointers, tile)
    else:
        inside = (rows[:, None] < LENGTH) & (columns[None, :] < WIDTH)
        tl.store(pointers, tile, mask=inside)


@triton.jit
def load_length(lengths, b, GIVEN: tl.constexpr, LENGTH: tl.constexpr):
    """Number of valid queries or keys of a batch row, at most LENGTH."""
    length = LENGTH
    if GIVEN:
        length = tl.minimum(tl.load(lengths.pointer + b * lengths.strides), LENGTH)
    return length


@triton.jit
def is_finite(tile):
    """Boolean, by element."""
    return tl.abs(tile.to(tl.float32)) < float("inf")


@triton.jit
def any_not_finite(a, b):
    """Whether two tiles of one shape and dtype hold NaN or infinity: a scalar.

    Compares the bits without the sign, as integers, which costs about one instruction an element.
    """
    if a.dtype == tl.float32:
        bits = tl.maximum(
            a.to(tl.int32, bitcast=True) & 0x7FFFFFFF, b.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        )
        return tl.max(tl.ravel(bits), axis=0) >= 0x7F800000
    else:
        LEAST: tl.constexpr = 0x7C00 if a.dtype == tl.float16 else 0x7F80
        bits = tl.maximum(
            a.to(tl.int16, bitcast=True) & 0x7FFF, b.to(tl.int16, bitcast=True) & 0x7FFF
        )
        return tl.max(tl.ravel(bits.to(tl.int32)), axis=0) >= LEAST


@triton.jit
def only_then():
    """Begins a branch that is seldom taken; else the compiler may compute it always and select."""
    tl.debug_barrier()
