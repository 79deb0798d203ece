"""The Triton form of attention: which kernel takes a call, and what it is given."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import dtype_refusal, fused
from ..numerics import triton_precision
from ..triton_call import refusal as triton_refusal
from ..triton_call import strides, triton_call
from . import launch
from .problem import Dimensions, Operands, Problem, hides, pack
from .reference import attention as definition

WIDEST_HEAD = 256


def _forward(problem: Problem, operands: Operands) -> tuple[jax.Array, Any]:
    sizes = Dimensions.of(operands)
    plan = launch.plan(problem, operands)
    shape = (sizes.B, sizes.T, sizes.N, sizes.H)
    out = jax.ShapeDtypeStruct(shape, operands.query.dtype)
    constants = _constants(problem, operands, plan.forward, OUT=strides(shape, sizes.B))
    if plan.form == "row":
        from . import triton_row

        [result] = triton_call(
            triton_row.forward_kernel,
            sizes.B // plan.forward.rows * sizes.K,
            _inputs(operands),
            [out],
            constants | dict(ROWS=plan.forward.rows),
            **plan.forward.resources,
        )
        return result, ()
    from . import triton_tiled

    saved = triton_call(
        triton_tiled.forward_kernel,
        sizes.B * sizes.N * -(-sizes.T // plan.forward.block_t),
        _inputs(operands),
        _saved_by_tiled(operands, out),
        constants,
        **plan.forward.resources,
    )
    return saved[0], tuple(saved)


def _saved_by_tiled(operands: Operands, out: Any) -> list[jax.ShapeDtypeStruct]:
    """The output, what rounding took from it, and of each row the highest score and 1 / sum."""
    sizes, rest = Dimensions.of(operands), out
    if out.dtype == jnp.float32 or operands.bias is not None:
        rest = jax.ShapeDtypeStruct((sizes.B, 1), out.dtype)
    row = jax.ShapeDtypeStruct((sizes.B, sizes.N, sizes.T), jnp.float32)
    return [out, rest, row, row]


def _backward(problem: Problem, operands: Operands, saved: tuple, d_out: jax.Array) -> Operands:
    """The gradient, that of the bias not yet added up over what it was broadcast along."""
    plan = launch.plan(problem, operands)
    kernels = _backward_row if plan.form == "row" else _backward_tiled
    return kernels(problem, operands, plan, saved, d_out)


def _backward_row(problem, operands, plan, saved, d_out):
    from . import triton_row

    sizes = Dimensions.of(operands)
    sums_bias = problem.bias_rows > 1
    config = plan.backward
    if sums_bias:
        config = dataclasses.replace(config, rows=problem.bias_rows)
    d_bias = _bias_gradient(sizes, operands, sizes.B // config.rows if sums_bias else sizes.B)
    shapes = [_gradient_of(array, operands, sizes) for array in operands[:3]]
    constants = _constants(
        problem,
        operands,
        config,
        D_OUT=strides(d_out.shape, sizes.B),
        D_BIAS=None if operands.bias is None else _score_strides(d_bias.shape),
        SUMS_BIAS=sums_bias,
        PACKED=operands.is_packed,
        ROWS=config.rows,
        **_factors(problem, operands),
        **_gradient_strides(operands, sizes),
    )
    d_query, d_key, d_value, d_bias = triton_call(
        triton_row.backward_kernel,
        sizes.B // config.rows * sizes.K,
        [*_inputs(operands), d_out],
        [*shapes, d_bias],
        constants,
        **config.resources,
    )
    if operands.is_packed:
        d_key = d_value = None
    return Operands(d_query, d_key, d_value, None if operands.bias is None else d_bias)


def _backward_tiled(problem, operands, plan, saved, d_out):
    from . import triton_tiled

    sizes = Dimensions.of(operands)
    out, rest, highest, inverse = saved
    inputs = [*_inputs(operands), d_out]
    # The two kernels cannot share a packed output, so it is put together afterwards.
    query_shape = (sizes.B, sizes.T, sizes.N, sizes.H)
    key_shape = (sizes.B, sizes.S, sizes.K, sizes.H)
    dtype = operands.query.dtype
    d_query = jax.ShapeDtypeStruct(query_shape, dtype)
    d_key = jax.ShapeDtypeStruct(key_shape, dtype)
    d_bias = _bias_gradient(sizes, operands, sizes.B)
    delta = jax.ShapeDtypeStruct(highest.shape, jnp.float32)
    config = plan.backward_queries
    d_query, delta, d_bias = triton_call(
        triton_tiled.backward_queries_kernel,
        sizes.B * sizes.N * -(-sizes.T // config.block_t),
        [*inputs, out, rest, highest, inverse],
        [d_query, delta, d_bias],
        _constants(
            problem,
            operands,
            config,
            D_OUT=strides(d_out.shape, sizes.B),
            OUT=strides(out.shape, sizes.B),
            D_QUERY=strides(query_shape, sizes.B),
            D_BIAS=None if operands.bias is None else _score_strides(d_bias.shape),
            **_factors(problem, operands),
        ),
        **config.resources,
    )
    config = plan.backward
    d_key, d_value = triton_call(
        triton_tiled.backward_keys_kernel,
        sizes.B * sizes.K * -(-sizes.S // config.block_s),
        [*inputs, highest, inverse, delta],
        [d_key, d_key],
        _constants(
            problem,
            operands,
            config,
            D_OUT=strides(d_out.shape, sizes.B),
            D_KEY=strides(key_shape, sizes.B),
            D_VALUE=strides(key_shape, sizes.B),
            **_factors(problem, operands),
        ),
        **config.resources,
    )
    gradient = Operands(d_query, d_key, d_value, None if operands.bias is None else d_bias)
    return pack(gradient) if operands.is_packed else gradient


def _constants(problem: Problem, operands: Operands, config: launch.Config, **more: Any) -> dict:
    """The constants that all kernels take, and more."""
    sizes = Dimensions.of(operands)
    lengths = (operands.query_lengths, operands.key_lengths)
    steps = [0 if array is None or array.shape[0] == 1 else 1 for array in lengths]
    bias, mask = operands.bias, operands.mask
    return dict(
        **_strides_in(operands, sizes),
        BIAS=None if bias is None else _score_strides(bias.shape),
        MASK=None if mask is None else _score_strides(mask.shape),
        QUERY_LENGTH=steps[0],
        KEY_LENGTH=steps[1],
        T=sizes.T,
        S=sizes.S,
        K=sizes.K,
        GROUP=sizes.N // sizes.K,
        H=sizes.H,
        SCALE=problem.scale,
        IS_CAUSAL=problem.is_causal,
        LEFT=problem.left,
        RIGHT=problem.right,
        HAS_BIAS=bias is not None,
        HAS_MASK=mask is not None,
        HAS_QUERY_LENGTHS=lengths[0] is not None,
        HAS_KEY_LENGTHS=lengths[1] is not None,
        HIDES=hides(problem, operands),
        PRECISION=triton_precision(problem.precision, operands.query.dtype),
        BLOCK_T=config.block_t,
        BLOCK_S=config.block_s,
        BLOCK_H=max(16, launch.next_power_of_2(sizes.H)),
        **more,
    )


def _factors(problem: Problem, operands: Operands) -> dict[str, float]:
    """The scale before and after the products with the gradient of the scores.

    In half precision small gradients must be scaled before the cast; exact products may wait.
    """
    if operands.query.dtype == jnp.float32:
        return dict(EARLY=1.0, LATE=problem.scale)
    return dict(EARLY=problem.scale, LATE=1.0)


def _inputs(operands: Operands) -> list[jax.Array]:
    """The kernels' first arguments; what is absent is never read, so any array stands for it."""
    return [operands.query if array is None else array for array in operands]


def _packed_strides(rows: int, sizes: Dimensions) -> list[tuple[int, ...]]:
    """The same for query, key and value inside `[B or 1, T, 3, N, H]`."""
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
    """Strides of a bias or mask, 0 along axes of size 1."""
    found, step = [], 1
    for size in reversed(shape):
        found.append(0 if size == 1 else step)
        step *= size
    return tuple(reversed(found))


def _gradient_of(array: Any, operands: Operands, sizes: Dimensions) -> jax.ShapeDtypeStruct:
    """A gradient has every batch row; what does not exist has one element in each."""
    shape = (1,) if array is None else array.shape[1:]
    return jax.ShapeDtypeStruct((sizes.B, *shape), operands.query.dtype)


def _bias_gradient(sizes: Dimensions, operands: Operands, rows: int) -> jax.ShapeDtypeStruct:
    if operands.bias is None:
        return jax.ShapeDtypeStruct((sizes.B, 1), jnp.float32)
    return jax.ShapeDtypeStruct((rows, sizes.N, sizes.T, sizes.S), jnp.float32)


def _with_bias_rows(problem: Problem, operands: Operands) -> Problem:
    return dataclasses.replace(problem, bias_rows=_rows_of_bias_sum(problem, operands))


def _rows_of_bias_sum(problem: Problem, operands: Operands) -> int:
    """Batch rows over which a program adds up the gradient of a bias that they share.

    Without this the gradient would be written once for every row before it is added up.
    """
    sizes = Dimensions.of(operands)
    plan = launch.plan(problem, operands)
    one_tile = plan.form == "row" and plan.backward.block_t >= sizes.T and sizes.N == sizes.K
    if operands.bias is None or operands.bias.shape[0] != 1 or not one_tile:
        return 1
    rows = 1
    while sizes.B % (2 * rows) == 0 and sizes.B // (2 * rows) * sizes.K >= launch.FEWEST_PROGRAMS:
        rows *= 2
    return rows


def _plain_saved(problem: Problem, operands: Operands, out: jax.Array) -> Any:
    if launch.plan(problem, operands).form == "row":
        return ()
    _, *others = _saved_by_tiled(operands, out)
    return out, *(jnp.zeros(other.shape, other.dtype) for other in others)


def _refusal(target: Target, problem: Problem, operands: Operands) -> str | None:
    machine = triton_refusal(target)
    if machine is not None:
        return machine
    dtypes = dtype_refusal(*operands[:3])
    if dtypes is not None:
        return dtypes
    sizes = Dimensions.of(operands)
    if sizes.H > WIDEST_HEAD:
        return f"heads are at most {WIDEST_HEAD} wide, got {sizes.H}"
    if max(array[0].size for array in operands[:3] if array is not None) >= 2**31:
        return "the query, key or value of one batch row must have fewer than 2^31 elements"
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
