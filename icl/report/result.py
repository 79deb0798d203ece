"""The base of results: dataclasses that are saved as JSON and shown as a table and a figure."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.table import Table

from ..training.disk import RunError, reading
from ..training.run import write_json
from .figures import STYLE, pyplot, save_figure
from .tables import as_text


class Result:
    """Numbers that an evaluation or an analysis found, in a folder.

    A subclass is a frozen dataclass with a field `path`, and defines `file` and `table`; if it has
    a figure, `figure` too. All fields but `path` and `file` are in the file: arrays as lists, NaN
    as null, dataclasses as their fields. A field with a default may be absent from an older file.

    Attributes:
      path: the folder of the run, sweep or study.
      file: the name of its files, without `.json` and `.png`.
      again: the command that makes it again.
      saved_as: names of fields in the file, if they differ there.
    """

    path: Path
    file: str
    again = "icl eval {path}"
    saved_as: Mapping[str, str] = types.MappingProxyType({})

    def table(self) -> Table:
        """The numbers that matter most."""
        raise NotImplementedError

    def figure(self, plt: Any) -> Any:
        """Draws the figure with matplotlib.pyplot and returns it; None if there is none."""
        return None

    @property
    def figure_path(self) -> Path:
        return self.path / f"{self.file}.png"

    def written(self) -> Self:
        """Saves the numbers and draws the figure; returns the result."""
        self.save()
        self.draw()
        return self

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        write_json(self.path / f"{self.file}.json", self.as_data())

    def as_data(self) -> dict[str, Any]:
        """What the file holds; it may hold more than `load` reads."""
        return {saved: _plain(getattr(self, name)) for name, saved in self._saved()}

    def draw(self) -> None:
        """Saves the figure as PNG and as PDF, if there is one."""
        if type(self).figure is not Result.figure:
            plt = pyplot()
            with plt.rc_context(STYLE):
                save_figure(self.figure(plt), self.figure_path)

    @classmethod
    def load(cls, where: Any, file: str | None = None) -> Self:
        """Reads the newest result in a folder.

        Args:
          where: the run, the sweep, or its folder.
          file: the name of the file without its ending; None for that of the class.

        Raises:
          RunError: the folder has no such file, or it cannot be read.
        """
        path = Path(getattr(where, "path", where))
        found, again = path / f"{file or cls.file}.json", cls.again.format(path=path)
        if not found.exists():
            raise RunError(f"{path} has no {found.name}; make it with: {again}")
        with reading(found, f"make it again with: {again}") as data:
            own = {} if file is None else {"file": file}
            result = typing.cast(Any, cls)(**cls._read(data), path=path, **own)
            result.check()
            return result

    def check(self) -> None:
        """Raises an error if what was read does not fit together."""
        self.table()

    @classmethod
    def _saved(cls) -> Iterator[tuple[str, str]]:
        """Each field that is in the file, and its name there."""
        for field in dataclasses.fields(typing.cast(Any, cls)):
            if field.name not in ("path", "file"):
                yield field.name, cls.saved_as.get(field.name, field.name)

    @classmethod
    def _read(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The fields as their types."""
        hints, defaults = typing.get_type_hints(cls), _with_default(cls)
        return {
            name: _as_type(hints[name], data[saved])
            for name, saved in cls._saved()
            if saved in data or name not in defaults
        }

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return as_text(self.table())


def _with_default(cls: Any) -> set[str]:
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(cls)
        if (field.default, field.default_factory) != (missing, missing)
    }


def _plain(value: Any) -> Any:
    """A value with its dataclasses as dictionaries."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _as_type(hint: Any, value: Any) -> Any:
    """A value of that type from its JSON."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is np.ndarray:
        array = np.asarray(value)
        array = array.astype(np.float64) if array.dtype == object else array  # null is NaN
        if array.dtype.kind not in "if":
            raise ValueError(f"{value!r} is no array of numbers")
        return array
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _as_type(next(kind for kind in inner if kind is not type(None)), value)
    if origin is dict:
        return {_as_key(inner[0], key): _as_type(inner[1], item) for key, item in value.items()}
    if origin in (list, tuple):
        return origin(_as_type(inner[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        names = [field.name for field in dataclasses.fields(hint)]
        parts = {name: _as_type(hints[name], value[name]) for name in names}
        return typing.cast(type, hint)(**parts)
    if hint is Any:
        return value
    if hint is float and value is None:
        return float("nan")
    kinds = (float, int) if hint is float else hint
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{value!r} is no {hint.__name__}")
    return value


def _as_key(hint: Any, key: str) -> Any:
    return int(key) if hint is int else key
