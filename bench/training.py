"""Training speed beside a PyTorch trainer, in turn on the same machine: see README.md here."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from harness import Worker, WorkerFailed, missing, serve, write_results
from machine import describe
from report import show
from rich.console import Console
from rounds import lacks_memory, measure, profile, scale
from training_cases import CONTESTANTS, SIZES, case_config, dtypes, expand, size_of

SCRIPT = Path(__file__)
WIDTH = 140
AXES = ("batch", "points", "layers")


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns 0, or 1 where the gate was not passed or ours failed."""
    options = _parse(argv)
    if options.worker:
        return _work(options)
    try:
        # Where no terminal tells its width, the tables need more than the usual 80 columns.
        return _run(options, Console(width=None if sys.stdout.isatty() else WIDTH))
    except WorkerFailed as error:
        print(f"training benchmark: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, console: Console) -> int:
    description = describe()
    with _start("machine") as machine:
        platform = machine.ready["platform"]
        description["device"] = machine.ready["device"]
        results: dict[str, Any] = {"machine": description, "platform": platform}
        if options.scaling:
            results["scaling"] = {
                axis: scale(_start, axis, options.reps or 3, console) for axis in AXES
            }
            show(results, console)
            path = write_results("training-scaling", results, options.output)
            console.print(f"written to {path}")
            return 0
        cases, path = expand(options.cases, platform), options.output
        names = _contestants(options, platform, console)
        sizes = dict.fromkeys(size_of(case) for case in cases)
        results |= {"gate": _gate(list(sizes), names, console), "cases": {}}
        for case in cases:
            results["cases"][case] = measure(_start, case, names, machine, options, console)
            if options.profile:
                results["cases"][case]["profile"] = profile(_start, case, machine, options, console)
            path = write_results("training", results, options.output)  # in case a later one ends it
    show(results, console)
    console.print(f"written to {path}")
    reasons = (result["failed"].get("ours") for result in results["cases"].values())
    return 1 if any(reason and not lacks_memory(reason) for reason in reasons) else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/training.py", description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        help=f"sizes ({', '.join(SIZES)}) or cases such as small@512, a size and a batch",
    )
    parser.add_argument("--reps", type=int, help="turns each contestant gets (7; --scaling: 3)")
    parser.add_argument("--steps", type=int, help="training steps a turn; about a second's")
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help="these contestants and ours"
    )
    parser.add_argument("--alone", action="store_true", help="ours only, without a gate")
    parser.add_argument("--profile", action="store_true", help="also where our time goes")
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="instead: how our time grows with batch, length and depth",
    )
    parser.add_argument("--output", type=Path, help="JSON file in place of the one in results/")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not options.worker:
        try:
            for case in options.cases:
                case_config(case)
        except ValueError as error:
            parser.error(str(error))
    if any(number is not None and number < 1 for number in (options.reps, options.steps)):
        parser.error("--reps and --steps must be at least 1")
    return options


def _work(options: argparse.Namespace) -> int:
    """The process of a contestant, the machine's peak, the gate, the profile or the scaling."""
    import contestants

    (case,), steps = options.cases or [""], options.steps
    if options.worker in CONTESTANTS:
        with contextlib.suppress(OSError):  # if memory runs out, this process is to end, no other
            Path("/proc/self/oom_score_adj").write_text("1000")
        start = contestants.start_contestant
        return serve(lambda: start(case, options.worker, steps, options.device))
    if options.worker == "machine":
        return serve(contestants.start_machine)
    if options.worker == "gate":
        from gate import check

        return serve(lambda: check(case))
    if options.worker == "scaling":
        from scaling import start_scaling

        return serve(lambda: start_scaling(case))
    from ablations import start_profile

    return serve(lambda: start_profile(case, steps))


def _start(role: str, *arguments: str) -> Worker:
    return Worker(SCRIPT, *arguments, "--worker", role)


def _contestants(options: argparse.Namespace, platform: str, console: Console) -> list[str]:
    """Who takes part: those asked for that this platform and the installed packages allow."""
    absent = missing("torch", "transformers")
    names = [name for name, who in CONTESTANTS.items() if who.dtype in dtypes(platform)]
    if options.alone:
        names = [name for name in names if name.startswith("ours")]
    elif options.only:
        names = [name for name in names if name.startswith("ours") or name in options.only]
    elif absent:
        console.print(f"no {' and '.join(absent)} here: timed without a peer, and ungated")
    if absent:
        names = [name for name in names if CONTESTANTS[name].framework == "jax"]
    return names


def _gate(sizes: list[str], names: list[str], console: Console) -> dict[str, Any]:
    """The errors of every size; none where no peer takes part."""
    errors = {}
    if any(CONTESTANTS[name].framework == "torch" for name in names):
        for size in sizes:
            with _start("gate", size) as gate:
                errors[size] = gate.ready
            console.print(f"{size}: same model, same predictions and gradients")
    return errors


if __name__ == "__main__":
    sys.exit(main())
