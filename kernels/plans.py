"""What the launches of all Triton kernels share; an op's own are in its `launch.py`."""

import contextlib
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

from .dispatch import target

# A GPU is not full with fewer, and batch rows do not share a program then.
FEWEST_PROGRAMS = 1024

_forced: ContextVar[Any] = ContextVar("forced", default=None)


@contextlib.contextmanager
def forcing(plan: Any) -> Generator[None, None, None]:
    """Takes `plan` for every call of its op traced inside, to tune and to test.

    A call that JAX has traced before keeps its plan: see `jax.clear_caches`.
    """
    token = _forced.set(plan)
    try:
        yield
    finally:
        _forced.reset(token)


def forced(kind: type) -> Any:
    """The plan given to `forcing` if it is of this op's kind, else None."""
    plan = _forced.get()
    return plan if isinstance(plan, kind) else None


def has_wgmma() -> bool:
    """Whether the GPU has Hopper's products of four warps, which no other generation has.

    A machine without a compute capability counts as Hopper.
    """
    return _capability() == 90


def warps_hold_operands() -> bool:
    """Whether each warp holds an operand of each product in registers.

    Only Hopper and the datacentre GPUs of Blackwell (10.x) multiply from shared memory; Ampere, Ada
    and the other Blackwells (12.x) do not.
    """
    return _capability() // 10 not in (9, 10)


def has_little_shared_memory() -> bool:
    """Whether a program has 99 KiB of shared memory, less than the 163 and more of data centres."""
    return _capability() in (86, 89) or _capability() >= 120


def _capability() -> int:
    return target().capability or 90


def rows_of_program(batch: int, heads: int, length: int) -> int:
    """Number of batch rows of a program: several if it is so short that starting it costs most."""
    rows = 1
    while length <= 32 and rows < 8 and batch % (2 * rows) == 0:
        if batch * heads // (2 * rows) < 16 * FEWEST_PROGRAMS:
            break
        rows *= 2
    return rows
