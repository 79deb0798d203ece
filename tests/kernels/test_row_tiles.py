"""The tiles into which the row form cuts a call, against the pairs that are visible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.attention.row_tiles import MOST, heads_together, row_tiles

from . import oracle


def operands_of(length, key_length, heads=2, key_heads=2, width=8, **others):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    keys = shape(1, key_length, key_heads, width)
    return Operands(shape(1, length, heads, width), keys, keys, **others)


@pytest.mark.parametrize("seed", range(60))
def test_no_visible_pair_is_left_out(seed):
    rng = np.random.default_rng(seed)
    length, key_length = (int(n) for n in rng.integers(1, 130, 2))
    block_t, block_s = (int(n) for n in rng.choice([16, 32, 64, 128], 2))
    is_causal = bool(rng.integers(2))
    window = [None, (0, 0), (5, 3), (40, 20)][rng.integers(4)]
    problem = Problem(1.0, is_causal, window)
    tiles = row_tiles(problem, operands_of(length, key_length), block_t, block_s)
    seen = oracle.allowed_pairs(
        (1, 1, length, key_length), is_causal=is_causal, local_window_size=window
    )[0, 0]
    covered = np.zeros_like(seen)
    for (first, size, is_exact, end), (begin, stop), whole in zip(
        tiles.QUERIES, tiles.SIGHT, tiles.WHOLE, strict=True
    ):
        rows = slice(first, max(end, first + size))
        assert is_exact == ((end - first) % size == 0 and rows.stop <= length)
        for j, (key, width, keys_exist, _) in enumerate(tiles.KEYS):
            columns = slice(key, key + width)
            assert keys_exist == (columns.stop <= key_length)
            if begin <= j < stop:
                covered[rows, columns] = True
            else:
                assert not seen[rows, columns].any(), "a visible pair is left out"
            if whole[j]:
                assert seen[rows, columns].all(), "a hidden pair is taken for visible"
    assert covered[seen].all()
    for j, first in enumerate(tiles.FIRST_SEEN):
        assert not any(begin <= j < stop for begin, stop in tiles.SIGHT[:first])


def test_tiles_above_the_diagonal_of_a_causal_row_are_left_out():
    tiles = row_tiles(Problem(1.0, is_causal=True), operands_of(82, 82), 64, 64)
    assert [tile[:2] for tile in tiles.KEYS] == [(0, 64), (64, 32)]
    assert tiles.QUERIES == tiles.KEYS
    assert tiles.SIGHT == ((0, 1), (0, 2)) and tiles.FIRST_SEEN == (0, 1)
    assert tiles.WHOLE == ((False, False), (True, False))


def test_many_tiles_of_queries_are_a_loop():
    operands = operands_of(16 * MOST + 1, 100)
    assert len(row_tiles(Problem(1.0), operands, 16, 64).QUERIES) == 1


@pytest.mark.parametrize("width, together", [(1, 16), (4, 4), (8, 2), (12, 1), (16, 1), (32, 1)])
def test_narrow_heads_fill_a_tile_together(width, together):
    assert heads_together(operands_of(5, 5, 16, 16, width)) == together
    assert heads_together(operands_of(5, 5, 16, 4, width)) == 1, "they share keys"
    assert heads_together(operands_of(5, 5, 17, 17, width)) == 1, "one would be left"
    bias = jax.ShapeDtypeStruct((1, 1, 5, 5), jnp.float32)
    assert heads_together(operands_of(5, 5, 16, 16, width, bias=bias)) == 1
