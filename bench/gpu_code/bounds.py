"""How long a kernel takes at least on an H200, by what limits it: counted, not timed.

A compiled kernel's instructions are followed warp by warp (`sass.py`), and each is charged to the
pipe that executes it. A bound is the time that one pipe needs if it never waits and everything else
is free. The kernel takes at least the largest bound; a kernel near the floor has every bound below
that of DRAM.

Assumptions: 132 multiprocessors at 1.755 GHz; DRAM gives 4.3 TB/s (a measured copy) and L2 5.5 TB/s,
in sectors of 32 bytes, of which loads count distinct ones of a program. Each of four schedulers
issues one instruction a cycle. Comparisons, selections, logic, shifts, conversions and permutations
run at half that rate, as do integer products; special functions at an eighth. Shared memory serves
128 bytes a cycle, with the bank conflicts of the true addresses; a global access takes a cycle for
each four sectors, a shuffle one. wgmma runs at the peak rate, mma.sync at 0.62 of it. A warp issues
an instruction every fourth cycle at most, so that few resident warps cannot use all cycles
("latency"). Caches, the wait at barriers and for memory, and the start of programs are not modelled.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..kernels.ops import CASES
from . import sass
from .compile import ARCHITECTURES, compile_launch, cubin_usage, programs_that_fit
from .launches import Launch, Variant, launches

ARCH = "sm_90"
BUDGETS = Path(__file__).with_name("budgets.json")
TOLERANCE = 1.05
MULTIPROCESSORS, CLOCK, SCHEDULERS = 132, 1.755e9, 4
DRAM, L2, SECTOR = 4.3e12, 5.5e12, 32
# Cycles between two instructions of one warp.
ISSUE_INTERVAL = 4
MMA_CYCLES = 6.5
MOST_PROGRAMS = 8
PIPES = ("dram", "l2", "issue", "alu", "fma", "special", "shared", "tensor", "latency")

_ALU = set(
    "IADD3 LOP3 ISETP SEL FSEL FSETP FMNMX FMNMX3 FSET PRMT SHF LEA VIADD VIADDMNMX VIMNMX VIMNMX3 "
    "F2FP PLOP3 I2FP SGXT BMSK IABS MOV P2R R2P IMNMX IADD VOTE".split()
)
_SPECIAL = {"MUFU", "F2F", "I2F", "F2I", "POPC", "FLO"}
# Cycles of a scheduler for an instruction of a warp on the pipe of products.
_FMA = {"FADD": 1, "FMUL": 1, "FFMA": 1, "IMAD": 2} | dict.fromkeys(
    ("HFMA2", "HADD2", "HMUL2", "HSETP2", "HMNMX2", "HSET2"), 1
)
_GLOBAL = ("LDG", "STG", "LDGSTS")
_SHARED = ("LDS", "STS", "LDSM", "STSM")

Row = dict[str, Any]


def count(code: list[sass.Instruction], num_warps: int, program: int) -> Counter:
    """Cycles of one program on each pipe of a multiprocessor, sectors, and other counts.

    Keys: the pipes that `PIPES` names but "dram", "l2" and "latency"; "instructions", "sectors",
    "barriers" (of one warp), "unknown" (accesses whose addresses depend on data), and for global
    accesses "16 bytes" and so on, by the bytes of a thread.
    """
    found: Counter = Counter()
    loaded: set[int] = set()
    for warp in range(num_warps):
        for each, addresses in sass.Warp(code, program, warp).run():
            name = each.name
            found["instructions"] += 1
            found["issue"] += 1 / SCHEDULERS
            found["unknown"] += name in _GLOBAL + _SHARED and addresses is None
            if name in _ALU:
                found["alu"] += 2 / SCHEDULERS
            elif name in _FMA:
                found["fma"] += _FMA[name] / SCHEDULERS
            elif name in _SPECIAL:
                found["special"] += 8 / SCHEDULERS
            elif name == "SHFL":
                found["shared"] += 1
            elif name in _SHARED:
                found["shared"] += sass.shared_wavefronts(each, addresses)
            elif name in _GLOBAL:
                sectors = _global_sectors(each, addresses)
                found["shared"] += max(1, -(-len(sectors) // 4))
                found[f"{each.width} bytes"] += 1
                if name == "STG":
                    found["sectors"] += len(sectors)
                else:
                    loaded |= sectors
            elif name == "HGMMA":
                # A warpgroup of four warps issues it together.
                found["tensor"] += int(each.modifiers[0].split("x")[1]) / 2 / 4
            elif name == "HMMA":
                found["tensor"] += MMA_CYCLES / SCHEDULERS
            elif name == "BAR":
                found["barriers"] += 1 / num_warps
    found["sectors"] += len(loaded)
    return found


def _global_sectors(each: sass.Instruction, addresses: Any) -> set[int]:
    if addresses is None:
        # As if the warp's threads read what lies side by side; no other access has these sectors.
        return {-each.address * 64 - i for i in range(each.width)}
    return sass.sectors_of(each, addresses)


def sample(made: Launch) -> range:
    """Programs that stand for all: those of one head, or at most MOST_PROGRAMS of them."""
    call = made.constants["CALL"]
    if not made.module.endswith("tiled"):
        return range(1, 2)
    size, block = (call.S, call.BLOCK_S) if "keys" in made.function else (call.T, call.BLOCK_T)
    blocks = -(-size // block)
    return range(0, blocks, -(-blocks // MOST_PROGRAMS))


def measure(workload: str) -> list[Row]:
    """The bounds of each kernel of a workload, in microseconds, with what they come from."""
    case, architecture = CASES[workload], ARCHITECTURES[ARCH]
    rows = []
    for made in launches(Variant(workload), "cuda", architecture.target.arch):
        compiled = compile_launch(architecture.target, made)
        code = sass.disassemble(compiled.asm["cubin"])
        registers, _ = cubin_usage(compiled.asm["cubin"])
        fitting = programs_that_fit(
            registers, made.num_warps, compiled.metadata.shared, 0, architecture
        )
        programs = sample(made)
        total: Counter = Counter()
        for program in programs:
            total.update(count(code, made.num_warps, program))
        mean = Counter({name: number / len(programs) for name, number in total.items()})
        is_backward = "backward" in made.function
        rows.append(
            {
                "workload": workload,
                "kernel": made.name,
                "bounds": bounds(mean, made, fitting, _least_bytes(case, is_backward)),
                "instructions": mean["instructions"],
                "instructions_per_pair": mean["instructions"] * 32 * made.programs / _pairs(case),
                "resident_warps": fitting * made.num_warps,
                "registers": registers,
                "barriers": mean["barriers"],
                "widths": sorted(int(n.split()[0]) for n in mean if n.endswith(" bytes")),
                "bytes_over_least": mean["sectors"] * SECTOR * made.programs
                / _least_bytes(case, is_backward),
                "unknown": mean["unknown"],
            }
        )  # fmt: skip
    return rows


def bounds(mean: Counter, made: Launch, fitting: int, least: int) -> dict[str, float]:
    """Microseconds by what limits the kernel."""
    # A multiprocessor takes at least one program.
    share = max(made.programs / MULTIPROCESSORS, 1)
    found = {"dram": least / DRAM, "l2": mean["sectors"] * SECTOR * made.programs / L2}
    for pipe in PIPES[2:-1]:
        found[pipe] = share * mean[pipe] / CLOCK
    warps = min(fitting, share) * made.num_warps
    found["latency"] = share * mean["instructions"] * ISSUE_INTERVAL / warps / CLOCK
    return {pipe: round(1e6 * seconds, 1) for pipe, seconds in found.items()}


def _least_bytes(case: Any, is_backward: bool) -> int:
    forward, both = (case.work(d, 2)[0] for d in ("forward", "forward+backward"))
    return both - forward if is_backward else forward


def _pairs(case: Any) -> float:
    """Pairs of a query and a key that see each other; by states, steps times features."""
    return case.flops(False) / (4 * case.workload.H)


def over_budget(rows: list[Row]) -> list[str]:
    """The kernels with a bound more than 5% above the committed one, or without a budget."""
    budgets = json.loads(BUDGETS.read_text())
    found = []
    for row in rows:
        budget = budgets.get(row["workload"], {}).get(row["kernel"])
        name = f"{row['workload']}, {row['kernel']}"
        if budget is None:
            found.append(f"{name}: no budget; write one with --write-budgets")
            continue
        for pipe, bound in row["bounds"].items():
            if bound > budget[pipe] * TOLERANCE + 0.1:
                found.append(f"{name}: {pipe} {bound} us, the budget is {budget[pipe]} us")
    return found


def write_budgets(rows: list[Row]) -> None:
    """Makes the bounds of these rows the budgets of their workloads."""
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    for name in {row["workload"] for row in rows}:
        budgets[name] = {row["kernel"]: row["bounds"] for row in rows if row["workload"] == name}
    BUDGETS.write_text(json.dumps(dict(sorted(budgets.items())), indent=1) + "\n")
