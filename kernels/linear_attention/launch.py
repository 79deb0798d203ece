"""Launches of the Triton kernels: frozen choices, nothing is tuned at run time."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from ..numerics import next_power_of_2
from ..plans import forced, rows_of_program, warps_hold_operands
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
    """The launches of a call. The backward chunk is a multiple of the forward one.

    chunks_per_state: backward chunks from one saved state to the next. The delta rule computes the
      states in between again; linear attention takes only 1.
    segments: parts of a row that are taken at once; only causal linear attention takes several.
    """

    forward: Config
    backward: Config
    chunks_per_state: int = 1
    segments: int = 1

    @property
    def save_every(self) -> int:
        """Number of steps between states that are saved for the backward pass."""
        return self.backward.block_t * self.chunks_per_state


def plan(problem: Problem, operands: Operands) -> Plan:
    """The launches of this call on the current machine."""
    given = forced(Plan)
    if given is None:
        return heuristic(problem, operands)
    _check_fits(given, problem, operands)
    return given


def _check_fits(plan: Plan, problem: Problem, operands: Operands) -> None:
    """Raises ValueError if a kernel would leave out rows, or lack a state to start from."""
    sizes = Dimensions.of(operands)
    if plan.chunks_per_state != 1 and operands.beta is None:
        raise ValueError("linear attention needs a state saved for each backward chunk")
    if plan.segments != 1:
        if operands.beta is not None or not problem.is_causal:
            raise ValueError("only causal linear attention is taken in segments")
        if sizes.T % plan.segments:
            raise ValueError(f"{plan.segments} segments cannot cut {sizes.T} steps evenly")
    for config in (plan.forward, plan.backward):
        if sizes.B % config.rows:
            raise ValueError(f"{config} cannot cut {sizes.B} batch rows evenly")
    if plan.backward.block_t % plan.forward.block_t:
        raise ValueError(
            f"a backward chunk of {plan.backward.block_t} steps must be a multiple of the forward "
            f"one of {plan.forward.block_t}"
        )


# Rows are cut into segments until there are 264 programs, two for each multiprocessor of an H200. A
# segment has at least 4 chunks, and a row at most 64 segments, which are passed one by one. Rows or
# segments of 4 chunks and more load the next chunk early.
FEWEST_SEGMENTS, FEWEST_CHUNKS, MOST_SEGMENTS = 264, 4, 64
# Steps of the delta rule between saved states.
SAVE_EVERY = 64

# Steps of a chunk and warps, forward and backward, by the width of a head. Larger chunks or fewer
# warps spill on some GPU; see `make check-gpu-code`. The cost of the delta rule's system grows with
# the cube of the chunk, so its chunks are the smallest possible.
_CHUNKS = {
    "linear": {32: ((64, 4), (64, 4)), 64: ((64, 4), (64, 8)), 128: ((64, 8), (64, 8))},
    "delta": {32: ((16, 1), (16, 1)), 64: ((16, 4), (16, 4)), 128: ((16, 8), (16, 8))},
    # Before Hopper every warp holds an operand of each product.
    "linear, old": {32: ((32, 4), (32, 4)), 64: ((32, 8), (32, 8)), 128: ((64, 8), (64, 8))},
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
    elif kind == "linear" and problem.is_causal and length > 64 and warps_hold_operands():
        kind = "linear, old"
    rows = rows_of_program(sizes.B, sizes.N, length)
    configs: list[Config] = []
    for block, warps in _CHUNKS[kind][width]:
        taken = min(block, length)
        warps = max(1, warps * taken // block)
        configs.append(Config(taken, warps, rows=rows))
    forward, backward = configs
    chunks_per_state = 1 if operands.beta is None else SAVE_EVERY // backward.block_t
    segments = problem.segments or 1
    if operands.beta is None and problem.is_causal:
        if problem.segments is None:
            segments = _segments(sizes, backward.block_t)
        is_long = sizes.T // segments >= FEWEST_CHUNKS * forward.block_t
        is_plain = operands.log_decay is None and not problem.normalize
        if is_long and is_plain and kind == "linear" and not warps_hold_operands():
            # With more options this would spill.
            forward = replace(forward, num_stages=2)
    return Plan(forward, backward, chunks_per_state, segments)


def _segments(sizes: Dimensions, chunk: int) -> int:
    """Number of segments of a row: several if there are long rows and few of them."""
    segments = 1
    while sizes.B * sizes.N * segments < FEWEST_SEGMENTS and segments < MOST_SEGMENTS:
        steps, rest = divmod(sizes.T, 2 * segments)
        if rest or steps % chunk or steps < FEWEST_CHUNKS * chunk:
            break
        segments *= 2
    return segments


def fits_registers(operands: Operands) -> bool:
    """Whether a launch spills less than kilobytes; with more XLA's form is faster."""
    sizes = Dimensions.of(operands)
    narrow = jnp.dtype(operands.query.dtype).itemsize <= 2
    widest = (64 if warps_hold_operands() else 128) if narrow else 32
    return max(sizes.H, sizes.V) <= widest
