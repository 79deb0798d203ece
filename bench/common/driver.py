"""Runs a benchmark: command line, results, page and exit status."""

import argparse
import importlib
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from . import machine
from .report import BENCH, REPORTS, origin, report_of, write, write_page
from .worker import WorkerFailed


def run(name: str, argv: Sequence[str] | None) -> int:
    """Runs a benchmark of `REPORTS`; returns the exit status.

    The benchmark's module defines `arguments(parser)`, which adds arguments to the command line;
    `measure(options)`, which returns the results with the `device`; and `report(results)`.
    """
    module = importlib.import_module(REPORTS[name])
    parser = parser_of(name)
    options = parser.parse_args(argv)
    about = machine.describe()
    try:
        results = module.measure(options)
    except (ValueError, WorkerFailed) as error:
        return conclude([f"{name}: {error}"])
    about["device"] = results.pop("device")
    # Results of some cases must not overwrite those of all.
    free, chosen = ("out", "against", "baselines_from"), vars(options).items()
    whole = all(k in free or value in ([], parser.get_default(k)) for k, value in chosen)
    return finish(name, {"machine": about} | results, options.out, whole)


def parser_of(name: str) -> argparse.ArgumentParser:
    """The command line of a benchmark of `REPORTS`."""
    module = importlib.import_module(REPORTS[name])
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=module.__doc__)
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of timing")
    parser.add_argument(
        "--out", type=Path, help="folder for results and page in place of bench/ itself"
    )
    module.arguments(parser)
    return parser


def positive(text: str) -> int:
    """An integer above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer above 0")
    return int(text)


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """An argparse type that accepts these names; `choices` would refuse an empty list."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"no {text!r}; there are {', '.join(names)}")
        return text

    return name


def finish(name: str, results: dict[str, Any], out: Path | None, whole: bool) -> int:
    """Writes results and page, and prints the report followed by the problems.

    Args:
      name: a key of `REPORTS`.
      results: with `machine`, which holds `machine.describe()` and the `device`.
      out: the folder to write to; bench/ if None.
      whole: whether all cases were measured; other results are written only if `out` is given.

    Returns:
      The exit status: 1 if a contestant failed or a goal was not measured.
    """
    report = report_of(name, results)
    about = results["machine"]
    print("\n\n".join(["", machine.title(about), origin(about), *map(str, report.parts), ""]))
    if out or whole:
        path = write(name, results, out or BENCH)
        print(f"written to {path} and {write_page(out or BENCH)}")
    else:
        print("not written, because only some cases were measured: --out FOLDER writes it")
    return conclude(report.problems)


def conclude(problems: Sequence[str]) -> int:
    """Prints the problems to stderr; returns the exit status."""
    sys.stdout.flush()
    for problem in problems:
        print(f"NOT MEASURED: {problem}", file=sys.stderr)
    return 1 if problems else 0
