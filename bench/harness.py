"""Plumbing of the benchmarks: contestants in processes of their own, timed in turn."""

import contextlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SETTLE_SECONDS = 0.1  # before each turn: thread pools spin for a while after their last work


class WorkerFailed(RuntimeError):
    """A contestant's process ended, or answered with an error."""


class Worker:
    """A process that does one thing at a time when asked, and waits in between.

    It gets a command's name as a line and answers with a line of JSON; its first line, `ready`,
    comes unasked, once it has compiled. To be used in a `with` statement.

    Args:
      script: the program; it calls `serve`.
      arguments: its command line.

    Attributes:
      ready: its first answer.
      cpu_seconds: what its answers took so far, of all cores together.
    """

    def __init__(self, script: str | Path, *arguments: str):
        self.name = " ".join(arguments)
        self.cpu_seconds = 0.0
        # Contestants share an accelerator's memory, of which JAX would take most at once.
        shared = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        }
        environment = {**shared, **os.environ}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdin and self._process.stdout  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        try:
            self.ready = self._answer()
        except BaseException:
            self._process.kill()
            raise

    def ask(self, command: str) -> dict[str, Any]:
        """Has a command done; returns its answer. Raises `WorkerFailed`."""
        time.sleep(SETTLE_SECONDS)
        with contextlib.suppress(BrokenPipeError):  # the answer tells that it has ended
            print(command, file=self._stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line:
            status = self._process.wait()
            raise WorkerFailed(f"worker `{self.name}` ended with status {status}; see above")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        self.cpu_seconds += answer.pop("cpu_seconds", 0.0)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def serve(start: Callable[[], tuple[dict[str, Any], Mapping[str, Callable[[], dict]]]]) -> int:
    """The worker's side: gets ready, then does what stdin asks until it closes.

    Args:
      start: returns what `ready` says and the commands, by name. A ValueError in it is told
        to the parent as an error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not among the answers
    tell = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    try:
        ready, commands = start()
    except ValueError as error:
        tell({"error": str(error)})
        return 1
    tell(ready)
    for line in sys.stdin:
        started = time.process_time()
        answer = commands[line.strip()]()
        tell({**answer, "cpu_seconds": time.process_time() - started})
    return 0


def take_turns(turns: Mapping[str, Callable[[], float]], reps: int) -> dict[str, list[float]]:
    """Calls each in turn, `reps` times round, so that a slow spell of the machine hits all.

    Returns:
      What each returned, by name, a number a rep.
    """
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(reps):
        for name, turn in turns.items():
            taken[name].append(turn())
    return taken


def summary(values: list[float]) -> dict[str, Any]:
    """Median, minimum and maximum, and the values themselves, a number a rep."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "reps": values,
    }


def ratios(numerators: list[float], denominators: list[float]) -> dict[str, Any]:
    """`summary` of the ratios rep by rep, of two that took turns."""
    return summary([a / b for a, b in zip(numerators, denominators, strict=True)])


def missing(*modules: str) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def write_results(benchmark: str, results: dict[str, Any], path: Path | None = None) -> Path:
    """Writes `{benchmark}-{device}.json` below `results/`, or the path; returns where."""
    if path is None:
        machine = results["machine"]
        on_cpu = machine["device"].lower() == "cpu"
        device = f"{machine['cpu']} {machine['cores']} cores" if on_cpu else machine["device"]
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        path = RESULTS / f"{benchmark}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path
