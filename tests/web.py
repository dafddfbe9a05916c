"""A web server that serves files well, and misbehaves when told to.

It speaks HTTP/1.1 over plain sockets, a thread for each connection: ranges, ETags, keep-alive, TLS,
and as a proxy. What goes wrong is a value, a ``Fault``: ``Web.faults`` are played one after the
other, one for each request, and then ``Web.always``. Nothing here sleeps: a server that hangs does
so until the test opens its gate or ends, one that drips calls ``tick`` before each byte, which
moves the clock that the client was given.
"""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ENOUGH = 20.0
"""Seconds after which a test has hung, and not only waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the server was asked, over its ``connection``-th connection."""

    method: str
    target: str
    headers: Mapping[str, str]
    connection: int

    @property
    def path(self) -> str:
        """The target; of a whole URL, as a proxy gets it, only the path."""
        return "/" + self.target.split("/", 3)[3] if "://" in self.target else self.target

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte, and the one after the last."""
        found = self.headers.get("range", "").removeprefix("bytes=")
        if not found:
            return None
        first, last = found.split("-")
        return int(first), int(last) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server is about to send."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class EndedError(Exception):
    """Ends a connection."""


class Peer:
    """The client, as a fault sees it."""

    def __init__(self, sock: socket.socket, ending: threading.Event) -> None:
        self._sock = sock
        self._ending = ending

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def close(self) -> None:
        """End the connection as if all were said."""
        raise EndedError

    def reset(self) -> None:
        """End the connection with RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EndedError

    def wait(self, gate: "Gate | None" = None) -> None:
        """Wait until the gate opens, if there is one, or the server ends."""
        if gate:
            gate.wait(self._ending)
        else:
            self._ending.wait()
        if self._ending.is_set():
            raise EndedError


class Gate:
    """Something that a server waits at, and a test can see it waiting."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._arrived = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait(self, ending: threading.Event) -> None:
        self._arrived.set()
        while not self._open.wait(0.05) and not ending.is_set():
            pass

    def wait_for_arrival(self) -> None:
        """Wait until a server hangs here."""
        assert self._arrived.wait(ENOUGH)


class Fault(Protocol):
    """A way to misbehave, for one request."""

    def play(self, peer: Peer, answer: Answer) -> None:
        """Answer. When this returns, the connection lives on."""
        ...


# Faults ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fine:
    """Nothing is wrong with this request."""

    def play(self, peer: Peer, answer: Answer) -> None:
        peer.send(answer.head + answer.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """Well-formed, but with another status, other headers (None: left out) or another body."""

    status: int | None = None
    reason: str = "Altered"
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None

    def play(self, peer: Peer, answer: Answer) -> None:
        body = answer.body if self.body is None else self.body
        headers = {**answer.headers, "Content-Length": str(len(body)), **self.headers}
        status = self.status or answer.status
        reason = self.reason if self.status else answer.reason
        kept = {name: value for name, value in headers.items() if value is not None}
        peer.send(Answer(status=status, reason=reason, headers=kept).head + body)


def redirect(location: str | None, status: int = 302) -> Altered:
    return Altered(status=status, headers={"Location": location}, body=b"")


PORTAL = Altered(
    status=200,
    reason="OK",
    headers={"Content-Type": "text/html", "Content-Range": None},
    body=b"<html>Please log in to the hotel's network</html>",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """The right headers, the first bytes of the body, and then the end, clean or by a reset."""

    after: int
    reset: bool = False

    def play(self, peer: Peer, answer: Answer) -> None:
        peer.send(answer.head + answer.body[: self.after])
        if self.reset:
            peer.reset()
        peer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hanging:
    """Nothing after so many bytes of the body, or not even headers, until the gate opens."""

    after: int | None
    gate: Gate | None = None

    def play(self, peer: Peer, answer: Answer) -> None:
        sent = b"" if self.after is None else answer.head + answer.body[: self.after]
        peer.send(sent)
        peer.wait(self.gate)
        peer.send((answer.head + answer.body)[len(sent) :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Dripping:
    """Headers, then one byte of the body at a time; after so many all the rest."""

    tick: Callable[[], None]
    count: int = 10**9

    def play(self, peer: Peer, answer: Answer) -> None:
        peer.send(answer.head)
        for at in range(min(self.count, len(answer.body))):
            self.tick()
            peer.send(answer.body[at : at + 1])
        peer.send(answer.body[self.count :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunked:
    """Chunks instead of a Content-Length, of one size; endless ones go on with zeros."""

    size: int
    endless: bool = False

    def play(self, peer: Peer, answer: Answer) -> None:
        headers = {name: it for name, it in answer.headers.items() if name != "Content-Length"}
        peer.send(replace(answer, headers={**headers, "Transfer-Encoding": "chunked"}).head)
        for at in range(0, len(answer.body), self.size):
            self._chunk(peer, answer.body[at : at + self.size])
        while self.endless:
            self._chunk(peer, bytes(self.size))
        peer.send(b"0\r\n\r\n")

    def _chunk(self, peer: Peer, data: bytes) -> None:
        peer.send(b"%x\r\n%b\r\n" % (len(data), data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer:
    """The right Content-Length, and more bytes than that."""

    by: bytes

    def play(self, peer: Peer, answer: Answer) -> None:
        peer.send(answer.head + answer.body + self.by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Other bytes than any answer; perhaps the last ones again and again; then the end."""

    data: bytes
    endless: bytes = b""

    def play(self, peer: Peer, answer: Answer) -> None:
        del answer
        peer.send(self.data)
        while self.endless:
            peer.send(self.endless)
        peer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A good answer that promises to keep the connection, which is closed then."""

    def play(self, peer: Peer, answer: Answer) -> None:
        peer.send(answer.head + answer.body)
        peer.close()


# The server --------------------------------------------------------------------------------------


class Web:
    """Serves ``files`` by path on a port of its own, from entering to leaving."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        tls: ssl.SSLContext | None = None,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> None:
        self.files = dict(files)
        self.faults: deque[Fault] = deque()
        self.always: Fault = Fine()
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self._listener = socket.create_server((loopback, 0), family=family, backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def url(self, path: str = "/blob", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges that were asked for, in the order of the requests."""
        with self._lock:
            return [it.range for it in self.requests if it.range]

    def play(self, *faults: Fault) -> None:
        """Play these, one for each request to come."""
        self.faults.extend(faults)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(ENOUGH)
            assert not thread.is_alive()
        self._listener.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="web", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            number = self.connections
            self._start(lambda sock=sock, number=number: self._serve(sock, number))  # type: ignore[misc]

    @contextlib.contextmanager
    def _open(self, sock: socket.socket) -> Iterator[None]:
        """Close ``sock`` at the end, or when the server ends."""
        try:
            with self._lock:
                self._sockets.add(sock)
                if self._ending.is_set():
                    sock.shutdown(socket.SHUT_RDWR)  # fails when the peer is gone
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError, EndedError))
            stack.enter_context(self._open(sock))
            if self._tls:
                sock.settimeout(ENOUGH)
                sock = self._tls.wrap_socket(sock, server_side=True)
                stack.enter_context(self._open(sock))
            peer = Peer(sock, self._ending)
            with sock.makefile("rb") as lines:
                while request := _read(lines, number):
                    self._answer(sock, peer, request)

    def _answer(self, sock: socket.socket, peer: Peer, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            fault = self.faults.popleft() if self.faults else self.always
        if request.method == "CONNECT":
            self._tunnel(sock, request.target)
        else:
            fault.play(peer, self._good(request))

    def _good(self, request: Request) -> Answer:
        data = self.files.get(request.path)
        if data is None:
            return Answer(status=404, reason="Not Found", headers={"Content-Length": "0"})
        headers = {"ETag": f'"{len(data)}"', "Content-Type": "application/octet-stream"}
        if not request.range:
            headers["Content-Length"] = str(len(data))
            return Answer(status=200, reason="OK", headers=headers, body=data)
        first, end = request.range
        end = min(end, len(data))
        if first >= end:
            headers |= {"Content-Length": "0", "Content-Range": f"bytes */{len(data)}"}
            return Answer(status=416, reason="Range Not Satisfiable", headers=headers)
        headers["Content-Length"] = str(end - first)
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        return Answer(status=206, reason="Partial Content", headers=headers, body=data[first:end])

    def _tunnel(self, sock: socket.socket, target: str) -> None:
        """Be a proxy for HTTPS: carry bytes both ways until either side ends."""
        host, port = target.rsplit(":", 1)
        there = socket.create_connection((host, int(port)), timeout=ENOUGH)
        with self._open(there):
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._start(lambda: _carry(there, sock))
            _carry(sock, there)
        raise EndedError


def _read(lines: Iterable[bytes], number: int) -> Request | None:
    found: list[str] = []
    for line in lines:
        if line == b"\r\n":
            method, target, _ = found[0].split(" ")
            pairs = (it.split(": ", 1) for it in found[1:])
            headers = {name.lower(): value for name, value in pairs}
            return Request(method=method, target=target, headers=headers, connection=number)
        found.append(line.decode("latin-1").rstrip("\r\n"))
    return None


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_RDWR)


# Certificates ------------------------------------------------------------------------------------

_DAY = dt.timedelta(days=1)


class Authority:
    """Makes certificates, and a file by which they are accepted."""

    def __init__(self, folder: Path, name: str = "our authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._builder(self._name, self._key.public_key(), -_DAY, _DAY)
        ca = x509.BasicConstraints(ca=True, path_length=0)
        signs = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        identity = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        signed = (
            own.add_extension(ca, critical=True)
            .add_extension(signs, critical=True)
            .add_extension(identity, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def context(self, host: str = "127.0.0.1", *, expired: bool = False) -> ssl.SSLContext:
        """Return what a server needs to prove that it is ``host``."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        begin, end = (-2 * _DAY, -_DAY) if expired else (-_DAY, _DAY)
        try:
            names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names = x509.DNSName(host)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = (
            self._builder(name, key.public_key(), begin, end)
            .add_extension(x509.SubjectAlternativeName([names]), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        file = self._folder / f"{host}-{expired}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + signed.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _builder(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        begin: dt.timedelta,
        end: dt.timedelta,
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
        )
