"""How long a kernel takes at least on an H200, by what limits it: counted, not timed.

A compiled kernel's instructions are followed warp by warp (`emulator.py`), and each is charged to
the pipe that executes it. A bound is the time that one pipe needs if it never waits and everything
else is free. The kernel takes at least the largest bound; a kernel near the floor has every bound
below that of DRAM. That bound is of the fewest bytes of the op's pass: if two kernels share a pass,
each has the whole of it.

Assumptions:

- 132 multiprocessors at 1.755 GHz. DRAM gives 4.3 TB/s (a measured copy), L2 5.5 TB/s in sectors of
  32 bytes, of which loads count distinct ones of a program.
- Each of four schedulers issues one instruction a cycle. Comparisons, selections, logic, shifts,
  additions of integers, permutations and conversions to pairs of halves run at half that rate, as
  do integer products; special functions and other conversions at an eighth. Instructions for a
  whole warp (UIADD3, R2UR, ...), barriers, fences and zeros (CS2R) cost their issue alone.
- Shared memory serves 128 bytes a cycle, with the bank conflicts of the true addresses; spilled
  registers as well, without conflicts. A global access takes a cycle for each four sectors, also if
  it writes to shared memory (LDGSTS); a shuffle one, a reduction over a warp two.
- wgmma runs at the peak rate, mma.sync at 0.62 of it. What wgmma reads of shared memory is free.
- A warp issues an instruction every fourth cycle at most, so that few resident warps cannot use all
  cycles ("latency").
- Caches, the wait at barriers and for memory, and the start of programs are not modelled.
"""

import functools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton

from ..kernels.ops import CASES
from . import emulator, sass
from .compile import ARCHITECTURES, compile_launch, cubin_usage, in_processes, programs_that_fit
from .launches import Launch, Variant, launches

ARCH = "sm_90"
BUDGETS = Path(__file__).with_name("budgets.json")
TOLERANCE = 1.05
MULTIPROCESSORS, CLOCK, SCHEDULERS = 132, 1.755e9, 4
DRAM, L2 = 4.3e12, 5.5e12
# Cycles between two instructions of one warp, and of a scheduler's tensor core for an mma.sync.
ISSUE_INTERVAL, MMA_CYCLES = 4, 6.5
MOST_PROGRAMS = 4
PIPES = ("dram", "l2", "issue", "alu", "fma", "special", "shared", "tensor", "latency")

# Cycles of one of the four schedulers for an instruction of a warp, by pipe.
_CYCLES = {
    "alu": dict.fromkeys(
        "IADD3 LOP3 ISETP SEL FSEL FSETP FMNMX FMNMX3 FSET PRMT SHF LEA VIADD VIADDMNMX VIMNMX "
        "VIMNMX3 F2FP PLOP3 I2FP SGXT BMSK IABS MOV P2R R2P IMNMX IADD VOTE".split(),
        2,
    ),
    "fma": dict.fromkeys("FADD FMUL FFMA HFMA2 HADD2 HMUL2 HSETP2 HMNMX2 HSET2".split(), 1)
    | {"IMAD": 2},
    "special": dict.fromkeys("MUFU F2F I2F F2I POPC FLO".split(), 8),
    "tensor": {"HMMA": MMA_CYCLES},
}
_PIPE_OF = {name: pipe for pipe, cycles in _CYCLES.items() for name in cycles}
# Cycles of the multiprocessor's shared memory, where words go from lane to lane.
_EXCHANGES = {"SHFL": 1, "REDUX": 2}
_SPILLS = ("LDL", "STL")
# Instructions that cost their issue alone.
_FREE = (
    "UIADD3 UMOV USHF UIMAD USGXT ULEA ULOP3 UISETP UPOPC USEL UPLOP3 UP2UR UVIADD UVIMNMX R2UR "
    "S2R S2UR ULDC LDC CS2R BRA EXIT BAR WARPGROUP MEMBAR FENCE LDGDEPBAR DEPBAR BSSY BSYNC "
    "WARPSYNC YIELD VOTEU UFLO"
).split()

Row = dict[str, Any]


def counts(
    code: Sequence[sass.Instruction],
    num_warps: int,
    programs: Sequence[int],
    contents: Mapping[int, Sequence[int]] | None = None,
) -> dict[str, float]:
    """Cycles of a program on each pipe of a multiprocessor, and other counts; means of programs.

    Keys: the pipes that `PIPES` names but "dram", "l2" and "latency"; "instructions", "barriers"
    (of one warp), "unknown" (accesses whose addresses depend on data), "sectors" that are stored
    or loaded for the first time, "all sectors", and for global accesses "16 bytes" and so on, by
    the bytes of a thread. An instruction that is in no table counts as "other NAME".
    """
    found: dict[str, float] = defaultdict(float)
    loaded: list[np.ndarray] = []
    turns = functools.cache(_shared_turns)
    for each, warps, addresses in emulator.run(code, programs, num_warps, contents):
        name, number = each.name, len(warps)
        found["instructions"] += number
        found["issue"] += number / SCHEDULERS
        if pipe := _PIPE_OF.get(name):
            found[pipe] += number * _CYCLES[pipe][name] / SCHEDULERS
        elif name in _EXCHANGES:
            found["shared"] += number * _EXCHANGES[name]
        elif name in emulator.SHARED and addresses is not None:
            found["shared"] += turns(each._replace(address=0, operands=()), addresses.tobytes())
        elif name in _SPILLS + emulator.SHARED:
            found["shared"] += number * sass.turns(each)
        elif name in emulator.GLOBAL:
            touched = _sectors(each, addresses, number)
            found["shared"] += sum(max(1, math.ceil(len(some) / 4)) for some in touched)
            found[f"{each.width} bytes"] += number
            # Programs share none, since each reads its own; its warps may read the same ones.
            distinct = np.unique(
                np.concatenate([t + (w // num_warps << 50) for t, w in zip(touched, warps)])
            )
            found["all sectors"] += len(distinct)
            if name == "STG":
                found["sectors"] += len(distinct)
            else:
                loaded.append(distinct)
        elif name == "HGMMA":
            # A warpgroup of four warps issues it together.
            found["tensor"] += number * int(each.modifiers[0].split("x")[1]) / 2 / 4
        elif name not in _FREE:
            found[f"other {name}"] += number
        found["barriers"] += (name == "BAR") * number / num_warps
        if name in emulator.GLOBAL + emulator.SHARED:
            found["unknown"] += (addresses is None) * number
    found["sectors"] += len(np.unique(np.concatenate(loaded))) if loaded else 0
    return {name: total / len(programs) for name, total in found.items()}


def _shared_turns(each: sass.Instruction, addresses: bytes) -> int:
    """Turns of all warps together."""
    return int(sass.shared_turns(each, np.frombuffer(addresses, int).reshape(-1, 32)).sum())


def _sectors(each: sass.Instruction, addresses: Any, warps: int) -> list[np.ndarray]:
    if addresses is None:
        # As if the warp's threads read what lies side by side; no other access has these sectors.
        return [-each.address * 64 - np.arange(each.width)] * warps
    return sass.sectors(each, addresses)


def sample(made: Launch) -> list[int]:
    """Programs that stand for all.

    Those of one row if all do the same; else at most MOST_PROGRAMS blocks of a row, or rows if
    these see different numbers of keys. They lie symmetrically, so that the mean is exact if work
    grows evenly from the first one to the last.
    """
    is_tiled = made.module.endswith("tiled")
    if not is_tiled and not made.contents:
        return [1]
    number = _blocks(made) if is_tiled else made.programs
    if number <= MOST_PROGRAMS:
        return list(range(number))
    first = [(2 * i + 1) * number // (2 * MOST_PROGRAMS) for i in range(MOST_PROGRAMS // 2)]
    return first + [number - 1 - program for program in first]


def _blocks(made: Launch) -> int:
    """Number of consecutive programs that share a row, each with a block of it."""
    call = made.constants["CALL"]
    if not made.module.endswith("tiled"):
        return 1
    size, block = (call.S, call.BLOCK_S) if "keys" in made.function else (call.T, call.BLOCK_T)
    return -(-size // block)


def outside(code: Sequence[sass.Instruction], made: Launch) -> list[str]:
    """Arguments beyond whose ends a program of the first or the last row reads or writes."""
    blocks = _blocks(made)
    ends = {0, blocks - 1, made.programs - blocks, made.programs - 1}
    found = set()
    for each, _, addresses in emulator.run(code, sorted(ends), made.num_warps, dict(made.contents)):
        if each.name in emulator.GLOBAL and addresses is not None:
            some = addresses[addresses >= 0]
            pointers, offsets = some // emulator.APART - 1, some % emulator.APART
            sizes = np.append(made.sizes, 0)[np.clip(pointers, -1, len(made.sizes))]
            found |= {*pointers[offsets + each.width > sizes].tolist()}
    names = made.kernel.arg_names
    return [names[i] if 0 <= i < len(made.sizes) else "memory of others" for i in sorted(found)]


def measure(workloads: Sequence[str]) -> list[Row]:
    """The bounds of each kernel of these workloads, in microseconds, with what they come from."""
    capability = int(ARCHITECTURES[ARCH].target.arch)
    jobs = [
        (name, made) for name in workloads for made in launches(Variant(name), "cuda", capability)
    ]
    return in_processes(measured, *zip(*jobs))


def measured(workload: str, made: Launch) -> Row:
    """The bounds of a kernel, and what they come from."""
    case, architecture = CASES[workload], ARCHITECTURES[ARCH]
    compiled = compile_launch(architecture.target, made)
    code = sass.disassemble(compiled.asm["cubin"])
    registers, _ = cubin_usage(compiled.asm["cubin"])
    fitting = programs_that_fit(
        registers, made.num_warps, compiled.metadata.shared, 0, architecture
    )
    mean = Counter(counts(code, made.num_warps, sample(made), dict(made.contents)))
    is_backward = "backward" in made.function
    over_least = lambda sectors: round(
        sectors * sass.SECTOR * made.programs / _least_bytes(case, is_backward), 3
    )
    return {
        "workload": workload,
        "kernel": made.name,
        "bounds": _bounds(mean, made, fitting, _least_bytes(case, is_backward)),
        "instructions": mean["instructions"],
        "instructions_per_pair": mean["instructions"] * 32 * made.programs / _pairs(case),
        "resident_warps": fitting * made.num_warps,
        "registers": registers,
        "barriers": mean["barriers"],
        "widths": sorted(int(name.split()[0]) for name in mean if name.endswith(" bytes")),
        "bytes_over_least": over_least(mean["sectors"]),
        "requests_over_least": over_least(mean["all sectors"]),
        "most_bytes_over_least": _most_bytes(case, made, is_backward),
        "outside": outside(code, made),
        "unknown": mean["unknown"],
        "others": sorted(name.split()[1] for name in mean if name.startswith("other ")),
    }


def _bounds(mean: Counter, made: Launch, fitting: int, least: int) -> dict[str, float]:
    """Microseconds by what limits the kernel."""
    # A multiprocessor takes at least one program.
    share = max(made.programs / MULTIPROCESSORS, 1)
    found = {"dram": least / DRAM, "l2": mean["sectors"] * sass.SECTOR * made.programs / L2}
    for pipe in PIPES[2:-1]:
        found[pipe] = share * mean[pipe] / CLOCK
    warps = min(fitting, share) * made.num_warps
    found["latency"] = share * mean["instructions"] * ISSUE_INTERVAL / warps / CLOCK
    return {pipe: round(1e6 * seconds, 1) for pipe, seconds in found.items()}


def _least_bytes(case: Any, is_backward: bool) -> int:
    forward, both = (case.work(d, 2)[0] for d in ("forward", "forward+backward"))
    return both - forward if is_backward else forward


def _most_bytes(case: Any, made: Launch, is_backward: bool) -> float | None:
    """The target of bytes over the least, in whole sectors; None if tensors are read repeatedly."""
    call = made.constants["CALL"]
    if not (made.module.endswith("row") or call.S <= getattr(call, "SAVE_EVERY", 0)):
        return None
    whole = 0
    *inputs, out = case.shapes().values()
    for shape in [*inputs * (1 + is_backward), out]:
        # A program reads the features of its head; numbers, one a head, lie side by side.
        row = 2 * shape[-1] if len(shape) > 3 else 2
        whole += 2 * math.prod(shape) * (-(-row // sass.SECTOR) * sass.SECTOR / row)
    return round(case.op.most_bytes * whole / _least_bytes(case, is_backward), 3)


def _pairs(case: Any) -> float:
    """Pairs of a query and a key that see each other; by states, steps times features."""
    return case.flops(False) / (4 * case.workload.H)


def over_target(rows: Sequence[Row]) -> list[str]:
    """The kernels that move too much or leave their arrays, or cannot be judged."""
    found = []
    for row in rows:
        name, moved, most = _name(row), row["bytes_over_least"], row["most_bytes_over_least"]
        if most is not None and moved > most:
            found.append(
                f"{name}: moves {moved:.2f} times the fewest bytes, the limit is {most:.2f}"
            )
        found += [f"{name}: reads or writes outside {array}" for array in row["outside"]]
        if row["unknown"]:
            found.append(f"{name}: {row['unknown']:.0f} accesses whose address is not known")
        if row["others"]:
            found.append(f"{name}: no pipe for {', '.join(row['others'])}")
    return found


def over_budget(rows: Sequence[Row]) -> list[str]:
    """The kernels with a bound more than 5% above the committed one, or without a budget."""
    budgets = json.loads(BUDGETS.read_text())
    if budgets["triton"] != triton.__version__:
        return [
            f"{BUDGETS.name} has the bounds of Triton {budgets['triton']}, and this is "
            f"{triton.__version__}; `make check-gpu-code` installs the former"
        ]
    found = []
    for row in rows:
        budget = budgets["workloads"].get(row["workload"], {}).get(row["kernel"])
        if budget is None:
            found.append(f"{_name(row)}: no budget; write one with --write-budgets")
            continue
        for what, value in _budget(row).items():
            # Bounds are rounded to 0.1.
            if value > budget.get(what, 0) * TOLERANCE + 0.1 * (what in PIPES):
                unit = " us" if what in PIPES else ""
                found.append(
                    f"{_name(row)}: {what} {value}{unit}, the budget is {budget.get(what)}{unit}"
                )
    return found


def write_budgets(rows: Sequence[Row]) -> None:
    """Makes the bounds of these rows the budgets of their workloads; drops another compiler's."""
    workloads: dict[str, dict[str, dict[str, float]]] = {}
    if BUDGETS.exists():
        known = json.loads(BUDGETS.read_text())
        workloads = known["workloads"] if known["triton"] == triton.__version__ else {}
    for name in {row["workload"] for row in rows}:
        workloads[name] = {row["kernel"]: _budget(row) for row in rows if row["workload"] == name}
    found = dict(triton=triton.__version__, workloads=dict(sorted(workloads.items())))
    # A line for each kernel.
    text = re.sub(r"\n {4,}", " ", re.sub(r"\n {3}\}", "}", json.dumps(found, indent=1)))
    BUDGETS.write_text(text + "\n")


def _budget(row: Row) -> dict[str, float]:
    return row["bounds"] | {name: row[name] for name in ("bytes_over_least", "requests_over_least")}


def _name(row: Row) -> str:
    return f"{row['workload']}, {row['kernel']}"
