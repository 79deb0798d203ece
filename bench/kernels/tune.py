"""Finds the fastest launches of attention's Triton kernels on this GPU; writes their table."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from icl.kernels.attention import launch, row_tiles, triton
from icl.kernels.attention.launch import Config, Plan
from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.attention.workloads import WORKLOADS
from icl.kernels.dispatch import interpreting, target
from icl.kernels.plans import forcing

from ..common import machine
from ..common.driver import one_of, positive
from ..common.worker import describe_error
from .device_time import Program, Timer, launch_one_by_one
from .jax_side import attend, directed, draw
from .ops import BOTH, CASES, FORWARD, Case
from .sides import EPS, at_hand, input_sets

GAIN = 0.99  # a launch replaces the best one if its time is below this share of the best
HOPELESS = 1.5  # a form that starts slower than this multiple of the best form is not tuned
BLOCKS = (16, 32, 64, 128)
WARPS = (1, 2, 4, 8)
SCORES_A_THREAD = (4, 256)
MOST_ROWS = 16

# From a plan and a direction to seconds, which are infinite if the plan fails or is wrong.
Measure = Callable[[Plan, str], float]


def main(argv: list[str] | None = None) -> int:
    """Tunes; returns 0, or 2 if there is nothing to tune."""
    options = parse(argv)
    launch_one_by_one()
    here = target()
    cases = by_key(options.workloads, options.dtype)
    cases = {key: at_hand(case, here.platform, options.rows) for key, case in cases.items()}
    tries = interpreting() and options.out is not None
    reason = None if here.platform == "cuda" or tries else f"this is {here.platform!r}"
    for case in cases.values():
        problem, operands = call_of(case, options.dtype)
        reason = reason or triton.IMPLEMENTATION.refusal(here, problem, operands)
    if reason:
        print(f"nothing to tune here: launches are tuned on an NVIDIA GPU, and {reason}")
        return 2
    about = machine.describe()
    path = launch.table_path(here.device)
    plans = dict(launch.read_table(path))  # entries that are not tuned now are kept
    if options.out:
        path = options.out / path.name
        plans |= launch.read_table(path)
    timer = Timer(here.platform)
    for key, case in cases.items():
        print(key, flush=True)
        trial = Trial(case, options.dtype, timer, options.seconds)
        plans[key] = best_plan(*call_of(case, options.dtype), trial.seconds)
        # After every key, so that an interruption loses no finished key.
        known = {"versions": about["versions"], "revision": about["revision"]}
        launch.write_table(path, plans, device=here.device, **known)
    print(f"timed by {timer.method}; written to {path}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench tune", description=__doc__)
    parser.add_argument("workloads", nargs="*", type=one_of(WORKLOADS),
                        help=f"{', '.join(WORKLOADS)}; by default all")  # fmt: skip
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(EPS))
    parser.add_argument("--out", type=Path, help="folder for the table in place of the kernels'")
    parser.add_argument("--rows", type=positive, help="largest number of batch rows, for a try")
    parser.add_argument(
        "--seconds", type=float, default=180, help="time limit for the trials of a key"
    )
    options = parser.parse_args(argv)
    options.workloads = options.workloads or list(WORKLOADS)
    return options


def call_of(case: Case, dtype: str) -> tuple[Problem, Operands]:
    """The problem and operands (shapes) that the kernels receive for a case."""
    workload = case.workload
    return Problem(workload.H**-0.5, workload.is_causal), Operands(**case.call(dtype)[1])


def by_key(names: Iterable[str], dtype: str) -> dict[str, Case]:
    """The largest case for each key of the table of launches."""
    largest: dict[str, Case] = {}
    for case in (CASES[name] for name in names):
        key = launch.key_of(*call_of(case, dtype))
        other = largest.setdefault(key, case)
        largest[key] = max(case, other, key=lambda c: c.workload.bytes(backward=False))
    return largest


def best_plan(problem: Problem, operands: Operands, measure: Measure) -> Plan:
    """The plan whose forward and backward passes take the least time together.

    Both directions use one form, because the tiled form saves residuals for its backward pass.

    Args:
      problem, operands: options and shapes of a call.
      measure: times a plan of this call.

    Raises:
      RuntimeError: no plan runs.
    """
    best, best_seconds = None, float("inf")
    for plan in launch.forms(problem, operands):
        if measure(plan, BOTH) > HOPELESS * best_seconds:
            continue
        plan = _improve(plan, "forward", FORWARD, operands, measure)
        plan = _improve(plan, "backward", BOTH, operands, measure)
        if plan.backward_queries is not None:
            plan = _improve(plan, "backward_queries", BOTH, operands, measure)
        seconds = measure(plan, BOTH)
        print(f"  {1e6 * seconds:.1f} us {plan}", flush=True)
        if seconds < best_seconds:
            best, best_seconds = plan, seconds
    if best is None:
        raise RuntimeError("no launch of any form runs; see above")
    return best


def _improve(plan: Plan, field: str, direction: str, operands: Operands, measure: Measure) -> Plan:
    """The plan with the fastest launch of one kernel: tunes blocks and warps, stages, then rows."""
    seconds = measure(plan, direction)
    for choices in (_blocks, _stages, _rows):
        for config in choices(plan.form, getattr(plan, field), operands):
            candidate = dataclasses.replace(plan, **{field: config})
            if (taken := measure(candidate, direction)) < GAIN * seconds:
                plan, seconds = candidate, taken
    return plan


def _blocks(form: str, start: Config, operands: Operands) -> Iterator[Config]:
    (_, length, *_), (_, key_length, *_) = operands.query.shape, operands.key.shape
    queries, keys = _block_sizes(length), _block_sizes(key_length)
    if form == "tiled":
        queries, keys = queries[-3:], keys[-3:]
    else:
        keys = sorted({start.block_s} | {b for b in keys if key_length <= b * row_tiles.MOST})
    fewest, most = SCORES_A_THREAD
    for block_t in queries:
        for block_s in keys:
            for num_warps in WARPS:
                if fewest <= block_t * block_s // (32 * num_warps) <= most:
                    yield dataclasses.replace(
                        start, block_t=block_t, block_s=block_s, num_warps=num_warps
                    )


def _block_sizes(length: int) -> list[int]:
    return [block for block in BLOCKS if block <= max(16, launch.next_power_of_2(length))]


def _stages(form: str, start: Config, operands: Operands) -> Iterator[Config]:
    for num_stages in (1, 2) if form == "row" else (1, 2, 3, 4):
        yield dataclasses.replace(start, num_stages=num_stages)


def _rows(form: str, start: Config, operands: Operands) -> Iterator[Config]:
    (batch, _, heads, _), rows = operands.key.shape, 1
    while form == "row" and rows <= MOST_ROWS and batch % rows == 0:
        if batch // rows * heads < launch.FEWEST_PROGRAMS:
            return
        yield dataclasses.replace(start, rows=rows)
        rows *= 2


class Trial:
    """Tries plans on a case and compares their results with the XLA form's.

    Args:
      seconds: time limit; later plans are not tried.
    """

    def __init__(self, case: Case, dtype: str, timer: Timer, seconds: float):
        self._case, self._timer = case, timer
        self._tolerance = max(2 * EPS[dtype], 1e-5)
        self._inputs = draw(case, dtype, 0, input_sets(case, dtype))
        self._expected = self._program("xla", BOTH)(*self._inputs[0])
        # Compiled ahead, because JAX's caches are cleared for every plan.
        self._errors = {
            direction: Program(_relative_errors, 2 * [self._expected[:count]])
            for direction, count in ((FORWARD, 1), (BOTH, 4))
        }
        self._known: dict[tuple[Plan, str], float] = {}
        self._deadline = time.monotonic() + seconds

    def seconds(self, plan: Plan, direction: str) -> float:
        """Seconds of a call; infinite if the plan fails, is wrong or exceeds the time limit."""
        key = (plan, direction)
        if key not in self._known:
            if self._known and time.monotonic() > self._deadline:
                return float("inf")
            try:
                self._known[key] = self._timer.seconds(self.compile(plan, direction), self._inputs)
            except Exception as error:
                print(f"  {direction} {plan}: {describe_error(error)}", flush=True)
                self._known[key] = float("inf")
        return self._known[key]

    def compile(self, plan: Plan, direction: str) -> Program:
        """Compiles and checks a program with the plan. Raises ValueError if it is wrong."""
        jax.clear_caches()  # removes traces under other plans
        with forcing(plan):
            program = self._program("triton", direction)
        found = program(*self._inputs[0])
        errors = self._errors[direction](found, self._expected[: len(found)])
        if not all(float(error) <= self._tolerance for error in errors):  # NaN is above too
            raise ValueError(f"off from the XLA form by {[f'{float(e):.1e}' for e in errors]}")
        return program

    def _program(self, implementation: str, direction: str) -> Program:
        return Program(directed(attend(self._case, implementation), direction), self._inputs[0])


def _relative_errors(found: Sequence[jax.Array], wanted: Sequence[jax.Array]) -> list[jax.Array]:
    wide = lambda array: array.astype(jnp.float32).ravel()
    norm = lambda array: jnp.sqrt(jnp.vdot(array, array))
    return [norm(wide(a) - wide(b)) / norm(wide(b)) for a, b in zip(found, wanted, strict=True)]
