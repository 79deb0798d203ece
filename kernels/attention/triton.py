"""The Triton form of attention: which kernel takes a call, and the arguments it gets."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import fused
from ..numerics import next_power_of_2, triton_precision
from ..triton_call import call_refusal, stand_ins, strides, triton_call
from . import launch
from .problem import Dimensions, Operands, Problem, hides, may_blind, pack
from .reference import attention as definition
from .row_tiles import RowTiles, Tiles, heads_together, row_tiles

WIDEST_HEAD = 256


class Strides(NamedTuple):
    """Strides of the kernels' tensors, as `tiles.py` and `triton_tiles.py` take them.

    None for a tensor that a kernel does not have.
    """

    QUERY: Any
    KEY: Any
    VALUE: Any
    BIAS: Any
    MASK: Any
    QUERY_LENGTHS: int
    KEY_LENGTHS: int
    OUT: Any = None
    D_OUT: Any = None
    D_QUERY: Any = None
    D_KEY: Any = None
    D_VALUE: Any = None
    D_BIAS: Any = None


class Call(NamedTuple):
    """Sizes and options for which a kernel is compiled.

    T, S, K, GROUP, H: queries, keys, key heads, query heads per key head, features of a head.
    SCALE: factor of the scores.
    EARLY, LATE: the same factor before and after the products with the gradient of the scores.
    LEFT, RIGHT: distances of the window, or None.
    HIDES: some query may not see some key.
    MAY_BLIND: some row may see no key at all, also by a bias of -inf or as it is past T.
    HEADS: heads that share a tile of the row form.
    QUERIES, KEYS: tiles of the row form.
    SIGHT: for each tile of queries the range of the tiles of keys in sight, (begin, end).
    FIRST_SEEN: for each tile of keys the first tile of queries that has it in sight.
    WHOLE: for each tile of queries and each of keys whether every pair is visible.
    SUMS_BIAS: a program adds up the gradient of the bias over its batch rows.
    PACKED: the gradients of query, key and value share an array.
    BLOCK_T, BLOCK_S, BLOCK_H: queries, keys and features of a tile.
    ROWS: batch rows of a program.
    """

    T: int
    S: int
    K: int
    GROUP: int
    H: int
    SCALE: float
    EARLY: float
    LATE: float
    IS_CAUSAL: bool
    LEFT: int | None
    RIGHT: int | None
    HAS_BIAS: bool
    HAS_MASK: bool
    HAS_QUERY_LENGTHS: bool
    HAS_KEY_LENGTHS: bool
    HIDES: bool
    MAY_BLIND: bool
    HEADS: int
    QUERIES: Tiles
    KEYS: Tiles
    SIGHT: tuple[tuple[int, int], ...]
    FIRST_SEEN: tuple[int, ...]
    WHOLE: tuple[tuple[bool, ...], ...]
    SUMS_BIAS: bool
    PACKED: bool
    PRECISION: str
    BLOCK_T: int
    BLOCK_S: int
    BLOCK_H: int
    ROWS: int


def _forward(problem: Problem, operands: Operands) -> tuple[jax.Array, Any]:
    sizes = Dimensions.of(operands)
    plan = launch.plan(problem, operands)
    shape = (sizes.B, sizes.T, sizes.N, sizes.H)
    out = jax.ShapeDtypeStruct(shape, operands.query.dtype)
    constants = _constants(problem, operands, plan.form, plan.forward, OUT=strides(shape, sizes.B))
    if plan.form == "row":
        from . import triton_row

        found = triton_call(
            triton_row.forward_kernel,
            sizes.B // plan.forward.rows * sizes.K // heads_together(operands),
            stand_ins(operands._asdict()),
            dict(out=out),
            constants,
            **plan.forward.resources,
        )
        return found["out"], ()
    from . import triton_tiled

    saved = triton_call(
        triton_tiled.forward_kernel,
        sizes.B * sizes.N * -(-sizes.T // plan.forward.block_t),
        stand_ins(operands._asdict()),
        _saved_by_tiled(operands, out),
        constants,
        **plan.forward.resources,
    )
    return saved["out"], saved


def _saved_by_tiled(operands: Operands, out: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The output, its rounding error, and the highest score and 1 / sum of each row."""
    sizes, rest = Dimensions.of(operands), out
    if out.dtype == jnp.float32 or operands.bias is not None:
        rest = jax.ShapeDtypeStruct((sizes.B, 1), out.dtype)
    row = jax.ShapeDtypeStruct((sizes.B, sizes.N, sizes.T), jnp.float32)
    return dict(out=out, rest=rest, highest_scores=row, inverse_sums=row)


def _backward(problem: Problem, operands: Operands, saved: Any, d_out: jax.Array) -> Operands:
    """The gradient; that of the bias is not yet summed over its broadcast axes."""
    plan = launch.plan(problem, operands)
    kernels = _backward_row if plan.form == "row" else _backward_tiled
    found = kernels(problem, operands, plan, saved, d_out)
    bias = None if operands.bias is None else found["d_bias"]
    if "d_key" not in found:
        return Operands(found["d_query"], bias=bias)
    return Operands(found["d_query"], found["d_key"], found["d_value"], bias)


def _backward_row(
    problem: Problem, operands: Operands, plan: launch.Plan, saved: Any, d_out: jax.Array
) -> dict[str, jax.Array]:
    from . import triton_row

    sizes = Dimensions.of(operands)
    sums_bias = problem.bias_rows > 1
    config = plan.backward
    if sums_bias:
        config = dataclasses.replace(config, rows=problem.bias_rows)
    rows = sizes.B // config.rows if sums_bias else sizes.B
    outputs = dict(
        d_query=_gradient_of(operands.query, operands, sizes),
        d_key=_gradient_of(operands.key, operands, sizes),
        d_value=_gradient_of(operands.value, operands, sizes),
        d_bias=_bias_gradient(sizes, operands, rows),
    )
    found = triton_call(
        triton_row.backward_kernel,
        sizes.B // config.rows * sizes.K // heads_together(operands),
        stand_ins(operands._asdict()) | dict(d_out=d_out),
        outputs,
        _constants(
            problem,
            operands,
            plan.form,
            config,
            D_OUT=strides(d_out.shape, sizes.B),
            D_BIAS=_score_strides(outputs["d_bias"].shape),
            **_gradient_strides(operands, sizes),
        ),
        **config.resources,
    )
    if operands.is_packed:
        del found["d_key"], found["d_value"]
    return found


def _backward_tiled(
    problem: Problem, operands: Operands, plan: launch.Plan, saved: Any, d_out: jax.Array
) -> dict[str, jax.Array]:
    from . import triton_tiled

    sizes = Dimensions.of(operands)
    inputs = stand_ins(operands._asdict()) | dict(d_out=d_out)
    # The two kernels cannot share a packed output, so it is put together afterwards.
    query_shape = (sizes.B, sizes.T, sizes.N, sizes.H)
    key_shape = (sizes.B, sizes.S, sizes.K, sizes.H)
    d_query = jax.ShapeDtypeStruct(query_shape, operands.query.dtype)
    d_key = jax.ShapeDtypeStruct(key_shape, operands.query.dtype)
    d_bias = _bias_gradient(sizes, operands, sizes.B)
    delta = jax.ShapeDtypeStruct(saved["highest_scores"].shape, jnp.float32)
    config = plan.backward_queries
    assert config is not None
    of_queries = triton_call(
        triton_tiled.backward_queries_kernel,
        sizes.B * sizes.N * -(-sizes.T // config.block_t),
        inputs | saved,
        dict(d_query=d_query, delta=delta, d_bias=d_bias),
        _constants(
            problem,
            operands,
            plan.form,
            config,
            D_OUT=strides(d_out.shape, sizes.B),
            OUT=strides(saved["out"].shape, sizes.B),
            D_QUERY=strides(query_shape, sizes.B),
            D_BIAS=_score_strides(d_bias.shape),
        ),
        **config.resources,
    )
    config = plan.backward
    rows = {name: saved[name] for name in ("highest_scores", "inverse_sums")}
    of_keys = triton_call(
        triton_tiled.backward_keys_kernel,
        sizes.B * sizes.K * -(-sizes.S // config.block_s),
        inputs | rows | dict(delta=of_queries["delta"]),
        dict(d_key=d_key, d_value=d_key),
        _constants(
            problem,
            operands,
            plan.form,
            config,
            D_OUT=strides(d_out.shape, sizes.B),
            D_KEY=strides(key_shape, sizes.B),
            D_VALUE=strides(key_shape, sizes.B),
        ),
        **config.resources,
    )
    found = of_queries | of_keys
    if not operands.is_packed:
        return found
    packed = pack(Operands(found["d_query"], found["d_key"], found["d_value"]))
    return dict(d_query=packed.query, d_bias=found["d_bias"])


def _constants(
    problem: Problem, operands: Operands, form: str, config: launch.Config, **others: Any
) -> dict[str, Any]:
    """STRIDES and CALL of a kernel; `others` are the strides of its other tensors."""
    is_row = form == "row"
    tiles = RowTiles((), (), (), (), ())
    if is_row:
        tiles = row_tiles(problem, operands, config.block_t, config.block_s)
    sizes = Dimensions.of(operands)
    bias, mask = operands.bias, operands.mask
    step: Callable[[Any], int] = lambda lengths: (
        0 if lengths is None or lengths.shape[0] == 1 else 1
    )
    # In half precision small gradients must be scaled before the cast; exact products may wait.
    is_exact = operands.query.dtype == jnp.float32
    return dict(
        STRIDES=Strides(
            **_strides_in(operands, sizes),
            BIAS=None if bias is None else _score_strides(bias.shape),
            MASK=None if mask is None else _score_strides(mask.shape),
            QUERY_LENGTHS=step(operands.query_lengths),
            KEY_LENGTHS=step(operands.key_lengths),
            **others,
        ),
        CALL=Call(
            T=sizes.T,
            S=sizes.S,
            K=sizes.K,
            GROUP=sizes.N // sizes.K,
            H=sizes.H,
            SCALE=problem.scale,
            EARLY=1.0 if is_exact else problem.scale,
            LATE=problem.scale if is_exact else 1.0,
            IS_CAUSAL=problem.is_causal,
            LEFT=problem.left,
            RIGHT=problem.right,
            HAS_BIAS=bias is not None,
            HAS_MASK=mask is not None,
            HAS_QUERY_LENGTHS=operands.query_lengths is not None,
            HAS_KEY_LENGTHS=operands.key_lengths is not None,
            HIDES=hides(problem, operands),
            # A bias may be -inf for every key of a query.
            MAY_BLIND=may_blind(problem, operands) or sizes.S > sizes.T or bias is not None,
            HEADS=heads_together(operands) if is_row else 1,
            **tiles._asdict(),
            SUMS_BIAS=problem.bias_rows > 1,
            PACKED=operands.is_packed,
            PRECISION=triton_precision(problem.precision, operands.query.dtype),
            BLOCK_T=config.block_t,
            BLOCK_S=config.block_s,
            BLOCK_H=max(16, next_power_of_2(sizes.H)),
            ROWS=config.rows,
        ),
    )


def _packed_strides(rows: int, sizes: Dimensions) -> list[tuple[int, ...]]:
    """Strides of query, key and value inside a packed `[B or 1, T, 3, N, H]`."""
    step = 3 * sizes.N * sizes.H
    batch = sizes.T * step if rows == sizes.B else 0
    return [(batch, step, sizes.H, i * sizes.N * sizes.H) for i in range(3)]


def _strides_in(operands: Operands, sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    if operands.is_packed:
        found = _packed_strides(operands.query.shape[0], sizes)
    else:
        found = [strides(array.shape, sizes.B) for array in operands[:3]]
    return dict(zip(("QUERY", "KEY", "VALUE"), found))


def _gradient_strides(operands: Operands, sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    if operands.is_packed:
        found = _packed_strides(sizes.B, sizes)
    else:
        found = [strides((sizes.B, *array.shape[1:]), sizes.B) for array in operands[:3]]
    return dict(zip(("D_QUERY", "D_KEY", "D_VALUE"), found))


def _score_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a bias, a mask or the gradient of a bias, 0 along axes of size 1."""
    found: list[int] = []
    step = 1
    for size in reversed(shape):
        found.append(0 if size == 1 else step)
        step *= size
    return tuple(reversed(found))


def _gradient_of(array: Any, operands: Operands, sizes: Dimensions) -> jax.ShapeDtypeStruct:
    """The gradient of an operand, with every batch row; one element per row if there is none."""
    shape = (1,) if array is None else array.shape[1:]
    return jax.ShapeDtypeStruct((sizes.B, *shape), operands.query.dtype)


def _bias_gradient(sizes: Dimensions, operands: Operands, rows: int) -> jax.ShapeDtypeStruct:
    if operands.bias is None:
        return jax.ShapeDtypeStruct((sizes.B, 1), jnp.float32)
    return jax.ShapeDtypeStruct((rows, sizes.N, sizes.T, sizes.S), jnp.float32)


def _with_bias_rows(problem: Problem, operands: Operands) -> Problem:
    return dataclasses.replace(problem, bias_rows=_rows_of_bias_sum(problem, operands))


def _rows_of_bias_sum(problem: Problem, operands: Operands) -> int:
    """Number of batch rows over which a program adds up the gradient of a bias that they share.

    Otherwise the gradient would be written once per row before it is added up.
    """
    sizes = Dimensions.of(operands)
    plan = launch.plan(problem, operands)
    config = plan.backward
    one_tile = plan.form == "row" and config.block_t >= sizes.T and config.block_s >= sizes.S
    one_tile = one_tile and sizes.N == sizes.K
    if operands.bias is None or operands.bias.shape[0] != 1 or not one_tile:
        return 1
    rows = 1
    while sizes.B % (2 * rows) == 0 and sizes.B // (2 * rows) * sizes.K >= launch.FEWEST_PROGRAMS:
        rows *= 2
    return rows


def _plain_saved(problem: Problem, operands: Operands, out: jax.Array) -> Any:
    if launch.plan(problem, operands).form == "row":
        return ()
    shapes = _saved_by_tiled(operands, out)
    return {n: jnp.zeros(other.shape, other.dtype) for n, other in shapes.items()} | dict(out=out)


def _refusal(target: Target, problem: Problem, operands: Operands) -> str | None:
    sizes = Dimensions.of(operands)
    found = call_refusal(target, [sizes.H], WIDEST_HEAD, *operands[:3])
    if found is not None:
        return found
    if sizes.B * sizes.N * max(sizes.T, sizes.S) // 16 >= 2**31:
        return "batch * heads * length must be below 2^35"
    return None


IMPLEMENTATION = Implementation(
    **fused(
        _forward,
        _backward,
        definition,
        "cuda",
        prepare=_with_bias_rows,
        plain_saved=_plain_saved,
    ),
    refusal=_refusal,
    is_best=lambda here, problem, operands: here.platform == "cuda",
)
