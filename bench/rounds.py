"""The rounds of bench/training.py: contestants in turn, with the machine's peak among them."""

import argparse
import contextlib
from collections.abc import Callable, Collection
from typing import Any

from harness import Worker, WorkerFailed, ratios, summary, take_turns
from machine import Bystanders
from rich.console import Console
from training_cases import CONTESTANTS, case_config, rivals, step_flops, steps_a_turn

REPS = 7
TURN_SECONDS = 1.0
OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "outofmemory", "status -9")

Start = Callable[..., Worker]


def measure(
    start: Start,
    case: str,
    names: list[str],
    machine: Worker,
    options: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """Times the contestants at one case, in turn.

    Those for which an accelerator's memory does not suffice beside the others get rounds of
    their own afterwards. Who fails is listed with the reason.
    """
    config, peaks = case_config(case), machine.ready["peaks"]
    steps = options.steps or steps_a_turn(config, peaks["float32"], TURN_SECONDS)
    result: dict[str, Any] = {
        "steps_a_rep": steps,
        "flops_a_step": step_flops(config),
        "others_cpu": [],
        "contestants": {},
        "failed": {},
    }
    device = "cpu" if machine.ready["platform"] == "cpu" else "cuda"
    common = (case, "--steps", str(steps), "--device", device)
    waiting, rounds = list(names), 0
    while waiting:
        console.print(f"{case}: timing {', '.join(waiting)}; {steps} steps a turn")
        rounds, later = rounds + 1, []
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name in waiting:
                try:
                    workers[name] = stack.enter_context(start(name, *common))
                except WorkerFailed as error:
                    if device != "cpu" and workers and lacks_memory(str(error)):
                        later.append(name)
                    else:
                        result["failed"][name] = str(error)
                        console.print(f"{case}: {name} fails: {error}")
            if workers:
                try:
                    found = _rounds(config, workers, machine, options.reps or REPS)
                except WorkerFailed as error:
                    result["failed"] |= dict.fromkeys(workers, f"in its turns: {error}")
                    console.print(f"{case}: {error}")
                else:
                    result["others_cpu"].append(found.pop("others_cpu"))
                    for entry in found["contestants"].values():
                        entry["round_robin"] = rounds
                    result["contestants"] |= found.pop("contestants")
                    result = found | result
        waiting = later
    found = result["contestants"]
    result["contestants"] = {name: found[name] for name in names if name in found}
    result["times_ours"] = _ratios(result["contestants"])
    return result


def lacks_memory(reason: str) -> bool:
    """Whether a contestant failed for want of memory."""
    return any(sign in reason.lower() for sign in OUT_OF_MEMORY)


def _rounds(config, workers: dict[str, Worker], machine: Worker, reps: int) -> dict[str, Any]:
    """Who is ready, in turn with the machine's peak and the drawing of tasks."""
    turns = {name: _ask(worker, "step") for name, worker in workers.items()}
    used = {CONTESTANTS[name].dtype for name in workers}
    turns |= {f"peak {dtype}": _ask(machine, f"peak {dtype}", "rate") for dtype in sorted(used)}
    if "ours" in workers:
        turns["draw"] = _ask(workers["ours"], "draw")
    taken, others = _in_turn(turns, [*workers.values(), machine], reps)
    found: dict[str, Any] = {"others_cpu": others, "contestants": {}}
    for name, worker in workers.items():
        rates = [step_flops(config) / seconds for seconds in taken[name]]
        found["contestants"][name] = {
            "ready": worker.ready,
            "ms_a_step": summary([1e3 * seconds for seconds in taken[name]]),
            "share_of_peak": ratios(rates, taken[f"peak {CONTESTANTS[name].dtype}"]),
            "memory": worker.ask("memory"),
        }
    peaks = {dtype: summary([rate / 1e9 for rate in taken[f"peak {dtype}"]]) for dtype in used}
    found["peak_gflops"] = peaks
    if "ours" in workers:
        found["draw_ms"] = summary([1e3 * seconds for seconds in taken["draw"]])
        found["draw_share"] = ratios(taken["draw"], taken["ours"])
    return found


def _ratios(contestants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How many times as long as ours of the same dtype each takes, round by round."""
    found: dict[str, dict[str, Any]] = {}
    for ours in ("ours", "ours bf16"):
        for rival in rivals(ours).values():
            if ours in contestants and rival in contestants:
                pair = [contestants[name]["ms_a_step"]["reps"] for name in (rival, ours)]
                together = len({contestants[name]["round_robin"] for name in (rival, ours)}) == 1
                found[rival] = {
                    **ratios(*pair),
                    "fastest": min(pair[0]) / min(pair[1]),
                    "ours": ours,
                    "in_turn": together,
                }
    return found


def profile(
    start: Start, case: str, machine: Worker, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Where our step's time goes, by what it takes with one thing left out."""
    from ablations import profile_rows

    console.print(f"{case}: timing the trainer with one thing left out at a time")
    peak = machine.ready["peaks"]["float32"]
    steps = options.steps or steps_a_turn(case_config(case), peak, TURN_SECONDS)
    with start("profile", case, "--steps", str(steps)) as worker:
        turns = {name: _ask(worker, name) for name in worker.ready["variants"]}
        turns["peak"] = _ask(machine, "peak float32", "rate")
        taken, others = _in_turn(turns, [worker, machine], options.reps or REPS)
    peak = max(taken.pop("peak"))
    return {"others_cpu": others, "rows": profile_rows(case, taken, peak)}


def scale(start: Start, axis: str, reps: int, console: Console) -> dict[str, Any]:
    """Ours alone, at growing values along one axis."""
    from scaling import exponent

    console.print(f"timing our step as {axis} grows")
    with start("scaling", axis) as worker:
        values = worker.ready["values"]
        turns = {str(value): _ask(worker, str(value)) for value in values}
        turns["peak"] = _ask(worker, "peak", "rate")
        taken, others = _in_turn(turns, [worker], reps)
    rows = [
        {
            "value": value,
            "tokens": tokens,
            "flops": flops,
            "ms_a_step": summary([1e3 * seconds for seconds in taken[str(value)]]),
            "share_of_peak": ratios([flops / s for s in taken[str(value)]], taken["peak"]),
        }
        for value, tokens, flops in zip(values, worker.ready["tokens"], worker.ready["flops"])
    ]
    times = [row["ms_a_step"]["median"] for row in rows]
    work = [row["flops"] for row in rows]
    fits = {"exponent": exponent(values, times), "flops_exponent": exponent(values, work)}
    return {"base": worker.ready["base"], "rows": rows, "others_cpu": others, **fits}


def _ask(worker: Worker, command: str, what: str = "seconds") -> Callable[[], float]:
    return lambda: worker.ask(command)[what]


def _in_turn(
    turns: dict[str, Callable[[], float]], workers: Collection[Worker], reps: int
) -> tuple[dict[str, list[float]], float | None]:
    """`take_turns`, and the share of the machine that others took meanwhile."""
    bystanders = Bystanders()
    before = sum(worker.cpu_seconds for worker in workers)
    taken = take_turns(turns, reps)
    return taken, bystanders.share(sum(worker.cpu_seconds for worker in workers) - before)
