"""A middlebox between hosts and the update server: it passes on what it gets, well or badly.

Only what the server sends is spoilt. What hosts send is theirs, and a report that is no JSON any
more would be refused for good, as it should be.
"""

import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from machine import free_port

_PIECE = 32 * 1024
_OFTEN = 0.2
"""Of all pieces, where it spoils only some."""

_PAGE = b"<html><body>Welcome! Please log in to use this network.</body></html>"
_PORTAL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_PAGE), _PAGE)
)


class Manner(StrEnum):
    """How it treats what the server sends."""

    GOOD = "good"
    FLIPS = "flips bytes"
    CUTS = "cuts answers short"
    SILENT = "is silent"
    PORTAL = "answers with a page of its own"


_SOMETIMES = (Manner.FLIPS, Manner.CUTS)


@dataclass(kw_only=True)
class Middlebox:
    """Listens at ``port`` of the loopback, for the server at the port ``server``."""

    server: int
    chance: random.Random
    port: int = field(default_factory=free_port)
    spoilt: Counter[Manner] = field(default_factory=Counter)
    """Pieces, by what was done to them."""
    _manner: Manner = Manner.GOOD
    _news: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Pass on, until the end."""
        with socket.create_server(("127.0.0.1", self.port), backlog=64) as listener:
            thread = threading.Thread(target=self._accept, args=[listener], daemon=True)
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    @contextmanager
    def behaving(self, manner: Manner) -> Iterator[None]:
        """Treat all that comes like this, also on connections that there are."""
        self._become(manner)
        try:
            yield
        finally:
            self._become(Manner.GOOD)

    def _become(self, manner: Manner) -> None:
        with self._news:
            self._manner = manner
            self._news.notify_all()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the end
            while True:
                host, _ = listener.accept()
                threading.Thread(target=self._serve, args=[host], daemon=True).start()

    def _serve(self, host: socket.socket) -> None:
        with host, suppress(OSError):
            if self._manner is Manner.PORTAL:
                self._answer_itself(host)
                return
            with socket.create_connection(("127.0.0.1", self.server), 10) as server:
                server.settimeout(None)
                asks = threading.Thread(target=_pass_on, args=[host, server], daemon=True)
                asks.start()
                self._answer(server, host)
                _shut(host)
                _shut(server)
                asks.join()

    def _answer_itself(self, host: socket.socket) -> None:
        host.settimeout(10)
        host.recv(_PIECE)
        self.spoilt[Manner.PORTAL] += 1
        host.sendall(_PORTAL)

    def _answer(self, server: socket.socket, host: socket.socket) -> None:
        """Pass on what the server sends, as the manner of the moment is."""
        while piece := server.recv(_PIECE):
            manner = self._manner
            if manner in _SOMETIMES and self.chance.random() >= _OFTEN:
                manner = Manner.GOOD
            if manner is not Manner.GOOD:
                self.spoilt[manner] += 1
            match manner:
                case Manner.GOOD:
                    host.sendall(piece)
                case Manner.FLIPS:
                    host.sendall(self._flipped(piece))
                case Manner.CUTS:
                    host.sendall(piece[: self.chance.randrange(len(piece))])
                    return
                case Manner.SILENT:
                    self._wait_until_good()
                    host.sendall(piece)
                case Manner.PORTAL:
                    return
                case _:
                    assert_never(manner)

    def _wait_until_good(self) -> None:
        with self._news:
            self._news.wait_for(lambda: self._manner is not Manner.SILENT)

    def _flipped(self, piece: bytes) -> bytes:
        """Return a piece with one bit of it turned over."""
        found = bytearray(piece)
        found[self.chance.randrange(len(found))] ^= 1 << self.chance.randrange(8)
        return bytes(found)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes until one of the two has enough."""
    with suppress(OSError):
        while piece := one.recv(_PIECE):
            other.sendall(piece)
    _shut(other, socket.SHUT_WR)


def _shut(one: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):
        one.shutdown(how)
