"""Connections whose every byte is read under watch: what requests and urllib3 leave open.

Our clients, of repositories and of etcd, have to be where bytes leave the socket: only there does a
rule on time or amount hold for headers as for bodies. What the rule is, is theirs to say.
"""

import http.client
import io
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import requests


def trusted(ca_file: str | None) -> str | bool:
    """Return by what requests is to know servers: ``ca_file``, or what the system trusts.

    Left alone, requests takes a list that it brought along, and knows no CA of one's own.
    """
    system = ssl.get_default_verify_paths()
    return ca_file or system.cafile or system.capath or True


class Watcher(Protocol):
    """Who reads in place of a socket."""

    def read_into(self, raw: io.RawIOBase, sock: socket.socket, buffer: memoryview) -> int:
        """Read what the socket has. Raises what is wrong with that."""
        ...


_WATCHER: ContextVar[Watcher] = ContextVar("watcher")
"""Of the request that this thread sends: libraries lie between it and its socket."""


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher`` read the answer to a request that is sent within, also after it."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


class _WatchedSocket(io.RawIOBase):
    """A socket's bytes, read under watch."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, watcher: Watcher) -> None:
        self._raw, self._sock, self._watcher = raw, sock, watcher

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        return self._watcher.read_into(self._raw, self._sock, buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """An answer that is read by whoever watches its request."""

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        if watcher := _WATCHER.get(None):
            self.fp = io.BufferedReader(_WatchedSocket(self.fp.detach(), sock, watcher))


class Session(requests.Session):
    """Never looks at redirects: even told not to follow them, requests reads their whole body."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Say that there is none."""
        del resp
        return None
