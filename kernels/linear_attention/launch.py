"""How the Triton kernels are launched: frozen choices, nothing is tuned at run time."""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import jax.numpy as jnp

from ..dispatch import target
from ..numerics import next_power_of_2
from .problem import Dimensions, Operands, Problem

# Below this a GPU is not full, and batch rows are not put together.
FEWEST_PROGRAMS = 1024


@dataclass(frozen=True)
class Config:
    """One kernel's launch: steps in a chunk, batch rows of a program, warps, stages."""

    block_t: int
    num_warps: int
    num_stages: int = 1
    rows: int = 1

    @property
    def resources(self) -> dict[str, int]:
        return dict(num_warps=self.num_warps, num_stages=self.num_stages)


@dataclass(frozen=True)
class Plan:
    """The launches of a call. The backward chunk is a multiple of the forward one."""

    forward: Config
    backward: Config


_forced: ContextVar[Plan | None] = ContextVar("forced", default=None)


@contextlib.contextmanager
def forcing(plan: Plan) -> Iterator[None]:
    """Takes `plan` for every call traced inside, to tune and to test; mind JAX's trace cache."""
    token = _forced.set(plan)
    try:
        yield
    finally:
        _forced.reset(token)


def plan(problem: Problem, operands: Operands) -> Plan:
    """The launch for this call on the machine at hand."""
    forced = _forced.get()
    if forced is None:
        return heuristic(problem, operands)
    _check_fits(forced, Dimensions.of(operands))
    return forced


def _check_fits(plan: Plan, sizes: Dimensions) -> None:
    """Raises ValueError where a kernel would leave out rows, or miss a state to start from."""
    for config in (plan.forward, plan.backward):
        if sizes.B % config.rows:
            raise ValueError(f"{config} cannot cut {sizes.B} batch rows evenly")
    if plan.backward.block_t % plan.forward.block_t:
        raise ValueError(
            f"a backward chunk of {plan.backward.block_t} steps must be a multiple of the forward "
            f"one of {plan.forward.block_t}"
        )


# Steps of a chunk and warps, forward and backward, by the width of a head: larger chunks, or fewer
# warps, spill on one GPU or another; see `make check-gpu-code`. The system that the delta rule
# solves grows with the cube of the chunk, so its forward chunks are the smallest there are, but
# the backward pass is left a state for each of its own.
_CHUNKS = {
    "linear": {32: ((64, 4), (64, 4)), 64: ((64, 4), (64, 8)), 128: ((64, 8), (64, 8))},
    "delta": {32: ((16, 1), (64, 4)), 64: ((16, 4), (32, 4)), 128: ((16, 8), (16, 8))},
    # Before Hopper every warp holds an operand of each product.
    "linear, old": {32: ((32, 4), (32, 4)), 64: ((32, 8), (32, 8)), 128: ((64, 8), (64, 8))},
    "delta, old": {32: ((16, 1), (16, 2)), 64: ((16, 4), (16, 4)), 128: ((16, 8), (16, 8))},
    # Exact products run without tensor cores, and take several times the registers.
    "float32": {32: ((16, 4), (16, 4)), 64: ((16, 8), (16, 8)), 128: ((16, 8), (16, 8))},
}


def heuristic(problem: Problem, operands: Operands) -> Plan:
    """A launch that fits on chip everywhere."""
    sizes = Dimensions.of(operands)
    width = max(32, next_power_of_2(max(sizes.H, sizes.V)))
    length = max(16, next_power_of_2(max(sizes.T, sizes.S)))
    kind = "linear" if operands.beta is None else "delta"
    if jnp.dtype(operands.query.dtype).itemsize > 2:
        kind = "float32"
    elif problem.is_causal and length > 64 - 48 * (kind == "delta") and _is_old():
        kind += ", old"
    rows = _rows(sizes, length)
    configs = []
    for block, warps in _CHUNKS[kind][width]:
        taken = min(block, length)
        warps = max(1, warps * taken // block)
        configs.append(Config(taken, warps, rows=rows))
    forward, backward = configs
    if kind == "delta" and width == 32 and length > backward.block_t:
        # It carries the state too.
        backward = dataclasses.replace(backward, num_warps=8)
    return Plan(forward, backward)


def fits_registers(operands: Operands) -> bool:
    """Whether no launch spills kilobytes, which would be slower than XLA's form."""
    sizes = Dimensions.of(operands)
    narrow = jnp.dtype(operands.query.dtype).itemsize <= 2
    widest = (64 if _is_old() else 128) if narrow else 32
    return max(sizes.H, sizes.V) <= widest


def _is_old() -> bool:
    return (target().capability or 90) < 90


def _rows(sizes: Dimensions, length: int) -> int:
    """A tiny program costs as much to start as to run, so it takes several batch rows."""
    rows = 1
    while length <= 32 and rows < 8 and sizes.B % (2 * rows) == 0:
        if sizes.B * sizes.N // (2 * rows) < 16 * FEWEST_PROGRAMS:
            break
        rows *= 2
    return rows
