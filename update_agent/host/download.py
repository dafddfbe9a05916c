"""Ranges of a blob, from several mirrors at once.

What is fetched is worth nothing until its hash was checked, which is the caller's business. The
rule kept here: what was delivered is not fetched again. A failed transfer goes on with the span in
which it broke off, by the next connection that is free; the rest of a slow or silent one is taken
over by whoever has nothing else to do. Only when every mirror failed too often in a row the last
errors of all of them are raised.

One request and its limits are left to ``http.py``.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import requests

from update_agent.host.http import (
    ChangedError,
    DeadlineError,
    HttpError,
    Network,
    RangeIgnoredError,
    SupersededError,
    Watch,
    WrongBytesError,
    WrongRangeError,
    body_of,
    content_length,
    quoted,
    request,
    want_status,
)

_RUN = 8 * 2**20
"""Bytes asked for with one request: many, so that a request's cost is small against them."""

_GAP = 8 * 1024
"""Bytes that are cheaper to fetch for nothing than to spare with a request more."""

_LONGEST_PAUSE = 60.0
"""Seconds before a mirror is asked again, at most."""

_PATIENCE = 2.0
"""A transfer is taken over when the taker would end this many times sooner."""

_HICCUP = 0.5
"""Seconds of silence that mean nothing."""

_POLL = 0.2
"""Seconds after which a connection without work looks whom it can help."""


class NoMirrorError(HttpError):
    """Every mirror failed too often, the last time with ``errors``."""

    def __init__(
        self, message: str, *, hint: str | None = None, errors: Sequence[HttpError] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.errors = errors


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
"""Takes the bytes of a span, which are its own then; called by several threads."""


@dataclass(eq=False)
class Mirror:
    """A base URL, and how it has done so far."""

    url: str
    failures: int = 0
    """In a row. What breaks on several connections at once is one."""
    failed: float = float("-inf")
    """When the last of them was counted."""
    error: HttpError | None = None
    etag: str | None = None
    rate: float = 0.0
    """Bytes a second of one connection, lately; 0 when not known."""


class _Range(NamedTuple):
    """Bytes of a blob, wanted by one span or by several."""

    start: int
    end: int


def _range(span: Span) -> _Range:
    return _Range(span.blob_offset, span.blob_offset + span.blob_length)


@dataclass(eq=False)
class _Run:
    """Ranges under way on one connection, fetched with one request."""

    mirror: Mirror
    watch: Watch
    ranges: Sequence[_Range]
    """Less than was asked for once another connection took over the rest."""
    began: float
    done: int = 0
    """How many of the ranges were read."""

    def rest(self) -> Sequence[_Range]:
        return self.ranges[self.done :]


class Download:
    """Spans of one blob, from whichever mirror gives them first.

    ``fetch`` may be called again, for spans that proved wrong: mirrors keep their record.
    """

    def __init__(self, network: Network, urls: Sequence[str], *, blob_size: int) -> None:
        self.network = network
        self.mirrors = [Mirror(url) for url in urls]
        self._size = blob_size
        self._givers: dict[_Range, Mirror] = {}

    def fetch(self, spans: Sequence[AnySpan], deliver: Deliver[AnySpan]) -> None:
        """Call ``deliver`` once for each span, from several threads and in any order.

        Once this returns or raises, ``deliver`` is not called any more, and no call of it is under
        way. Raises NoMirrorError, DeadlineError, and whatever ``deliver`` raised.
        """
        for span in spans:
            if not span.blob_length:
                deliver(span, bytearray())
        if wanted := [span for span in spans if span.blob_length]:
            fetch = _Fetch(self.network, self.mirrors, self._size, wanted, deliver)
            self._givers.update(fetch.run())

    def distrust(self, spans: Sequence[Span]) -> None:
        """Ask whoever gave ``spans`` no more: their bytes were wrong.

        When that leaves no mirror, all are asked again: then the network garbles, or memory does.
        """
        attempts = self.network.limits.attempts
        for giver in {self._givers[_range(span)] for span in spans if _range(span) in self._givers}:
            giver.failures = attempts
            giver.error = WrongBytesError(f"{giver.url} sends bytes with a wrong hash")
        if all(mirror.failures >= attempts for mirror in self.mirrors):
            for mirror in self.mirrors:
                mirror.failures = 0


class _Fetch(Generic[AnySpan]):
    """One call of ``Download.fetch``: a queue of ranges, and threads that empty it.

    A range that was not delivered is in the queue or in a run; in two runs only while somebody else
    has another try at the one range that a slow connection is in the middle of.
    """

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
        self._wanted: dict[_Range, list[AnySpan]] = {}
        for span in spans:
            self._wanted.setdefault(_range(span), []).append(span)
        self._waiting = deque(sorted(self._wanted))
        self._running: list[_Run] = []
        self._givers: dict[_Range, Mirror] = {}
        self._delivering = 0
        self._threads = 0
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._changed = threading.Condition()

    def run(self) -> dict[_Range, Mirror]:
        """Fetch everything; return which mirror gave which range.

        Does not wait for a connection whose range another one gave: that thread ends with its next
        bytes, or with its patience, and changes nothing any more.
        """
        threads = [
            threading.Thread(
                target=self._connection, args=(mirror,), name="update-agent-fetch", daemon=True
            )
            for mirror in self._mirrors
            for _ in range(self._network.way.connections)
        ]
        self._threads = len(threads)
        try:
            for thread in threads:
                thread.start()
            with self._changed:
                while not self._changed.wait_for(self._settled, self._network.left()):
                    pass
        finally:
            with self._changed:
                self._ended.set()
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._delivering)
        if self._failure:
            raise self._failure
        if not self._all_given:
            raise self._no_mirror()
        return self._givers

    @property
    def _all_given(self) -> bool:
        return len(self._givers) == len(self._wanted)

    def _settled(self) -> bool:
        given = self._all_given and not self._delivering
        return given or self._ended.is_set() or not self._threads

    def _no_mirror(self) -> NoMirrorError:
        hints = dict.fromkeys(it.error.hint for it in self._mirrors if it.error and it.error.hint)
        kept = "what was fetched so far is kept; the next attempt goes on from there"
        return NoMirrorError(
            "no mirror is left: " + "; ".join(str(mirror.error) for mirror in self._mirrors),
            hint="; ".join([*hints, kept]),
            errors=[it.error for it in self._mirrors if it.error],
        )

    def _connection(self, mirror: Mirror) -> None:
        """Fetch run after run from ``mirror``; a thread's whole life."""
        try:
            with self._network.session() as session:
                while run := self._take(mirror):
                    error = self._attempt(session, run)
                    self._put_back(run)
                    if error:
                        self._failed(run, error)
        except BaseException as error:  # noqa: BLE001  raised again by run()
            self._abort(error)
        finally:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def _attempt(self, session: requests.Session, run: _Run) -> HttpError | None:
        """Fetch a run as far as possible; return how the mirror failed, if it did."""
        try:
            self._transfer(session, run)
        except SupersededError:
            return None
        except DeadlineError:
            raise
        except HttpError as error:
            return error
        return None

    def _take(self, mirror: Mirror) -> _Run | None:
        """Return what to fetch next, or None when nothing is left for this mirror."""
        with self._changed:
            while not self._over(mirror):
                ranges = self._next_ranges() or self._taken_over(mirror)
                if ranges:
                    size = ranges[-1].end - ranges[0].start
                    watch = Watch(self._network, mirror.url, size, self._ended)
                    run = _Run(mirror, watch, ranges, self._network.now())
                    self._running.append(run)
                    return run
                self._changed.wait(_POLL)
            return None

    def _over(self, mirror: Mirror) -> bool:
        return (
            self._ended.is_set()
            or self._all_given
            or mirror.failures >= self._network.limits.attempts
        )

    def _next_ranges(self) -> Sequence[_Range]:
        """Take neighbours from the queue, as many as one request should ask for."""
        ranges: list[_Range] = []
        while self._waiting:
            it = self._waiting[0]
            if ranges:
                gap = it.start - ranges[-1].end
                if not 0 <= gap <= _GAP or it.end - ranges[0].start > _RUN:
                    break
            ranges.append(self._waiting.popleft())
        return ranges

    def _taken_over(self, mirror: Mirror) -> Sequence[_Range]:
        """Take the rest of a transfer that this mirror would end much sooner.

        The range that is under way there is tried by both: who ends it first delivers it.
        """
        now = self._network.now()
        for run in self._running:
            rest = self._nobody_elses(run)
            if not rest:
                continue
            size = rest[-1].end - rest[0].start
            here = size / mirror.rate if mirror.rate else 1.0
            if run.watch.remaining(size, now) > _PATIENCE * here + _HICCUP:
                run.ranges = run.ranges[: run.done + 1]
                return rest
        return ()

    def _nobody_elses(self, run: _Run) -> Sequence[_Range]:
        """Return what only ``run`` still has to give."""
        others = {it for other in self._running if other is not run for it in other.rest()}
        return [it for it in run.rest() if it not in self._givers and it not in others]

    def _put_back(self, run: _Run) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(self._nobody_elses(run)))
            self._running.remove(run)
            self._changed.notify_all()

    def _failed(self, run: _Run, error: HttpError) -> None:
        """Count a failure, and wait before the mirror is asked again."""
        mirror = run.mirror
        with self._changed:
            if self._ended.is_set():
                return
            if run.began >= mirror.failed:
                mirror.failures += 1
                mirror.failed = self._network.now()
            mirror.error = error
            mirror.etag = None
            mirror.rate = 0.0
            pause = self._network.limits.pause * 2.0 ** min(mirror.failures - 1, 16)
            self._changed.wait_for(lambda: self._over(mirror), min(pause, _LONGEST_PAUSE))

    def _abort(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._ended.set()
            self._changed.notify_all()

    def _transfer(self, session: requests.Session, run: _Run) -> None:
        """Fetch a run's ranges with one request, delivering each as it becomes whole."""
        ranges = run.ranges
        start, end = ranges[0].start, ranges[-1].end
        wanted = {"Range": f"bytes={start}-{end - 1}"}
        with request(run.watch, session, wanted) as answer:
            self._check_range(run.mirror, answer, start, end)
            pieces = _Pieces(self._measured(run, body_of(run.watch, answer, end - start)))
            at = start
            while run.done < len(run.ranges):
                it = run.ranges[run.done]
                pieces.skip(it.start - at)
                data = pieces.take(it.end - it.start)
                at = it.end
                self._hand_over(run, it, data)
            if at < end:
                raise SupersededError
            pieces.finish()

    def _measured(self, run: _Run, body: Iterator[bytes]) -> Iterator[bytes]:
        """Pass a body on, keeping the mirror's rate; stop when nobody needs the rest."""
        for piece in body:
            if self._ended.is_set() or all(it in self._givers for it in run.rest()):
                raise SupersededError
            run.mirror.rate = run.watch.rate
            yield piece

    def _hand_over(self, run: _Run, it: _Range, data: bytearray) -> None:
        """Deliver a range to those who want it, unless another connection was first."""
        with self._changed:
            if self._ended.is_set():
                raise SupersededError
            run.done += 1
            run.mirror.failures = 0
            if it in self._givers:
                return
            self._givers[it] = run.mirror
            self._delivering += 1
        try:
            *others, last = self._wanted[it]
            for span in others:
                self._deliver(span, bytearray(data))
            self._deliver(last, data)
        except BaseException as error:
            self._abort(error)
            raise SupersededError from error
        finally:
            with self._changed:
                self._delivering -= 1
                self._changed.notify_all()

    def _check_range(self, mirror: Mirror, answer: requests.Response, start: int, end: int) -> None:
        url = mirror.url
        if answer.status_code == requests.codes.ok:
            kind = quoted(answer.headers.get("Content-Type", "something"))
            raise RangeIgnoredError(
                f"{url} was asked for bytes {start}-{end - 1} and answers with the whole of {kind}",
                hint="the web server must serve ranges; a login page of the network looks so too",
            )
        want_status(url, answer, 206)
        found = answer.headers.get("Content-Range", "none")
        if found != f"bytes {start}-{end - 1}/{self._blob_size}":
            raise WrongRangeError(
                f"{url} sends range {quoted(found)},"
                f" wanted bytes {start}-{end - 1}/{self._blob_size}",
                hint="the file on the server is not the one that its index describes",
            )
        length = content_length(answer)
        if length is not None and length != end - start:
            raise WrongRangeError(f"{url} announces {length} bytes, wanted {end - start}")
        etag = answer.headers.get("ETag")
        if mirror.etag and etag and etag != mirror.etag:
            raise ChangedError(
                f"{url} changed: its ETag was {quoted(mirror.etag)} and is {quoted(etag)}"
            )
        mirror.etag = etag


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
