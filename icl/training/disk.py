"""Writing files whole, and what is said when the disk is full."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# Disk, quota, and the largest file a process may write: to the run they are the same.
FULL = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class DiskFull(RuntimeError):
    """A file could not be written for want of room; the message says what is safe."""


def full_disk(error: BaseException) -> str | None:
    """The system's words where the error is a full disk, else None.

    TensorStore raises ValueError, with those words in its text.
    """
    return next((words for words in FULL if words in str(error)), None)


@contextlib.contextmanager
def told(what: str, run: Path, resume: str) -> Iterator[None]:
    """Turns a full disk into `DiskFull`, which names the last checkpoint and the command to resume.

    Args:
      what: could not be saved.
      run: folder above `checkpoints`.
      resume: the command that continues the run.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        words = full_disk(error)
        if words is None or isinstance(error, DiskFull):
            raise
        raise DiskFull(
            f"the disk is full ({words}): {what} could not be saved in {run}; {last_good(run)}. "
            f"Make room, then: {resume}"
        ) from error


def last_good(run: Path) -> str:
    """Which checkpoint a run can go on from, in words."""
    steps = [int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()]
    if not steps:
        return "no checkpoint was made yet, so that it starts over"
    return f"the last good checkpoint is step {max(steps)}, which is whole"


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
      DiskFull: there is no room; what the file held before is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if words := full_disk(error):
            raise DiskFull(
                f"the disk is full ({words}): {path} could not be written. "
                "Make room, then do this again"
            ) from error
        raise
