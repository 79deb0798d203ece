"""Where processes meet before JAX connects them: the first one admits the others and nobody else.

JAX's coordinator accepts any process, whatever program it belongs to. If two processes have the
same number, it ends those that were connected, and it does not say which process is missing. So
the first process checks the others here. It starts the coordinator on another port, which it tells
the admitted processes only.
"""

import contextlib
import json
import socket
import threading
import time
from typing import Any

READ_SECONDS = 5.0
LONGEST = 2**16  # bytes of a message
RETRY_SECONDS = 0.2


class NobodyCame(RuntimeError):
    """The first process does not answer, or another process did not come."""


class Door:
    """The socket at which the first process admits the others.

    Args:
      host: a name or an address of this machine; the door listens at no other address.
      port: a free port.
      processes: the number of processes.
      purpose: what the program does; a process with another purpose is refused.

    Raises:
      ValueError: the address is not this machine's, or the port is taken.
    """

    def __init__(self, host: str, port: int, processes: int, purpose: str):
        self._count = processes
        self._purpose = purpose
        self._inside: dict[int, socket.socket] = {}
        self._socket = _listen(host, port)
        self._host = self._socket.getsockname()[0]

    def gather(self, seconds: float) -> str:
        """Waits until every other process has come.

        Returns:
          The address at which JAX's coordinator is to listen.

        Raises:
          NobodyCame: a process did not come within `seconds`; the others are told.
        """
        end = time.monotonic() + seconds
        while self._missing():
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                guest = self._socket.accept()[0]
            except TimeoutError:
                missing = ", ".join(map(str, self._missing()))
                words = f"process {missing} did not come within {seconds:g} s"
                self._tell_all(gone=words)
                raise NobodyCame(words) from None
            self._hear(guest)
        with _listen(self._host, 0) as free:
            port = free.getsockname()[1]
        self._tell_all(port=port)
        self._socket.settimeout(None)
        threading.Thread(target=self._refuse, daemon=True).start()
        return _joined(self._host, port)

    def close(self) -> None:
        """Stops listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _missing(self) -> list[int]:
        """The processes that did not come, or came and ended."""
        return [n for n in range(1, self._count) if not _lives(self._inside.get(n))]

    def _refuse(self) -> None:
        """Refuses every process that comes after all were admitted."""
        with contextlib.suppress(OSError):  # closed
            while True:
                self._hear(self._socket.accept()[0], late=True)

    def _hear(self, guest: socket.socket, late: bool = False) -> None:
        """Admits a process, whose connection stays open, or refuses it and says why."""
        said = _read(guest)
        if (why := self._objection(said, late)) is not None:
            _send(guest, refused=why)
            guest.close()
        else:
            self._inside[said["process"]] = guest

    def _objection(self, said: dict[str, Any], late: bool) -> str | None:
        process, count = said.get("process"), said.get("processes")
        if not isinstance(process, int) or not isinstance(count, int):
            return "not a process of icl"
        if count != self._count:
            return (
                f"process {process} was started with --processes {count}, process 0 with "
                f"{self._count}; every process needs the same number"
            )
        if not 0 < process < count or late or _lives(self._inside.get(process)):
            return (
                f"the program at this address has its process {process} already; give this one "
                "another number, or another address if it belongs to another run"
            )
        if said.get("purpose") != self._purpose:
            return "the settings of this process differ from those of the first process"
        return None

    def _tell_all(self, **words: Any) -> None:
        for guest in self._inside.values():
            _send(guest, **words)
            guest.close()


def meet(
    address: str, processes: int, process: int, purpose: str, seconds: float
) -> tuple[str, Door | None]:
    """Waits for all processes, as the first one or as one that asks it.

    Returns:
      The address where JAX is to meet, and on the first process its open door.

    Raises:
      ValueError: the arguments do not fit together, or the first process refuses this one.
      NobodyCame: the first process does not answer, or others did not come.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--distributed takes auto or HOST:PORT, got {address!r}")
    if not 0 <= process < processes:
        raise ValueError(
            f"--process must be from 0 to --processes - 1, got process {process} of {processes}"
        )
    if process:
        return knock(host, int(port), processes, process, purpose, seconds), None
    door = Door(host, int(port), processes, purpose)
    try:
        return door.gather(seconds), door
    except BaseException:
        door.close()
        raise


def knock(host: str, port: int, processes: int, process: int, purpose: str, seconds: float) -> str:
    """Asks the first process to admit this one, as process `process`.

    Returns:
      The address at which JAX's coordinator listens.

    Raises:
      ValueError: the first process refused this one; the message says why.
      NobodyCame: nobody answered within `seconds`, or another process did not come.
    """
    end, error = time.monotonic() + seconds, None
    while error is None or time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=READ_SECONDS) as lead:
                _send(lead, process=process, processes=processes, purpose=purpose)
                lead.settimeout(max(READ_SECONDS, end - time.monotonic()))
                answer = _read(lead)
        except OSError as failed:
            error = failed
        else:
            if "port" in answer:
                return _joined(host, answer["port"])
            if "refused" in answer:
                raise ValueError(answer["refused"])
            if "gone" in answer:
                raise NobodyCame(answer["gone"])
            error = OSError("the connection was closed without an answer")
        time.sleep(RETRY_SECONDS)
    raise NobodyCame(
        f"the first process did not answer at {host}:{port} within {seconds:g} s ({error}); "
        "check that it runs and that this machine can reach the port"
    )


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"  # brackets around IPv6


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        raise ValueError(
            f"the first process cannot listen at {host}, port {port} ({error}); choose an address "
            "of this machine and a free port, and give every process both"
        ) from error
    return listener


def _send(to: socket.socket, **words: Any) -> None:
    with contextlib.suppress(OSError):  # a broken connection is noticed when reading
        to.sendall(json.dumps(words).encode() + b"\n")


def _read(source: socket.socket) -> dict[str, Any]:
    """Reads a message; an empty dict if none comes in time, or if it cannot be read."""
    if source.gettimeout() is None:
        source.settimeout(READ_SECONDS)
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < LONGEST:
            part = source.recv(4096)
            if not part:
                break
            text += part
        said = json.loads(text)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _lives(guest: socket.socket | None) -> bool:
    """Whether an admitted process is still connected."""
    if guest is None:
        return False
    guest.setblocking(False)
    try:
        return guest.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
