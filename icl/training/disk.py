"""Files of a run: written whole, read with care; what is said when the system refuses."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Disk, quota, and the largest file a process may write: to the run they are the same.
FULL = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# What the system may say of a file that is whole.
REFUSED = tuple(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "EMFILE", "ENFILE", "EIO", "ENOMEM", "ESTALE", "EBUSY")
)
ADVICE = {
    errno.EACCES: "let this user read and write it, or choose another folder",
    errno.EPERM: "let this user read and write it, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "allow more open files (ulimit -n 4096), then do this again",
    errno.ENFILE: "close other programs, then do this again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file is where a folder should be; choose another folder",
    errno.EEXIST: "a file is where a folder should be; move it away, or choose another folder",
    errno.EISDIR: "a folder is where a file should be; move it away",
    errno.ELOOP: "a symbolic link leads to itself; choose another folder",
}


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says what to do."""


class CannotSave(RuntimeError):
    """A file could not be written; the message says why, and what is safe."""


class DiskFull(CannotSave):
    """A file could not be written for want of room; the message says what is safe."""


def full_disk(error: BaseException) -> str | None:
    """The system's words where the error is a full disk, else None.

    TensorStore raises ValueError, with those words in its text.
    """
    return next((words for words in FULL if words in str(error)), None)


def refused(error: BaseException | None) -> OSError | None:
    """What the system said, where it refused a file that may be whole; None for other errors.

    TensorStore raises ValueError, with the system's words in its text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSED:
            return error
        for number in REFUSED:
            if os.strerror(number) in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None


def refusal(path: str | Path, error: OSError) -> str:
    """One sentence of what the system refused, and what to do."""
    advice = ADVICE.get(error.errno or 0, "choose another folder, or mend this one")
    named = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
    return f"{named} cannot be used ({error.strerror or error}): {advice}"


@contextlib.contextmanager
def usable(path: str | Path) -> Iterator[None]:
    """Turns what the system refuses inside, but for a full disk, into `RunError`."""
    try:
        yield
    except OSError as error:
        if full_disk(error):
            raise
        name = error.filename if isinstance(error.filename, str) else path
        raise RunError(refusal(name, error)) from error


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[Any]:
    """Gives what a JSON file holds to a block that makes something of it.

    Args:
      path: the file.
      remedy: what to do where it cannot be used.

    Raises:
      RunError: it cannot be read, or the block found a part missing or wrong in it.
    """
    try:
        yield json.loads(read_text(path))
    except RunError:
        raise
    except KeyError as error:
        raise RunError(f"{path} cannot be read: it has no {error}; {remedy}") from error
    # RecursionError: brackets in brackets without an end.
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{path} cannot be read: {error}; {remedy}") from error
    except RecursionError as error:
        raise RunError(f"{path} cannot be read: it is nested too deeply; {remedy}") from error


def read_text(path: Path) -> str:
    """The text of a file; RunError where the system refuses it or it is no text."""
    with usable(path):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunError(
                f"{path} cannot be read: byte {error.start} is no UTF-8 text; "
                "bring back a copy of it, or move it away"
            ) from error


@contextlib.contextmanager
def told(what: str, run: Path, resume: str) -> Iterator[None]:
    """Turns what the system refuses into `CannotSave`, a full disk into `DiskFull`.

    The message names the last checkpoint and the command to resume.

    Args:
      what: could not be saved.
      run: folder above `checkpoints`.
      resume: the command that continues the run.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CannotSave):
            raise
        if words := full_disk(error):
            raise DiskFull(
                f"the disk is full ({words}): {what} could not be saved in {run}; "
                f"{last_good(run)}. Make room, then: {resume}"
            ) from error
        if said := error if isinstance(error, OSError) else refused(error):
            raise CannotSave(
                f"{what} could not be saved: {refusal(said.filename or run, said)}; "
                f"{last_good(run)}. Go on with: {resume}"
            ) from error
        raise


def last_good(run: Path) -> str:
    """Which checkpoint a run can go on from, in words."""
    try:
        names = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        names = []
    except OSError:
        return "checkpoints that were made are as they were"
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        return "no checkpoint was made yet, so that it starts over"
    return f"the last good checkpoint is step {max(steps)}, which is whole"


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
      DiskFull: there is no room; what the file held before is still there.
      CannotSave: the system refuses it for another reason; likewise.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if words := full_disk(error):
            raise DiskFull(
                f"the disk is full ({words}): {path} could not be written. "
                "Make room, then do this again"
            ) from error
        raise CannotSave(
            f"{path} could not be written: {refusal(error.filename or path, error)}"
        ) from error


def free_name(path: Path) -> Path:
    """The path, or the first of PATH-2, PATH-3, ... that does not exist."""
    free, number = path, 1
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
