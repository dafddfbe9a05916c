"""Fetching over HTTP/1.1: small files whole, and ranges of a large one from several mirrors.

What is fetched is worth nothing until its hash was checked, which is the caller's business. The
rules kept here are about time and amount, which no hash protects:

* no peer decides how much is read, or for how long: sizes are known before, silence has a limit,
  a slow drip is measured over a sliding window, and everything together has a deadline;
* no peer decides where to: a redirect never leaves HTTPS, never changes to another kind of address,
  and the environment's proxies are ignored;
* what arrived is not fetched again: a failed transfer goes on where it broke off, by the next
  connection that is free. A slow mirror's rest is taken over by whoever has nothing else to do.

Each way in which a server fails has its own error. Only when every mirror failed too often in a row
the last errors of all of them are raised.
"""

import ipaddress
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from update_agent.core.bucket import Bucket
from update_agent.errors import HostError

_REDIRECTS = 5
"""Redirects followed for one request."""

_PIECE = 256 * 1024
"""Bytes asked of a connection at once; it gives what it has."""

_RUN = 8 * 2**20
"""Bytes asked for with one request: many, so that a request's cost is small against them."""

_GAP = 16 * 1024
"""Bytes that are cheaper to fetch for nothing than to spare with a request more."""

_PATIENCE = 2.0
"""A transfer is taken over when the taker would end this many times sooner."""


class HttpError(HostError):
    """A server, or the way to it, failed."""


class UnreachableError(HttpError):
    """No connection: name, address, port, or the network between."""


class TlsError(HttpError):
    """The server's certificate was not accepted."""


class StatusError(HttpError):
    """The server answered, but with another status than wanted."""


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


class RedirectError(HttpError):
    """The server redirects too often, or to where nobody should go."""


class NoMirrorError(HttpError):
    """Every mirror failed too often."""


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
    connections: int = 2
    """To each mirror."""


class Span(Protocol):
    """A range of a blob that is wanted as one piece."""

    @property
    def blob_offset(self) -> int:
        """Where it begins."""
        ...

    @property
    def blob_length(self) -> int:
        """Its bytes."""
        ...


AnySpan = TypeVar("AnySpan", bound=Span)

Deliver = Callable[[AnySpan, bytearray], None]
"""Takes the bytes of a span; called by several threads."""


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
        self.ended = threading.Event()
        self.fetched = 0
        """Bytes of bodies that arrived, of use or not."""
        self._lock = threading.Lock()
        self._deadline = self.now() + self.limits.deadline
        rate = self.limits.rate
        self._bucket = rate and Bucket(rate=rate, burst=rate / 4, level=rate / 4, since=self.now())

    def session(self) -> requests.Session:
        """Return a session of one thread; requests' own are not made to be shared."""
        session = requests.Session()
        session.trust_env = False
        session.verify = self.way.ca_file or True
        if self.way.proxy:
            session.proxies = {"http": self.way.proxy, "https": self.way.proxy}
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=2))
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

    def took(self, count: int) -> None:
        """Account for bytes that arrived; wait as the limit on the rate demands."""
        with self._lock:
            self.fetched += count
            if not self._bucket:
                return
            self._bucket, seconds = self._bucket.take(count, self.now())
        if seconds:
            self.ended.wait(min(seconds, self.left()))


def get(network: Network, url: str, *, max_size: int) -> bytes:
    """Return the file at ``url``, of at most ``max_size`` bytes. Raises HttpError."""
    with network.session() as session, _request(network, session, url, {}) as answer:
        _want_status(url, answer, 200)
        promised = _content_length(answer)
        if promised is not None and promised > max_size:
            raise TooLongError(f"{url} has {promised} bytes, wanted at most {max_size}")
        return b"".join(_body(network, url, answer, promised, max_size))


# Ranges from mirrors -----------------------------------------------------------------------------


@dataclass
class Mirror:
    """A base URL, and how it has done so far."""

    url: str
    failures: int = 0
    """In a row."""
    error: HttpError | None = None
    etag: str | None = None
    rate: float = 0.0
    """Bytes a second, lately."""


@dataclass
class _Run(Generic[AnySpan]):
    """Spans under way on one connection, fetched with one request."""

    mirror: Mirror
    spans: Sequence[AnySpan]
    done: int = 0
    """How many of the spans were read, by this connection."""

    def rest(self) -> Sequence[AnySpan]:
        return self.spans[self.done :]


class Download:
    """Spans of one blob, from whichever mirror gives them first.

    ``fetch`` may be called again, for spans that proved wrong: mirrors keep their record.
    """

    def __init__(self, network: Network, urls: Sequence[str], *, blob_size: int) -> None:
        self.network = network
        self.mirrors = [Mirror(url) for url in urls]
        self._size = blob_size
        self._givers: dict[int, Mirror] = {}

    def fetch(self, spans: Sequence[AnySpan], deliver: Deliver[AnySpan]) -> None:
        """Call ``deliver`` once for each span, from several threads and in any order.

        Raises NoMirrorError, DeadlineError, and whatever ``deliver`` raised.
        """
        if spans:
            self._givers = _Fetch(self.network, self.mirrors, self._size, spans, deliver).run()

    def distrust(self, spans: Sequence[Span]) -> None:
        """Ask whoever gave ``spans`` no more: their bytes were wrong.

        When that leaves no mirror, all are asked again: then the network garbles, or memory does.
        """
        for giver in {id(span): self._givers[id(span)] for span in spans}.values():
            giver.failures = self.network.limits.attempts
            giver.error = WrongBytesError(f"{giver.url} sends bytes with a wrong hash")
        if all(mirror.failures >= self.network.limits.attempts for mirror in self.mirrors):
            for mirror in self.mirrors:
                mirror.failures = 0


class _Fetch(Generic[AnySpan]):
    """One call of ``Download.fetch``: a queue of spans, and threads that empty it."""

    def __init__(
        self,
        network: Network,
        mirrors: Sequence[Mirror],
        blob_size: int,
        spans: Sequence[AnySpan],
        deliver: Deliver[AnySpan],
    ) -> None:
        self._network = network
        self._mirrors = mirrors
        self._blob_size = blob_size
        self._deliver = deliver
        self._waiting = deque(sorted(spans, key=lambda span: span.blob_offset))
        self._running: list[_Run[AnySpan]] = []
        self._delivered: dict[int, Mirror] = {}
        self._count = len(spans)
        self._delivering = 0
        self._ended_count = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def run(self) -> dict[int, Mirror]:
        """Fetch everything; return which mirror gave which span.

        Does not wait for a slow connection whose span another one gave: that thread ends with its
        next byte, or with its patience.
        """
        threads = [
            threading.Thread(target=self._connection, args=(mirror,), daemon=True)
            for mirror in self._mirrors
            for _ in range(self._network.way.connections)
        ]
        for thread in threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._all_delivered or self._failure or self._ended_count == len(threads)
            )
        if self._failure:
            raise self._failure
        if not self._all_delivered:
            raise NoMirrorError(
                "no mirror is left: " + "; ".join(str(mirror.error) for mirror in self._mirrors),
                hint="what was fetched so far is kept; the next attempt goes on from there",
            )
        return self._delivered

    def _connection(self, mirror: Mirror) -> None:
        """Fetch run after run from ``mirror``; a thread's whole life."""
        try:
            with self._network.session() as session:
                while run := self._take(mirror):
                    try:
                        self._transfer(session, run)
                    except _SupersededError:
                        pass
                    except HttpError as error:
                        self._failed(mirror, error)
                    finally:
                        self._put_back(run)
        except BaseException as error:  # noqa: BLE001  raised again by run()
            self._abort(error)
        finally:
            with self._changed:
                self._ended_count += 1
                self._changed.notify_all()

    def _take(self, mirror: Mirror) -> _Run[AnySpan] | None:
        """Return what to fetch next, or None when nothing is left for this mirror."""
        with self._changed:
            while not self._over(mirror):
                spans = self._next_spans() or self._taken_over(mirror)
                if spans:
                    run = _Run(mirror, spans)
                    self._running.append(run)
                    return run
                self._changed.wait(0.2)
            return None

    @property
    def _all_delivered(self) -> bool:
        return len(self._delivered) == self._count and self._delivering == 0

    def _over(self, mirror: Mirror) -> bool:
        return (
            self._failure is not None
            or len(self._delivered) == self._count
            or mirror.failures >= self._network.limits.attempts
        )

    def _next_spans(self) -> Sequence[AnySpan]:
        """Take neighbours from the queue, as many as one request should ask for."""
        spans: list[AnySpan] = []
        while self._waiting:
            span = self._waiting[0]
            if id(span) in self._delivered:
                self._waiting.popleft()
                continue
            if spans:
                gap = span.blob_offset - _end(spans[-1])
                size = _end(span) - spans[0].blob_offset
                if not 0 <= gap <= _GAP or size > _RUN:
                    break
            spans.append(self._waiting.popleft())
        return spans

    def _taken_over(self, mirror: Mirror) -> Sequence[AnySpan]:
        """Return the rest of a transfer that this mirror would end much sooner."""
        for run in self._running:
            rest = [span for span in run.rest() if id(span) not in self._delivered]
            if rest and run.mirror is not mirror and mirror.rate > _PATIENCE * run.mirror.rate:
                return rest
        return ()

    def _put_back(self, run: _Run[AnySpan]) -> None:
        with self._changed:
            self._running.remove(run)
            rest = [span for span in run.rest() if id(span) not in self._delivered]
            self._waiting.extendleft(reversed(rest))
            self._changed.notify_all()

    def _failed(self, mirror: Mirror, error: HttpError) -> None:
        if isinstance(error, DeadlineError):
            self._abort(error)
            return
        with self._changed:
            mirror.failures += 1
            mirror.error = error
            mirror.etag = None
            mirror.rate = 0.0
            pause = self._network.limits.pause * 2 ** (mirror.failures - 1)
            self._changed.wait_for(lambda: self._over(mirror), pause)

    def _abort(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._network.ended.set()
            self._changed.notify_all()

    def _transfer(self, session: requests.Session, run: _Run[AnySpan]) -> None:
        """Fetch a run's spans with one request, delivering each as it becomes whole."""
        mirror, network = run.mirror, self._network
        start, end = run.spans[0].blob_offset, _end(run.spans[-1])
        wanted = {"Range": f"bytes={start}-{end - 1}"}
        with _request(network, session, mirror.url, wanted) as answer:
            self._check_range(mirror, answer, start, end)
            body = _body(network, mirror.url, answer, end - start, end - start)
            pieces = _Pieces(self._measured(mirror, body))
            at = start
            for span in run.spans:
                pieces.skip(span.blob_offset - at)
                data = pieces.take(span.blob_length)
                at = _end(span)
                self._hand_over(run, span, data)
            pieces.finish()

    def _measured(self, mirror: Mirror, body: Iterator[bytes]) -> Iterator[bytes]:
        """Pass a body on, keeping the mirror's rate; stop when nobody needs the rest."""
        while True:
            began = self._network.now()
            piece = next(body, None)
            if piece is None:
                return
            if self._over(mirror):
                raise _SupersededError
            rate = len(piece) / max(self._network.now() - began, 1e-6)
            mirror.rate = rate if not mirror.rate else 0.9 * mirror.rate + 0.1 * rate
            yield piece

    def _hand_over(self, run: _Run[AnySpan], span: AnySpan, data: bytearray) -> None:
        """Deliver ``span`` unless another connection was first."""
        with self._changed:
            run.done += 1
            run.mirror.failures = 0
            if id(span) in self._delivered:
                raise _SupersededError
            self._delivered[id(span)] = run.mirror
            self._delivering += 1
        try:
            self._deliver(span, data)
        finally:
            with self._changed:
                self._delivering -= 1
                self._changed.notify_all()

    def _check_range(self, mirror: Mirror, answer: requests.Response, start: int, end: int) -> None:
        url = mirror.url
        if answer.status_code == requests.codes.ok:
            raise RangeIgnoredError(
                f"{url} was asked for bytes {start}-{end - 1} and answers with the whole of"
                f" {answer.headers.get('Content-Type', 'something')}",
                hint="the web server must serve ranges; a login page of the network looks so too",
            )
        _want_status(url, answer, 206)
        found = answer.headers.get("Content-Range", "none")
        if found != f"bytes {start}-{end - 1}/{self._blob_size}":
            raise WrongRangeError(
                f"{url} sends range {found}, wanted bytes {start}-{end - 1}/{self._blob_size}"
            )
        length = _content_length(answer)
        if length is not None and length != end - start:
            raise WrongRangeError(f"{url} announces {length} bytes, wanted {end - start}")
        etag = answer.headers.get("ETag")
        if mirror.etag and etag != mirror.etag:
            raise ChangedError(f"{url} changed: its ETag was {mirror.etag} and is {etag}")
        mirror.etag = etag


class _SupersededError(Exception):
    """Nobody needs the rest of this transfer."""


def _end(span: Span) -> int:
    return span.blob_offset + span.blob_length


class _Pieces:
    """Bytes in the pieces in which they arrive, taken in the lengths that are wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def take(self, size: int) -> bytearray:
        data = bytearray(size)
        done = 0
        while done < size:
            part = self._next(size - done)
            data[done : done + len(part)] = part
            done += len(part)
        return data

    def skip(self, size: int) -> None:
        while size:
            size -= len(self._next(size))

    def finish(self) -> None:
        """Read to the end, which is where it should be; the connection can be used again."""
        for _ in self._pieces:
            pass

    def _next(self, size: int) -> memoryview:
        while not self._piece:
            self._piece = memoryview(next(self._pieces))
        part, self._piece = self._piece[:size], self._piece[size:]
        return part


# One request -------------------------------------------------------------------------------------


@contextmanager
def _request(
    network: Network, session: requests.Session, url: str, headers: dict[str, str]
) -> Iterator[requests.Response]:
    """Send a GET and follow redirects to where they may lead."""
    here = url
    for _ in range(_REDIRECTS + 1):
        timeout = (
            min(network.limits.connect, network.left()),
            min(network.limits.silence, network.left()),
        )
        with _translated(here):
            answer = session.get(
                here, headers=headers, timeout=timeout, stream=True, allow_redirects=False
            )
        try:
            if not answer.is_redirect:
                encoding = answer.headers.get("Content-Encoding", "identity")
                if encoding != "identity":
                    raise EncodingError(f"{here} is sent as {encoding}, wanted it as it is")
                yield answer
                return
            here = _redirected(here, answer.headers["Location"])
        finally:
            answer.close()
    raise RedirectError(f"{url} redirects more than {_REDIRECTS} times")


def _redirected(here: str, location: str) -> str:
    """Return where a redirect leads, if it may lead there. Raises RedirectError."""
    there = urljoin(here, location)
    old, new = urlsplit(here), urlsplit(there)
    if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
        raise RedirectError(f"{here} redirects to {there}, wanted {old.scheme}")
    if _kind(new.hostname) not in ("global", _kind(old.hostname)):
        raise RedirectError(f"{here} redirects to the {_kind(new.hostname)} address {new.hostname}")
    return there


def _kind(host: str | None) -> str:
    """Return which kind of address ``host`` is; a name is taken for a global one."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "loopback" if host == "localhost" else "global"
    for kind in ("loopback", "link_local", "private"):
        if getattr(address, f"is_{kind}"):
            return kind.replace("_", "-")
    return "global"


def _want_status(url: str, answer: requests.Response, wanted: int) -> None:
    if answer.status_code != wanted:
        raise StatusError(f"{url} answers {answer.status_code} {answer.reason}, wanted {wanted}")


def _content_length(answer: requests.Response) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _body(
    network: Network, url: str, answer: requests.Response, size: int | None, max_size: int
) -> Iterator[bytes]:
    """Yield the body as it arrives: ``size`` bytes, or up to ``max_size`` when not known."""
    pace = _Pace(network, url)
    read = 0
    while True:
        network.left()
        began = network.now()
        with _translated(url):
            piece = answer.raw.read1(_PIECE)
        pace.read(len(piece), began)
        read += len(piece)
        if read > max_size:
            raise TooLongError(f"{url} sends more than {max_size} bytes")
        if not piece:
            if size is not None and read < size:
                raise TooShortError(f"{url} ended after {read} of {size} bytes")
            return
        network.took(len(piece))
        yield piece


@dataclass
class _Pace:
    """Watches that a connection keeps the minimum rate, over a window of time spent reading."""

    network: Network
    url: str
    reads: deque[tuple[float, int]] = field(default_factory=deque)
    """Seconds and bytes of each read within the window."""
    seconds: float = 0.0
    bytes: int = 0

    def read(self, count: int, began: float) -> None:
        limits = self.network.limits
        took = self.network.now() - began
        self.reads.append((took, count))
        self.seconds += took
        self.bytes += count
        if self.seconds >= limits.window and self.bytes < limits.minimum_rate * self.seconds:
            raise TooSlowError(
                f"{self.url} sent {self.bytes} bytes in {self.seconds:.0f} s,"
                f" wanted {limits.minimum_rate:.0f} a second",
                hint="another mirror may be faster; what was fetched is kept",
            )
        while self.reads and self.seconds - self.reads[0][0] >= limits.window:
            seconds, count = self.reads.popleft()
            self.seconds -= seconds
            self.bytes -= count


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what requests and urllib3 raise into our errors, the narrowest first."""
    try:
        yield
    except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
        raise TlsError(
            f"{url}: {error}", hint="check the server's certificate and the host's clock"
        ) from error
    except (
        requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError,
    ) as error:  # fmt: skip
        raise SilentError(f"{url} sent nothing for too long") from error
    except urllib3.exceptions.IncompleteRead as error:
        raise TooShortError(f"{url} broke off: {error}") from error
    except (
        requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError,
    ) as error:  # fmt: skip
        raise UnreachableError(f"{url} cannot be fetched: {error}") from error
