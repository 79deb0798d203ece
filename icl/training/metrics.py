"""Where metrics go: always to metrics.jsonl, and on request to TensorBoard or Weights & Biases."""

import dataclasses
import importlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from . import disk
from .run import Run, plain


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Further places for the metrics, and whether progress is shown."""

    tensorboard: bool = False
    """Also write TensorBoard event files to RUN/tensorboard (needs tensorboardX)."""
    wandb: str | None = None
    """Also log to this Weights & Biases project (needs wandb)."""
    progress: bool = True
    """Show a progress bar, or lines if the output is not a terminal."""


class Sink(Protocol):
    def write(self, step: int, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """Appends a line for each record; the line is on disk when `write` returns.

    A resume moves the lines after its first step to metrics-dropped.jsonl.
    """

    def __init__(self, run: Run, first_step: int):
        self._path = run.path / "metrics.jsonl"
        kept, dropped = [], []
        for record in run.metrics():
            (kept if record["step"] <= first_step else dropped).append(_line(record))
        if dropped:
            earlier = run.path / "metrics-dropped.jsonl"
            before = disk.read_text(earlier) if earlier.exists() else ""
            disk.write_whole(earlier, before + "".join(dropped))
        disk.write_whole(self._path, "".join(kept))

    def write(self, step: int, record: dict[str, Any]) -> None:
        # Opened for each line: a sweep may have more members than a process may have open files.
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line({"step": step, **record}))
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        pass


def _line(record: dict[str, Any]) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"


class TensorBoard:
    def __init__(self, folder: Path):
        self._writer = _need("tensorboardX").SummaryWriter(str(folder))

    def write(self, step: int, record: dict[str, Any]) -> None:
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    def __init__(self, project: str, run: Run):
        # The identity stays in the run's folder, so that a resume continues the record.
        identity = run.path / "wandb_id"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex)
        settings = {
            "config": run.config.flat(),
            "name": run.path.name,
            "id": identity.read_text(),
            "dir": str(run.path),
        }
        self._run = _need("wandb").init(project=project, resume="allow", **settings)

    def write(self, step: int, record: dict[str, Any]) -> None:
        self._run.log(record, step=step)

    def close(self) -> None:
        self._run.finish()


def check_installed(logging: LoggingConfig) -> None:
    """Raises ModuleNotFoundError, with the package to install, if a sink lacks its package."""
    if logging.tensorboard:
        _need("tensorboardX")
    if logging.wandb:
        _need("wandb")


def open_sinks(run: Run, logging: LoggingConfig, first_step: int) -> list[Sink]:
    """The sinks of a run that starts or resumes at `first_step`."""
    sinks: list[Sink] = [JsonLines(run, first_step)]
    if logging.tensorboard:
        sinks.append(TensorBoard(run.path / "tensorboard"))
    if logging.wandb:
        sinks.append(WeightsAndBiases(logging.wandb, run))
    return sinks


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"this logging needs the package {name}: pip install {name}"
        ) from None
