"""Launches of the Triton kernels: frozen choices, nothing is tuned at run time."""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp

from ..numerics import next_power_of_2
from ..plans import before_hopper, forced, rows_of_program
from .problem import Dimensions, Operands, Problem


@dataclass(frozen=True)
class Config:
    """Launch of one kernel: steps of a chunk, warps, stages, batch rows of a program."""

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


def plan(problem: Problem, operands: Operands) -> Plan:
    """The launches of this call on the current machine."""
    given = forced(Plan)
    if given is None:
        return heuristic(problem, operands)
    _check_fits(given, Dimensions.of(operands))
    return given


def _check_fits(plan: Plan, sizes: Dimensions) -> None:
    """Raises ValueError if a kernel would leave out rows, or lack a state to start from."""
    for config in (plan.forward, plan.backward):
        if sizes.B % config.rows:
            raise ValueError(f"{config} cannot cut {sizes.B} batch rows evenly")
    if plan.backward.block_t % plan.forward.block_t:
        raise ValueError(
            f"a backward chunk of {plan.backward.block_t} steps must be a multiple of the forward "
            f"one of {plan.forward.block_t}"
        )


# Steps of a chunk and warps, forward and backward, by the width of a head. Larger chunks or fewer
# warps spill on some GPU; see `make check-gpu-code`. The cost of the delta rule's system grows with
# the cube of the chunk, so its forward chunks are the smallest possible. A state is saved for each
# chunk of the backward pass.
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
    """A launch that fits on every GPU."""
    sizes = Dimensions.of(operands)
    width = max(32, next_power_of_2(max(sizes.H, sizes.V)))
    length = max(16, next_power_of_2(max(sizes.T, sizes.S)))
    kind = "linear" if operands.beta is None else "delta"
    if jnp.dtype(operands.query.dtype).itemsize > 2:
        kind = "float32"
    elif problem.is_causal and length > 64 - 48 * (kind == "delta") and before_hopper():
        kind += ", old"
    rows = rows_of_program(sizes.B, sizes.N, length)
    configs = []
    for block, warps in _CHUNKS[kind][width]:
        taken = min(block, length)
        warps = max(1, warps * taken // block)
        configs.append(Config(taken, warps, rows=rows))
    forward, backward = configs
    if kind == "delta" and width == 32 and length > backward.block_t:
        # This kernel carries the state too.
        backward = dataclasses.replace(backward, num_warps=8)
    return Plan(forward, backward)


def fits_registers(operands: Operands) -> bool:
    """Whether a launch spills less than kilobytes; with more XLA's form is faster."""
    sizes = Dimensions.of(operands)
    narrow = jnp.dtype(operands.query.dtype).itemsize <= 2
    widest = (64 if before_hopper() else 128) if narrow else 32
    return max(sizes.H, sizes.V) <= widest
