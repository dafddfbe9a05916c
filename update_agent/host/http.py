"""One request over HTTP/1.1, and what all requests of a download share.

What is fetched is worth nothing until its hash was checked, which is the caller's business. The
rules kept here are about time, amount and manners, which no hash protects:

* no peer decides how much is read, or for how long: sizes are known before, silence has a limit,
  a slow drip is measured over a sliding window, and everything together has a deadline. This is
  kept where bytes leave the socket, so it holds for headers as for bodies, and what this program
  itself takes its time for (the limit on the rate, a slow disk) is not the server's slowness;
* everybody else's traffic may go first: sockets are marked so (RFC 8622);
* no peer decides where to: a redirect never leaves HTTPS, never changes to another kind of address,
  and the environment's proxies are ignored.

Each way in which a server fails has its own error. Ranges and mirrors are left to ``download.py``.
"""

import http.client
import io
import ipaddress
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import prepend_scheme_if_needed

from update_agent.core.bucket import Bucket
from update_agent.errors import HostError
from update_agent.host import connection

_REDIRECTS = 5
"""Redirects followed for one request."""

_PIECE = 512 * 1024
"""Bytes asked of a connection at once; it gives what it has."""

_AROUND = 256 * 1024
"""Bytes of headers and the like that may come with an answer."""

_KNOWN = 2.0
"""Seconds after which a transfer's rate says something; connections begin slowly."""


LOWER_EFFORT = 0b000001 << 2
"""The traffic class of what may wait (RFC 8622), as it stands in IP headers."""

_PASSWORD = re.compile(r"//[^/@\s]*@")


class HttpError(HostError):
    """A server, or the way to it, failed. Messages do not tell the passwords that stand in URLs."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_PASSWORD.sub("//", message), hint=hint)


class UnreachableError(HttpError):
    """No connection: name, address, port, or the network between."""


class TlsError(HttpError):
    """The server's certificate was not accepted."""


class BrokenError(HttpError):
    """The connection broke: reset, or closed without an answer."""


class GarbledError(HttpError):
    """What the server sends is no HTTP, or too strange to be understood."""


class StatusError(HttpError):
    """The server answered, but with another ``status`` than wanted."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class RangeIgnoredError(HttpError):
    """The server sent the whole file where a range of it was asked for."""


class WrongRangeError(HttpError):
    """The server sent another range than was asked for."""


class ChangedError(HttpError):
    """The file on the server became another one between two requests."""


class TooLongError(HttpError):
    """The server sends more than it should."""


class TooShortError(HttpError):
    """The server stopped before the promised end."""


class SilentError(HttpError):
    """The server sent nothing for too long."""


class TooSlowError(HttpError):
    """The server sends, but less than the minimum rate."""


class DeadlineError(HttpError):
    """The time for everything together is over."""


class EncodingError(HttpError):
    """The server encoded what should be sent as it is."""


class WrongBytesError(HttpError):
    """What the server sends does not have the promised hash."""


_LACKING = (403, 404, 410, 416)
"""What servers answer that do not have a file, or less of it. 403 say object stores to those who
may not list what there is."""


def lacking(error: Exception) -> bool:
    """Whether ``error`` is the word of a server that it does not have the file that was wanted.

    It has none, or another one; and that will be so for who asks again at once.
    """
    if isinstance(error, StatusError):
        return error.status in _LACKING
    return isinstance(error, WrongBytesError | WrongRangeError | TooLongError)


class SupersededError(Exception):
    """Nobody needs the rest of a transfer any more: no failure, and so no HttpError."""


class RedirectError(HttpError):
    """The server redirects too often, or to where nobody should go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much time and network a download may take. Rates in bytes a second, times in seconds."""

    rate: float | None = None
    """At most, for all connections together."""
    minimum_rate: float = 4096
    """At least, for one connection, over ``window``."""
    window: float = 30
    silence: float = 30
    connect: float = 10
    deadline: float = 6 * 3600
    attempts: int = 5
    """Failures in a row after which a mirror is given up."""
    pause: float = 1
    """Before a mirror is asked again after a failure; doubled by each further one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to reach servers: a proxy's URL, and a file with the certificates to accept."""

    proxy: str | None = None
    ca_file: str | None = None
    certificate: tuple[str, str] | None = None
    """Files with this host's own certificate and its key."""
    connections: int = 2
    """To each mirror."""


class Network:
    """Sessions, limits and time that all requests of a download share."""

    def __init__(
        self,
        limits: Limits | None = None,
        way: Way | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.way = way or Way()
        self.now = now
        self.fetched = 0
        """Bytes of bodies that arrived, of use or not."""
        self.throttled = False
        """Whether the limit on the rate is what made the last bytes wait."""
        self.piece = _PIECE
        """Bytes to read at once: few when they may only come slowly."""
        self._lock = threading.Lock()
        self._deadline = self.now() + self.limits.deadline
        self._bucket: Bucket | None = None
        if rate := self.limits.rate:
            burst = rate / 4
            self._bucket = Bucket(rate=rate, burst=burst, level=burst, since=self.now())
            self.piece = max(1, min(_PIECE, int(burst)))

    def session(self) -> requests.Session:
        """Return a session of one thread; requests' own are not made to be shared."""
        session = connection.Session()
        session.trust_env = False
        session.verify = connection.trusted(self.way.ca_file)
        session.cert = self.way.certificate
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        if self.way.proxy:
            session.proxies = {"http": self.way.proxy, "https": self.way.proxy}
        with _translated(self, f"proxy {self.way.proxy}"):
            for scheme in ("http://", "https://"):
                session.mount(scheme, _adapter(self.way.proxy))
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "update-agent"})
        return session

    def left(self) -> float:
        """Return the seconds until the deadline. Raises DeadlineError."""
        left = self._deadline - self.now()
        if left <= 0:
            raise DeadlineError(
                f"the download took longer than {self.limits.deadline:.0f} s",
                hint="raise the deadline, or the limit on the rate",
            )
        return left

    def throttle(self, count: int, ended: threading.Event) -> None:
        """Wait until the limit on the rate allows the ``count`` bytes that came, or ``ended``."""
        if not self._bucket:
            return
        with self._lock:
            self._bucket, seconds = self._bucket.take(count, self.now())
            self.throttled = seconds > 0
        if seconds:
            ended.wait(min(seconds, self.left()))

    def took(self, count: int) -> None:
        """Account for bytes of a body."""
        with self._lock:
            self.fetched += count


def get(network: Network, url: str, *, max_size: int) -> bytes:
    """Return the file at ``url``, of at most ``max_size`` bytes. Raises HttpError."""
    watch = Watch(network, url, max_size)
    with network.session() as session, request(watch, session, {}) as answer:
        want_status(url, answer, 200)
        promised = content_length(answer)
        if promised is not None and promised > max_size:
            raise TooLongError(f"{url} has {promised} bytes, wanted at most {max_size}")
        data = bytearray()
        for piece in body_of(watch, answer, promised):
            data += piece
        return bytes(data)


def post(
    network: Network, url: str, data: bytes, headers: dict[str, str], *, max_size: int
) -> bytes:
    """Post ``data`` as JSON and return the answer, of at most ``max_size`` bytes. Raises HttpError.

    A redirect is not followed: what ``headers`` hold is for this server.
    """
    watch = Watch(network, url, max_size)
    limits = network.limits
    with network.session() as session:
        timeout = (min(limits.connect, network.left()), min(limits.silence, network.left()))
        with _translated(network, url), connection.watched(watch):
            answer = session.post(
                url, data, headers={"Content-Type": "application/json", **headers},
                timeout=timeout, stream=True, allow_redirects=False,
            )  # fmt: skip
        with answer:
            want_status(url, answer, 200)
            return b"".join(body_of(watch, answer, content_length(answer)))


# One request -------------------------------------------------------------------------------------


@contextmanager
def request(
    watch: "Watch", session: requests.Session, headers: dict[str, str]
) -> Iterator[requests.Response]:
    """Send a GET and follow redirects to where they may lead."""
    here, limits = watch.url, watch.network.limits
    for _ in range(_REDIRECTS + 1):
        left = watch.network.left()
        timeout = (min(limits.connect, left), min(limits.silence, left))
        with _translated(watch.network, here), connection.watched(watch):
            answer = session.get(
                here, headers=headers, timeout=timeout, stream=True, allow_redirects=False
            )
        try:
            if not answer.is_redirect:
                encoding = answer.headers.get("Content-Encoding", "identity")
                if encoding.lower() != "identity":
                    raise EncodingError(f"{here} is sent as {quoted(encoding)}, wanted it as it is")
                yield answer
                return
            here = _redirected(here, answer.headers["Location"])
        finally:
            answer.close()
    raise RedirectError(f"{watch.url} redirects more than {_REDIRECTS} times")


def _redirected(here: str, location: str) -> str:
    """Return where a redirect leads, if it may lead there. Raises RedirectError."""
    try:
        there = urllib3.util.parse_url(urljoin(here, location))  # as requests reads it later
    except ValueError as error:
        raise RedirectError(f"{here} redirects to {quoted(location)}, which is no URL") from error
    old = urllib3.util.parse_url(here)
    if there.scheme not in ("http", "https") or (old.scheme, there.scheme) == ("https", "http"):
        raise RedirectError(f"{here} redirects to {quoted(there.url)}, wanted {old.scheme}")
    kind = _kind(there.host)
    if kind not in ("global", _kind(old.host)):
        raise RedirectError(f"{here} redirects to the {kind} address {quoted(str(there.host))}")
    return there.url


def _kind(host: str | None) -> str:
    """Return which kind of address ``host`` is; a name is taken for a global one."""
    name = (host or "").strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return "loopback"
    try:
        address = ipaddress.ip_address(socket.inet_aton(name))  # as the resolver reads 127.1 too
    except OSError:
        try:
            found = ipaddress.ip_address(name)
        except ValueError:
            return "global"
        address = getattr(found, "ipv4_mapped", None) or found
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "private" if address.is_private else "global"


def want_status(url: str, answer: requests.Response, wanted: int) -> None:
    """Raise StatusError unless ``answer`` has the ``wanted`` status."""
    if answer.status_code != wanted:
        found = f"{answer.status_code} {quoted(answer.reason or '')}".rstrip()
        raise StatusError(f"{url} answers {found}, wanted {wanted}", status=answer.status_code)


def content_length(answer: requests.Response) -> int | None:
    """Return the length that ``answer`` announces, if it announces a sensible one."""
    text = answer.headers.get("Content-Length", "")
    if not text or len(text) > len(str(2**63)) or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def quoted(text: str) -> str:
    """Return what a server said, fit for a message: neither long nor with control characters."""
    return "".join(it if it.isprintable() else "?" for it in text[:100])


def body_of(watch: "Watch", answer: requests.Response, size: int | None) -> Iterator[bytes]:
    """Yield the body as it arrives: ``size`` bytes, or as many as ``watch`` allows."""
    network, url, read = watch.network, watch.url, 0
    while True:
        with _translated(network, url):
            piece = answer.raw.read1(network.piece)
        read += len(piece)
        if read > watch.max_size:
            raise TooLongError(f"{url} sends more than {watch.max_size} bytes")
        if not piece:
            if size is not None and read < size:
                raise TooShortError(f"{url} ended after {read} of {size} bytes")
            return
        network.took(len(piece))
        yield piece


@contextmanager
def _translated(network: Network, url: str) -> Iterator[None]:
    """Turn what requests, urllib3 and http.client raise into our errors, the narrowest first."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise TlsError(
            f"{url}: {error}", hint="check the server's certificate and the host's clock"
        ) from error
    except (
        requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError,
    ) as error:  # fmt: skip
        network.left()
        raise SilentError(f"{url} sent nothing for too long") from error
    except (requests.exceptions.InvalidHeader, urllib3.exceptions.InvalidHeader) as error:
        raise GarbledError(f"{url} does not answer in HTTP: {quoted(str(error))}") from error
    except (
        requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError,
    ) as error:  # fmt: skip
        raise _broken(url, error) from error


def _broken(url: str, error: Exception) -> HttpError:
    """Return which of our errors it is that a connection ended with."""
    cause: object = error
    if isinstance(cause, requests.exceptions.ConnectionError) and cause.args:
        cause = cause.args[0]
    if isinstance(cause, urllib3.exceptions.SSLError):
        return BrokenError(f"{url} broke off: {quoted(str(error))}")
    if not isinstance(cause, urllib3.exceptions.ProtocolError):
        return UnreachableError(f"{url} cannot be fetched: {error}")
    reason = cause.args[-1]
    if isinstance(reason, http.client.IncompleteRead):
        return TooShortError(f"{url} stopped before the promised end: {reason}")
    if isinstance(reason, http.client.HTTPException) and not isinstance(reason, OSError):
        return GarbledError(f"{url} does not answer in HTTP: {quoted(repr(reason))}")
    return BrokenError(f"{url} broke off: {reason}")


# Watching a socket -------------------------------------------------------------------------------


@dataclass(eq=False)
class Watch:
    """Bounds and measures what is read for one request, headers and all.

    Only time spent waiting for the server counts.
    """

    network: Network
    url: str
    max_size: int
    """Bytes of the body."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for the answer any more."""
    since: float | None = None
    """When the wait for the server began that goes on now."""
    read: int = 0
    spent: float = 0.0
    """Bytes and seconds of all reads."""
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    """The same of slices of time, as many as make up the window."""
    _recent_seconds: float = 0.0
    _recent_bytes: int = 0

    def __post_init__(self) -> None:
        self.since = self.network.now()

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.read / max(self.spent, 1e-6)

    def remaining(self, size: int, now: float) -> float:
        """Return in how many seconds ``size`` more bytes can be expected."""
        since = self.since
        waited = 0.0 if since is None else max(0.0, now - since)
        spent = self.spent + waited
        if not self.read or spent < _KNOWN:
            return waited
        return max(waited, size * spent / self.read)

    def read_into(self, raw: io.RawIOBase, sock: socket.socket, buffer: memoryview) -> int:
        """Read what the socket has. Raises what is wrong with that."""
        if self.ended.is_set():
            raise SupersededError
        sock.settimeout(min(self.network.limits.silence, self.network.left()))
        self.since = began = self.network.now()
        count = raw.readinto(buffer) or 0
        self.since = None
        self._check_amount(count)
        self._check_pace(count, self.network.now() - began)
        self.network.throttle(count, self.ended)
        return count

    def _check_amount(self, count: int) -> None:
        self.read += count
        most = _AROUND + 2 * self.max_size
        if self.read > most:
            raise TooLongError(f"{self.url} sends more than {most} bytes in one answer")

    def _check_pace(self, count: int, took: float) -> None:
        limits = self.network.limits
        self.spent += took
        self._recent_seconds += took
        self._recent_bytes += count
        if self._recent and self._recent[-1][0] < limits.window / 16:
            seconds, earlier = self._recent.pop()
            took, count = took + seconds, count + earlier
        self._recent.append((took, count))
        seconds, sent = self._recent_seconds, self._recent_bytes
        if seconds >= limits.window and sent < limits.minimum_rate * seconds:
            raise TooSlowError(
                f"{self.url} sent {sent} bytes in {seconds:.0f} s,"
                f" wanted {limits.minimum_rate:.0f} a second",
                hint="another mirror may be faster; what was fetched is kept",
            )
        while self._recent_seconds - self._recent[0][0] >= limits.window:
            seconds, count = self._recent.popleft()
            self._recent_seconds -= seconds
            self._recent_bytes -= count


class _Connection(urllib3.connection.HTTPConnection):
    response_class = connection.Response

    def _new_conn(self) -> socket.socket:
        return _marked(super()._new_conn())


class _TlsConnection(urllib3.connection.HTTPSConnection):
    response_class = connection.Response

    def _new_conn(self) -> socket.socket:
        return _marked(super()._new_conn())


def _marked(sock: socket.socket) -> socket.socket:
    """Mark what ``sock`` sends as of lower effort: routers that care let all else go first."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOWER_EFFORT)
    # On a socket of both families too: it may talk to an IPv4 address.
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOWER_EFFORT)
    return sock


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}


def _adapter(proxy: str | None) -> HTTPAdapter:
    """Return what sends the requests of a session, over connections of ours."""
    adapter = HTTPAdapter(pool_connections=2, pool_maxsize=2)
    adapter.poolmanager.pool_classes_by_scheme = _POOLS
    if proxy:
        url = prepend_scheme_if_needed(proxy, "http")  # type: ignore[no-untyped-call]
        adapter.proxy_manager_for(url).pool_classes_by_scheme = _POOLS
    return adapter
