"""Contestants in their own processes: both ends of the pipe to the benchmark."""

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SETTLE_SECONDS = 0.1  # before each turn, because thread pools spin for a while after a task
MOST_SECONDS = 600  # limit for an answer, including compilation
MOST_STARTS = 20  # of a patient worker; more mean that the machine is at fault

Commands = Mapping[str, Callable[[], dict[str, Any]]]
Started = tuple[dict[str, Any], Commands]


class WorkerFailed(RuntimeError):
    """A contestant's process ended, hung or answered with an error."""


class Worker:
    """A process that runs one command at a time and waits in between.

    The process receives a command's name as a line and answers with a line of JSON. It writes its
    first answer, `ready`, unasked after compiling. Use a worker in a `with` statement.

    Args:
      start: `module:function`; the function takes the arguments and returns the first answer and
        the commands by name. Its ValueError is raised here as `WorkerFailed`.
      arguments: the function's arguments, which JSON can represent.
      source: the folder whose `icl` is imported, for example another revision's.

    Attributes:
      ready: the first answer.
      cpu_seconds: CPU time that all answers took until now, summed over cores.
    """

    def __init__(self, start: str, *arguments: Any, source: Path = ROOT):
        self.name = " ".join([start, *map(str, arguments)])
        self.cpu_seconds = 0.0
        environment = {
            # JAX would allocate most of the memory that contestants share on an accelerator.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(source), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, start, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=source,
            env=environment,
        )
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        try:
            self.ready = self._answer()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def ask(self, command: str) -> dict[str, Any]:
        """Runs a command and returns its answer. Raises `WorkerFailed`."""
        time.sleep(SETTLE_SECONDS)
        with contextlib.suppress(BrokenPipeError):  # `_answer` reports the end of the process
            print(command, file=self._stdin, flush=True)
        return self._answer()

    def asks(self, command: str, field: str = "seconds") -> Callable[[], float]:
        """A function that runs a command and returns one field of its answer."""
        return lambda: self.ask(command)[field]

    def _answer(self) -> dict[str, Any]:
        # An answer is one line, so no rest of an earlier one is in the buffer.
        answers, _, _ = select.select([self._stdout], [], [], MOST_SECONDS)
        if not answers:
            self._process.kill()
            raise WorkerFailed(f"worker `{self.name}` hung: no answer in {MOST_SECONDS} s")
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


class PatientWorker:
    """A `Worker` that reports failures in its answers and restarts a broken process.

    It takes `Worker`'s arguments.

    Attributes:
      ready: the process's first answer, or the reason of its failure under `failed`.
    """

    def __init__(self, *arguments: Any, **options: Any):
        self._arguments, self._options = arguments, options
        self._worker: Worker | None = None
        self._starts, self._past_cpu = 0, 0.0
        self.ready = self._start()

    @property
    def cpu_seconds(self) -> float:
        return self._past_cpu + (self._worker.cpu_seconds if self._worker else 0.0)

    def ask(self, command: str) -> dict[str, Any]:
        """Runs a command and returns its answer, or the reason of a failure under `failed`."""
        if self._worker is None and "failed" in (ready := self._start()):
            return ready
        assert self._worker
        try:
            answer = self._worker.ask(command)
        except WorkerFailed as error:
            answer = {"failed": str(error), "broken": True}
        if answer.pop("broken", False):
            self.close()
        return answer

    def close(self) -> None:
        if self._worker:
            self._past_cpu += self._worker.cpu_seconds
            self._worker.__exit__()
        self._worker = None

    def _start(self) -> dict[str, Any]:
        self._starts += 1
        if self._starts > MOST_STARTS:
            return {"failed": f"its process broke {MOST_STARTS} times"}
        try:
            self._worker = Worker(*self._arguments, **self._options)
        except WorkerFailed as error:
            return {"failed": str(error)}
        return self._worker.ready

    def __enter__(self) -> "PatientWorker":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextlib.contextmanager
def failures_as_values() -> Iterator[None]:
    """Turns any exception into a ValueError of one line, which `serve` reports."""
    try:
        yield
    except Exception as error:
        raise ValueError(describe_error(error)) from error


def describe_error(error: Exception) -> str:
    """The kind of error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def serve(start: Callable[..., Started], *arguments: Any) -> int:
    """The worker's side: starts, then runs the commands that stdin names until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries must not print among the answers
    tell = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    try:
        ready, commands = start(*arguments)
    except ValueError as error:
        tell({"error": str(error)})
        return 1
    tell(ready)
    for line in sys.stdin:
        started = time.process_time()
        answer = commands[line.strip()]()
        tell({**answer, "cpu_seconds": time.process_time() - started})
    return 0


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    start = getattr(importlib.import_module(module), function)
    sys.exit(serve(start, *json.loads(sys.argv[2])))
