"""The Triton form of linear attention and the delta rule: what the kernels are given."""

from typing import Any

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import dtype_refusal, fused
from ..numerics import triton_precision
from ..triton_call import refusal as triton_refusal
from ..triton_call import strides, triton_call
from . import launch
from .problem import Dimensions, Operands, Problem, Result
from .xla import chunked

WIDEST = 128


def _forward(problem: Problem, operands: Operands) -> tuple[Result, Any]:
    sizes, plan = Dimensions.of(operands), launch.plan(problem, operands)
    config, dtype = plan.forward, operands.query.dtype
    states = _states_shape(problem, operands, plan)
    outputs = [
        jax.ShapeDtypeStruct((sizes.B, sizes.T, sizes.N, sizes.V), dtype),
        jax.ShapeDtypeStruct(
            _state_shape(problem, sizes) if problem.returns_state else (sizes.B,), jnp.float32
        ),
        jax.ShapeDtypeStruct((sizes.B,) if states is None else states, dtype),
    ]
    constants = _constants(problem, operands, config, OUT=strides(outputs[0].shape, sizes.B))
    if problem.is_causal:
        constants["SAVE_EVERY"] = plan.backward.block_t
    out, state, states_saved = triton_call(
        _kernels(problem).forward_kernel,
        sizes.B // config.rows * sizes.N,
        _inputs(problem, operands),
        outputs,
        constants,
        **config.resources,
    )
    result = Result(out, state if problem.returns_state else None)
    return result, () if states is None else (states_saved,)


def _backward(problem: Problem, operands: Operands, saved: tuple, d_result: Result) -> Operands:
    """The gradient, with all rows of what has one for all."""
    sizes, plan = Dimensions.of(operands), launch.plan(problem, operands)
    config, dtype = plan.backward, operands.query.dtype
    of = lambda array, dtype=dtype: jax.ShapeDtypeStruct(
        (sizes.B,) if array is None else (sizes.B, *array.shape[1:]), dtype
    )
    gradient = {name: of(getattr(operands, name)) for name in ("query", "key", "value")}
    names = ("beta", "log_decay", "initial_state") if problem.is_causal else ("initial_state",)
    gradient |= {name: of(getattr(operands, name), jnp.float32) for name in names}
    query, value = gradient["query"].shape, gradient["value"].shape
    constants = _constants(
        problem,
        operands,
        config,
        D_OUT=strides(d_result.out.shape, sizes.B),
        D_STATE=0 if d_result.state is None else _rows_apart(d_result.state, sizes),
        D_QUERY=strides(query, sizes.B),
        D_VALUE=strides(value, sizes.B),
    )
    if problem.is_causal:
        constants["D_NUMBERS"] = (sizes.T * sizes.N, sizes.N, 1)
    else:
        constants["D_KEY"] = strides(gradient["key"].shape, sizes.B)
    d_state = operands.query if d_result.state is None else d_result.state
    found = triton_call(
        _kernels(problem).backward_kernel,
        sizes.B // config.rows * sizes.N,
        [*_inputs(problem, operands), d_result.out, d_state, *(saved or (operands.query,))],
        list(gradient.values()),
        constants,
        **config.resources,
    )
    absent = lambda name: getattr(operands, name) is None
    return Operands(
        **{name: None if absent(name) else array for name, array in zip(gradient, found)}
    )


def _kernels(problem: Problem) -> Any:
    if problem.is_causal:
        from . import triton_causal as kernels
    else:
        from . import triton_full as kernels
    return kernels


def _constants(problem: Problem, operands: Operands, config: launch.Config, **more: Any) -> dict:
    """The constants that forward and backward kernels take, and more."""
    sizes = Dimensions.of(operands)
    precision = triton_precision(problem.precision, operands.query.dtype)
    constants: dict[str, Any] = dict(
        QUERY=strides(operands.query.shape, sizes.B),
        KEY=strides(operands.key.shape, sizes.B),
        VALUE=strides(operands.value.shape, sizes.B),
        KEY_LENGTH=_rows_apart(operands.key_lengths, sizes),
        INITIAL=_rows_apart(operands.initial_state, sizes),
        T=sizes.T,
        N=sizes.N,
        H=sizes.H,
        V=sizes.V,
        SCALE=problem.scale,
        NORMALIZE=problem.normalize,
        HAS_KEY_LENGTHS=operands.key_lengths is not None,
        HAS_INITIAL=operands.initial_state is not None,
        RETURNS_STATE=problem.returns_state,
        PRECISION=precision,
        BLOCK_T=config.block_t,
        BLOCK_H=max(16, launch.next_power_of_2(sizes.H)),
        BLOCK_V=max(16, launch.next_power_of_2(sizes.V)),
        ROWS=config.rows,
        **more,
    )
    if not problem.is_causal:
        return constants | dict(S=sizes.S)
    step = lambda array: (_rows_apart(array, sizes), sizes.N, 1)
    return constants | dict(
        BETA=step(operands.beta),
        LOG_DECAY=step(operands.log_decay),
        HAS_BETA=operands.beta is not None,
        HAS_DECAY=operands.log_decay is not None,
    )


def _inputs(problem: Problem, operands: Operands) -> list[jax.Array]:
    """The kernels' first arguments; what is absent is never read, so any array stands for it."""
    query, key, value, beta, log_decay, *rest = operands
    numbers = [beta, log_decay] if problem.is_causal else []
    arrays = [query, key, value, *numbers, *rest]
    return [query if array is None else array for array in arrays]


def _rows_apart(array: jax.Array | None, sizes: Dimensions) -> int:
    """Elements from one batch row to the next; 0 where there is one for all."""
    return 0 if array is None or array.shape[0] != sizes.B else array[0].size


def _state_shape(problem: Problem, sizes: Dimensions) -> tuple[int, ...]:
    return (sizes.B, sizes.N, sizes.H, sizes.V + problem.normalize)


def _states_shape(
    problem: Problem, operands: Operands, plan: launch.Plan
) -> tuple[int, ...] | None:
    """What the backward pass is left: the state before each of its chunks, or the whole one.

    None where it has all steps on chip.
    """
    sizes = Dimensions.of(operands)
    batch, heads, *state = _state_shape(problem, sizes)
    if sizes.S <= plan.backward.block_t:
        return None
    if not problem.is_causal:
        return (batch, heads, *state)
    return (batch, heads, -(-sizes.T // plan.backward.block_t), *state)


def _plain_saved(problem: Problem, operands: Operands, result: Result) -> Any:
    shape = _states_shape(problem, operands, launch.plan(problem, operands))
    return () if shape is None else (jnp.zeros(shape, operands.query.dtype),)


def _refusal(target: Target, problem: Problem, operands: Operands) -> str | None:
    machine = triton_refusal(target)
    if machine is not None:
        return machine
    dtypes = dtype_refusal(operands.query, operands.key, operands.value)
    if dtypes is not None:
        return dtypes
    sizes = Dimensions.of(operands)
    if max(sizes.H, sizes.V) > WIDEST:
        return f"heads are at most {WIDEST} wide, got {sizes.H} and {sizes.V}"
    if max(operands.query[0].size, operands.key[0].size, operands.value[0].size) >= 2**31:
        return "the query, key or value of one batch row must have fewer than 2^31 elements"
    if sizes.B * sizes.N >= 2**31:
        return "batch * heads must be below 2^31"
    return None


IMPLEMENTATION = Implementation(
    **fused(_forward, _backward, chunked, "cuda", plain_saved=_plain_saved),
    refusal=_refusal,
    is_best=lambda here, problem, operands: (
        here.platform == "cuda" and launch.fits_registers(operands)
    ),
)
