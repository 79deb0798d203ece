"""A run is a folder: config.json, metrics.jsonl, checkpoints/, and what evaluation adds."""

import contextlib
import fcntl
import json
import math
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import disk
from .checkpoints import Checkpoints
from .config import Config, config_from_dict, config_to_dict
from .data import check_same, fingerprint
from .disk import RunError, write_whole
from .history import History, checked, extended, fixed, settings_at
from .learner import Learner, Variables
from .prediction import Predictor
from .step import variable_items, variables_from

FORMAT = 1
# What a creation that was cut short may have left in a folder.
NOTHING = {".lock", "config.json.tmp"}


class Run:
    """A run folder, made by `Run.create` or found by `Run.open`.

    Attributes:
      path: the folder.
      config: the settings it is trained with, now.
      history: from which step on which settings were others than before; empty for most runs.
    """

    def __init__(self, path: Path, config: Config, history: History | None = None) -> None:
        self.path = path
        self.config = config
        self.history = history or []
        self._predictor: Predictor | None = None

    @classmethod
    def create(cls, path: str | Path, config: Config) -> "Run":
        """Makes the folder and writes the settings.

        Raises:
          RunError: the folder exists and is not empty, or another process is making a run of
            it, or the system refuses it; nothing in it is touched.
          DiskFull, CannotSave: the settings cannot be written.
          TypeError: the task's data are no arrays.
        """
        path = named(path)
        data = {"format": FORMAT, "config": config_to_dict(config), "made_with": _versions()}
        if found := fingerprint(config.task):
            data["data"] = found
        with disk.usable(path):
            if path.exists() and not path.is_dir():
                raise RunError(f"{path} is a file; choose another folder for the run")
            if _taken(path):
                raise RunError(_occupied(path, config))
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path, config)
        with run.locked():
            # Two processes may have found the folder free; one of them is first.
            if _taken(path):
                raise RunError(_occupied(path, config))
            write_json(path / "config.json", data)
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Finds a run.

        Raises:
          RunError: there is no run in that folder, or its settings cannot be read.
        """
        path = named(path)
        file = path / "config.json"
        with disk.usable(path):
            if not path.exists():
                raise RunError(f"{path} does not exist; `icl train NAME` makes a run")
            if not file.is_file():
                raise RunError(
                    f"{path} is not a run: it has no config.json; `icl train NAME` makes a run"
                )
        with disk.reading(file, "bring back a copy of it") as data:
            _check_format(data)
            config = config_from_dict(data["config"])
            return cls(path, config, checked(data.get("history", []), config))

    def go_on_with(self, config: Config, step: int) -> None:
        """Writes down that the run goes on from a step with other settings, or the same.

        Raises:
          RunError: config.json cannot be read.
          DiskFull, CannotSave: it cannot be written; it is as it was.
        """
        history = extended(self.history, self.config, config, step)
        if (config, history) != (self.config, self.history):
            with disk.reading(self.path / "config.json", "bring back a copy of it") as data:
                data |= {"config": config_to_dict(config), "history": history}
            write_json(self.path / "config.json", data)
            self.config, self.history = config, history

    def check_data(self) -> None:
        """Raises RunError if the task's data are not those that the run is trained on."""
        with disk.reading(self.path / "config.json", "bring back a copy of it") as found:
            written = found.get("data")
        check_same(written, self.config.task, str(self.path))

    def config_at(self, step: int) -> Config:
        """The settings with which the checkpoint of a step was made."""
        return settings_at(self.config, self.history, step)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder for writing; RunError where another process holds it."""
        return locked(self.path)

    def checkpoints(self, may_differ: Callable[[str], bool] = lambda name: False) -> Checkpoints:
        """Those of the run.

        Args:
          may_differ: which settings a checkpoint may have been made with others of than
            config.json tells.
        """

        def settings(step: int) -> dict[str, Any]:
            flat = plain(self.config_at(step).flat())
            return {name: value for name, value in flat.items() if not may_differ(name)}

        return Checkpoints(
            self.path / "checkpoints",
            self.config.training.keep_checkpoints,
            f"icl train --resume {self.path}",
            settings,
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut short by a crash is left out.

        Raises:
          RunError: the file cannot be read, or a line of it is no record of a step.
        """
        file = self.path / "metrics.jsonl"
        with disk.usable(file):
            text = disk.read_text(file) if file.exists() else ""
        lines = text.split("\n")  # nothing else ends a line
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
                if number == len(lines):
                    continue
            if not _is_record(record):
                raise RunError(
                    f"{file} cannot be read: line {number} has no step and loss; take that line "
                    "out, or move the file away"
                )
            records.append(record)
        return records

    def variables(self) -> tuple[int, Variables]:
        """Step and variables of the newest checkpoint that can be read.

        Raises:
          RunError: there is none, or the newest holds another model's, or the system refuses it.
        """
        with contextlib.closing(self.variables_by_step()) as newest_first:
            found = next(newest_first, None)
        if found is None:
            with contextlib.closing(self.checkpoints()) as checkpoints:
                if checkpoints.steps():
                    raise RunError(checkpoints.all_damaged())
            raise RunError(f"{self.path} has no checkpoint yet; train it first")
        return found

    def variables_by_step(self) -> Generator[tuple[int, Variables], None, None]:
        """Step and variables of every checkpoint that can be read, from the newest on.

        Each damaged one gives a `DamagedCheckpoint` warning, and is passed over. The number of
        checkpoints is the run's training.keep_checkpoints.

        Raises:
          RunError: one holds another model's parameters, or the system refuses it.
        """
        self.check_data()
        learner = Learner(self.config)
        abstract = variable_items(jax.eval_shape(learner.init, jax.random.key(0)))
        free = lambda name: not fixed(name)
        with contextlib.closing(self.checkpoints(may_differ=free)) as checkpoints:
            for step, items in checkpoints.restore_all(abstract):
                yield step, variables_from(items)

    def predict(self, x_context: Any, y_context: Any, x_query: Any) -> np.ndarray:
        """The predicted labels of queries from examples, by the newest checkpoint when first asked.

        Arguments, result and errors are those of `Predictor`; also those of `variables`.
        """
        if self._predictor is None:
            self._predictor = Predictor(Learner(self.config), self.variables()[1])
        return self._predictor(x_context, y_context, x_query)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for writing; RunError where another process holds it, or none may write."""
    with contextlib.ExitStack() as stack:
        with disk.usable(folder):
            handle = stack.enter_context(open(folder / ".lock", "w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is being trained by another process; stop that one first, or "
                "choose another folder"
            ) from None
        yield


def free_path(name: str, root: str | Path = "runs") -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... that does not exist."""
    path = Path(root) / name.replace("/", "-")
    with disk.usable(path):
        return disk.free_name(path)


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file whole or not at all.

    Arrays become lists, and numbers that JSON does not have (NaN, infinities) null.

    Raises:
      DiskFull, CannotSave: it cannot be written; what the file held before is still there.
    """
    write_whole(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """What JSON can hold of a value: arrays as lists, null for NaN and infinities."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def named(path: str | Path) -> Path:
    """The path; RunError for the empty one, which would be the current folder."""
    if str(path) == "":
        raise RunError("the name of the folder is empty; give one, as runs/mine")
    return Path(path)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}


def _check_format(data: dict[str, Any]) -> None:
    written = data.get("format", FORMAT)
    if written != FORMAT:
        raise ValueError(
            f"its format is {written!r}, and this version of icl reads {FORMAT}; use the version "
            "that wrote it"
        )


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and type(record.get("step")) is int
        and 0 <= record["step"] < 2**31
        and type(record.get("loss")) in (int, float)
        and abs(record["loss"]) < math.inf
    )


def _taken(path: Path) -> bool:
    return path.exists() and any(file.name not in NOTHING for file in path.iterdir())


def _occupied(path: Path, config: Config) -> str:
    """Why a folder that holds something cannot become a new run, and what to do."""
    try:
        other = Run.open(path).config
    except RunError:
        return f"{path} exists and is not a run; choose another folder, or empty it yourself"
    theirs, ours = other.flat(), config.flat()
    different = [
        f"{name} (there {theirs.get(name)!r}, here {ours.get(name)!r})"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    if not different:
        return f"{path} already holds this run; continue it with: icl train --resume {path}"
    return (
        f"{path} holds a run with other settings: {', '.join(different)}; choose another folder, "
        f"or continue that run with: icl train --resume {path}"
    )
