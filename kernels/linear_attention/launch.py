"""How the Triton kernels are launched."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import jax.numpy as jnp

from .problem import Dimensions, Operands, Problem

# Below this a GPU is not full, and batch rows are not put together.
FEWEST_PROGRAMS = 1024


def next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


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
    return heuristic(problem, operands) if forced is None else forced


def heuristic(problem: Problem, operands: Operands) -> Plan:
    """A launch that fits on chip everywhere; see `bench/check_gpu_code.py` for its registers."""
    sizes = Dimensions.of(operands)
    width = max(16, next_power_of_2(max(sizes.H, sizes.V)))
    length = max(16, next_power_of_2(max(sizes.T, sizes.S)))
    narrow = jnp.dtype(operands.query.dtype).itemsize <= 2
    block = min(length, 64 if narrow else 32)
    forward = block
    if operands.beta is not None:
        # The system to solve grows with the cube of the chunk.
        forward = min(block, 32)
    rows = _rows(sizes, length)
    config = lambda block: Config(block, _warps(block, width, narrow), rows=rows)
    return Plan(config(forward), config(block))


def _warps(block: int, width: int, narrow: bool) -> int:
    largest = max(block * block, block * width, width * width)
    return min(max(largest // (1024 if narrow else 512), 1), 8)


def _rows(sizes: Dimensions, length: int) -> int:
    """A tiny program costs as much to start as to run, so it takes several batch rows."""
    rows = 1
    while length <= 32 and rows < 8 and sizes.B % (2 * rows) == 0:
        if sizes.B * sizes.N // (2 * rows) < 16 * FEWEST_PROGRAMS:
            break
        rows *= 2
    return rows
