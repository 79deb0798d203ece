"""Kernels beside their peers, checked first and then timed in turn: see README.md here."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import ratios, serve, summary, take_turns, write_results
from kernel_cases import (
    CASES,
    DIRECTIONS,
    EPS,
    ITEMSIZE,
    METHODS,
    OURS,
    at_hand,
    contestants,
    versions,
    wrong,
)
from kernel_report import show, show_gate
from kernel_sides import Side
from machine import Bystanders, describe

SCRIPT = Path(__file__)
PEERS = ("jax-cudnn", "jax-xla", "tokamax", "torch-sdpa", "torch-flex", "torch-chunked", "fla")
# What a call without an implementation runs, by the name under which it is also timed.
SAME_PROGRAM = {"cudnn": "jax-cudnn"}
FEWEST_ROUNDS = 3

Case = tuple[str, str]  # a workload's name and a direction


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns 0, or 1 where ours is wrong or cannot run."""
    options = _parse(argv)
    if options.worker:
        return _work(options)
    machine = describe()
    machine["versions"] |= versions()
    common = [*("--seed", str(options.seed)), *("--directions", *options.directions)]
    start = lambda role, *more: Side(SCRIPT, *options.workloads, "--worker", role, *more, *common)
    with contextlib.ExitStack() as stack:
        jax = stack.enter_context(start("jax"))
        if "failed" in jax.ready:
            print(f"kernel benchmark: {jax.ready['failed']}", file=sys.stderr)
            return 1
        platform, dtype = jax.ready["platform"], jax.ready["dtype"]
        machine["device"] = jax.ready["device"]
        torch = stack.enter_context(start("torch", "--platform", platform, "--dtype", dtype))
        sides = {}
        for name in options.workloads:
            sides |= dict.fromkeys(contestants(name, platform, "jax"), jax)
            sides |= dict.fromkeys(contestants(name, platform, "torch"), torch)
        if options.only:
            keep = {"ours", *options.only}
            keep |= {CASES[name][0].yardstick[platform][0] for name in options.workloads}
            sides = {name: side for name, side in sides.items() if name in keep}
        cases = [(name, way) for name in options.workloads for way in options.directions]
        print(f"{machine['device']}, {dtype}: checking {len(cases)} cases", flush=True)
        answers = _gate(cases, sides, platform)
        gates = {case: _judge(case, answers[case], jax.ready) for case in cases}
        for case, gate in gates.items():
            show_gate(case, gate)
        if any(gate["fatal"] for gate in gates.values()):
            print("ours is wrong or cannot run: nothing was timed", file=sys.stderr)
            return 1
        results: dict[str, Any] = {
            "machine": machine,
            "platform": platform,
            "dtype": dtype,
            "seed": options.seed,
            "methods": METHODS,
            "product_size": jax.ready["product_size"],
            "copy_bytes": jax.ready["copy_bytes"],
            "workloads": {},
        }
        for name in options.workloads:
            results["workloads"][name] = {
                "shape": at_hand(name, platform)._asdict(),
                "op": CASES[name][0].name,
                "whole_batch": CASES[name][1].B,
                "ours_is": jax.ready["chosen"][name],
                "directions": {
                    way: _time((name, way), gates[name, way], sides, jax, results, options)
                    for way in options.directions
                },
            }
            print(f"{name} done", flush=True)
    show(results)
    for family in dict.fromkeys(CASES[name][0].family for name in options.workloads):
        mine = {n: r for n, r in results["workloads"].items() if CASES[n][0].family == family}
        path = options.out and options.out / results_name(machine, family)
        print(f"written to {write_results(family, results | {'workloads': mine}, path)}")
    return 0


def results_name(machine: dict[str, Any], family: str = "kernels") -> str:
    """A file name that tells the ops and the device."""
    return f"{family}-{'-'.join(machine['device'].lower().split())}.json"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/kernels.py", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"{', '.join(CASES)}; all unless given")
    parser.add_argument("--directions", nargs="+", default=list(DIRECTIONS), choices=DIRECTIONS)
    parser.add_argument("--reps", type=int, default=7, help="turns each contestant gets")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=OURS + PEERS,
        help="these, beside ours and what its errors are measured by",
    )
    parser.add_argument("--out", type=Path, help="folder for the JSON file in place of results/")
    parser.add_argument(
        "--seconds", type=float, default=15, help="about how long a case may take to be timed"
    )
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--platform", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.workloads = options.workloads or list(CASES)
    unknown = [name for name in options.workloads if name not in CASES]
    if unknown:
        parser.error(f"no workload {unknown[0]!r}; there are {', '.join(CASES)}")
    if options.reps < 1:
        parser.error("--reps must be at least 1")
    return options


def _work(options: argparse.Namespace) -> int:
    """The process of one framework's contestants."""
    what = (options.workloads, options.directions, options.seed)
    if options.worker == "jax":
        from kernel_contestants import start_jax

        return serve(lambda: start_jax(*what))
    from kernel_peers import start_torch

    return serve(lambda: start_torch(*what, options.platform, options.dtype))


def _gate(
    cases: Sequence[Case], sides: Mapping[str, Side], platform: str
) -> dict[Case, dict[str, dict[str, Any]]]:
    """Everybody's answers, by case and name; the sides work at the same time."""

    def ask(side: Side) -> dict[tuple[Case, str], dict[str, Any]]:
        mine = [name for name in sides if sides[name] is side]
        return {
            (case, name): side.ask(" ".join(["gate", *case, name]))
            for case in cases
            for name in mine
            if name in contestants(case[0], platform)
        }

    with ThreadPoolExecutor() as pool:
        answers: dict[Any, Any] = {}
        for part in pool.map(ask, set(sides.values())):
            answers |= part
    return {case: {n: answers[case, n] for n in sides if (case, n) in answers} for case in cases}


def _judge(case: Case, answers: dict[str, dict[str, Any]], ready: dict[str, Any]) -> dict[str, Any]:
    """The answers, with `wrong` where one is, and whether that is `fatal`: one of ours."""
    op = CASES[case[0]][0]
    fallback = dict.fromkeys(op.results(case[1]), EPS[ready["dtype"]])
    measure, factor = op.yardstick[ready["platform"]]
    yardstick = answers[measure].get("errors", fallback)
    fatal = "failed" in answers["ours"]
    for name, answer in answers.items():
        if "failed" in answer:
            continue
        times = factor if name in OURS else 2 * factor
        reason = wrong(answer["errors"], yardstick, times, ready["dtype"])
        # cuDNN's own backward pass adds up in any order, and ours may be cuDNN.
        is_cudnn = name == "ours" and ready["chosen"][case[0]] == "cudnn"
        if reason is None and name in OURS and not answer["same_bits"] and not is_cudnn:
            reason = "two runs differ in their bits"
        if reason is not None:
            answer["wrong"] = reason
            fatal = fatal or name in OURS
    return {"answers": answers, "fatal": fatal}


def _time(
    case: Case,
    gate: dict[str, Any],
    sides: Mapping[str, Side],
    jax: Side,
    results: dict[str, Any],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Times, in turn, the contestants that are right, and the machine's ceilings."""
    name, way = case
    answers = gate["answers"]
    right = [name for name, answer in answers.items() if not {"failed", "wrong"} & set(answer)]
    turn = lambda side, command, answer: lambda: _seconds(side.ask(command), answer)
    turns = {n: turn(sides[n], " ".join(["time", *case, n]), answers[n]) for n in right}
    turns |= {n: turn(jax, f"time {n}", {}) for n in ("copy", "product")}
    everybody = set(sides.values())
    bystanders, before = Bystanders(), sum(side.cpu_seconds for side in everybody)
    taken = _rounds(turns, options.reps, options.seconds)
    others = bystanders.share(sum(side.cpu_seconds for side in everybody) - before)
    total_bytes, flops = CASES[name][0].work(
        at_hand(name, results["platform"]), way, ITEMSIZE[results["dtype"]]
    )
    bandwidth = [results["copy_bytes"] / seconds for seconds in taken["copy"]]
    peak = [2 * results["product_size"] ** 3 / seconds for seconds in taken["product"]]
    floors = [max(total_bytes / b, flops / p) for b, p in zip(bandwidth, peak)]
    found = {name: dict(answer) for name, answer in answers.items()}
    for n in right:
        if "failed" not in found[n]:
            found[n]["us"] = summary([1e6 * seconds for seconds in taken[n]])
            found[n]["over_ours"] = ratios(taken[n], taken["ours"])
    timed = {n: c["over_ours"]["median"] for n, c in found.items() if "over_ours" in c}
    peers = [n for n in timed if n not in OURS]
    chosen = jax.ready["chosen"][name]
    itself = ("ours", SAME_PROGRAM.get(chosen, chosen))
    return {
        "bytes": total_bytes,
        "flops": flops,
        "gigabytes_a_second": summary([b / 1e9 for b in bandwidth]),
        "teraflops_a_second": summary([p / 1e12 for p in peak]),
        "floor_us": summary([1e6 * seconds for seconds in floors]),
        "of_floor": ratios(floors, taken["ours"]),
        "best_peer": min(peers, key=timed.__getitem__, default=None),
        "faster": [n for n, ratio in timed.items() if ratio < 1 and n not in itself],
        "others_cpu": others,
        "contestants": found,
    }


def _seconds(answer: dict[str, Any], record: dict[str, Any]) -> float:
    """What it says, into the record too; NaN where it failed."""
    record |= {key: value for key, value in answer.items() if key != "seconds"}
    return answer.get("seconds", float("nan"))


def _rounds(turns: Mapping[str, Any], reps: int, seconds: float) -> dict[str, list[float]]:
    """`take_turns`, with fewer rounds where they would take longer than the seconds given."""
    started = time.perf_counter()
    taken = take_turns(turns, 1)
    affordable = int(seconds / (time.perf_counter() - started))
    more = take_turns(turns, min(reps, max(FEWEST_ROUNDS, affordable)) - 1)
    return {name: first + more[name] for name, first in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
