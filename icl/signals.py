"""Handling of signals: a training run saves itself first; the command `icl` ends at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# Sent by Ctrl-C, by schedulers, and by a terminal that closes.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORDS = "stopping after what is compiled or run now; a second signal stops at once"
SHOW_CURSOR = b"\x1b[?25h\n"

_saving = 0  # number of open `saves_first` blocks
_watched = False  # whether `end_at_once` was called


@contextlib.contextmanager
def saves_first() -> Iterator[list[int]]:
    """Yields a list that gets the first of the `ENDING` signals; a second one acts as before.

    SIGHUP stays ignored if it was ignored, as under nohup. Only the main thread catches signals.
    """
    global _saving
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    # None stands for a handler that was not installed from Python.
    previous = {s: signal.getsignal(s) or signal.SIG_DFL for s in _caught()}

    def handle(signum, frame):
        caught.append(signum)
        for s, old in previous.items():
            # A terminal that closes sends SIGHUP more than once.
            signal.signal(s, signal.SIG_IGN if signum == s == signal.SIGHUP else old)

    _saving += 1
    try:
        for s in previous:
            signal.signal(s, handle)
        yield caught
    finally:
        _saving -= 1
        for s, old in previous.items():
            signal.signal(s, old)


def words_are_mine() -> bool:
    """Whether the caller of `saves_first` must print `WORDS`, since no thread does."""
    return not _watched


def end_at_once() -> None:
    """Makes the `ENDING` signals end this process at once, with a message and status 128 + signal.

    A thread does so, since Python's own handlers wait for compiled code to return. Inside
    `saves_first` the first signal is left to that block. Nothing is cleaned up, so this is for
    programs and not for libraries.
    """
    global _watched
    _watched, handled = True, _caught()
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=_watch, args=(read, handled), daemon=True).start()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for s in handled:
        signal.signal(s, _leave_to_watch)


def _caught() -> list[signal.Signals]:
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in ENDING if not (s == signal.SIGHUP and ignored)]


def _leave_to_watch(signum, frame) -> None:
    """Does nothing; Python writes a signal to the pipe only if it has a handler."""


def _watch(read: int, handled: list[signal.Signals]) -> None:
    first = None
    while True:
        signum = os.read(read, 1)[0]
        if signum not in handled or (signum == signal.SIGHUP and first == signum):
            continue
        if _saving and first is None:
            first = signum
            _say(WORDS)
        else:
            _say("stopped at once; what was saved before can be resumed")
            os._exit(128 + signum)


def _say(words: str) -> None:
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)  # hidden beside a progress bar
        os.write(2, f"icl: {words}\n".encode())
