"""Where processes meet before JAX joins them: the first lets the others in, and nobody else.

JAX's own coordination service takes whoever comes for the process of that number, and then ends
those that were there. So it listens on a port that the first process tells those it lets in.
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
    """The first process does not answer, or others did not come."""


class Door:
    """Held by the first process, at a port that is this program's alone.

    Args:
      host: a name or an address of this machine; nothing listens on others.
      port: a free one.
      processes: how many there are.
      purpose: what they do together; one that does something else is refused.

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
        """Waits until every other process is here; returns the address where JAX is to listen.

        Raises:
          NobodyCame: some did not within so many seconds; the others are told.
        """
        end = time.monotonic() + seconds
        while len(self._inside) < self._count - 1:
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                guest = self._socket.accept()[0]
            except TimeoutError:
                missing = (n for n in range(1, self._count) if n not in self._inside)
                words = f"process {', '.join(map(str, missing))} did not come within {seconds:g} s"
                self._tell_all(gone=words)
                raise NobodyCame(words) from None
            self._hear(guest)
        with _listen(self._host, 0) as free:
            port = free.getsockname()[1]
        self._tell_all(port=port)
        self._socket.settimeout(None)
        threading.Thread(target=self._refuse, daemon=True).start()
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def close(self) -> None:
        """Lets nobody knock any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _refuse(self) -> None:
        """Tells whoever comes later that the program is complete."""
        with contextlib.suppress(OSError):  # closed
            while True:
                self._hear(self._socket.accept()[0], late=True)

    def _hear(self, guest: socket.socket, late: bool = False) -> None:
        """Keeps a guest that may come in, until all are there; tells another why not."""
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
            return "this process has other settings than the first one"
        return None

    def _tell_all(self, **words: Any) -> None:
        for guest in self._inside.values():
            _send(guest, **words)
            guest.close()


def knock(host: str, port: int, processes: int, process: int, purpose: str, seconds: float) -> str:
    """Asks the first process to be let in, as process `process`.

    Returns:
      The address where JAX listens.

    Raises:
      ValueError: the first process refuses it, and says why.
      NobodyCame: nobody answered within so many seconds, or others did not come.
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
                return f"[{host}]:{answer['port']}" if ":" in host else f"{host}:{answer['port']}"
            if "refused" in answer:
                raise ValueError(answer["refused"])
            if "gone" in answer:
                raise NobodyCame(answer["gone"])
            error = OSError("it hung up")
        time.sleep(RETRY_SECONDS)
    raise NobodyCame(
        f"the first process did not answer at {host}:{port} within {seconds:g} s ({error}); is it "
        "running, and can this machine reach that port?"
    )


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
            f"the first process cannot listen at {host}, port {port} of this machine cannot be "
            f"used ({error}); choose an address of this machine and a free port, the same for "
            "every process"
        ) from error
    return listener


def _send(to: socket.socket, **words: Any) -> None:
    with contextlib.suppress(OSError):  # it is gone, as its reader will notice
        to.sendall(json.dumps(words).encode() + b"\n")


def _read(source: socket.socket) -> dict[str, Any]:
    """A message; an empty one where what came is none, or nothing came in time."""
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
    """Whether a guest still waits."""
    if guest is None:
        return False
    guest.setblocking(False)
    try:
        return guest.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
