"""Compiles kernels for GPUs without having one, and reads the resources that programs use.

The assembler comes with Triton. JAX uses the assembler of its own CUDA, which may use a few
registers more or fewer.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels.ops import ATTENTION, CASES, SINGLE
from .launches import Launch, Variant, launches, tuned_devices
from .sass import cuobjdump

POINTERS = {
    "bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "int32": "*i32", "bool": "*i1",
}  # fmt: skip
# Matrix instructions by their text in PTX or in AMD's assembly.
PRODUCTS = {"tcgen05.mma": "tcgen05", "wgmma.mma": "wgmma", "mma.sync": "mma", "v_mfma": "mfma"}
KIB = 1024
REGISTERS, TENSOR_COLUMNS = 65536, 512
SHORT = 128  # bfloat16 kernels of up to this number of keys must not spill


@dataclass(frozen=True)
class Architecture:
    """A target of compilation.

    CUDA C++ Programming Guide, technical specifications per compute capability.

    program_kib, unit_kib: shared memory of a program and of a multiprocessor.
    warps, programs: the most that a multiprocessor holds.
    cases: those that are compiled by default; None for all.
    """

    target: GPUTarget
    program_kib: int
    unit_kib: int
    warps: int
    programs: int
    cases: tuple[str, ...] | None = None


# One of each form and size, without those whose kernels differ in a few numbers.
FORMS = (
    "garg", "short-causal", "chan", "tiny-full", "medium-causal", "long-causal", "cells-rows",
    "linear-short", "linear-tiny", "linear-oswald", "linear-long", "delta-short", "delta-tiny",
    "delta-long",
)  # fmt: skip
FEW = ("garg", "medium-causal", "long-causal", "linear-long", "delta-long")


def _cuda(capability: int, unit_kib: int, warps: int, programs: int, cases: Any) -> Architecture:
    # The system reserves 1 KiB for each program.
    target = GPUTarget("cuda", capability, 32)
    return Architecture(target, unit_kib - 1, unit_kib, warps, programs, cases)


ARCHITECTURES = {
    "sm_80": _cuda(80, 164, 64, 32, FORMS),
    "sm_86": _cuda(86, 100, 48, 16, ()),
    "sm_89": _cuda(89, 100, 48, 24, FEW),
    "sm_90": _cuda(90, 228, 64, 32, None),
    "sm_100": _cuda(100, 228, 64, 32, FORMS),
    "sm_103": _cuda(103, 228, 64, 32, ()),
    "sm_120": _cuda(120, 100, 48, 24, FORMS),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64, 64, 64, 32, FEW),
}


def check(
    workloads: Sequence[str], architectures: Sequence[str], is_whole: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compiles every launch of these workloads.

    is_whole: leave out the cases that add little on an architecture.

    Returns:
      A row with the resources of each compiled kernel, and the failures.

    Raises:
      RuntimeError: an architecture is unknown.
    """
    if unknown := [arch for arch in architectures if arch not in ARCHITECTURES]:
        raise RuntimeError(f"no {unknown[0]} among {', '.join(ARCHITECTURES)}")
    wanted = []
    for arch, architecture in ARCHITECTURES.items():
        cases = architecture.cases if is_whole else None
        wanted += [(arch, Variant(name)) for name in workloads if cases is None or name in cases]
    for name in workloads:
        for option, cases in CASES[name].op.options.items():
            # Wide heads and float32 nearly fill the shared memory, of which sm_120 has least.
            large = option.endswith("wide") or option in SINGLE
            if name in cases:
                wanted.append(("sm_120" if large else "sm_90", Variant(name, option)))
    for device, capability in tuned_devices().items():
        tuned = [name for name in workloads if CASES[name].op is ATTENTION]
        wanted += [(f"sm_{capability}", Variant(name, device=device)) for name in tuned]
    jobs = []
    for arch, variant in wanted:
        if arch in architectures:
            capability = ARCHITECTURES[arch].target.arch
            machine = ("cuda", capability) if isinstance(capability, int) else ("rocm", None)
            jobs += [(arch, variant, made) for made in launches(variant, *machine)]
    found = _compile_all([(arch, made) for arch, _, made in jobs])
    rows = [
        {
            **variant._asdict(),
            "kernel": made.name,
            "tile": made.tile,
            "warps": made.num_warps,
            "stages": made.num_stages,
            "programs": made.programs,
            "arch": arch,
            **found[arch, repr(made)],
        }
        for arch, variant, made in jobs
    ]
    return rows, [failure for row in rows for failure in _failures(row)]


def _compile_all(jobs: list[tuple[str, Launch]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Compiles each distinct launch once, in one process a core."""
    distinct = {(arch, repr(made)): made for arch, made in jobs}
    found = in_processes(resources, [arch for arch, _ in distinct], distinct.values())
    return dict(zip(distinct, found))


def in_processes(function: Callable, *arguments: Iterable[Any]) -> list[Any]:
    """`[*map(function, *arguments)]` in one process a core."""
    return [*_pool().map(function, *arguments)]


@functools.cache
def _pool() -> concurrent.futures.Executor:
    context = multiprocessing.get_context("spawn")  # a fork would lose JAX's threads
    return concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), context)


def resources(arch: str, made: Launch) -> dict[str, Any]:
    """The resources of a program, such as registers of a thread and shared bytes; or the error."""
    architecture = ARCHITECTURES[arch]
    started = time.perf_counter()
    try:
        compiled = compile_launch(architecture.target, made)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    seconds = round(time.perf_counter() - started, 2)
    shared = compiled.metadata.shared
    if architecture.target.backend == "hip":
        text = compiled.asm["amdgcn"]
        field = lambda name: int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])
        return {
            "registers": field("vgpr_count"),
            "stack": field("private_segment_fixed_size"),
            "shared": shared,
            "products": _products(text),
            "seconds": seconds,
        }
    registers, stack = cubin_usage(compiled.asm["cubin"])
    columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    return {
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "tensor_columns": columns,
        "products": _products(compiled.asm["ptx"]),
        "seconds": seconds,
        "programs_a_multiprocessor": programs_that_fit(
            registers, made.num_warps, shared, columns, architecture
        ),
    }


def compile_launch(target: GPUTarget, made: Launch) -> Any:
    """Compiles a kernel as jax-triton does."""
    options = dict(num_warps=made.num_warps, num_stages=made.num_stages, enable_fp_fusion=True)
    return triton.compile(source_of(made), target=target, options=options)


def source_of(made: Launch) -> ASTSource:
    """The kernel with its constants; every pointer is aligned to 16 bytes."""
    kernel = made.kernel
    pointers = [POINTERS[dtype] for dtype in made.dtypes]
    signature = {
        name: pointers[i] if i < len(pointers) else "constexpr"
        for i, name in enumerate(kernel.arg_names)
    }
    attributes = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    return ASTSource(kernel, signature, constexprs=made.constants, attrs=attributes)


def cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which are spilled registers."""
    text = cuobjdump("-res-usage", cubin)
    [(registers, stack)] = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return int(registers), int(stack)


def _products(assembly: str) -> str:
    """The matrix instructions used; `fma` if no tensor core is used."""
    return next((name for text, name in PRODUCTS.items() if text in assembly), "fma")


def programs_that_fit(
    registers: int, warps: int, shared: int, columns: int, architecture: Architecture
) -> int:
    """Number of programs that a multiprocessor can hold at once.

    columns: columns of tensor memory, which only sm_100 has.
    """
    # Each of four schedulers has a quarter of the registers and allots them in units of 256.
    warps_in_registers = 4 * (REGISTERS // 4 // (-(-registers * 32 // 256) * 256))
    limits = [
        architecture.programs,
        architecture.warps // warps,
        warps_in_registers // warps,
        architecture.unit_kib * KIB // (shared + KIB),
    ]
    if columns:
        limits.append(TENSOR_COLUMNS // columns)
    return min(limits)


def _failures(row: dict[str, Any]) -> list[str]:
    parts = (row["device"], row["workload"], row["option"], row["kernel"], row["arch"])
    name = ", ".join(part for part in parts if part)
    if "error" in row:
        return [f"{name}: does not compile: {row['error']}"]
    found = []
    limit = ARCHITECTURES[row["arch"]].program_kib * KIB
    if row["shared"] > limit:
        found.append(f"{name}: {row['shared']} bytes of shared memory; the limit is {limit}")
    is_target = CASES[row["workload"]].workload.T <= SHORT and not row["option"]
    if row["stack"] and is_target and row["arch"].startswith("sm_"):
        found.append(f"{name}: {row['stack']} bytes of stack, but it must not spill")
    return found
