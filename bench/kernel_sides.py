"""The processes that contestants run in, one for each framework."""

from pathlib import Path
from typing import Any

from harness import Worker, WorkerFailed

ATTEMPTS = 20  # processes of a framework; past it something is wrong with the machine


class Side:
    """The contestants of one framework, in a process that is started again if it breaks.

    Args:
      script: the program; it calls `serve`.
      arguments: its command line.

    Attributes:
      ready: the first answer of its process, or the reason, under `failed`, why there is none.
    """

    def __init__(self, script: str | Path, *arguments: str):
        self._command = (script, *arguments)
        self._worker: Worker | None = None
        self._attempts, self._past_cpu = 0, 0.0
        self.ready = self._start()

    @property
    def cpu_seconds(self) -> float:
        return self._past_cpu + (self._worker.cpu_seconds if self._worker else 0.0)

    def ask(self, command: str) -> dict[str, Any]:
        """Has a command done; the answer has `failed`, and why, where it could not be."""
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
        self._attempts += 1
        if self._attempts > ATTEMPTS:
            return {"failed": f"its process broke {ATTEMPTS} times"}
        try:
            self._worker = Worker(*self._command)
        except WorkerFailed as error:
            return {"failed": str(error)}
        return self._worker.ready

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        self.close()
