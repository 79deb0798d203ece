"""Checks without a GPU what will run on one: see README.md here."""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import HERE, RESULTS, missing, write_results
from machine import describe
from rich.console import Console
from rich.table import Table

STAGES = ("compilation", "lowering", "traffic")
PACKAGES = ("triton", "jax-triton", "jax-cuda12-plugin", "jax-cuda13-plugin")
RESULT = RESULTS / "gpu-code.json"


def main(argv: list[str] | None = None) -> int:
    """Runs the checks; returns 0, or 1 where a target is missed."""
    # Interpreted kernels are not compiled; the process that counts their traffic sets it again.
    for name in ("ICL_KERNELS_INTERPRET", "TRITON_INTERPRET"):
        os.environ.pop(name, None)
    absent = missing("triton", "jax_triton")
    if absent:
        print(f"no {' and no '.join(absent)} here; `make check-gpu-code` installs them")
        return 1
    options = _parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: dict[str, Any] = {"machine": describe()}
    for package in PACKAGES:
        try:
            results["machine"]["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    stages = {
        "compilation": lambda: _compilation(options.workloads, results, console),
        "lowering": lambda: _lowering(results, console),
        "traffic": lambda: _traffic(options.workloads, results, console),
    }
    failures: list[str] = []
    for stage in options.only:
        try:
            failures += stages[stage]()
        except RuntimeError as error:
            failures.append(str(error))
    results["failures"] = failures
    for failure in failures:
        console.print(f"FAILED {failure}", style="red", markup=False, soft_wrap=True)
    if options.out or options.is_whole:
        console.print(f"written to {write_results('gpu-code', results, options.out or RESULT)}")
    return 1 if failures else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    from gpu_code.calls import WORKLOADS

    parser = argparse.ArgumentParser(prog="bench/check_gpu_code.py", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"{', '.join(WORKLOADS)}; all unless given")
    parser.add_argument("--only", choices=STAGES, action="append", help="one stage, not all three")
    parser.add_argument("--out", type=Path, help="JSON file in place of the one in results/")
    options = parser.parse_args(argv)
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    # A part of the checks must not take the place of the whole file.
    options.is_whole = not options.workloads and not options.only
    options.workloads = options.workloads or list(WORKLOADS)
    options.only = options.only or list(STAGES)
    return options


def _compilation(workloads: list[str], results: dict[str, Any], console: Console) -> list[str]:
    from gpu_code.compile import ARCHITECTURES, check

    rows, failures = check(workloads)
    results["compilation"] = rows
    table = Table(
        title="compiled kernels: registers of a thread, +bytes it spills, KiB of shared memory, "
        "matrix instructions, programs a multiprocessor"
    )
    for heading in ("workload", "kernel", "tile", "warps", *ARCHITECTURES):
        table.add_column(heading, no_wrap=True)
    plain = [row for row in rows if not row["option"] and not row["device"]]
    kernels: dict[tuple, dict[str, str]] = {}
    for row in plain:
        key = (row["workload"], row["kernel"], row["tile"], str(row["warps"]))
        kernels.setdefault(key, {})[row["arch"]] = _cell(row)
    for key, cells in sorted(kernels.items(), key=lambda item: workloads.index(item[0][0])):
        table.add_row(*key, *(cells.get(arch, "") for arch in ARCHITECTURES))
    console.print(table)
    for kind, name in (("option", "options"), ("device", "tuned tables")):
        others = [row for row in rows if row[kind]]
        if others:
            spilling = [row for row in others if row.get("stack")]
            console.print(f"{name}: {len(others)} more kernels compiled, {len(spilling)} spill")
            for row in spilling:
                console.print(
                    f"  {row[kind]}, {row['workload']}, {row['kernel']}, {row['tile']}, "
                    f"{row['warps']} warps, {row['arch']}: {_cell(row)}"
                )
    return failures


def _cell(row: dict[str, Any]) -> str:
    """As "255+24 41K wgmma 2"."""
    if "error" in row:
        return "error"
    stack = f"+{row['stack']}" if row["stack"] else ""
    fitting = row.get("programs_a_multiprocessor", "")
    kib = row["shared"] / 1024
    return f"{row['registers']}{stack} {kib:.0f}K {row['products']} {fitting}".rstrip()


def _lowering(results: dict[str, Any], console: Console) -> list[str]:
    flags = "--xla_force_host_platform_device_count=8"
    checks = _run("gpu_code.lowering", XLA_FLAGS=flags)
    results["lowering"] = checks
    table = Table(title="programs lowered for CUDA")
    for heading in ("", "found", ""):
        table.add_column(heading)
    for check in checks:
        found = check["found"]
        if isinstance(found, dict):
            found = ", ".join(f"{number} {name}" for name, number in found.items())
        table.add_row(check["check"], str(found), "ok" if check["passed"] else "FAILED")
    console.print(table)
    return [f"{c['check']}: {c['found']}" for c in checks if not c["passed"]]


def _traffic(workloads: list[str], results: dict[str, Any], console: Console) -> list[str]:
    from gpu_code.traffic import failures

    rows = _run("gpu_code.traffic", *workloads, ICL_KERNELS_INTERPRET="1")
    results["traffic"] = rows
    table = Table(
        title="what kernels move and multiply, over the least that has to be; operations over what "
        "causality needs, and over all T x T pairs, which a row in one tile always computes"
    )
    for heading in ("workload", "T", "form", "pass", "bytes", "operations", "over all pairs"):
        table.add_column(heading, justify="left" if heading in ("workload", "form") else "right")
    for row in rows:
        ratios = ("bytes_over_least", "flops_over_useful", "flops_over_dense")
        names = (row["workload"], str(row["length"]), row["form"], row["pass"])
        table.add_row(*names, *(f"{row[ratio]:.2f}" for ratio in ratios))
    console.print(table)
    return failures(rows)


def _run(module: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What a module prints in a process of its own, whose last line is JSON.

    Raises:
      RuntimeError: it failed, and its standard error says why.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=HERE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with status {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
