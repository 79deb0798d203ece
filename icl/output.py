"""Output to a person; a closed pipe, a full disk or an encoding cannot end the program."""

import contextlib
import os
import sys
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.measure import Measurement

# Replacements of one character each, so that tables stay aligned.
PLAIN = str.maketrans("±–−Δ…é", "~--d.e")
TABLE_WIDTH = 100


class Output:
    """A stream of text that drops its output once nobody can read it.

    Attributes:
      gone: whether nobody can read it any more: a closed pipe or terminal, or a full disk.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.gone = False

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        with self._noticed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noticed():
            self._stream.flush()

    @contextlib.contextmanager
    def _noticed(self):
        try:
            yield
        except OSError:
            self.gone = True
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard(stream: TextIO) -> None:
    """Drops the buffer of a stream, and everything that is written to it later."""
    with contextlib.suppress(OSError, ValueError):  # the stream has no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def console(quiet: bool = False) -> Console:
    """A console on standard output that prints text as it is, without markup."""
    # None if standard output was closed from the start.
    file: Any = None if sys.stdout is None else Output(sys.stdout)
    return Console(file=file, quiet=quiet, markup=False, emoji=False, highlight=False)


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are at least two, such as "35 minutes"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def say(text: str) -> None:
    """Prints a line."""
    console().print(text, soft_wrap=True)


def show(table: RenderableType, width: int = TABLE_WIDTH) -> None:
    """Prints a table as wide as it needs, up to `width`.

    In a narrower terminal its lines wrap, and no number is cut.
    """
    target = console()
    if not isinstance(table, str):
        needs = Measurement.get(target, target.options.update(width=width), table).maximum
        target.width = max(target.width, needs)
    target.print(table)
