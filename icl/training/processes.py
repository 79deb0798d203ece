"""Several processes, one program: they start together, and train and stop at the same steps.

The first process is the lead. It alone reads and writes the run's folder, and it sends the other
processes what they need. With one process every function here does nothing.

`jax.distributed` connects the processes and shuts them down. A run needs four more things:

- A check of who joins. JAX's coordinator accepts every process, and ends those that were connected
  if two have the same number. `door.py` checks the processes before JAX connects them.
- Messages. A process that fails must tell the others why, or they wait for it until a timeout.
  JAX's public collectives run on the devices, cannot be interrupted, and need every process. The
  coordinator has a key-value store and barriers, which JAX does not make public (`_state`).
- A message before JAX aborts. If a process is lost, JAX aborts the others from a C++ thread. Only
  a C signal handler runs then (abort.py).
- An exit that does not wait. At exit JAX waits for every process, a lost one included (`_leave`).
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from .abort import explain_abort
from .door import Door, NobodyCame, meet

# Time without a sign of life after which JAX gives a process up.
HEARTBEAT_SECONDS = 60
START_SECONDS = 300
# A process that waits looks for errors of the others once in this time.
WATCH_SECONDS = 1.0
# A process that failed waits at most this long until the others know its error.
FAREWELL_SECONDS = 15.0
FOREVER = 10**6  # seconds
# JAX raises the same exceptions for a broken connection and for other errors. Only the status code
# at the start of the text tells them apart.
CODES = ("UNKNOWN", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED")
CONNECTION_CODES = tuple(f"{code}: " for code in CODES)


class LostProcess(RuntimeError):
    """Another process of the run was lost or failed; the message says why and what to do."""


class _Session:
    """State of this process in the program; equal on all processes but for the last four."""

    number = 0  # number of calls of `together`; errors are told within one
    turn = 0  # number of exchanges within it
    step = 0  # last step that `agree` was told
    lost = False  # another process is gone, so that waiting for it at exit would not end
    asked = 0.0  # when `watch` last looked for errors
    heard: float | None = None  # when `watch` first saw the error of another process
    door: Door | None = None  # on the lead, while others may knock


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
    """Connects this process to the others of the program. Must run before JAX is used.

    Args:
      address: `auto` if SLURM, Open MPI, a TPU pod or Kubernetes started the processes; otherwise
        `HOST:PORT`, a free port of the first process that the other processes can reach.
      processes: the number of processes; only with `HOST:PORT`.
      process: the number of this process, from 0; only with `HOST:PORT`.
      purpose: what the program does. With `HOST:PORT`, a process with another purpose than the
        first one is refused.
      start_seconds: how long the processes wait for each other.
      heartbeat_seconds: time without a sign of life after which a process counts as lost.

    Raises:
      ValueError: the arguments do not fit together or differ from those of the first process, or
        another process has this number.
      RuntimeError: JAX was used already, or the processes were started already.
      LostProcess: the first process cannot be reached, or other processes did not come.
    """
    auto = address == "auto"
    if auto != (processes is None) or auto != (process is None):
        raise ValueError("--distributed HOST:PORT needs --processes and --process; auto neither")
    if jax.distributed.is_initialized():
        raise RuntimeError("the processes were started already; call start() once")
    _check_jax_is_unused()
    meeting = None
    if processes is not None and process is not None:
        try:
            meeting, _session.door = meet(address, processes, process, purpose, start_seconds)
        except NobodyCame as error:
            raise LostProcess(str(error)) from error
    # JAX's preemption service would catch SIGTERM, and nothing here would react to it.
    jax.config.update("jax_enable_preemption_service", False)
    lead = "the first process" if auto else f"the first process at {address}"
    explain_abort(
        lambda: (
            f"the processes did not start: within {start_seconds} s, {lead} was not reached or "
            "another process did not come"
        )
    )
    try:
        jax.distributed.initialize(
            meeting,
            processes,
            process,
            # JAX's default is to listen at every address of this machine.
            coordinator_bind_address=meeting,
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            # A process may finish long before another. A lost one is noticed by its silence.
            shutdown_timeout_seconds=FOREVER,
        )
    except Exception as error:
        explain_abort(None)
        if auto and isinstance(error, ValueError):
            raise ValueError(
                "no SLURM, Open MPI, TPU pod or Kubernetes job that started the processes was "
                f"found ({error}); give the address of the first process: --distributed HOST:PORT "
                "--processes N --process I"
            ) from error
        raise
    explain_abort(lambda: _lost("the commands that started them"))


def _check_jax_is_unused() -> None:
    """Raises RuntimeError if JAX was used, before other processes wait for this one."""
    with contextlib.suppress(ValueError):  # JAX checks for use first, then refuses 0 processes
        jax.distributed.initialize("localhost:1", 0, 0, cluster_detection_method="deactivate")


def finish() -> None:
    """Shuts down the distributed runtime; nothing can be trained together afterwards."""
    if jax.distributed.is_initialized() and not _session.lost:
        jax.distributed.shutdown()
        explain_abort(None)
    if _session.door is not None:
        _session.door.close()


def is_lead() -> bool:
    """Whether this process is the first, which alone reads and writes the run's folder."""
    return _state().process_id == 0  # jax.process_index() would start JAX's devices


@contextlib.contextmanager
def together(resume: str, agreed: type[Exception]) -> Iterator[None]:
    """Tells an error inside to the other processes, and raises theirs as `LostProcess`.

    Args:
      resume: the command that continues what is done inside.
      agreed: an exception that every process raises by itself.
    """
    if _alone():
        yield
        return
    if not _session.number:
        atexit.register(_leave)  # runs before JAX's exit handler, which was registered earlier
    _session.number += 1
    _session.turn = _session.step = 0
    _session.heard = None
    explain_abort(lambda: _lost(resume))
    try:
        yield
    except agreed:
        raise
    except LostProcess:
        _farewell()
        raise
    except BaseException as error:
        if not str(error).startswith(CONNECTION_CODES):
            _tell(error)
            raise
        # A process that failed told why before its connection broke.
        if told := _errors():
            _farewell()
            raise LostProcess(told) from None
        _session.lost = True
        first_line = str(error).strip().splitlines()[0][:300]
        raise LostProcess(f"{_lost(resume)} [{first_line}]") from None
    finally:
        if not _session.lost:
            explain_abort(lambda: _lost("the commands that started them"))


def agree(number: int = 0, step: int = 0) -> int:
    """The largest of the processes' numbers; every process waits here for all others.

    Args:
      number: the number of this process, 0 or larger.
      step: number of steps made, for messages.
    """
    if _alone():
        return number
    _session.step = max(step, _session.step)
    numbers = _exchange(str(number) if number else "")
    return max((int(text) for text in numbers.values()), default=0)


def from_lead(make: Callable[[], str]) -> str:
    """What `make` returns on the lead, on every process; only the lead calls it."""
    if _alone():
        return make()
    return _exchange(make() if is_lead() else "").get(0, "")


def lead_arrays(tree: Any) -> Any:
    """The lead's arrays on every process, with equal bits; all pass arrays of equal shapes."""
    if jax.process_count() == 1:
        return tree
    # JAX broadcasts by a sum, which changes negative zeros and takes no keys. Bytes stay equal.
    leaves, structure = jax.tree.flatten(tree)
    mine = [_data(leaf) for leaf in leaves]
    whole = np.concatenate([np.frombuffer(array.tobytes(), np.uint8) for array in mine])
    whole = np.asarray(multihost_utils.broadcast_one_to_all(whole))
    parts = np.split(whole, np.cumsum([array.nbytes for array in mine])[:-1])
    restored = [
        from_data(jnp.asarray(part.view(array.dtype).reshape(array.shape)), leaf)
        for part, array, leaf in zip(parts, mine, leaves)
    ]
    return jax.tree.unflatten(structure, restored)


def on_host(tree: Any) -> Any:
    """The tree as NumPy arrays, with the data of keys; every array is whole on this process."""
    return jax.tree.map(_data, tree)


def from_data(array: Any, like: Any) -> Any:
    """The key whose data `array` is, if `like` is a key and `array` is not; else the array."""
    if _is_key(like) and not _is_key(array):
        return jax.random.wrap_key_data(array)
    return array


def watch() -> None:
    """Raises LostProcess if another process told an error; looks once a second."""
    now = time.monotonic()
    if _session.number == 0 or now < _session.asked + WATCH_SECONDS:
        return
    _session.asked = now
    told = _errors()
    if told and _session.heard is None:
        # This process may be about to raise the same error, with a better type.
        _session.heard = now
    elif told:
        raise LostProcess(told)


def _state() -> Any:
    """JAX's record of the processes. There is no public access to its client; Orbax uses this."""
    from jax._src import distributed

    return distributed.global_state


def _alone() -> bool:
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _exchange(text: str) -> dict[int, str]:
    """The texts of the processes by their numbers, without empty ones; waits for all processes."""
    client = _state().client
    _session.turn += 1
    folder = f"icl/{_session.number}/turn/{_session.turn}/"
    if text:
        client.key_value_set(f"{folder}{jax.process_index()}", text)
    _wait(f"icl/{_session.number}/turn")
    return {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}


def _wait(barrier: str, seconds: float | None = None) -> None:
    """Waits until every process is here; if `seconds` is None, raises an error of another one."""
    client, done, failed = _state().client, threading.Event(), []
    milliseconds = int(1000 * (FOREVER if seconds is None else seconds))

    # JAX blocks without looking for signals; the main thread does not.
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
    """The errors that other processes told; empty if there are none."""
    try:
        told = _state().client.key_value_dir_get(f"icl/{_session.number}/failed/")
    except jax.errors.JaxRuntimeError:  # the lead is gone, and JAX is about to abort this process
        return ""
    by_process = {key.rpartition("/")[2]: text for key, text in told}
    by_process.pop(str(jax.process_index()), None)
    return "; ".join(f"process {name} stopped: {text}" for name, text in by_process.items())


def _tell(error: BaseException) -> None:
    """Tells the other processes why this one stops, and waits until they know."""
    text = f"{type(error).__name__}: {error}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        key = f"icl/{_session.number}/failed/{jax.process_index()}"
        _state().client.key_value_set(key, text)
    _farewell()


def _farewell() -> None:
    """Waits until all processes know of the error; if one does not come, it counts as lost."""
    try:
        _wait(f"icl/{_session.number}/farewell", FAREWELL_SECONDS)
    except (jax.errors.JaxRuntimeError, KeyboardInterrupt):
        _session.lost = True


def _lost(resume: str) -> str:
    return (
        f"a process of this run was lost after step {_session.step}; its own output may say why. "
        f"Start all processes again, with: {resume}"
    )


def _leave() -> None:
    """Ends this process at exit if another one is lost; JAX's exit handler would wait for it."""
    if _session.lost:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1)
