"""Stands before etcd's gateway, or for it: forwards, loses requests or answers, says nonsense.

``faults`` tells what becomes of a request by its number, from 0; all others are forwarded to the
member that stands behind.
"""

import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import urlsplit

from update_agent.host.etcd import Access, Etcd


class Fault(Enum):
    """What becomes of a request."""

    REQUEST_LOST = auto()
    """The connection breaks before etcd hears of it."""
    ANSWER_LOST = auto()
    """etcd did it, and the connection breaks."""
    HANGS = auto()
    """Nobody answers."""


@dataclass(frozen=True)
class Says:
    """An answer that etcd had no part in."""

    data: bytes
    status: int = 200


@dataclass(frozen=True)
class Sends:
    """Bytes, the same again and again, until the client leaves."""

    first: bytes
    again: bytes
    pause: float = 0.0


Plan = Fault | Says | Sends


@dataclass
class Gateway:
    """A server at ``url``."""

    behind: str = ""
    faults: dict[int, Plan] = field(default_factory=dict)
    always: Plan | None = None
    seen: list[str] = field(default_factory=list)
    """Paths of requests."""
    before: Callable[[int], object] = lambda _: None
    """Called before each request is forwarded, with its number."""
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def client(self, deadline: float = 5.0) -> Etcd:
        return Etcd(Access(endpoints=(self.url,), deadline=deadline))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: Gateway

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = len(self.gateway.seen)
        self.gateway.seen.append(self.path)
        plan = self.gateway.faults.get(number, self.gateway.always)
        match plan:
            case Says(data, status):
                self._answer(status, data)
            case Sends():
                self._send_forever(plan)
            case Fault.HANGS:
                self.gateway.ended.wait(60)
                self.close_connection = True
            case Fault.REQUEST_LOST:
                self._break_off()
            case _:
                self.gateway.before(number)
                status, data = self._forwarded(body)
                if plan is Fault.ANSWER_LOST:
                    self._break_off()
                else:
                    self._answer(status, data)

    def _forwarded(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.gateway.behind).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", self.path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_forever(self, plan: Sends) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(plan.first)
            while not self.gateway.ended.wait(plan.pause):
                self.wfile.write(plan.again)

    def _break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that leave are no news."""


@contextlib.contextmanager
def gateway(behind: str = "", *, always: Plan | None = None) -> Iterator[Gateway]:
    """Yield a gateway before the member at ``behind``."""
    made = Gateway(behind=behind, always=always)
    handler = type("Handler", (_Handler,), {"gateway": made})
    with _Server(("127.0.0.1", 0), handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            made.ended.set()
            server.shutdown()
            thread.join()
