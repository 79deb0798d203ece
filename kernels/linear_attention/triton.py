"""The Triton form of linear attention and the delta rule: the arguments of the kernels."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target
from ..fused import fused
from ..numerics import next_power_of_2, triton_precision
from ..triton_call import call_refusal, stand_ins, strides, triton_call
from . import launch, segments
from .problem import Dimensions, Operands, Problem, Result
from .xla import chunked

WIDEST = 128
# What the forward kernels write, and of that, what the backward kernels read.
_OUTPUTS = ("out", "state", "states", "errors", "broken")
_SAVED = ("states", "errors")


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
    ONLY_STATES: the kernel only follows the state, or its derivative, to the end of the row.
    HAS_BROKEN_BEFORE: the kernel is told whether steps before the row hold NaN or infinity.
    BLOCK_T, BLOCK_H, BLOCK_V: steps of a chunk, and features of its tiles.
    ROWS: batch rows of a program.
    STAGES: number of chunks whose loads are in flight.
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
    ONLY_STATES: bool
    HAS_BROKEN_BEFORE: bool
    PRECISION: str
    BLOCK_T: int
    BLOCK_H: int
    BLOCK_V: int
    ROWS: int
    STAGES: int


def _forward(problem: Problem, operands: Operands) -> tuple[Result, Any]:
    plan = launch.plan(problem, operands)
    if plan.segments == 1:
        found = _call_forward(problem, operands, plan)
        state = found.get("state")
        return Result(found["out"], state), {n: found[n] for n in _SAVED if n in found}
    folded = segments.fold(operands, plan.segments)
    in_segments: Callable[[jax.Array], jax.Array] = lambda array: array.reshape(
        -1, plan.segments, *array.shape[1:]
    )
    states_only = replace(problem, returns_state=True)
    added = _call_forward(states_only, folded, plan, only_states=True)
    broken = in_segments(added["broken"])
    initial = operands.initial_state
    if initial is None:
        initial = jnp.zeros((1, *added["state"].shape[1:]))
    starts, state = segments.scan(
        initial.astype(jnp.float32),
        in_segments(added["state"]),
        segments.whole_decays(folded, plan.segments),
        range(plan.segments),
    )
    found = _call_forward(
        replace(problem, returns_state=False),
        folded._replace(initial_state=starts.reshape(added["state"].shape)),
        plan,
        broken_before=segments.broken_before(broken).reshape(added["broken"].shape),
    )
    saved = {"starts": starts}
    if "states" in found:
        saved["states"] = in_segments(found["states"])
    out = segments.unfold_steps(found["out"], plan.segments)
    if not problem.returns_state:
        return Result(out), saved
    return Result(out, jnp.where(broken.any(axis=1)[..., None, None], jnp.nan, state)), saved


def _call_forward(
    problem: Problem,
    operands: Operands,
    plan: launch.Plan,
    only_states: bool = False,
    broken_before: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The outputs of the forward kernel that are asked for, by name.

    only_states: asks for the last states, without NaN, and for "broken", int32 `[B, N]`, 1 if a
      key, value or decay holds NaN or infinity.
    broken_before: bool `[B, N]`, whether to act as if an earlier step did.
    """
    sizes, dtype = Dimensions.of(operands), operands.query.dtype
    kernel, config = _kernels(problem, operands).forward_kernel, plan.forward
    saved = {} if only_states else _saved_shapes(problem, operands, plan)
    wanted = {n: jax.ShapeDtypeStruct(shape, dtype) for n, shape in saved.items()}
    if only_states:
        wanted["broken"] = jax.ShapeDtypeStruct((sizes.B, sizes.N), jnp.int32)
    else:
        shape = (sizes.B, sizes.T, sizes.N, sizes.V)
        wanted["out"] = jax.ShapeDtypeStruct(shape, dtype)
    if problem.returns_state:
        wanted["state"] = jax.ShapeDtypeStruct(_state_shape(problem, sizes), jnp.float32)
    absent = jax.ShapeDtypeStruct((sizes.B,), jnp.int32)
    inputs = _inputs(kernel, operands)
    if "broken_before" in kernel.arg_names:
        given = inputs["query"] if broken_before is None else broken_before.astype(jnp.int32)
        inputs["broken_before"] = given
    found = triton_call(
        kernel,
        sizes.B // config.rows * sizes.N,
        inputs,
        {n: wanted.get(n, absent) for n in _OUTPUTS if n in kernel.arg_names},
        _constants(
            problem,
            operands,
            plan,
            config,
            only_states,
            broken_before is not None,
            OUT=strides((sizes.B, sizes.T, sizes.N, sizes.V), sizes.B),
        ),
        **config.resources,
    )
    return {name: found[name] for name in wanted}


def _backward(
    problem: Problem, operands: Operands, saved: dict[str, jax.Array], d_result: Result
) -> Operands:
    """The gradient, with every batch row also for an operand that has one row for all."""
    plan = launch.plan(problem, operands)
    if "starts" not in saved:
        return _call_backward(problem, operands, saved, d_result, plan)
    # vmap may have added rows since the forward pass chose the number of segments.
    count = saved["starts"].shape[1]
    rows: Callable[[jax.Array], jax.Array] = lambda array: array.reshape(-1, *array.shape[2:])
    folded = segments.fold(operands, count)._replace(initial_state=rows(saved["starts"]))
    d_out = segments.fold_steps(d_result.out, count)
    added = _call_backward(
        replace(problem, returns_state=False),
        folded,
        {n: rows(saved[n]) for n in _SAVED if n in saved},
        Result(d_out),
        plan,
        only_states=True,
    ).initial_state
    d_state = jnp.zeros((1, *added.shape[1:])) if d_result.state is None else d_result.state
    d_states, d_initial = segments.scan(
        d_state,
        added.reshape(-1, count, *added.shape[1:]),
        segments.whole_decays(folded, count),
        range(count)[::-1],
    )
    found = _call_backward(
        replace(problem, returns_state=True),
        folded,
        {n: rows(saved[n]) for n in _SAVED if n in saved},
        Result(d_out, rows(d_states)),
        plan,
    )
    gradient = {
        name: segments.unfold_steps(getattr(found, name), count)
        for name in ("query", "key", "value", "log_decay")
        if getattr(found, name) is not None
    }
    if operands.initial_state is not None:
        gradient["initial_state"] = d_initial
    return Operands(**dict.fromkeys(Operands._fields) | gradient)


def _call_backward(
    problem: Problem,
    operands: Operands,
    saved: dict[str, jax.Array],
    d_result: Result,
    plan: launch.Plan,
    only_states: bool = False,
) -> Operands:
    """The gradient by the backward kernel; with `only_states` that of the initial state alone."""
    sizes, query = Dimensions.of(operands), operands.query
    kernel, config = _kernels(problem, operands).backward_kernel, plan.backward
    names = [name for name in Operands._fields if "d_" + name in kernel.arg_names]
    present = [name for name in names if getattr(operands, name) is not None]
    if only_states:
        present = ["initial_state"]
    outputs: dict[str, jax.ShapeDtypeStruct] = {}
    for name in names:
        shape = (sizes.B, *getattr(operands, name).shape[1:]) if name in present else (sizes.B,)
        dtype = query.dtype if name in names[:3] else jnp.float32
        outputs["d_" + name] = jax.ShapeDtypeStruct(shape, dtype)
    shapes = {n: (sizes.B, *a.shape[1:]) for n, a in operands._asdict().items() if a is not None}
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
            only_states,
            D_OUT=strides(d_result.out.shape, sizes.B),
            D_STATE=_rows_apart(d_result.state, sizes),
            D_QUERY=strides(shapes["query"], sizes.B),
            D_KEY=strides(shapes["key"], sizes.B),
            D_VALUE=strides(shapes["value"], sizes.B),
            D_NUMBERS=(sizes.T * sizes.N, sizes.N, 1),
        ),
        **config.resources,
    )
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
    problem: Problem,
    operands: Operands,
    plan: launch.Plan,
    config: launch.Config,
    only_states: bool = False,
    has_broken_before: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """STRIDES and CALL of a kernel; `others` are the strides of its other tensors."""
    sizes = Dimensions.of(operands)
    of_step: Callable[[jax.Array | None], Any] = lambda array: (
        _rows_apart(array, sizes),
        sizes.N,
        1,
    )
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
            ONLY_STATES=only_states,
            HAS_BROKEN_BEFORE=has_broken_before,
            PRECISION=triton_precision(problem.precision, operands.query.dtype),
            BLOCK_T=config.block_t,
            BLOCK_H=max(16, next_power_of_2(sizes.H)),
            BLOCK_V=max(16, next_power_of_2(sizes.V)),
            ROWS=config.rows,
            STAGES=config.num_stages,
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
    shapes: dict[str, tuple[int, ...]] = {}
    if sizes.S > plan.save_every:
        saved = [-(-sizes.T // plan.save_every)] if problem.is_causal else []
        shapes["states"] = (batch, heads, *saved, *state)
    if operands.beta is not None:
        shapes["errors"] = (batch, sizes.T, heads, sizes.V)
    return shapes


def _plain_saved(problem: Problem, operands: Operands, result: Result) -> Any:
    plan, sizes = launch.plan(problem, operands), Dimensions.of(operands)
    if plan.segments == 1:
        shapes = _saved_shapes(problem, operands, plan)
        return {name: jnp.zeros(shape, operands.query.dtype) for name, shape in shapes.items()}
    folded = segments.fold(operands, plan.segments)
    shapes = _saved_shapes(problem, folded, plan)
    of: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: (
        sizes.B,
        plan.segments,
        *shape[1:],
    )
    saved = {name: jnp.zeros(of(s), operands.query.dtype) for name, s in shapes.items()}
    return saved | {"starts": jnp.zeros(of(_state_shape(problem, sizes)), jnp.float32)}


def _refusal(target: Target, problem: Problem, operands: Operands) -> str | None:
    sizes = Dimensions.of(operands)
    found = call_refusal(target, [sizes.H, sizes.V], WIDEST, *operands[:3])
    if found is not None:
        return found
    if sizes.B * sizes.N >= 2**31:
        return "batch * heads must be below 2^31"
    return None


def _with_segments(
    call: Callable[[Problem, Operands], Result],
) -> Callable[[Problem, Operands], Result]:
    """Chooses the number of segments before vmap adds rows to the batch."""

    def run(problem: Problem, operands: Operands) -> Result:
        count = launch.plan(problem, operands).segments
        return call(replace(problem, segments=count), operands)

    return run


IMPLEMENTATION = Implementation(
    **{
        name: _with_segments(call)
        for name, call in fused(
            _forward, _backward, chunked, "cuda", plain_saved=_plain_saved
        ).items()
    },
    refusal=_refusal,
    is_best=lambda here, problem, operands: (
        here.platform == "cuda" and launch.fits_registers(operands)
    ),
)
