"""Contestants in processes of their own: both ends of the pipe between them and a benchmark."""

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
SETTLE_SECONDS = 0.1  # before each turn: thread pools spin for a while after their last work
MOST_SECONDS = 600  # for an answer, compiling included; a contestant that hangs fails
MOST_STARTS = 20  # of a patient worker; past it something is wrong with the machine

Commands = Mapping[str, Callable[[], dict[str, Any]]]
Started = tuple[dict[str, Any], Commands]


class WorkerFailed(RuntimeError):
    """A contestant's process ended, or answered with an error."""


class Worker:
    """A process that does one thing at a time if asked, and waits in between.

    The process receives a command's name as a line and answers with a line of JSON. Its first
    line, `ready`, comes unasked, once it has compiled. Use it in a `with` statement.

    Args:
      start: `module:function`; the function takes the arguments and returns what `ready` says and
        the commands by name. Its ValueError becomes `WorkerFailed` here.
      arguments: of the function; anything that JSON can say.
      source: the folder whose `icl` is imported, another revision's perhaps.

    Attributes:
      ready: its first answer.
      cpu_seconds: what its answers took up to now, of all cores together.
    """

    def __init__(self, start: str, *arguments: Any, source: Path = ROOT):
        self.name = " ".join([start, *map(str, arguments)])
        self.cpu_seconds = 0.0
        environment = {
            # Contestants share an accelerator's memory, of which JAX would take most at once.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, start, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=source,
            env=environment,
        )
        assert self._process.stdin and self._process.stdout  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        try:
            self.ready = self._answer()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def ask(self, command: str) -> dict[str, Any]:
        """Has a command done; returns its answer. Raises `WorkerFailed`."""
        time.sleep(SETTLE_SECONDS)
        with contextlib.suppress(BrokenPipeError):  # the answer tells that it has ended
            print(command, file=self._stdin, flush=True)
        return self._answer()

    def asks(self, command: str, field: str = "seconds") -> Callable[[], float]:
        """A turn: asks, and returns one number of the answer."""
        return lambda: self.ask(command)[field]

    def _answer(self) -> dict[str, Any]:
        # An answer is one line, so nothing of it waits in a buffer.
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
    """A `Worker` whose failures are answers, and which is started again if it breaks.

    Args:
      As `Worker`'s.

    Attributes:
      ready: the first answer of its process, or the reason, under `failed`, why there is none.
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
        """Has a command done; the answer has `failed` and the reason if that was impossible."""
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
    """Turns any exception into a ValueError of one line, which `serve` tells to the benchmark."""
    try:
        yield
    except Exception as error:
        raise ValueError(describe_error(error)) from error


def describe_error(error: Exception) -> str:
    """The kind of error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def serve(start: Callable[..., Started], *arguments: Any) -> int:
    """The process's side: gets ready, then does what stdin asks until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not among the answers
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
