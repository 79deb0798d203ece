"""Checks and times kernels and their peers: see bench/README.md."""

import argparse
import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..common import machine
from ..common.driver import one_of, positive
from ..common.turns import ratios, summary, take_turns
from ..common.worker import PatientWorker
from .ops import CASES, CPU_CASES, DIRECTIONS, OURS, PEERS
from .report import report, show_gate
from .sides import EPS, ITEMSIZE, Answer, at_hand

__all__ = ["arguments", "measure", "report"]

# Start functions of the processes by framework; tests replace them by stand-ins.
SIDES = {"jax": "bench.kernels.jax_side:start", "torch": "bench.kernels.torch_side:start"}
# Peers that run the same program as our implementation of the given name.
SAME_PROGRAM = {"cudnn": "jax-cudnn"}
SECONDS = 2.5  # approximate time limit of a case

Key = tuple[str, str]  # a workload's name and a direction


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.add_argument(
        "workloads",
        nargs="*",
        type=one_of(CASES),
        help=f"{', '.join(CASES)}; by default all on a GPU, some on a CPU",
    )
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument(
        "--only", nargs="+", choices=OURS + PEERS,
        help="time ours, the yardstick of its errors, and these contestants",
    )  # fmt: skip
    parser.add_argument("--against", metavar="REVISION", help="also time this revision of ours")
    parser.add_argument("--rows", type=positive, help="largest number of batch rows")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="approximate time limit of a case"
    )
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Checks and times; returns the results for the JSON file.

    Raises:
      ValueError: ours is wrong or cannot run, or the revision does not exist; nothing was timed.
    """
    names = options.workloads or list(CASES)
    with contextlib.ExitStack() as stack:

        def start(framework: str, *more: str, **source: Path) -> PatientWorker:
            about = (names, options.seed, options.rows, *more)
            return stack.enter_context(PatientWorker(SIDES[framework], *about, **source))

        older = options.against and stack.enter_context(machine.checked_out(options.against))
        jax = start("jax")
        if "failed" in jax.ready:
            raise ValueError(jax.ready["failed"])
        if not options.workloads and jax.ready["platform"] == "cpu":
            names = list(CPU_CASES)
        field = _Field(names, options, jax)
        if field.wants("torch"):
            field.workers["torch"] = start("torch", jax.ready["platform"])
        if older:
            field.workers["against"] = start("jax", source=older)
        return field.results()


class _Field:
    """The contestants and their processes.

    workers: processes by framework; `against` is the process of the other revision.
    """

    def __init__(self, names: list[str], options: argparse.Namespace, jax: PatientWorker):
        self.options, self.workers = options, {"jax": jax}
        self.platform, self.dtype = jax.ready["platform"], jax.ready["dtype"]
        self.older = f"ours at {options.against}"
        self.cases = {name: at_hand(CASES[name], self.platform, options.rows) for name in names}

    def contestants(self, name: str) -> dict[str, str]:
        """The framework of each contestant at a workload."""
        op, only = CASES[name].op, self.options.only
        keep = {"ours", op.yardstick[self.platform][0], *(only or OURS + PEERS)}
        frameworks = op.contestants[self.platform].items()
        found = {one: side for side, names in frameworks for one in names if one in keep}
        return found | ({self.older: "against"} if self.options.against else {})

    def wants(self, framework: str) -> bool:
        return any(framework in self.contestants(name).values() for name in self.cases)

    def ask(self, verb: str, key: Key, contestant: str) -> Answer:
        name, direction = key
        worker = self.workers[self.contestants(name)[contestant]]
        if "failed" in worker.ready:
            return dict(worker.ready)
        if contestant == self.older:
            contestant, here = "ours", self.workers["jax"].ready["shapes"][name]
            if worker.ready["shapes"][name] != here:
                return {"failed": f"{name} has another shape at that revision"}
        return worker.ask(f"{verb} {name} {direction} {contestant}")

    def results(self) -> dict[str, Any]:
        """Checks and times; returns and raises as `measure` does."""
        ready, ways = self.workers["jax"].ready, self.options.directions
        keys = [(name, way) for name in self.cases for way in ways]
        print(f"{ready['device']}, {self.dtype}: checking {len(keys)} cases", flush=True)
        gates = self.gate(keys)
        fatal = False
        for key, answers in gates.items():
            self.judge(key, answers)
            show_gate(key, answers)
            fatal = fatal or "failed" in answers["ours"]
            fatal = fatal or any("wrong" in answers[name] for name in answers if name in OURS)
        if fatal:
            raise ValueError("ours is wrong or cannot run: nothing was timed")
        workloads = {}
        for name, case in self.cases.items():
            workloads[name] = {
                "op": case.op.name,
                "shape": case.shape,
                "whole_batch": CASES[name].workload.B,
                "ours_is": ready["chosen"][name],
                "directions": {way: self.time((name, way), gates[name, way]) for way in ways},
            }
            print(f"{name} timed", flush=True)
        return {
            "device": ready["device"],
            "dtype": self.dtype,
            "seed": self.options.seed,
            "against": self.options.against,
            "workloads": workloads,
        }

    def gate(self, keys: Iterable[Key]) -> dict[Key, dict[str, Answer]]:
        """The gate's answers of all contestants; the processes work at the same time."""

        def ask(framework: str) -> dict[tuple[Key, str], Answer]:
            return {
                (key, contestant): self.ask("gate", key, contestant)
                for key in keys
                for contestant, side in self.contestants(key[0]).items()
                if side == framework
            }

        answers: dict[tuple[Key, str], Answer] = {}
        with ThreadPoolExecutor() as pool:
            for part in pool.map(ask, self.workers):
                answers |= part
        return {key: {n: answers[key, n] for n in self.contestants(key[0])} for key in keys}

    def judge(self, key: Key, answers: Mapping[str, Answer]) -> None:
        """Adds the reason under `wrong` to answers with too large an error."""
        measure, factor = self.cases[key[0]].op.yardstick[self.platform]
        # The order of sums in cuDNN's backward pass varies, and ours may run cuDNN.
        is_cudnn = self.workers["jax"].ready["chosen"][key[0]] == "cudnn"
        eps = EPS[self.dtype]
        for name, answer in answers.items():
            is_ours = name in (*OURS, self.older)
            for result, error in answer.get("errors", {}).items():
                usual = answers[measure].get("errors", {}).get(result, eps)
                limit = (factor if is_ours else 2 * factor) * usual + eps / 16
                if not error <= limit:  # NaN is above too
                    answer["wrong"] = f"{result} is off by {error:.1e}; the limit is {limit:.1e}"
            if name in OURS and answer.get("same_bits") is False:
                if name != "ours" or not is_cudnn:
                    answer["wrong"] = "two runs differ in their bits"

    def time(self, key: Key, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Times the contestants that are right, and the machine's ceilings."""
        found = {name: dict(answer) for name, answer in answers.items()}
        right = [name for name, answer in found.items() if {*answer}.isdisjoint(_FAULTS)]
        jax = self.workers["jax"]
        ceilings: dict[str, Answer] = {"copy": {}, "product": {}}
        turns = {n: _turn(lambda n=n: self.ask("time", key, n), found[n]) for n in right}
        turns |= {n: _turn(lambda n=n: jax.ask(f"time {n}"), ceilings[n]) for n in ceilings}
        taken, others = take_turns(
            turns, self.workers.values(), self.options.rounds, self.options.seconds
        )
        right = [name for name in right if {*found[name]}.isdisjoint(_FAULTS)]
        for name in right:
            found[name]["us"] = summary([1e6 * seconds for seconds in taken[name]])
        if "us" not in found["ours"]:
            return {"contestants": found, "others_cpu": others}
        for name in right:
            found[name]["over_ours"] = ratios(taken[name], taken["ours"])
        timed = {name: found[name]["over_ours"]["median"] for name in right}
        chosen = jax.ready["chosen"][key[0]]
        itself = ("ours", self.older, SAME_PROGRAM.get(chosen, chosen))
        peers = [name for name in timed if name in PEERS]
        result = {
            "best_peer": min(peers, key=timed.__getitem__, default=None),
            "faster": [n for n, ratio in timed.items() if ratio < 1 and n not in itself],
            "others_cpu": others,
            "contestants": found,
        }
        if not all(math.isfinite(s) for name in ceilings for s in taken[name]):
            failed = [record["failed"] for record in ceilings.values() if "failed" in record]
            return {"ceiling_failed": failed[0], **result}
        total, flops = self.cases[key[0]].work(key[1], ITEMSIZE[self.dtype])
        bandwidth = [jax.ready["copy_bytes"] / seconds for seconds in taken["copy"]]
        peak = [2 * jax.ready["product_size"] ** 3 / seconds for seconds in taken["product"]]
        floors = [max(total / b, flops / p) for b, p in zip(bandwidth, peak)]
        return {
            "bytes": total,
            "flops": flops,
            "gigabytes_a_second": summary([b / 1e9 for b in bandwidth]),
            "teraflops_a_second": summary([p / 1e12 for p in peak]),
            "floor_us": summary([1e6 * seconds for seconds in floors]),
            "of_floor": ratios(floors, taken["ours"]),
            **result,
        }


_FAULTS = ("failed", "wrong", "cannot")


def _turn(ask: Any, record: Answer) -> Any:
    """A turn that returns the seconds, NaN after a failure, and adds other fields to `record`."""

    def turn() -> float:
        answer = ask()
        record.update({key: value for key, value in answer.items() if key != "seconds"})
        return answer.get("seconds", math.nan)

    return turn
