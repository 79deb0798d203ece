"""A sweep is a folder: sweep.json, a run of each member, checkpoints, results, a figure."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from ..training import disk
from ..training.checkpoints import Checkpoints
from ..training.config import Config, config_from_dict, config_to_dict
from ..training.population import group_by_program
from ..training.run import Run, RunError, locked, named, write_json
from .grid import MAX_MEMBERS, Over, check_over, grid, member_name


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of a sweep.

    Attributes:
      changes: the settings in which it differs from the sweep's, by full name.
      config: its settings.
      path: folder of its run.
    """

    changes: dict[str, Any]
    config: Config
    path: Path

    @property
    def run(self) -> Run:
        return Run(self.path, self.config)


class Sweep:
    """A sweep folder, made by `Sweep.create` or found by `Sweep.open`.

    Attributes:
      path: the folder.
      config: settings that all members share.
      over: values by setting name; a group of settings has a name of its own, and values by label.
      seeds: number of members of each combination.
      members: all members, seeds varying fastest.
      preset: the name of its preset; None for settings given from Python.
    """

    def __init__(
        self, path: Path, config: Config, over: Over, seeds: int, preset: str | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.over = check_over(config, over)
        self.seeds = seeds
        self.preset = preset
        self.members = [
            Member(changes, settings, path / "members" / member_name(changes))
            for changes, settings in grid(config, over, seeds)
        ]

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Config,
        over: Over,
        seeds: int,
        preset: str | None = None,
    ) -> "Sweep":
        """Makes the folder and the untrained run of each member.

        Raises:
          RunError: the folder exists and is not empty, or the system refuses it; nothing in it is
            touched.
          ValueError: as `grid`.
          DiskFull, CannotSave: a file of it cannot be written.
        """
        path = named(path)
        sweep = cls(path, config, over, seeds, preset)
        with disk.usable(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise RunError(
                    f"{path} exists; choose another folder, or continue the sweep in it with: "
                    f"{sweep.resume}"
                )
        for member in sweep.members:
            Run.create(member.path, member.config)
        data = {"config": config_to_dict(config), "over": sweep.over, "seeds": seeds}
        # Last, so that a folder with sweep.json is complete.
        write_json(path / "sweep.json", data | ({"preset": preset} if preset else {}))
        return sweep

    @classmethod
    def open(cls, path: str | Path) -> "Sweep":
        """Finds a sweep.

        Raises:
          RunError: there is none in that folder, or it cannot be read.
        """
        path = named(path)
        file = path / "sweep.json"
        with disk.usable(path):
            if not file.is_file():
                raise RunError(
                    f"{path} is not a sweep: it has no sweep.json; `icl sweep NAME` makes one"
                )
        with disk.reading(file, "bring back a copy of it") as data:
            config = config_from_dict(data["config"])
            seeds = data["seeds"]
            if type(seeds) is not int or not 1 <= seeds <= MAX_MEMBERS:
                raise ValueError(f"seeds must be from 1 to {MAX_MEMBERS}, got {seeds!r}")
            return cls(path, config, data["over"], seeds, data.get("preset"))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Locks the folder for writing; RunError if another process holds the lock."""
        return locked(self.path)

    def programs(self) -> list[list[Member]]:
        """The members by the compiled program they train in."""
        groups = group_by_program([member.config for member in self.members])
        return [[self.members[index] for index in group] for group in groups]

    @property
    def resume(self) -> str:
        """The command that continues it."""
        return f"icl sweep --resume {self.path}"

    def program_checkpoints(self, index: int, keep: int) -> Checkpoints:
        """The checkpoints of the states of all members of one program together.

        Args:
          index: of the program, as in `programs`.
          keep: number of newest checkpoints to keep.
        """
        return Checkpoints(self.program_folder(index) / "checkpoints", keep, self.resume)

    def program_folder(self, index: int) -> Path:
        """The folder of the checkpoints of all members of one program."""
        return self.path / "programs" / str(index)

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r})"
