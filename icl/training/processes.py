"""Several processes, one program: they start together, and train and stop at the same steps.

The first process, the lead, alone touches the run's folder; the others get from it what they
need. They talk through JAX's coordination service, which the lead holds. With one process every
function here does nothing.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from .door import Door, NobodyCame, knock

# How long JAX waits for a process that sends no sign of life.
HEARTBEAT_SECONDS = 60
START_SECONDS = 300
# How often the others are asked for an error while this one waits, and how long one that failed
# waits for them to have heard of it.
WATCH_SECONDS = 1.0
FAREWELL_SECONDS = 15.0
FOREVER = 10**9  # milliseconds, or seconds
# How JAX says that others do not answer: as RuntimeError, or as ValueError where it does not wait.
BROKEN = re.compile("(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
NOT_STARTED = (
    "no SLURM, Open MPI, TPU pod or Kubernetes job was found to start the processes of; say "
    "where they meet: --distributed HOST:PORT --processes N --process I"
)


class LostProcess(RuntimeError):
    """A process of the run is gone or gave up; the message says what it said, and what to do."""


class _Session:
    """Where this process stands; the same on all of them, but for `lost`."""

    number = 0  # of `together`: errors are told within one
    turn = 0  # of what they did together
    step = 0
    lost = False  # leaves without the farewells that JAX waits for
    asked = 0.0
    heard: float | None = None  # when the error of another process was first seen
    door: Door | None = None  # of the first process, while others may knock
    words = contextlib.ExitStack()  # of this process, where JAX aborts it between two `together`


_session = _Session()


def start(
    address: str = "auto",
    processes: int | None = None,
    process: int | None = None,
    *,
    purpose: str = "",
    start_seconds: int = START_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the other processes of the program; before anything else that uses JAX.

    Args:
      address: `auto` where SLURM, Open MPI, a TPU pod or Kubernetes started the processes; else
        `HOST:PORT`, a free port of the first process that the others can reach.
      processes: how many there are; with an address.
      process: which one this is, from 0; with an address.
      purpose: what the program does; with an address, a process with another one is refused.
      start_seconds: how long they wait for each other.
      heartbeat_seconds: how long a process may give no sign of life before the others stop.

    Raises:
      ValueError: arguments that do not fit together, or not with those of the other processes,
        or a number that another process has.
      RuntimeError: JAX was used already.
      LostProcess: the first process cannot be reached, or others did not come.
    """
    auto = address == "auto"
    if auto != (processes is None) or auto != (process is None):
        raise ValueError("--distributed HOST:PORT needs --processes and --process; auto neither")
    if jax.distributed.is_initialized():
        raise RuntimeError("the processes were started already; start() comes once")
    at = None if auto else _checked(address, processes or 0, process or 0)
    if _jax_was_used():
        raise RuntimeError(
            "JAX was used before the processes were started; start them first of all"
        )
    meeting = None
    if at is not None and processes is not None and process is not None:
        host, port = at
        try:
            if process == 0:
                _session.door = Door(host, port, processes, purpose)
                meeting = _session.door.gather(start_seconds)
            else:
                meeting = knock(host, port, processes, process, purpose, start_seconds)
        except NobodyCame as error:
            raise LostProcess(str(error)) from error
    # It would catch SIGTERM for good, and act on it nowhere here.
    jax.config.update("jax_enable_preemption_service", False)
    where = "the first process" if auto else f"the first process at {address}"
    words = f"{where} was not reached, or not every process came, within {start_seconds} s"
    try:
        with _last_words(lambda: f"the processes did not start: {words}"):
            jax.distributed.initialize(
                meeting,
                processes,
                process,
                # JAX would listen at every address of this machine.
                coordinator_bind_address=meeting,
                initialization_timeout=start_seconds,
                heartbeat_timeout_seconds=heartbeat_seconds,
                # One may be done long before another; a dead one is noticed by its silence.
                shutdown_timeout_seconds=FOREVER // 1000,
            )
    except ValueError as error:
        if "should be defined" in str(error) or "must be defined" in str(error):
            raise ValueError(NOT_STARTED) from error
        raise
    _session.words.enter_context(_last_words(lambda: _lost("the commands that started them")))


def _checked(address: str, processes: int, process: int) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--distributed takes auto or HOST:PORT, got {address!r}")
    if not 0 <= process < processes:
        raise ValueError(
            f"--process must be from 0 to --processes - 1, got process {process} of {processes}"
        )
    return host.strip("[]"), int(port)


def finish() -> None:
    """Parts with the other processes; nothing can be trained together afterwards."""
    if jax.distributed.is_initialized() and not _session.lost:
        jax.distributed.shutdown()
        _session.words.close()
    if _session.door is not None:
        _session.door.close()


def is_lead() -> bool:
    """Whether this process is the first, which alone reads and writes the run's folder."""
    return _state().process_id == 0  # before JAX is used, too


@contextlib.contextmanager
def together(resume: str, agreed: type[Exception]) -> Iterator[None]:
    """Tells an error inside to the other processes, and theirs as `LostProcess`.

    Args:
      resume: the command that continues what is done inside.
      agreed: an exception that all of them raise by themselves.
    """
    if _client() is None or jax.process_count() == 1:
        yield
        return
    if not _session.number:
        atexit.register(_leave)  # runs before JAX's own farewell, which waits for everyone
    _session.number += 1
    _session.turn = _session.step = 0
    _session.heard = None
    with _last_words(lambda: _lost(resume)):
        try:
            yield
        except agreed:
            raise
        except LostProcess:
            _farewell()
            raise
        except (RuntimeError, ValueError) as error:
            if not BROKEN.match(str(error)):
                _tell(error)
                raise
            # A process that failed said so before it broke the connection.
            said = _errors()
            if said:
                _farewell()
            else:
                _session.lost = True
            first = str(error).strip().splitlines()[0][:300]
            raise LostProcess(said or f"{_lost(resume)} [{first}]") from None
        except BaseException as error:
            _tell(error)
            raise


def agree(number: int = 0, step: int = 0) -> int:
    """The largest of the processes' numbers; each waits here for all.

    Args:
      number: what this process has to say.
      step: how far the run is, for messages.
    """
    client = _client()
    if client is None or jax.process_count() == 1:
        return number
    _session.turn += 1
    _session.step = max(step, _session.step)
    key = f"icl/{_session.number}/turn/{_session.turn}/"
    if number:
        client.key_value_set(f"{key}{jax.process_index()}", str(number))
    _wait(f"icl/{_session.number}/turn")
    return max((int(value) for _, value in client.key_value_dir_get(key)), default=0)


def from_lead(make: Callable[[], str]) -> str:
    """What `make` returns on the lead, for every process; it runs there alone."""
    client = _client()
    if client is None or jax.process_count() == 1:
        return make()
    _session.turn += 1
    key = f"icl/{_session.number}/lead/{_session.turn}"
    if is_lead():
        text = make()
        client.key_value_set(key, text)
        return text
    while True:
        try:
            return client.blocking_key_value_get(key, int(WATCH_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error) and "NOT_FOUND" not in str(error):
                raise
        watch()


def lead_arrays(tree: Any) -> Any:
    """The lead's arrays on every process, to the same bits; all pass the same shapes."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    data = [_data(leaf) for leaf in leaves]
    whole = np.concatenate([np.frombuffer(d.tobytes(), np.uint8) for d in data])
    # A sum of integers keeps every bit, of keys and of negative zeros.
    words = np.pad(whole, (0, -len(whole) % 4)).view(np.uint32)
    whole = np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.uint8)
    result, offset = [], 0
    for leaf, d in zip(leaves, data):
        part = whole[offset : offset + d.nbytes].tobytes()
        offset += d.nbytes
        array = jnp.asarray(np.frombuffer(part, d.dtype).reshape(d.shape))
        result.append(from_data(array, leaf))
    return jax.tree.unflatten(structure, result)


def on_host(tree: Any) -> Any:
    """The tree as NumPy arrays, of keys their data; its arrays are whole on this process."""
    return jax.tree.map(_data, tree)


def from_data(array: Any, like: Any) -> Any:
    """The array, or the key whose data it is where `like` is a key and the array is none."""
    if _is_key(like) and not _is_key(array):
        return jax.random.wrap_key_data(array)
    return array


def watch() -> None:
    """Raises LostProcess where another process told of an error; asks once a second."""
    now = time.monotonic()
    if _session.number == 0 or now < _session.asked + WATCH_SECONDS:
        return
    _session.asked = now
    said = _errors()
    if said and _session.heard is None:
        # This process may be about to meet the same error, and then tells it better.
        _session.heard = now
    elif said:
        raise LostProcess(said)


def _jax_was_used() -> bool:
    from jax._src import xla_bridge  # there is no public way

    return xla_bridge.backends_are_initialized()


def _state() -> Any:
    from jax._src import distributed  # as Orbax does: there is no public way

    return distributed.global_state


def _client() -> Any:
    """JAX's client of the coordination service; None with one process."""
    return _state().client


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _wait(barrier: str, seconds: float | None = None) -> None:
    """Waits until every process is here; signals and others' errors come through."""
    client, done, failed = _client(), threading.Event(), []
    milliseconds = FOREVER if seconds is None else int(seconds * 1000)

    def wait() -> None:
        try:
            client.wait_at_barrier(barrier, milliseconds)
        except jax.errors.JaxRuntimeError as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=wait, daemon=True).start()
    while not done.wait(WATCH_SECONDS):
        if seconds is None:
            watch()
    if failed:
        raise failed[0]


def _errors() -> str:
    """What other processes told of errors; empty where nothing."""
    try:
        told = _client().key_value_dir_get(f"icl/{_session.number}/failed/")
    except jax.errors.JaxRuntimeError:  # the lead is gone, and this process about to stop
        return ""
    mine = str(jax.process_index())
    return "; ".join(
        f"process {name} stopped: {text}"
        for name, text in ((key.rpartition("/")[2], text) for key, text in told)
        if name != mine
    )


def _tell(error: BaseException) -> None:
    """Lets the other processes know why this one stops, and waits until they do."""
    text = f"{type(error).__name__}: {error}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"icl/{_session.number}/failed/{jax.process_index()}", text)
    _farewell()


def _farewell() -> None:
    """Waits a while for the others to have heard; where some do not come, nobody waits again."""
    try:
        _wait(f"icl/{_session.number}/farewell", FAREWELL_SECONDS)
    except (jax.errors.JaxRuntimeError, KeyboardInterrupt):
        _session.lost = True


def _lost(resume: str) -> str:
    return (
        f"a process of this run was lost after step {_session.step}, its own output may say why; "
        f"start all processes again, with: {resume}"
    )


def _leave() -> None:
    if _session.lost:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1)


@contextlib.contextmanager
def _last_words(words: Callable[[], str]) -> Iterator[None]:
    """Says something and exits with 1 where JAX aborts the process, as it does for lost ones."""
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)

    # JAX aborts in a thread of its own, where no Python handler of the signal would run.
    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def say(signum: int) -> None:
        os.write(2, f"icl: {words()}\n".encode())
        os._exit(1)

    previous = set_handler(signal.SIGABRT, ctypes.cast(say, ctypes.c_void_p))
    try:
        yield
    finally:
        if _session.lost:
            _kept.append(say)
        else:
            set_handler(signal.SIGABRT, previous)


_kept: list[Any] = []  # handlers that outlive their context
