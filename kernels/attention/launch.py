"""Launches of the Triton kernels: from a table that ships for the device, else by a heuristic.

A table is `launch_tables/<device>.json`, written by `python -m bench tune` on that device. It maps
the key of a call (see `key_of`) to the plan that was fastest. Nothing is tuned at run time.
"""

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..dispatch import target
from ..numerics import next_power_of_2
from ..plans import FEWEST_PROGRAMS, before_hopper, forced, rows_of_program
from .problem import Dimensions, Operands, Problem

# Tiles of keys that a program of the row form can hold.
MOST_TILES = 4
# The narrowest tile that products take.
NARROWEST = 16
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
        _check_fits(given, sizes)
        return given
    known = read_table(table_path(target().device)).get(key_of(problem, operands))
    return _for_batch(known, sizes) if known else heuristic(problem, operands)


def _check_fits(plan: Plan, sizes: Dimensions) -> None:
    """Raises ValueError if a kernel would leave out keys or batch rows."""
    for config in (plan.forward, plan.backward) if plan.form == "row" else ():
        if -(-sizes.S // config.block_s) > MOST_TILES or sizes.B % config.rows:
            raise ValueError(f"{config} does not fit {sizes.B} batch rows of {sizes.S} keys")


def _for_batch(plan: Plan, sizes: Dimensions) -> Plan:
    """The plan with rows per program that divide the batch and leave the GPU full."""

    def fit(config: Config) -> Config:
        rows = config.rows
        while rows > 1 and (sizes.B % rows or sizes.B // rows * sizes.K < FEWEST_PROGRAMS):
            rows //= 2
        return dataclasses.replace(config, rows=rows)

    return dataclasses.replace(plan, forward=fit(plan.forward), backward=fit(plan.backward))


def key_of(problem: Problem, operands: Operands) -> str:
    """The key of a call in a table; sizes are rounded up to powers of two."""
    sizes = Dimensions.of(operands)
    rounded = [next_power_of_2(size) for size in (sizes.T, sizes.S, sizes.H)]
    length, key_length, width = rounded
    bias = "+bias" if operands.bias is not None else ""
    kind = ("causal" if problem.is_causal else "full") + bias
    return f"{jnp.dtype(operands.query.dtype).name} T{length} S{key_length} H{width} {kind}"


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
    drop = lambda values: {name: value for name, value in values.items() if value is not None}
    entries = {key: drop(dataclasses.asdict(plan)) for key, plan in sorted(plans.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"plans": entries}, indent=1) + "\n")
    read_table.cache_clear()


def heuristic(problem: Problem, operands: Operands) -> Plan:
    """A launch that fits on every GPU; see `make check-gpu-code` for its registers."""
    return forms(operands)[0]


def forms(operands: Operands) -> list[Plan]:
    """A launch of each form that can take the call; the first is likely faster."""
    sizes = Dimensions.of(operands)
    keys = max(16, next_power_of_2(sizes.S))
    width = max(16, next_power_of_2(sizes.H))
    itemsize = jnp.dtype(operands.query.dtype).itemsize
    tiled = _tiled(sizes, width, itemsize)
    if row_fits(keys, width, itemsize):
        return [_row(sizes, keys, itemsize), tiled]
    return [tiled]


def heads_together(operands: Operands) -> int:
    """Number of heads that share a tile of the row form: narrow ones fill it together.

    Heads that each have a bias, or share keys, do not.
    """
    sizes = Dimensions.of(operands)
    together = NARROWEST // sizes.H if sizes.H and NARROWEST % sizes.H == 0 else 1
    if operands.bias is not None or sizes.N != sizes.K or sizes.N % max(together, 1):
        return 1
    return max(together, 1)


def tiles(config: Config, sizes: Dimensions) -> tuple[Any, Any]:
    """QUERIES and KEYS of the row form: see `triton.Call`.

    With one tile of keys a loop passes over equal tiles of queries. With several, the tiles of
    queries are listed too, so that pairs of tiles without a visible pair can be left out.
    """
    keys = _cut(sizes.S, config.block_s)
    if len(keys) > 1:
        return _cut(sizes.T, config.block_t), keys
    exact = sizes.T % config.block_t == 0
    return ((0, config.block_t, exact, sizes.T),), keys


def _cut(length: int, block: int) -> tuple[tuple[int, int, bool, int], ...]:
    """Tiles of `block`, the last one as small as the rest allows."""
    found = []
    for first in range(0, max(length, 1), block):
        size = min(block, max(NARROWEST, next_power_of_2(length - first)))
        found.append((first, size, first + size <= length, first + size))
    return tuple(found)


def sight(problem: Problem, operands: Operands, queries: Any, keys: Any) -> tuple[Any, Any]:
    """SIGHT and WHOLE of the row form: see `triton.Call`."""
    sizes = Dimensions.of(operands)
    before, after = problem.left, 0 if problem.is_causal else problem.right
    given = (operands.mask, operands.query_lengths, operands.key_lengths)
    is_plain = all(array is None for array in given) and sizes.S <= sizes.T
    in_sight, whole = [], []
    for first, size, _, end in queries:
        last = max(end, first + size) - 1
        seen = [
            (after is None or key <= last + after)
            and (before is None or key + width > first - before)
            for key, width, *_ in keys
        ]
        begin = seen.index(True) if True in seen else 0
        in_sight.append((begin, begin + sum(seen)))
        whole.append(
            tuple(
                is_plain
                and is_exact
                and (after is None or key + width - 1 <= first + after)
                and (before is None or key >= last - before)
                for key, width, is_exact, _ in keys
            )
        )
    return tuple(in_sight), tuple(whole)


def first_seen(in_sight: tuple[tuple[int, int], ...], keys: int) -> tuple[int, ...]:
    """FIRST_SEEN of the row form: see `triton.Call`; 0 for keys that no query sees."""
    seen_by = lambda key: [i for i, (begin, end) in enumerate(in_sight) if begin <= key < end]
    return tuple(min(seen_by(key), default=0) for key in range(keys))


def row_fits(keys: int, width: int, itemsize: int) -> bool:
    """Whether a head's keys, values and their gradients stay in registers.

    keys, width: sizes rounded up to powers of two.
    """
    if itemsize > 2:
        # Exact products run without tensor cores, and take several times the registers.
        return keys * width <= 2048
    return (keys <= 128 and width <= 128) or (keys == 256 and width in (32, 64))


def _row(sizes: Dimensions, keys: int, itemsize: int) -> Plan:
    queries = max(16, next_power_of_2(sizes.T))
    width = max(16, next_power_of_2(sizes.H))
    # On older GPUs larger tiles spill.
    one_tile = keys <= 32 or not before_hopper()
    if itemsize <= 2 and keys <= 128 and width <= 32 and one_tile:
        block = min(queries, 128)
        warps = max(block * keys // 1024, keys * width // 512)
    else:
        # Warps lie along the keys: each holds a slice, and no operand is held twice.
        block = 16
        warps = max(keys * width // 1024, keys // 16) if itemsize <= 2 else keys * width // 256
    warps = min(max(warps, 1), 8)
    config = Config(block, keys, warps, rows=rows_of_program(sizes.B, sizes.K, keys))
    return Plan("row", config, config)


# Queries and keys of a tile, warps and stages: forward, keys' and queries' backward, by bytes of an
# element and width of a head. Larger tiles, or more stages in float32, spill on one GPU or another.
_TILES = {
    (2, 64): ((128, 64, 8, 2), (32, 64, 4, 3), (64, 32, 4, 2)),
    (2, 128): ((64, 32, 4, 2), (16, 64, 4, 3), (64, 64, 8, 2)),
    (2, 256): ((32, 32, 4, 2), (16, 32, 8, 1), (32, 32, 8, 2)),
    (4, 64): ((32, 32, 4, 1), (16, 32, 4, 1), (32, 32, 4, 1)),
    (4, 128): ((32, 32, 8, 1), (16, 16, 8, 1), (32, 32, 8, 1)),
    (4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
}


def _tiled(sizes: Dimensions, width: int, itemsize: int) -> Plan:
    fit = lambda length, block: max(16, min(block, next_power_of_2(length)))
    configs = [
        Config(fit(sizes.T, queries), fit(sizes.S, keys), warps, stages)
        for queries, keys, warps, stages in _TILES[
            2 if itemsize <= 2 else 4, min(max(width, 64), 256)
        ]
    ]
    return Plan("tiled", *configs)
