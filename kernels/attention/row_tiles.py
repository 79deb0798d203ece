"""How the row form cuts a call into tiles, in numbers that the kernels get in `triton.Call`."""

from collections.abc import Callable
from typing import NamedTuple

from ..numerics import next_power_of_2
from .problem import Dimensions, Operands, Problem

# The narrowest tile that products take.
NARROWEST = 16
# Tiles of keys that a program can hold, and of queries that a kernel lists one by one.
MOST = 4


class Tile(NamedTuple):
    """Consecutive queries or keys, or several such tiles of one size, over which a loop passes.

    first: the first index.
    size: number of indices of a tile.
    is_exact: whether all indices of all tiles exist.
    end: the index after the last one.
    """

    first: int
    size: int
    is_exact: bool
    end: int


Tiles = tuple[Tile, ...]


class RowTiles(NamedTuple):
    """Tiles of queries and keys, and which of them meet; see `triton.Call` for the fields."""

    QUERIES: Tiles
    KEYS: Tiles
    SIGHT: tuple[tuple[int, int], ...]
    FIRST_SEEN: tuple[int, ...]
    WHOLE: tuple[tuple[bool, ...], ...]


def row_tiles(problem: Problem, operands: Operands, block_t: int, block_s: int) -> RowTiles:
    """The tiles of a call, of at most `block_t` queries and `block_s` keys.

    Few tiles of queries are listed one by one, so that pairs of tiles without a visible pair are
    left out. If there is one tile of keys, or more than MOST of queries, one entry stands for a
    loop over equal tiles of queries; keys that any of them sees are in sight.
    """
    sizes = Dimensions.of(operands)
    queries, keys = _cut(sizes.T, block_t), _cut(sizes.S, block_s)
    if len(keys) == 1 or len(queries) > MOST:
        queries = (Tile(0, block_t, sizes.T % block_t == 0, sizes.T),)
    before, after = problem.left, 0 if problem.is_causal else problem.right
    given = (operands.mask, operands.query_lengths, operands.key_lengths)
    # If there are more keys than queries, rows that are no queries must be kept from some.
    is_plain = all(array is None for array in given) and sizes.S <= sizes.T
    sight: list[tuple[int, int]] = []
    whole: list[tuple[bool, ...]] = []
    for first, size, _, end in queries:
        last = max(end, first + size) - 1
        seen = [
            (after is None or key <= last + after)
            and (before is None or key + width > first - before)
            for key, width, *_ in keys
        ]
        begin = seen.index(True) if True in seen else 0
        sight.append((begin, begin + sum(seen)))
        whole.append(
            tuple(
                is_plain
                and is_exact
                and (after is None or key + width - 1 <= first + after)
                and (before is None or key >= last - before)
                for key, width, is_exact, _ in keys
            )
        )
    seen_by: Callable[[int], list[int]] = lambda key: [
        i for i, (begin, end) in enumerate(sight) if begin <= key < end
    ]
    first_seen = tuple(min(seen_by(key), default=0) for key in range(len(keys)))
    return RowTiles(queries, keys, tuple(sight), first_seen, tuple(whole))


def _cut(length: int, block: int) -> Tiles:
    """Tiles of `block`, the last one as small as the rest allows."""
    found: list[Tile] = []
    for first in range(0, max(length, 1), block):
        size = min(block, max(NARROWEST, next_power_of_2(length - first)))
        found.append(Tile(first, size, first + size <= length, first + size))
    return tuple(found)


def heads_together(operands: Operands) -> int:
    """Number of heads that share a tile: narrow ones fill it together.

    Heads that each have a bias, or that share keys, do not.
    """
    sizes = Dimensions.of(operands)
    together = NARROWEST // sizes.H if sizes.H and NARROWEST % sizes.H == 0 else 1
    if operands.bias is not None or sizes.N != sizes.K or sizes.N % max(together, 1):
        return 1
    return max(together, 1)
