"""The Triton form of linear attention and the delta rule: the arguments of the kernels."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import fused
from ..numerics import next_power_of_2, triton_precision
from ..triton_call import call_refusal, stand_ins, strides, triton_call
from . import launch
from .problem import Dimensions, Operands, Problem, Result
from .xla import chunked

WIDEST = 128


class Strides(NamedTuple):
    """Strides of the kernels' tensors, as `tiles.py` and `triton_tiles.py` take them.

    None for a tensor that a kernel does not have.
    """

    QUERY: Any
    KEY: Any
    VALUE: Any
    BETA: Any
    LOG_DECAY: Any
    KEY_LENGTHS: int
    INITIAL_STATE: int
    STATE: int
    STATES: int
    OUT: Any = None
    D_OUT: Any = None
    D_STATE: int | None = None
    D_QUERY: Any = None
    D_KEY: Any = None
    D_VALUE: Any = None
    D_NUMBERS: Any = None
    ERRORS: Any = None


class Call(NamedTuple):
    """Sizes and options for which a kernel is compiled.

    T, S, N, H, V: queries, keys, heads, features of a key and of a value.
    SCALE: factor of the weights.
    SAVE_EVERY: number of steps between states that are saved for the backward pass.
    BLOCK_T, BLOCK_H, BLOCK_V: steps of a chunk, and features of its tiles.
    ROWS: batch rows of a program.
    """

    T: int
    S: int
    N: int
    H: int
    V: int
    SCALE: float
    NORMALIZE: bool
    HAS_DECAY: bool
    HAS_KEY_LENGTHS: bool
    HAS_INITIAL: bool
    RETURNS_STATE: bool
    SAVE_EVERY: int
    PRECISION: str
    BLOCK_T: int
    BLOCK_H: int
    BLOCK_V: int
    ROWS: int


def _forward(problem: Problem, operands: Operands) -> tuple[Result, Any]:
    sizes, plan = Dimensions.of(operands), launch.plan(problem, operands)
    config, dtype = plan.forward, operands.query.dtype
    kernel = _kernels(problem, operands).forward_kernel
    saved = _saved_shapes(problem, operands, plan)
    state = _state_shape(problem, sizes) if problem.returns_state else (sizes.B,)
    shapes = {"states": (sizes.B,), **saved, "out": (sizes.B, sizes.T, sizes.N, sizes.V)}
    outputs = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    outputs["state"] = jax.ShapeDtypeStruct(state, jnp.float32)
    found = triton_call(
        kernel,
        sizes.B // config.rows * sizes.N,
        _inputs(kernel, operands),
        outputs,
        _constants(problem, operands, plan, config, OUT=strides(outputs["out"].shape, sizes.B)),
        **config.resources,
    )
    result = Result(found["out"], found["state"] if problem.returns_state else None)
    return result, {name: found[name] for name in saved}


def _backward(problem: Problem, operands: Operands, saved: dict, d_result: Result) -> Operands:
    """The gradient, with every batch row also for an operand that has one row for all."""
    sizes, plan = Dimensions.of(operands), launch.plan(problem, operands)
    config, query = plan.backward, operands.query
    kernel = _kernels(problem, operands).backward_kernel
    names = [name for name in Operands._fields if "d_" + name in kernel.arg_names]
    outputs = {}
    for name in names:
        array = getattr(operands, name)
        shape = (sizes.B,) if array is None else (sizes.B, *array.shape[1:])
        dtype = query.dtype if name in names[:3] else jnp.float32
        outputs["d_" + name] = jax.ShapeDtypeStruct(shape, dtype)
    found = triton_call(
        kernel,
        sizes.B // config.rows * sizes.N,
        _inputs(kernel, operands)
        | dict(d_out=d_result.out, states=query)
        | dict(d_state=query if d_result.state is None else d_result.state)
        | saved,
        outputs,
        _constants(
            problem,
            operands,
            plan,
            config,
            D_OUT=strides(d_result.out.shape, sizes.B),
            D_STATE=_rows_apart(d_result.state, sizes),
            D_QUERY=strides(outputs["d_query"].shape, sizes.B),
            D_KEY=strides(outputs["d_key"].shape, sizes.B),
            D_VALUE=strides(outputs["d_value"].shape, sizes.B),
            D_NUMBERS=(sizes.T * sizes.N, sizes.N, 1),
        ),
        **config.resources,
    )
    present = [name for name in names if getattr(operands, name) is not None]
    return Operands(**dict.fromkeys(Operands._fields) | {n: found["d_" + n] for n in present})


def _kernels(problem: Problem, operands: Operands) -> Any:
    if operands.beta is not None:
        from . import triton_delta as kernels
    elif problem.is_causal:
        from . import triton_causal as kernels
    else:
        from . import triton_full as kernels
    return kernels


def _constants(
    problem: Problem, operands: Operands, plan: launch.Plan, config: launch.Config, **others: Any
) -> dict[str, Any]:
    """STRIDES and CALL of a kernel; `others` are the strides of its other tensors."""
    sizes = Dimensions.of(operands)
    of_step = lambda array: (_rows_apart(array, sizes), sizes.N, 1)
    states = _saved_shapes(problem, operands, plan).get("states", (sizes.B,))
    return dict(
        STRIDES=Strides(
            QUERY=strides(operands.query.shape, sizes.B),
            KEY=strides(operands.key.shape, sizes.B),
            VALUE=strides(operands.value.shape, sizes.B),
            BETA=of_step(operands.beta),
            LOG_DECAY=of_step(operands.log_decay),
            KEY_LENGTHS=_rows_apart(operands.key_lengths, sizes),
            INITIAL_STATE=_rows_apart(operands.initial_state, sizes),
            STATE=math.prod(_state_shape(problem, sizes)[1:]),
            STATES=math.prod(states[1:]),
            ERRORS=strides((sizes.B, sizes.T, sizes.N, sizes.V), sizes.B),
            **others,
        ),
        CALL=Call(
            T=sizes.T,
            S=sizes.S,
            N=sizes.N,
            H=sizes.H,
            V=sizes.V,
            SCALE=problem.scale,
            NORMALIZE=problem.normalize,
            HAS_DECAY=operands.log_decay is not None,
            HAS_KEY_LENGTHS=operands.key_lengths is not None,
            HAS_INITIAL=operands.initial_state is not None,
            RETURNS_STATE=problem.returns_state,
            SAVE_EVERY=plan.save_every,
            PRECISION=triton_precision(problem.precision, operands.query.dtype),
            BLOCK_T=config.block_t,
            BLOCK_H=max(16, next_power_of_2(sizes.H)),
            BLOCK_V=max(16, next_power_of_2(sizes.V)),
            ROWS=config.rows,
        ),
    )


def _inputs(kernel: Any, operands: Operands) -> dict[str, jax.Array]:
    """The kernel's first arguments."""
    given = operands._asdict().items()
    return stand_ins({name: array for name, array in given if name in kernel.arg_names})


def _rows_apart(array: jax.Array | None, sizes: Dimensions) -> int:
    """Number of elements between batch rows; 0 if one row serves all."""
    return 0 if array is None or array.shape[0] != sizes.B else array[0].size


def _state_shape(problem: Problem, sizes: Dimensions) -> tuple[int, ...]:
    return (sizes.B, sizes.N, sizes.H, sizes.V + problem.normalize)


def _saved_shapes(
    problem: Problem, operands: Operands, plan: launch.Plan
) -> dict[str, tuple[int, ...]]:
    """Shapes of what the forward pass saves for the backward pass, in the query's dtype.

    The states before some chunks, or the last one if the call is not causal, unless the backward
    pass has all steps on chip; the errors of the delta rule.
    """
    sizes = Dimensions.of(operands)
    batch, heads, *state = _state_shape(problem, sizes)
    shapes = {}
    if sizes.S > plan.save_every:
        saved = [-(-sizes.T // plan.save_every)] if problem.is_causal else []
        shapes["states"] = (batch, heads, *saved, *state)
    if operands.beta is not None:
        shapes["errors"] = (batch, sizes.T, heads, sizes.V)
    return shapes


def _plain_saved(problem: Problem, operands: Operands, result: Result) -> Any:
    shapes = _saved_shapes(problem, operands, launch.plan(problem, operands))
    return {name: jnp.zeros(shape, operands.query.dtype) for name, shape in shapes.items()}


def _refusal(target: Target, problem: Problem, operands: Operands) -> str | None:
    sizes = Dimensions.of(operands)
    found = call_refusal(target, [sizes.H, sizes.V], WIDEST, *operands[:3])
    if found is not None:
        return found
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
