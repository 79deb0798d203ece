"""Training speed compared with PyTorch trainers on one machine: see bench/README.md."""

import argparse
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..common import machine
from ..common.driver import positive
from ..common.turns import ratios, summary, take_turns
from ..common.worker import ROOT, Worker, WorkerFailed
from .cases import (
    AGAINST,
    CONTESTANTS,
    MACHINE,
    NO_PEER,
    SIZES,
    START,
    a_case,
    case_config,
    contestant,
    dtypes,
    expand,
    ours_beside,
    size_of,
    step_flops,
    steps_a_turn,
)
from .report import report

__all__ = ["arguments", "measure", "report"]

GATE = "bench.training.gate:start"
PEER_NEEDS = ("torch", "transformers")
OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "outofmemory", "status -9")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    kinds = f"sizes ({', '.join(SIZES)}) or cases such as small@512, a size at a batch"
    parser.add_argument("cases", nargs="*", type=a_case, help=kinds)
    parser.add_argument("--steps", type=positive, help="steps a turn; by default about a second's")
    parser.add_argument(
        "--seconds", type=float, default=50, help="approximate time limit of a case"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        help="ours and these contestants",
    )
    parser.add_argument(
        "--peak-size", type=positive, metavar="N",
        help="rows and columns of the products that measure the machine's peak; by default large",
    )  # fmt: skip
    parser.add_argument("--alone", action="store_true", help="time ours only, without a gate")
    parser.add_argument("--against", metavar="REVISION", help="also time this revision of ours")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    with contextlib.ExitStack() as stack:
        sources = {}
        if options.against:
            source = stack.enter_context(machine.checked_out(options.against))
            sources[AGAINST + options.against] = source
        ceiling = stack.enter_context(Worker(MACHINE, options.peak_size))
        platform = ceiling.ready["platform"]
        cases = expand(options.cases, platform)
        asked = {case: _asked(case, platform, options) + list(sources) for case in cases}
        absent = machine.missing(*PEER_NEEDS)
        is_peer = lambda name: contestant(name).framework == "torch"
        reason = f"no {' and no '.join(absent)} here: pip install -r bench/requirements.txt"
        gates: dict[str, Any] = {}
        results = {}
        for case in cases:
            peers = list(filter(is_peer, asked[case]))
            failed = {n: f"{reason}, or leave it out with --alone" for n in peers if absent}
            gate = gates if peers and not absent and size_of(case) not in gates else None
            timing = _Case(case, asked[case], failed, sources, ceiling, options, gate)
            results[case] = timing.run()
    device = ceiling.ready["device"]
    return {"device": device, "platform": platform, "gate": gates, "cases": results}


def _asked(case: str, platform: str, options: argparse.Namespace) -> list[str]:
    """Names of the contestants of a case on this platform."""
    names = [name for name, who in CONTESTANTS.items() if who.dtype in dtypes(platform)]
    if options.alone or size_of(case) in NO_PEER:
        return [name for name in names if name.startswith("ours")]
    return [name for name in names
            if not options.only or name in options.only or name.startswith("ours")]  # fmt: skip


class _Case:
    """A case to be timed.

    If an accelerator's memory does not suffice for all contestants at once, those that did not
    start are timed afterwards. Contestants that fail are listed with the reason.

    Args:
      case: a size at a batch.
      asked: names of the contestants.
      failed: contestants that cannot take part, with the reason.
      sources: folders of other revisions, by contestant.
      ceiling: the process that measures the machine's peak.
      options: the command line.
      gates: receives the gate's errors by size; None if no gate is needed.
    """

    def __init__(
        self,
        case: str,
        asked: list[str],
        failed: dict[str, str],
        sources: dict[str, Path],
        ceiling: Worker,
        options: argparse.Namespace,
        gates: dict[str, Any] | None,
    ):
        self.case, self.config = case, case_config(case)
        self.asked, self.failed = asked, failed
        self._sources, self._ceiling, self._options = sources, ceiling, options
        self._steps = options.steps or steps_a_turn(self.config, ceiling.ready["peaks"]["float32"])
        self._device = "cpu" if ceiling.ready["platform"] == "cpu" else "cuda"
        self._gates = gates
        self._found: dict[str, Any] = {"others_cpu": [], "contestants": {}}

    def run(self) -> dict[str, Any]:
        """Times the case; returns its results. Raises `WorkerFailed` if the gate fails."""
        waiting = [name for name in self.asked if name not in self.failed]
        while waiting:
            waiting = self._time(waiting)
        contestants = self._found.pop("contestants")
        return self._found | {
            "asked": self.asked,
            "steps_a_turn": self._steps,
            "flops_a_step": step_flops(self.config),
            "contestants": {name: contestants[name] for name in self.asked if name in contestants},
            "failed": self.failed,
            "times_ours": _times_ours(contestants),
        }

    def _time(self, names: list[str]) -> list[str]:
        """Times contestants together; returns the names of those that lacked memory."""
        print(f"{self.case}: timing {', '.join(names)}; {self._steps} steps a turn", flush=True)
        with contextlib.ExitStack() as stack:
            # Contestants and the gate compile at the same time; later only the turns run.
            with ThreadPoolExecutor() as pool:
                gate = pool.submit(self._gate)
                started = dict(zip(names, pool.map(self._start, names)))
            workers = {
                n: stack.enter_context(w) for n, w in started.items() if isinstance(w, Worker)
            }
            gate.result()
            later = []
            for name in started.keys() - workers.keys():
                reason = str(started[name])
                if self._device != "cpu" and workers and lacks_memory(reason):
                    later.append(name)
                else:
                    self.failed[name] = reason
            try:
                self._take_turns(workers, together=names)
            except WorkerFailed as error:
                self.failed |= dict.fromkeys(workers, f"in its turns: {error}")
        return later

    def _gate(self) -> None:
        if self._gates is not None:
            size = size_of(self.case)
            mine = [n for n in self.asked if n in CONTESTANTS and contestant(n).framework == "jax"]
            with Worker(GATE, size, mine) as gate:
                self._gates[size] = gate.ready
            print(f"{size}: same model, same predictions and gradients", flush=True)
            self._gates = None

    def _start(self, name: str) -> Worker | WorkerFailed:
        start = START[contestant(name).framework]
        source = self._sources.get(name, ROOT)
        try:
            return Worker(start, self.case, name, self._steps, self._device, source=source)
        except WorkerFailed as error:
            return error

    def _take_turns(self, workers: dict[str, Worker], together: list[str]) -> None:
        """Times the started contestants, the machine's peak and the drawing of tasks."""
        if not workers:
            return
        turns: dict[str, Callable[[], float]] = {
            name: worker.asks("step") for name, worker in workers.items()
        }
        used = sorted({contestant(name).dtype for name in workers})
        turns |= {f"peak {d}": self._ceiling.asks(f"peak {d}", "rate") for d in used}
        if "ours" in workers:
            turns["draw"] = workers["ours"].asks("draw")
        everybody = [*workers.values(), self._ceiling]
        options = self._options
        taken, others = take_turns(turns, everybody, options.rounds, options.seconds)
        for name, worker in workers.items():
            rates = [step_flops(self.config) / seconds for seconds in taken[name]]
            self._found["contestants"][name] = {
                "ready": worker.ready,
                "timed_with": together,
                "ms_a_step": summary([1e3 * seconds for seconds in taken[name]]),
                "share_of_peak": ratios(rates, taken[f"peak {contestant(name).dtype}"]),
                "memory": worker.ask("memory"),
            }
        self._found["others_cpu"].append(others)
        peaks = {d: summary([rate / 1e9 for rate in taken[f"peak {d}"]]) for d in used}
        self._found["peak_gflops"] = peaks | self._found.get("peak_gflops", {})
        if "draw" in taken:
            self._found["draw_ms"] = summary([1e3 * seconds for seconds in taken["draw"]])
            self._found["draw_share"] = ratios(taken["draw"], taken["ours"])


def lacks_memory(reason: str) -> bool:
    """Whether a contestant failed because memory ran out."""
    return any(sign in reason.lower() for sign in OUT_OF_MEMORY)


def _times_ours(contestants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ratios of each contestant's time to ours in its dtype, formed round by round."""
    found = {}
    for name, entry in contestants.items():
        ours = contestants.get(ours_beside(name))
        if ours is None or entry is ours:
            continue
        theirs, mine = (who["ms_a_step"]["rounds"] for who in (entry, ours))
        fewest = min(len(theirs), len(mine))
        found[name] = {
            **ratios(theirs[:fewest], mine[:fewest]),
            "fastest": min(theirs) / min(mine),
            "in_turn": entry["timed_with"] == ours["timed_with"],
        }
    return found
