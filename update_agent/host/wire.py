"""A conversation over a Unix socket: whole frames or an error, within limits of time and memory.

Whoever is at the other end may be slow, lie about lengths, leave, or say nothing for ever. The
rules kept here: nothing is read that its reader did not expect, so a peer decides over no memory;
a frame that was begun has to be over soon; and however long a silence may last, it ends.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from update_agent.core import wire
from update_agent.core.wire import HEADER_SIZE, Kinds, Message, WireError
from update_agent.errors import HostError

FRAME_SECONDS = 30.0
"""For the rest of a frame, once its first byte is there."""

SEND_SECONDS = 600.0
"""For a frame to be taken: whoever writes to a disk that is slowed down on purpose takes time."""

Admit = Callable[[Message], int]
"""Says how many bytes of data may come with a message, or raises."""


class GoneError(HostError):
    """The other end left in the middle of a conversation, or kept silent for too long."""


def no_data(_: Message) -> int:
    """Admit a message that has no data."""
    return 0


class Connection:
    """One end of a conversation. ``send`` may be called by several threads."""

    def __init__(self, sock: socket.socket, *, frame_seconds: float = FRAME_SECONDS) -> None:
        sock.settimeout(0.0)
        self._socket = sock
        self._frame_seconds = frame_seconds
        self._sending = threading.Lock()

    def send(
        self,
        message: Message,
        data: bytes | bytearray | memoryview = b"",
        *,
        within: float = SEND_SECONDS,
    ) -> None:
        """Send a frame. Raises GoneError."""
        head = wire.encode(message, len(data))
        deadline = time.monotonic() + within
        with self._sending:
            self._send(memoryview(head), deadline)
            self._send(memoryview(data), deadline)

    def receive(
        self, kinds: Kinds, admit: Admit = no_data, *, silence: float
    ) -> tuple[Message, bytearray]:
        """Return the next message and its data; wait ``silence`` seconds for its first byte.

        Raises GoneError, WireError, and whatever ``admit`` raises before any data is read.
        """
        head = bytearray(HEADER_SIZE)
        self._receive(memoryview(head)[:1], time.monotonic() + silence)
        deadline = time.monotonic() + self._frame_seconds
        self._receive(memoryview(head)[1:], deadline)
        lengths = wire.decode_header(bytes(head))
        text = bytearray(lengths.json)
        self._receive(memoryview(text), deadline)
        message = wire.decode(bytes(text), kinds)
        most = admit(message)
        if lengths.data > most:
            raise WireError(
                f"{type(message).__name__} comes with {lengths.data} bytes, wanted at most {most}"
            )
        data = bytearray(lengths.data)
        self._receive(memoryview(data), deadline)
        return message, data

    def has_something(self) -> bool:
        """Whether ``receive`` would find something at once: a frame's begin, or the end."""
        return bool(_poll(self._socket, select.POLLIN, 0))

    def has_ended(self) -> bool:
        """Whether the other end has left, and nothing of what it said is unread."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def hang_up(self) -> None:
        """End the conversation, whatever other threads wait for in it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back. No other thread may be in the conversation any more."""
        self.hang_up()
        self._socket.close()

    def _send(self, data: memoryview, deadline: float) -> None:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise _gone(error) from error

    def _receive(self, buffer: memoryview, deadline: float) -> None:
        while buffer:
            try:
                got = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except OSError as error:
                raise _gone(error) from error
            if not got:
                raise GoneError("the other end left")
            buffer = buffer[got:]

    def _wait(self, event: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not _poll(self._socket, event, left):
            raise GoneError("the other end took too long")


def _poll(sock: socket.socket, event: int, seconds: float) -> list[tuple[int, int]]:
    waiting = select.poll()
    waiting.register(sock, event)
    return waiting.poll(seconds * 1000)


def _gone(error: OSError) -> GoneError:
    return GoneError(f"the other end left: {error.strerror or error}")


def connect(path: Path) -> socket.socket:
    """Return a socket that is connected to the one at ``path``. Raises HostError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise HostError(
            f"cannot reach the writer at {path}: {error.strerror}",
            hint="systemctl status update-agent-writer.socket",
        ) from error
    return sock
