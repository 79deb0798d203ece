"""Training speed beside a PyTorch trainer, in turn on the same machine: see README.md here."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from contestants import (
    DEFAULT_STEPS,
    SIZES,
    peak_flops,
    start_ours,
    start_torch,
    step_flops,
)
from harness import (
    Worker,
    WorkerFailed,
    missing,
    ratios,
    serve,
    summary,
    take_turns,
    write_results,
)
from machine import Bystanders, describe
from report import show
from rich.console import Console

SCRIPT = Path(__file__)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns 0, or 1 where a worker failed or the gate was not passed."""
    options = _parse(argv)
    if options.worker:
        return _work(options)
    console = Console()
    absent = missing("torch", "transformers")
    alone = options.alone or bool(absent)
    if absent and not options.alone:
        names = " and ".join(absent)
        console.print(f"no {names} here: ours is timed alone, without a peer and ungated")
    sizes, machine = {}, describe()
    try:
        for size in options.sizes:
            steps = options.steps or DEFAULT_STEPS[size]
            sizes[size], machine["device"] = _measure(size, steps, options.reps, alone, console)
            if options.profile:
                sizes[size]["profile"] = _profile(size, steps, options.reps, console)
    except WorkerFailed as error:
        print(f"training benchmark: {error}", file=sys.stderr)
        return 1
    results = {"machine": machine, "sizes": sizes}
    show(results, console)
    console.print(f"written to {write_results('training', results, options.output)}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/training.py", description=__doc__)
    parser.add_argument("sizes", nargs="*", help=f"{', '.join(SIZES)}; all unless given")
    parser.add_argument("--reps", type=int, default=11, help="turns each contestant gets")
    parser.add_argument("--steps", type=int, help=f"training steps a turn ({DEFAULT_STEPS})")
    parser.add_argument("--profile", action="store_true", help="also where our time goes")
    parser.add_argument("--alone", action="store_true", help="ours only, without a peer or a gate")
    parser.add_argument("--output", type=Path, help="JSON file in place of the one in results/")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.sizes = options.sizes or list(SIZES)
    unknown = [size for size in options.sizes if size not in SIZES]
    if unknown:
        parser.error(f"no size {unknown[0]!r}; there are {', '.join(SIZES)}")
    if options.reps < 1 or options.steps is not None and options.steps < 1:
        parser.error("--reps and --steps must be at least 1")
    return options


def _work(options: argparse.Namespace) -> int:
    """The process of one contestant, of the gate, or of the profile."""
    (size,), steps = options.sizes, options.steps
    if options.worker == "ours":
        return serve(lambda: start_ours(size, steps))
    if options.worker == "torch":
        return serve(lambda: start_torch(size, steps, options.device))
    if options.worker == "gate":
        from gate import check

        return serve(lambda: check(size))
    from ablations import start_profile

    return serve(lambda: start_profile(size, steps))


def _start(role: str, size: str, steps: int, *more: str) -> Worker:
    return Worker(SCRIPT, "--worker", role, "--steps", str(steps), *more, size)


def _measure(
    size: str, steps: int, reps: int, alone: bool, console: Console
) -> tuple[dict[str, Any], str]:
    """Times the contestants at one size, in turn; returns the results and JAX's device."""
    result: dict[str, Any] = {"steps_a_rep": steps, "flops_a_step": step_flops(SIZES[size])}
    if not alone:
        with _start("gate", size, steps) as gate:
            result["gate"] = gate.ready
        console.print(f"{size}: same model, same predictions and gradients; timing")
    with contextlib.ExitStack() as stack:
        workers = {"ours": stack.enter_context(_start("ours", size, steps))}
        ours = workers["ours"].ready
        if not alone:
            device = "cpu" if ours["platform"] == "cpu" else "cuda"
            peer = _start("torch", size, steps, "--device", device)
            workers["torch"] = stack.enter_context(peer)
        ask = lambda worker, command: lambda: worker.ask(command)["seconds"]
        turns = {name: ask(worker, "step") for name, worker in workers.items()}
        turns |= {"peak": ask(workers["ours"], "peak"), "draw": ask(workers["ours"], "draw")}
        taken, result["others_cpu"] = _in_turn(turns, workers.values(), reps)
    result["contestants"] = {
        name: {
            "ready": worker.ready,
            "ms_a_step": summary([1e3 * seconds for seconds in taken[name]]),
            "share_of_peak": ratios(
                [result["flops_a_step"] / seconds for seconds in taken[name]],
                [peak_flops(seconds) for seconds in taken["peak"]],
            ),
        }
        for name, worker in workers.items()
    }
    result["peak_gflops"] = summary([peak_flops(seconds) / 1e9 for seconds in taken["peak"]])
    result["draw_ms"] = summary([1e3 * seconds for seconds in taken["draw"]])
    result["draw_share"] = ratios(taken["draw"], taken["ours"])
    if not alone:
        result["torch_over_ours"] = ratios(taken["torch"], taken["ours"])
    return result, ours["device"]


def _in_turn(
    turns: dict[str, Callable[[], float]], workers: Collection[Worker], reps: int
) -> tuple[dict[str, list[float]], float | None]:
    """`take_turns`, and the share of the machine that others took meanwhile."""
    bystanders = Bystanders()
    taken = take_turns(turns, reps)
    return taken, bystanders.share(sum(worker.cpu_seconds for worker in workers))


def _profile(size: str, steps: int, reps: int, console: Console) -> dict[str, Any]:
    from ablations import profile_rows

    console.print(f"{size}: timing the trainer with one thing left out at a time")
    with _start("profile", size, steps) as worker:
        ask = lambda name: lambda: worker.ask(name)["seconds"]
        turns = {name: ask(name) for name in worker.ready["variants"]}
        taken, others = _in_turn(turns, [worker], reps)
    return {"others_cpu": others, "rows": profile_rows(size, taken)}


if __name__ == "__main__":
    sys.exit(main())
