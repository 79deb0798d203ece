"""Files of a run: atomic writes, checked reads, and messages for errors of the system."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# No room on the disk, in the quota, or in the largest file that a process may write.
FULL = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# Errors that do not mean that the file is damaged.
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
    """A file could not be written; the message says why, and which checkpoint is good."""


class DiskFull(CannotSave):
    """A file could not be written for lack of room; the message says which checkpoint is good."""


def full_disk(error: BaseException) -> str | None:
    """The text of the system if the error is a full disk, else None.

    TensorStore raises ValueError, with the text of the system inside its own.
    """
    return next((words for words in FULL if words in str(error)), None)


def refused(error: BaseException | None) -> OSError | None:
    """The system's error if it refused access to a file that may be good; None for other errors.

    TensorStore raises ValueError, with the text of the system inside its own.
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
    """A sentence that says what the system refused, and what to do."""
    advice = ADVICE.get(error.errno or 0, "choose another folder, or mend this one")
    named = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
    return f"{named} cannot be used ({error.strerror or error}): {advice}"


@contextlib.contextmanager
def usable(path: str | Path) -> Iterator[None]:
    """Turns an error of the system, other than a full disk, into `RunError`."""
    try:
        yield
    except OSError as error:
        if full_disk(error):
            raise
        name = error.filename if isinstance(error.filename, str) else path
        raise RunError(refusal(name, error)) from error


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[Any]:
    """Yields the content of a JSON file, and turns errors in its use into `RunError`.

    Args:
      path: the file.
      remedy: what to do if the file cannot be used.

    Raises:
      RunError: the file cannot be read, or the block found a part of it missing or wrong.
    """
    try:
        yield json.loads(read_text(path))
    except RunError:
        raise
    except KeyError as error:
        raise RunError(f"{path} cannot be read: it has no {error}; {remedy}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{path} cannot be read: {error}; {remedy}") from error
    except RecursionError as error:
        raise RunError(f"{path} cannot be read: it is nested too deeply; {remedy}") from error


def read_text(path: Path) -> str:
    """The text of a file; RunError if the system refuses access or the file is not UTF-8."""
    with usable(path):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunError(
                f"{path} cannot be read: byte {error.start} is no UTF-8 text; "
                "bring back a copy of it, or move it away"
            ) from error


@contextlib.contextmanager
def saving(what: str, run: Path, resume: str) -> Iterator[None]:
    """Turns an error of the system into `CannotSave`, or `DiskFull` if the disk is full.

    The message names the last checkpoint and the command to resume.

    Args:
      what: what is saved, for the message.
      run: the folder that holds `checkpoints`.
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
    """A clause that says from which checkpoint a run can continue."""
    try:
        names = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        names = []
    except OSError:
        return "the checkpoints made before are as they were"
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        return "no checkpoint was made yet, so the run starts over"
    return f"the last good checkpoint is step {max(steps)}, which is whole"


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file by one with this content, or leaves the old file as it was.

    Raises:
      DiskFull: there is no room.
      CannotSave: the system refuses the file for another reason.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
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
