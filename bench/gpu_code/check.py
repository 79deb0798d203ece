"""Checks GPU code on a machine without a GPU: see bench/README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from ..common import machine
from ..common.driver import one_of
from ..common.report import BENCH, Table
from ..common.worker import ROOT
from ..kernels.ops import CASES

WORKLOADS = [name for name, case in CASES.items() if not case.option]
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

Rows = list[dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Runs the checks; returns 0, or 1 if a target is missed or a stage cannot run."""
    # Interpreted kernels cannot be compiled; the process that counts traffic sets these again.
    for name in ("ICL_KERNELS_INTERPRET", "TRITON_INTERPRET"):
        os.environ.pop(name, None)
    options = parse(argv)
    results: dict[str, Any] = {"machine": machine.describe()}
    failures: list[str] = []
    # A kernel that a stage compiled is not compiled again by another.
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
    ):
        for stage in options.only:
            try:
                _need("triton")
                started = time.perf_counter()
                results[stage], failed = STAGES[stage](options)
                failures += failed
                print(f"\n{stage}: {time.perf_counter() - started:.0f} seconds")
            except RuntimeError as error:
                failures.append(f"{stage}: {error}")
    if options.out or options.is_whole:
        path = (options.out or BENCH) / "results" / "gpu-code.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results | {"failures": failures}, indent=1) + "\n")
        print(f"\nwritten to {path}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu-code", description=__doc__)
    parser.add_argument("workloads", nargs="*", type=one_of(WORKLOADS),
                        help=f"{', '.join(WORKLOADS)}; by default all")  # fmt: skip
    parser.add_argument("--only", choices=STAGES, action="append", help="a stage; by default all")
    parser.add_argument(
        "--arch",
        action="append",
        help="compile for this architecture, such as sm_90; by default for all",
    )
    parser.add_argument("--write-budgets", action="store_true",
                        help="commit to the bounds that are found")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for results/; by default bench/")
    options = parser.parse_args(argv)
    # Results of some checks must not overwrite those of all.
    options.is_whole = not (options.workloads or options.only or options.arch)
    if options.write_budgets and not options.only:
        options.only = ["bounds"]
    options.workloads = options.workloads or WORKLOADS
    options.only = options.only or list(STAGES)
    return options


def _compilation(options: argparse.Namespace) -> tuple[Rows, list[str]]:
    from .compile import ARCHITECTURES, check

    archs = options.arch or list(ARCHITECTURES)
    rows, failures = check(options.workloads, archs, options.workloads == WORKLOADS)
    kernels: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if not row["option"] and not row["device"]:
            key = (row["workload"], row["kernel"], row["tile"], str(row["warps"]))
            kernels.setdefault(key, {})[row["arch"]] = _cell(row)
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    table = [[*key, *(cells.get(arch, "") for arch in archs)] for key, cells in kernels.items()]
    print(
        "\ncompiled kernels: registers of a thread, +spilled bytes, KiB of shared memory, matrix "
        f"instructions, programs a multiprocessor\n\n"
        f"{Table(['workload', 'kernel', 'tile', 'warps', *archs], table, left=3)}"
    )
    for kind, name in (("option", "options"), ("device", "tuned tables")):
        others = [row for row in rows if row[kind]]
        spilling = [row for row in others if row.get("stack")]
        print(f"\n{name}: {len(others)} more kernels compiled, {len(spilling)} spill")
        for row in spilling:
            about = [str(row[key]) for key in (kind, "workload", "kernel", "tile", "warps", "arch")]
            print(f"  {', '.join(about)}: {_cell(row)}")
    return rows, failures


def _cell(row: dict[str, Any]) -> str:
    """The resources of a kernel as "255+24 41K wgmma 2"."""
    if "error" in row:
        return "error"
    stack = f"+{row['stack']}" if row["stack"] else ""
    fitting = row.get("programs_a_multiprocessor", "")
    kib = row["shared"] / 1024
    return f"{row['registers']}{stack} {kib:.0f}K {row['products']} {fitting}".rstrip()


def _lowering(options: argparse.Namespace) -> tuple[Rows, list[str]]:
    _need("jax_triton")
    _need(*PLUGINS)
    checks = _run("lowering", XLA_FLAGS="--xla_force_host_platform_device_count=8")
    table = []
    for check in checks:
        found = check["found"]
        if isinstance(found, dict):
            found = ", ".join(f"{number} {name}" for name, number in found.items())
        table.append([check["check"], str(found), "ok" if check["passed"] else "FAILED"])
    print(f"\nprograms lowered for CUDA\n\n{Table(['', 'found', ''], table, left=2)}")
    return checks, [f"{c['check']}: {c['found']}" for c in checks if not c["passed"]]


def _traffic(options: argparse.Namespace) -> tuple[Rows, list[str]]:
    from .traffic import USUAL, failures

    workloads = USUAL if options.workloads == WORKLOADS else options.workloads
    rows = _run("traffic", *workloads, ICL_KERNELS_INTERPRET="1")
    headings = ("workload", "form", "pass", "T", "bytes", "operations", "over all pairs")
    ratios = ("bytes_over_least", "flops_over_useful", "flops_over_dense")
    table = [
        [row["workload"], row["form"], row["pass"], str(row["length"])]
        + [f"{row[ratio]:.2f}" for ratio in ratios]
        for row in rows
    ]
    print(
        "\nbytes over the fewest possible; operations over those that causality needs,\nand over "
        "those of all T x T pairs, which a row in one tile always computes\n\n"
        f"{Table(headings, table, left=3)}"
    )
    return rows, failures(rows)


def _bounds(options: argparse.Namespace) -> tuple[Rows, list[str]]:
    from .bounds import PIPES, measure, over_budget, over_target, write_budgets

    rows = measure(options.workloads)
    headings = ("workload", "kernel", "limit", "over DRAM", *PIPES, "a pair", "warps", "registers",
                "barriers", "widths", "bytes")  # fmt: skip
    table = []
    for row in rows:
        bounds = row["bounds"]
        limit = max(bounds, key=bounds.get)
        table.append([
            row["workload"], row["kernel"], limit, f"{bounds[limit] / bounds['dram']:.2f}",
            *(f"{bounds[pipe]:.0f}" for pipe in PIPES), f"{row['instructions_per_pair']:.1f}",
            str(row["resident_warps"]), str(row["registers"]), f"{row['barriers']:.0f}",
            " ".join(map(str, row["widths"])), f"{row['bytes_over_least']:.2f}",
        ])  # fmt: skip
    print(
        "\nbounds on an H200 in microseconds, and what limits a kernel most; instructions of a "
        "thread for\na pair, warps of a multiprocessor, bytes of a thread's accesses, and bytes "
        f"over the fewest possible\n\n{Table(headings, table, left=3)}"
    )
    if options.write_budgets:
        write_budgets(rows)
    return rows, over_target(rows) + over_budget(rows)


STAGES = {
    "compilation": _compilation,
    "bounds": _bounds,
    "lowering": _lowering,
    "traffic": _traffic,
}


def _need(*modules: str) -> None:
    """Raises RuntimeError if none of the modules is installed."""
    if len(machine.missing(*modules)) == len(modules):
        raise RuntimeError(f"no {' or '.join(modules)} here; `make check-gpu-code` installs it")


def _run(module: str, *arguments: str, **environment: str) -> Rows:
    """Runs a module of this folder in its own process; returns the rows that it prints as JSON.

    Raises:
      RuntimeError: the process failed; its standard error has the reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"its process ended with status {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])
