"""A run is a folder with config.json, metrics.jsonl, checkpoints/ and files of evaluations."""

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
from .checkpoints import Checkpoints, DamagedCheckpoint, steps_in
from .config import Config, config_from_dict, config_to_dict
from .data import check_same, fingerprint
from .disk import RunError, write_whole
from .history import History, checked, extended, fixed, settings_at
from .learner import Learner, Variables
from .prediction import Predictor
from .step import variable_items, variables_from

FORMAT = 1
MAKES_A_RUN = "`icl train NAME` makes a run"
# Files that an interrupted creation may leave; a folder with only these counts as empty.
NOTHING = {".lock", "config.json.tmp"}


class Run:
    """A run folder, made by `Run.create` or found by `Run.open`.

    Attributes:
      path: the folder.
      config: the current settings.
      history: the changes of settings, with the step of each; empty for most runs.
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
          RunError: the folder is not empty, another process makes a run in it, or the system
            refuses access. Its files are not changed.
          DiskFull, CannotSave: the settings cannot be written.
          TypeError: the task's data are not arrays.
        """
        path = named(path)
        data = {"format": FORMAT, "config": config_to_dict(config), "made_with": versions()}
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
            # Another process may have made a run here before the lock was taken.
            if _taken(path):
                raise RunError(_occupied(path, config))
            write_json(path / "config.json", data)
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Opens the run in a folder.

        Raises:
          RunError: the folder holds no run, or the settings cannot be read.
        """
        path = named(path)
        file = path / "config.json"
        with disk.usable(path):
            if not path.exists():
                of_preset = Path("runs", "-".join(path.parts))
                hint = f"did you mean {of_preset}?" if of_preset.exists() else MAKES_A_RUN
                raise RunError(f"{path} does not exist; {hint}")
            if not file.is_file():
                raise RunError(f"{path} is not a run: it has no config.json; {MAKES_A_RUN}")
        with disk.reading(file, "bring back a copy of it") as data:
            _check_format(data)
            config = config_from_dict(data["config"])
            return cls(path, config, checked(data.get("history", []), config))

    def go_on_with(self, config: Config, step: int) -> None:
        """Records in config.json that the run continues with `config` from a step on.

        Raises:
          RunError: config.json cannot be read.
          DiskFull, CannotSave: config.json cannot be written; it is unchanged.
        """
        history = extended(self.history, self.config, config, step)
        if (config, history) != (self.config, self.history):
            with disk.reading(self.path / "config.json", "bring back a copy of it") as data:
                data |= {"config": config_to_dict(config), "history": history}
            write_json(self.path / "config.json", data)
            self.config, self.history = config, history

    def check_data(self) -> None:
        """Raises RunError if the task's data differ from the data the run was trained on."""
        with disk.reading(self.path / "config.json", "bring back a copy of it") as found:
            written = found.get("data")
        check_same(written, self.config.task, str(self.path))

    def config_at(self, step: int) -> Config:
        """The settings with which the checkpoint of a step was made."""
        return settings_at(self.config, self.history, step)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Locks the folder for writing; RunError if another process holds the lock."""
        return locked(self.path)

    def checkpoints(self, may_differ: Callable[[str], bool] = lambda name: False) -> Checkpoints:
        """The run's checkpoints.

        Args:
          may_differ: whether a setting, given its name, may have another value in a checkpoint
            than in config.json.
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
        """The records of metrics.jsonl, without a last line that a crash left incomplete.

        Raises:
          RunError: the file cannot be read, or a line is not the record of a step.
        """
        file = self.path / "metrics.jsonl"
        with disk.usable(file):
            text = disk.read_text(file) if file.exists() else ""
        lines = text.split("\n")  # splitlines would also split at other characters
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
                    f"{file} cannot be read: line {number} has no step and loss; delete that line, "
                    "or move the file away"
                )
            records.append(record)
        return records

    def variables(self) -> tuple[int, Variables]:
        """Step and variables of the newest checkpoint that can be read.

        Raises:
          RunError: there is no such checkpoint, it holds another model's variables, or the system
            refuses to read it.
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
        """Step and variables of every checkpoint that can be read, newest first.

        Each damaged checkpoint gives a `DamagedCheckpoint` warning and is skipped. A run keeps its
        newest `training.keep_checkpoints` checkpoints.

        Raises:
          RunError: a checkpoint holds another model's variables, or the system refuses to read it.
        """
        self.check_data()
        with contextlib.closing(self.checkpoints(may_differ=_is_free)) as checkpoints:
            for step, items in checkpoints.restore_all(self._abstract()):
                yield step, variables_from(items)

    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints in the folder, ascending; empty if there are none."""
        return steps_in(self.path / "checkpoints")

    def variables_at(self, step: int) -> Variables:
        """The variables of the checkpoint of one step.

        Raises:
          RunError: there is no checkpoint of that step, or it cannot be read.
        """
        self.check_data()
        steps = self.checkpoint_steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise RunError(f"{self.path} has no checkpoint of step {step}; there are: {there}")
        with contextlib.closing(self.checkpoints(may_differ=_is_free)) as checkpoints:
            try:
                return variables_from(checkpoints.restore(self._abstract(), step))
            except DamagedCheckpoint as damage:
                raise RunError(
                    f"the checkpoint of step {step} in {self.path} is damaged ({damage}); choose "
                    "another step"
                ) from damage

    def _abstract(self) -> Any:
        """Shapes of the variables, as items of a checkpoint."""
        return variable_items(jax.eval_shape(Learner(self.config).init, jax.random.key(0)))

    def predict(self, x_context: Any, y_context: Any, x_query: Any) -> np.ndarray:
        """Predicts the labels of queries from examples, with NumPy arrays in and out.

        The first call reads the newest checkpoint, which all later calls use. Arguments, result and
        errors are those of `Predictor.__call__`; errors of `variables` are possible too.
        """
        if self._predictor is None:
            self._predictor = Predictor(Learner(self.config), self.variables()[1])
        return self._predictor(x_context, y_context, x_query)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: no compiled programs, which the copy compiles again."""
        return self.__dict__ | {"_predictor": None}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def _is_free(name: str) -> bool:
    """Whether a setting may differ between a run and its checkpoint."""
    return not fixed(name)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for writing; RunError if another process holds the lock or none may write."""
    with contextlib.ExitStack() as stack:
        with disk.usable(folder):
            handle = stack.enter_context(open(folder / ".lock", "w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is being trained by another process; stop that process first, or "
                "choose another folder"
            ) from None
        yield


def free_path(name: str, root: str | Path = "runs") -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... if that path exists."""
    path = Path(root) / name.replace("/", "-")
    with disk.usable(path):
        return disk.free_name(path)


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file completely or not at all.

    Arrays become lists; NaN and infinities, which JSON does not have, become null.

    Raises:
      DiskFull, CannotSave: the file cannot be written; its old content is unchanged.
    """
    write_whole(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value in types that JSON has: arrays become lists, NaN and infinities None."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def named(path: str | Path) -> Path:
    """The path; RunError if it is empty, because it would mean the current folder."""
    if str(path) == "":
        raise RunError("the name of the folder is empty; give a name such as runs/mine")
    return Path(path)


def versions() -> dict[str, str]:
    """Versions of the libraries that make and read a run, by name."""
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
    """The error for a folder that is not empty: why it cannot be a new run, and what to do."""
    try:
        other = Run.open(path).config
    except RunError:
        return f"{path} exists and is not a run; choose another folder, or empty it yourself"
    theirs, ours = other.flat(), config.flat()
    different = [
        f"{name} (that run has {theirs.get(name)!r}, this one {ours.get(name)!r})"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    if not different:
        return f"{path} already holds this run; continue it with: icl train --resume {path}"
    return (
        f"{path} holds a run with other settings: {', '.join(different)}; choose another folder, "
        f"or continue that run with: icl train --resume {path}"
    )
