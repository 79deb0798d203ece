"""Runs the benchmarks: `python -m bench` for all of them, `python -m bench NAME --help` for one."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from bench.common.driver import conclude, run
from bench.common.report import BENCH, write_page
from bench.common.worker import ROOT

# Every command, described. Commands in REPORTS measure something; the others have a main.
COMMANDS = {
    "training": "a training step, beside PyTorch trainers",
    "kernels": "attention and linear attention, beside their peers",
    "sampling": "drawing prompts, beside host samplers",
    "lasso": "the lasso of every prefix, beside scikit-learn's loop",
    "populations": "a population in one program, beside one model",
    "profile": "the time of each part of a training step",
    "scaling": "how our step's time grows with batch, length and depth",
    "recipes": "steps and seconds of training recipes until a target error",
    "tables": "predictions on real tables, beside scikit-learn's and XGBoost's",
    "tune": "the fastest launches on this GPU, into a table",
    "gpu-code": "checks of GPU code without a GPU",
    "gpu-day": "everything that only a GPU can tell, in calls that may be cut off",
    "gpu-imports": "whether every import is met where a GPU day runs",
}
MAINS = {
    "tune": "bench.kernels.tune",
    "gpu-code": "bench.gpu_code.check",
    "gpu-day": "bench.gpu_day.day",
    "gpu-imports": "bench.gpu_day.imports",
}
# What `python -m bench` runs, with the arguments of a quick run (None: not in a quick run).
WHOLE = {
    "training": ["xs@64", "--only", "torch", "--rounds", "3", "--steps", "15"],
    "kernels": [
        *("garg", "--directions", "forward+backward"),
        *("--only", "jnp", "torch-sdpa", "--rounds", "3"),
    ],
    "sampling": ["decision_tree", "--rounds", "3"],
    "lasso": None,
    "populations": None,
}
COMPARED = ("training", "kernels")  # benchmarks that take --against
QUICK_OUT = Path("build/bench-quick")


def main(argv: list[str] | None = None) -> int:
    """Runs one benchmark or all; returns 0, or 1 if anything failed or was not measured."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        name, *rest = argv
        if name in MAINS:
            return importlib.import_module(MAINS[name]).main(rest)
        return run(name, rest)
    described = "\n".join(f"  {name:12} {about}" for name, about in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Without a name: {', '.join(WHOLE)}, and the page RESULTS.md.",
        epilog=f"names, each with a --help of its own:\n{described}",
    )
    parser.add_argument("name", nargs="?", choices=COMMANDS, metavar="NAME", help="one benchmark")
    parser.add_argument("--quick", action="store_true", help="a few cases in about two minutes")
    parser.add_argument("--against", metavar="REVISION", help="also time this revision of ours")
    parser.add_argument(
        "--out", type=Path, help=f"folder for results and page; bench/, or {QUICK_OUT} if --quick"
    )
    return _run_all(parser.parse_args(argv))


def _run_all(options: argparse.Namespace) -> int:
    """Runs each benchmark in its own process and writes the page."""
    out = options.out or (QUICK_OUT if options.quick else None)
    problems = []
    for name, quick in WHOLE.items():
        if options.quick and quick is None:
            continue
        arguments = [
            *((options.quick and quick) or []),
            *(["--out", str(out.resolve())] if out else []),
        ]
        if options.against and name in COMPARED:
            arguments += ["--against", options.against]
        command = [sys.executable, "-m", "bench", name, *arguments]
        print(f"\n== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT).returncode:
            problems.append(f"part of {name}; the last lines of its output say why")
    page = write_page(out or BENCH)
    print(f"\n{page.read_text()}\nwritten to {page}")
    return conclude(problems)


if __name__ == "__main__":
    sys.exit(main())
