"""A run is a folder: config.json, metrics.jsonl, checkpoints/, and what evaluation adds."""

import contextlib
import fcntl
import json
import math
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .checkpoints import Checkpoints
from .config import Config, config_from_dict, config_to_dict
from .disk import write_whole
from .learner import Learner, Params

FORMAT = 1
# What a creation that was cut short may have left in a folder.
NOTHING = {".lock", "config.json.tmp"}


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says what to do."""


class Run:
    """A run folder, made by `Run.create` or found by `Run.open`.

    Attributes:
      path: the folder.
      config: the settings it was made with.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: str | Path, config: Config) -> "Run":
        """Makes the folder and writes the settings.

        Raises:
          RunError: the folder exists and is not empty, or another process is making a run of
            it; nothing in it is touched.
          DiskFull: there is no room for the settings.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another folder for the run")
        if _taken(path):
            raise RunError(_occupied(path, config))
        made_with = {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
        data = {"format": FORMAT, "config": config_to_dict(config), "made_with": made_with}
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
        path = Path(path)
        file = path / "config.json"
        if not file.is_file():
            what = "does not exist" if not path.exists() else "is not a run: it has no config.json"
            raise RunError(f"{path} {what}; `icl train NAME` makes a run")
        try:
            return cls(path, config_from_dict(json.loads(file.read_text())["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder for writing; RunError where another process holds it."""
        return locked(self.path)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(
            self.path / "checkpoints",
            self.config.training.keep_checkpoints,
            resume=f"icl train --resume {self.path}",
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut short by a crash is left out."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return records

    def params(self) -> tuple[int, Params]:
        """Step and parameters of the newest checkpoint that can be read.

        Raises:
          RunError: there is none.
        """
        with contextlib.closing(self.params_by_step()) as newest_first:
            found = next(newest_first, None)
        if found is None:
            raise RunError(f"{self.path} has no checkpoint yet; train it first")
        return found

    def params_by_step(self) -> Generator[tuple[int, Params], None, None]:
        """Step and parameters of every checkpoint that can be read, from the newest on.

        Each damaged one gives a `DamagedCheckpoint` warning, and is passed over. How many there
        are is set by the run's training.keep_checkpoints.
        """
        learner = Learner(self.config)
        abstract = {"params": jax.eval_shape(learner.init, jax.random.key(0))}
        with contextlib.closing(self.checkpoints()) as checkpoints:
            for step, items in checkpoints.restore_all(abstract):
                yield step, items["params"]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for writing; RunError where another process holds it."""
    with open(folder / ".lock", "w") as handle:
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
    stem = name.replace("/", "-")
    path, number = Path(root) / stem, 1
    while path.exists():
        number += 1
        path = Path(root) / f"{stem}-{number}"
    return path


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file whole or not at all; DiskFull where there is no room.

    Arrays become lists, and numbers that JSON does not have (NaN, infinities) null.
    """
    write_whole(path, json.dumps(_plain(data), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
