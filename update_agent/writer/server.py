"""Who may talk to the writer, how many at once, and when it ends.

Root may, and the user that the daemon runs as; the kernel says who it is. Each caller has a thread;
this one waits for the next, gives systemd its life signs, and ends when nobody has said anything
for a while: the socket is systemd's, which starts the writer again.
"""

import logging
import os
import pwd
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from update_agent.core.wire import BusyError
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host.systemd import Notifier
from update_agent.host.wire import Connection
from update_agent.writer.installation import Terms
from update_agent.writer.session import IDLE_SECONDS, converse, refuse

CALLERS = 4
"""At once; root may be one of two more, whatever the daemon does."""

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""

logger = logging.getLogger(__name__)


class StrangerError(HostError):
    """A caller is nobody whom the writer talks to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds."""

    idle: float = 30.0
    """Without any caller, after which the writer ends."""
    silent_caller: float = IDLE_SECONDS
    frame: float = 30.0


class Server:
    """Answers callers at ``listening``, those whose uid is root's or among ``users``."""

    def __init__(
        self,
        listening: socket.socket,
        terms: Terms,
        *,
        users: frozenset[int],
        notifier: Notifier,
        patience: Patience | None = None,
    ) -> None:
        listening.settimeout(0.0)
        self._listening = listening
        self._terms = terms
        self._users = users
        self._notifier = notifier
        self._patience = patience or Patience()
        self.callers: set[Connection] = set()
        """Those that are being answered."""
        self._lock = threading.Lock()
        self._left, self._leave = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ending = False

    def serve(self) -> None:
        """Answer callers until there was none for a while, or ``end`` was called."""
        waiting = select.poll()
        waiting.register(self._listening, select.POLLIN)
        waiting.register(self._left, select.POLLIN)
        self._notifier.ready("waiting for callers")
        quiet_since = time.monotonic()
        while not self._ending:
            found = dict(waiting.poll(self._next_look() * 1000))
            self._notifier.alive()
            if self._left in found:
                os.read(self._left, 4096)
            if self._listening.fileno() in found:
                self._accept()
            if found or self.callers:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= self._patience.idle:
                logger.info("nobody asked for anything for %g s; ending", self._patience.idle)
                break
        self._notifier.stopping()

    def end(self) -> None:
        """Make ``serve`` return; for tests. Callers are cut off."""
        self._ending = True
        self._wake()
        with self._lock:
            for connection in self.callers:
                connection.hang_up()

    def _next_look(self) -> float:
        watchdog = self._notifier.watchdog_seconds
        return min(self._patience.idle, watchdog / 3 if watchdog else self._patience.idle)

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError as error:  # gone again, or out of descriptors: the next look tries again
            logger.warning("cannot take a caller: %s", error.strerror)
            return
        connection = Connection(sock, frame_seconds=self._patience.frame)
        try:
            self._want_known(sock)
            self._want_room(sock)
        except UpdateAgentError as error:
            refuse(connection, error)
            return
        with self._lock:
            self.callers.add(connection)
        threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _want_known(self, sock: socket.socket) -> None:
        pid, uid = _peer(sock)
        if uid != 0 and uid not in self._users:
            raise StrangerError(
                f"process {pid} of user {uid} may not talk to the writer",
                hint="ask update-agentd, with update-agentctl",
            )

    def _want_room(self, sock: socket.socket) -> None:
        _, uid = _peer(sock)
        if len(self.callers) >= CALLERS + (2 if uid == 0 else 0):
            raise BusyError(f"{len(self.callers)} callers are at the writer", hint="try again")

    def _talk(self, connection: Connection) -> None:
        """Answer one caller; a thread's whole life."""
        try:
            converse(self._terms, connection, idle_seconds=self._patience.silent_caller)
        finally:
            connection.close()
            with self._lock:
                self.callers.discard(connection)
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._leave, b"\0")
        except BlockingIOError:  # it is about to wake up anyway
            return


def turn_away(listening: socket.socket, error: UpdateAgentError) -> None:
    """Tell those who wait why nobody answers; else systemd starts the writer for them for ever."""
    listening.settimeout(0.0)
    with suppress(OSError):
        while True:
            sock, _ = listening.accept()
            refuse(Connection(sock, frame_seconds=Patience().frame), error)


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end, as they were when it connected."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return pid, uid


def uid_of(name: str) -> int:
    """Return the uid of a user. Raises HostError."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise HostError(
            f"there is no user {name}", hint="systemd-sysusers makes it; or name one with --user"
        ) from None
