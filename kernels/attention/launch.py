"""Launches of the Triton kernels: from a table that ships for the device, else by a heuristic.

A table is `launch_tables/<device>.json`, written by `python -m bench tune` on that device. It maps
the key of a call (see `key_of`) to the plan that was fastest. Nothing is tuned at run time.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..dispatch import target
from ..numerics import next_power_of_2
from ..plans import (
    FEWEST_PROGRAMS,
    forced,
    has_little_shared_memory,
    has_wgmma,
    rows_of_program,
    warps_hold_operands,
)
from . import row_tiles
from .problem import Dimensions, Operands, Problem

TABLES = Path(__file__).with_name("launch_tables")


@dataclass(frozen=True)
class Config:
    """Launch of one kernel: queries and keys of a tile, warps, stages, batch rows of a program."""

    block_t: int
    block_s: int
    num_warps: int
    num_stages: int = 2
    rows: int = 1

    @property
    def resources(self) -> dict[str, int]:
        return dict(num_warps=self.num_warps, num_stages=self.num_stages)


@dataclass(frozen=True)
class Plan:
    """The form, "row" or "tiled", and the launches of its kernels.

    `backward_queries` is the second backward kernel of the tiled form; the row form has one.
    """

    form: str
    forward: Config
    backward: Config
    backward_queries: Config | None = None

    @classmethod
    def of(cls, form: str, **configs: Any) -> "Plan":
        return cls(form, **{name: Config(**values) for name, values in configs.items()})


def plan(problem: Problem, operands: Operands) -> Plan:
    """The launches of this call on the current machine."""
    sizes = Dimensions.of(operands)
    given = forced(Plan)
    if given is not None:
        if not _fits(given, sizes):
            raise ValueError(f"{given} does not fit {sizes.B} batch rows of {sizes.S} keys")
        return given
    known = read_table(table_path(target().device)).get(key_of(problem, operands))
    known = known and _for_batch(known, sizes)
    return known if known and _fits(known, sizes) else heuristic(problem, operands)


def _fits(plan: Plan, sizes: Dimensions) -> bool:
    """Whether the row form's kernels take all keys and batch rows."""
    if plan.form != "row":
        return True
    kernels = (plan.forward, plan.backward)
    return all(c.block_s * row_tiles.MOST >= sizes.S and sizes.B % c.rows == 0 for c in kernels)


def _for_batch(plan: Plan, sizes: Dimensions) -> Plan:
    """The plan with rows per program that divide the batch and leave the GPU full."""

    def fit(config: Config) -> Config:
        rows = config.rows
        while rows > 1 and (sizes.B % rows or sizes.B // rows * sizes.K < FEWEST_PROGRAMS):
            rows //= 2
        return dataclasses.replace(config, rows=rows)

    return dataclasses.replace(plan, forward=fit(plan.forward), backward=fit(plan.backward))


def key_of(problem: Problem, operands: Operands) -> str:
    """The key of a call in a table; sizes are rounded up."""
    sizes = Dimensions.of(operands)
    length, key_length, width = _rounded(sizes.T), _rounded(sizes.S), next_power_of_2(sizes.H)
    bias = "+bias" if operands.bias is not None else ""
    kind = ("causal" if problem.is_causal else "full") + bias
    return f"{jnp.dtype(operands.query.dtype).name} T{length} S{key_length} H{width} {kind}"


def _rounded(length: int) -> int:
    """Lengths that take the same launch: up to multiples of 32 from 64 to 256, else powers of 2."""
    return -(-length // 32) * 32 if 64 < length <= 256 else next_power_of_2(length)


def table_path(device: str) -> Path:
    """Path of the table of a device, by the device's name."""
    return TABLES / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


@functools.cache
def read_table(path: Path) -> dict[str, Plan]:
    """The plans by key; empty if there is no such file."""
    if not path.exists():
        return {}
    plans = json.loads(path.read_text())["plans"]
    return {key: Plan.of(**values) for key, values in plans.items()}


def write_table(path: Path, plans: dict[str, Plan], **about: Any) -> None:
    """Writes a table for `read_table`, headed by `about`: device, versions, revision."""
    entries = {
        key: {n: value for n, value in dataclasses.asdict(plan).items() if value is not None}
        for key, plan in sorted(plans.items())
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # so that an interruption leaves the old table
    part.write_text(json.dumps(about | {"plans": entries}, indent=1) + "\n")
    part.replace(path)
    read_table.cache_clear()


def heuristic(problem: Problem, operands: Operands) -> Plan:
    """A launch that fits on every GPU; see `make check-gpu-code` for its registers."""
    return forms(problem, operands)[0]


def forms(problem: Problem, operands: Operands) -> list[Plan]:
    """A launch of each form that can take the call; the first is likely faster."""
    sizes = Dimensions.of(operands)
    keys = max(16, next_power_of_2(sizes.S))
    width = max(16, next_power_of_2(sizes.H))
    itemsize = jnp.dtype(operands.query.dtype).itemsize
    tiled = _tiled(sizes, width, itemsize)
    if row_fits(keys, width, itemsize):
        narrow = itemsize <= 2
        return [_row(problem, operands, width) if narrow else _exact_row(sizes, keys, width), tiled]
    return [tiled]


def row_fits(keys: int, width: int, itemsize: int) -> bool:
    """Whether a head's keys, values and their gradients stay on chip.

    keys, width: sizes rounded up to powers of two.
    """
    if itemsize > 2:
        # Exact products run without tensor cores, and take several times the registers.
        return keys * width <= 2048
    if keys * width > 8192 and has_little_shared_memory():
        return False
    # Where each warp holds operands, narrow heads of so many keys spill.
    narrowest = 32 if warps_hold_operands() else 16
    return (keys <= 128 and width <= 128) or (keys == 256 and narrowest <= width <= 64)


# Queries and keys of a tile and warps, forward and backward, for up to a number of keys, by the
# width of a head. "full" is the backward launch for more than 64 keys if the call is not causal, so
# that no tile is left out. Other launches spill registers or have a higher bound: see
# `make check-gpu-code`.
_SHORT = ((16, (16, 16, 1), (16, 16, 1)), (32, (32, 32, 1), (32, 32, 1)))
_HOPPER = {
    32: (
        *_SHORT,
        (64, (64, 64, 4), (64, 64, 4)),
        (96, (64, 64, 2), (32, 32, 2)),
        (192, (64, 64, 4), (64, 64, 4)),
        (256, (64, 64, 4), (128, 128, 8)),
    ),
    64: (
        *_SHORT,
        (64, (64, 64, 4), (64, 64, 4)),
        (256, (64, 64, 4), (128, 128, 8)),
    ),
    128: (
        (32, (32, 32, 2), (32, 32, 2)),
        (64, (64, 64, 4), (64, 64, 4)),
        (128, (64, 64, 4), (16, 128, 8)),
    ),
    "full": {32: (128, 128, 8), 64: (128, 128, 8), 128: (16, 128, 8)},
}
_BLACKWELL = {
    32: (*_SHORT, (192, (64, 64, 4), (64, 64, 4)), (256, (64, 64, 4), (64, 64, 8))),
    64: (*_SHORT, (192, (64, 64, 4), (64, 64, 4)), (256, (64, 64, 4), (64, 64, 8))),
    128: ((32, (32, 32, 2), (32, 32, 2)), (128, (64, 64, 4), (64, 64, 4))),
    "full": {32: (64, 64, 8), 64: (64, 64, 8), 128: (64, 64, 4)},
}
# Each warp holds an operand of each product.
_OLDER = {
    32: (
        *_SHORT,
        (64, (64, 64, 2), (64, 64, 4)),
        (96, (64, 64, 4), (64, 64, 4)),
        (128, (64, 64, 4), (16, 64, 4)),
        (256, (16, 256, 8), (16, 256, 8)),
    ),
    64: (
        (32, (32, 32, 2), (32, 32, 2)),
        (64, (64, 64, 4), (64, 64, 4)),
        (128, (128, 128, 8), (16, 128, 8)),
        (256, (16, 256, 8), (16, 256, 8)),
    ),
    128: (
        (32, (32, 32, 4), (32, 32, 4)),
        (64, (64, 64, 8), (64, 64, 8)),
        (128, (16, 128, 8), (16, 128, 8)),
    ),
    "full": {32: (16, 256, 8), 64: (16, 256, 8), 128: (16, 128, 8)},
}


def _row(problem: Problem, operands: Operands, width: int) -> Plan:
    sizes = Dimensions.of(operands)
    rows: Any = _OLDER if warps_hold_operands() else _HOPPER if has_wgmma() else _BLACKWELL
    width = max(width, 32)
    forward, backward = next(configs for most, *configs in rows[width] if sizes.S <= most)
    if sizes.S > 64 and not problem.is_causal:
        backward = rows["full"][width]
    has_more = operands.bias is not None or operands.mask is not None or sizes.N > sizes.K
    if has_more and backward == (32, 32, 2) and sizes.S > 64:
        # What is added for them does not fit beside the products of two warps.
        backward = (64, 64, 4)
    shared = rows_of_program(sizes.B, sizes.K // row_tiles.heads_together(operands), sizes.S)
    fit: Callable[[int, int, int], Config] = lambda t, s, warps: Config(
        min(t, max(16, next_power_of_2(sizes.T))),
        min(s, max(16, next_power_of_2(sizes.S))),
        warps,
        rows=shared,
    )
    return Plan("row", fit(*forward), fit(*backward))


def _exact_row(sizes: Dimensions, keys: int, width: int) -> Plan:
    # Warps lie along the keys: each holds a slice, and no operand is held twice.
    warps = min(max(keys * width // 256, 1), 8)
    config = Config(16, keys, warps, rows=rows_of_program(sizes.B, sizes.K, keys))
    return Plan("row", config, config)


# Queries and keys of a tile, warps and stages: forward, keys' and queries' backward, by bytes of an
# element and width of a head. Larger tiles, or more stages in float32, spill on one GPU or another.
_TILES = {
    (2, 64): ((128, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 2)),
    (2, 128): ((64, 32, 4, 2), (16, 64, 4, 3), (64, 64, 8, 2)),
    (2, 256): ((32, 32, 4, 2), (16, 32, 8, 1), (32, 32, 8, 2)),
    (4, 64): ((32, 32, 4, 1), (16, 32, 4, 1), (32, 32, 4, 1)),
    (4, 128): ((32, 32, 8, 1), (16, 16, 8, 1), (32, 32, 8, 1)),
    (4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
}


def _tiled(sizes: Dimensions, width: int, itemsize: int) -> Plan:
    fit: Callable[[int, int], int] = lambda length, block: max(
        16, min(block, next_power_of_2(length))
    )
    configs = [
        Config(fit(sizes.T, queries), fit(sizes.S, keys), warps, stages)
        for queries, keys, warps, stages in _TILES[
            2 if itemsize <= 2 else 4, min(max(width, 64), 256)
        ]
    ]
    return Plan("tiled", *configs)
