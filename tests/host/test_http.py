"""Fetching from servers that do everything wrong that they can.

Each failure has its own error; a transient one costs no more than the span in which it happened;
and whatever happens, a fetch ends, delivers each span once, and leaves no thread behind.
"""

import gzip
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.web import (
    ENOUGH,
    PORTAL,
    Altered,
    Answer,
    Authority,
    Chunked,
    Dripping,
    Fault,
    Fine,
    Gate,
    Hanging,
    Leaving,
    Longer,
    Peer,
    Raw,
    Truncated,
    Web,
    redirect,
)
from update_agent.host import download as downloads
from update_agent.host import http
from update_agent.host.download import Download, NoMirrorError
from update_agent.host.http import (
    BrokenError,
    ChangedError,
    DeadlineError,
    EncodingError,
    GarbledError,
    HttpError,
    Limits,
    Network,
    RangeIgnoredError,
    RedirectError,
    SilentError,
    StatusError,
    TlsError,
    TooLongError,
    TooShortError,
    TooSlowError,
    UnreachableError,
    Way,
    WrongRangeError,
    get,
)

BLOB = random.Random(20).randbytes(1_000_000)  # noqa: S311  bytes, no secrets
SPAN = 100_000

BRISK = Limits(pause=0.001, attempts=2)
"""Gives up soon."""
QUIET = replace(BRISK, silence=0.1, attempts=100)
"""Takes a tenth of a second without a byte for silence, as a busy machine may have by itself."""
ONE = Way(connections=1)
"""Requests come one after the other."""


@dataclass(frozen=True, slots=True)
class Piece:
    blob_offset: int
    blob_length: int


@dataclass(slots=True)
class Taker:
    """Keeps what is delivered, and how often."""

    data: dict[Piece, bytes] = field(default_factory=dict)
    calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, span: Piece, data: bytearray) -> None:
        with self._lock:
            self.data[span] = bytes(data)
            self.calls += 1


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def forward(self, seconds: float = 1.0) -> None:
        with self._lock:
            self._now += seconds


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Whatever a test did: once its servers are gone, so are the threads that asked them."""
    yield
    for thread in fetchers():
        thread.join(ENOUGH)
        assert not thread.is_alive()


@pytest.fixture
def web() -> Iterator[Web]:
    with Web({"/blob": BLOB}) as web:
        yield web


@pytest.fixture
def other() -> Iterator[Web]:
    with Web({"/blob": BLOB}) as web:
        yield web


def fetchers() -> list[threading.Thread]:
    return [it for it in threading.enumerate() if it.name == "update-agent-fetch"]


def pieces(size: int = SPAN, end: int = len(BLOB)) -> list[Piece]:
    """Cut the blob into spans."""
    return [Piece(at, min(size, end - at)) for at in range(0, end, size)]


def right(spans: Iterable[Piece]) -> dict[Piece, bytes]:
    return {it: BLOB[it.blob_offset : it.blob_offset + it.blob_length] for it in spans}


def limits_for(error: type[HttpError]) -> Limits:
    """Be impatient only where silence is the fault: elsewhere it would hide the fault."""
    return QUIET if error is SilentError else BRISK


def download(*webs: Web, limits: Limits = BRISK, way: Way = ONE) -> Download:
    return Download(Network(limits, way), [it.url() for it in webs], blob_size=len(BLOB))


def fetch(loading: Download, spans: Sequence[Piece]) -> dict[Piece, bytes]:
    """Fetch, and hold that each span is delivered once, with the right bytes."""
    taker = Taker()
    loading.fetch(spans, taker)

    assert taker.calls == len(spans)
    assert taker.data == right(spans)
    return taker.data


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines)).encode()


# Small files -------------------------------------------------------------------------------------


def test_a_file_is_fetched_whole_and_nothing_encoded_is_asked_for(web: Web) -> None:
    network = Network()

    assert get(network, web.url(), max_size=len(BLOB)) == BLOB
    assert network.fetched == len(BLOB)
    assert web.requests[0].headers["accept-encoding"] == "identity"


def test_a_file_without_a_length_is_fetched_to_its_end(web: Web) -> None:
    web.play(Chunked(size=7777), Raw(data=head("") + BLOB))

    assert get(Network(), web.url(), max_size=len(BLOB)) == BLOB
    assert get(Network(), web.url(), max_size=len(BLOB)) == BLOB


@pytest.mark.case(22)
def test_bytes_beyond_the_promised_length_are_not_read(web: Web) -> None:
    web.always = Longer(by=b"more" * 10_000)

    assert get(Network(), web.url(), max_size=len(BLOB)) == BLOB


FAILURES = [
    pytest.param(Altered(status=403), StatusError, "answers 403 Altered, wanted 2", id="403"),
    pytest.param(Altered(status=404), StatusError, "answers 404", id="404"),
    pytest.param(Altered(status=416), StatusError, "answers 416", id="416"),
    pytest.param(Altered(status=500), StatusError, "answers 500", id="500"),
    pytest.param(Altered(status=503), StatusError, "answers 503", id="503"),
    pytest.param(
        Truncated(after=250_000), TooShortError, "250000 bytes read, 750000 more",
        id="truncated", marks=pytest.mark.case(21),
    ),
    pytest.param(
        Truncated(after=250_000, reset=True), BrokenError, "reset by peer",
        id="reset", marks=pytest.mark.case(25),
    ),
    pytest.param(Truncated(after=0, reset=True), BrokenError, "reset by peer", id="reset-at-once"),
    pytest.param(Raw(data=b""), BrokenError, "closed connection", id="closed-without-answer"),
    pytest.param(
        Hanging(after=None), SilentError, "nothing for too long", id="hangs-before-headers"
    ),
    pytest.param(
        Hanging(after=0), SilentError, "nothing for too long",
        id="hangs-after-headers", marks=pytest.mark.case(24),
    ),
    pytest.param(Hanging(after=250_000), SilentError, "nothing for too long", id="hangs-midway"),
    pytest.param(
        Altered(headers={"Content-Encoding": "gzip"}, body=gzip.compress(bytes(10_000_000))),
        EncodingError, "sent as gzip, wanted it as it is",
        id="gzip-bomb", marks=pytest.mark.case(29),
    ),
    pytest.param(
        Altered(headers={"Content-Encoding": "br, \x1b[2Jgzip"}),
        EncodingError, r"sent as br, \?\[2Jgzip", id="unknown-encoding",
    ),
    pytest.param(Raw(data=b"SSH-2.0-OpenSSH\r\n"), GarbledError, "BadStatusLine", id="no-http"),
    pytest.param(
        Raw(data=head("Many: " + "x" * 70_000)), GarbledError, "LineTooLong", id="a-huge-header"
    ),
    pytest.param(
        Raw(data=head(*["A: b"] * 200, "")), GarbledError, "more than 100", id="many-headers"
    ),
    pytest.param(
        Raw(data=head("Content-Length: 5", "Content-Length: 6", "") + b"12345"),
        GarbledError, "multiple unmatching", id="two-lengths",
    ),
    pytest.param(
        Raw(data=b"", endless=b"HTTP/1.1 100 Continue\r\n\r\n"),
        TooLongError, "bytes in one answer", id="endless-continue",
    ),
    pytest.param(redirect("http://[::1"), RedirectError, "is no URL", id="redirect-to-no-url"),
    pytest.param(redirect(None), StatusError, "answers 302", id="redirect-to-nowhere"),
    pytest.param(
        redirect("/blob"), RedirectError, "more than 5 times",
        id="redirect-loop", marks=pytest.mark.case(30),
    ),
    pytest.param(
        redirect("file:///etc/shadow"), RedirectError, "to file:///etc/shadow, wanted http",
        id="redirect-to-file", marks=pytest.mark.case(30),
    ),
]  # fmt: skip
"""What goes wrong the same way whether the whole or a range was asked for."""


@pytest.mark.parametrize(("fault", "error", "message"), FAILURES)
def test_every_failure_has_its_own_error(
    fault: Fault, error: type[HttpError], message: str, web: Web
) -> None:
    web.always = fault

    with pytest.raises(error, match=message) as caught:
        get(Network(limits_for(error)), web.url(), max_size=len(BLOB))

    assert caught.type is error


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        pytest.param(Fine(), TooLongError, "has 1000000 bytes, wanted at most 9", id="announced"),
        pytest.param(
            Raw(data=head("") + BLOB), TooLongError, "more than 9 bytes", id="not-announced"
        ),
        pytest.param(
            Chunked(size=5000, endless=True), TooLongError, "more than 9 bytes",
            id="endless", marks=pytest.mark.case(22),
        ),
        pytest.param(
            Raw(data=head("Transfer-Encoding: chunked", "", "9", "123456789"),
                endless=b"0\r\nTrailer: x\r\n"),
            TooLongError, "bytes in one answer", id="endless-trailers",
        ),
        pytest.param(
            Raw(data=head("Transfer-Encoding: chunked", ""),
                endless=b"1;" + b"x" * 60_000 + b"\r\n1\r\n"),
            TooLongError, "bytes", id="chunks-of-one-byte-and-60-KB",
        ),
        pytest.param(
            Raw(data=head("Transfer-Encoding: chunked", "", "3", "123", "what?")),
            TooShortError, "before the promised end", id="garbled-chunk",
        ),
        pytest.param(
            Raw(data=head("Transfer-Encoding: chunked", "", "9", "123")),
            TooShortError, "before the promised end", id="half-a-chunk",
        ),
    ],
)  # fmt: skip
def test_a_small_file_brings_no_more_than_asked_for(
    fault: Fault, error: type[HttpError], message: str, web: Web
) -> None:
    web.always = fault

    with pytest.raises(error, match=message):
        get(Network(BRISK), web.url(), max_size=9)


def test_a_length_of_5000_digits_is_no_length(web: Web) -> None:
    web.always = Raw(data=head("Content-Length: " + "9" * 5000, "") + b"whole")

    assert get(Network(), web.url(), max_size=9) == b"whole"


def test_nobody_listens() -> None:
    with Web({}) as gone:
        url = gone.url()

    with pytest.raises(UnreachableError, match=r"cannot be fetched: .*refused"):
        get(Network(), url, max_size=9)


def test_messages_tell_no_passwords_and_move_no_cursor(web: Web) -> None:
    web.always = Altered(status=500, reason="\x1b[2J" + "o" * 1000)
    url = web.url().replace("//", "//user:secret@")

    with pytest.raises(StatusError) as caught:
        get(Network(), url, max_size=9)

    assert f"http://127.0.0.1:{web.port}/blob answers 500 ?[2Jooo" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_cookies_are_not_kept(web: Web) -> None:
    web.play(Altered(headers={"Set-Cookie": "track=me; Path=/"}))
    loading = download(web)

    fetch(loading, pieces())
    fetch(loading, pieces())
    with loading.network.session() as session:
        web.play(Altered(headers={"Set-Cookie": "track=me; Path=/"}))
        for _ in range(2):
            session.get(web.url()).close()

    assert [it.headers.get("cookie") for it in web.requests] == [None] * 4


# Time --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrippingHeader:
    """One line that never ends: no body begins, and no read is ever silent."""

    tick: Callable[[], None]

    def play(self, peer: Peer, answer: Answer) -> None:
        del answer
        peer.send(head("X: ").removesuffix(b"\r\n"))
        while True:
            self.tick()
            peer.send(b"x")


PATIENT = Limits(deadline=10**9)
"""The server moves the clock, and may be hours ahead of a busy client."""

DRIPS = [
    pytest.param(DrippingHeader, id="header"),
    pytest.param(Dripping, id="body"),
]


@pytest.mark.case(23)
@pytest.mark.parametrize("drip", DRIPS)
def test_a_slow_drip_is_an_error(drip: Callable[..., Fault], web: Web) -> None:
    clock = Clock()
    web.always = drip(tick=clock.forward)

    with pytest.raises(TooSlowError, match=r"sent \d+ bytes in \d+ s, wanted 4096 a second"):
        get(Network(PATIENT, now=clock), web.url(), max_size=len(BLOB))


@pytest.mark.case(23)
def test_a_drip_after_a_fast_beginning_is_an_error(web: Web) -> None:
    clock = Clock()
    web.always = Chunked(size=len(BLOB))
    trickle = b"1\r\nx\r\n"

    @dataclass(frozen=True)
    class Slowing:
        def play(self, peer: Peer, answer: Answer) -> None:
            peer.send(replace(answer, headers={"Transfer-Encoding": "chunked"}).head)
            peer.send(b"%x\r\n%b\r\n" % (len(BLOB), BLOB))
            while True:
                clock.forward()
                peer.send(trickle)

    web.always = Slowing()

    with pytest.raises(TooSlowError):
        get(Network(PATIENT, now=clock), web.url(), max_size=10**9)


@pytest.mark.case(23)
def test_a_slow_drip_of_tiny_pieces_takes_no_memory(web: Web) -> None:
    clock = Clock()
    web.always = Dripping(tick=lambda: clock.forward(0.01), count=2000)
    network = Network(Limits(minimum_rate=1, window=10), now=clock)
    watch = http.Watch(network, web.url(), len(BLOB))

    with network.session() as session, http.request(watch, session, {}) as answer:
        assert b"".join(http.body_of(watch, answer, len(BLOB))) == BLOB

    assert len(watch._recent) < 40


@pytest.mark.parametrize("drip", DRIPS)
def test_the_deadline_ends_a_drip_that_is_fast_enough(drip: Callable[..., Fault], web: Web) -> None:
    clock = Clock()
    web.always = drip(tick=clock.forward)
    network = Network(Limits(deadline=20, minimum_rate=0), now=clock)

    with pytest.raises(DeadlineError, match="took longer than 20 s"):
        get(network, web.url(), max_size=len(BLOB))


@pytest.mark.parametrize("after", [None, 0, 250_000], ids=["no-headers", "headers", "midway"])
def test_the_deadline_ends_a_silence_that_is_short_enough(after: int | None, web: Web) -> None:
    web.always = Hanging(after=after)
    taker = Taker()

    with pytest.raises(DeadlineError, match="took longer"):
        get(Network(Limits(deadline=0.2)), web.url(), max_size=len(BLOB))
    with pytest.raises(DeadlineError, match="took longer"):
        download(web, limits=Limits(deadline=0.2)).fetch(pieces(), taker)
    with pytest.raises(DeadlineError):
        get(Network(Limits(deadline=0)), web.url(), max_size=len(BLOB))


def test_a_fetch_ends_at_its_deadline_even_while_every_mirror_pauses(web: Web) -> None:
    web.always = Altered(status=503)

    with pytest.raises(DeadlineError):
        download(web, limits=Limits(deadline=0.2, pause=60)).fetch(pieces(), Taker())


def test_a_slow_disk_is_not_taken_for_a_slow_server(web: Web) -> None:
    clock = Clock()
    network = Network(replace(BRISK, deadline=10**9, minimum_rate=10**6), ONE, clock)
    loading = Download(network, [web.url()], blob_size=len(BLOB))

    def deliver(_span: Piece, _data: bytearray) -> None:
        clock.forward(1000)

    loading.fetch(pieces(10_000), deliver)

    assert web.ranges == [(0, len(BLOB))]


def test_waiting_for_the_rate_is_not_taken_for_a_slow_server(web: Web) -> None:
    clock = Clock()

    class Throttled(Network):
        def throttle(self, count: int, ended: threading.Event) -> None:
            del count, ended
            clock.forward(1000)

    network = Throttled(replace(BRISK, deadline=10**9, minimum_rate=10**6), ONE, clock)

    fetch(Download(network, [web.url()], blob_size=len(BLOB)), pieces(10_000))

    assert web.ranges == [(0, len(BLOB))]


def test_the_rate_holds_for_all_connections_together(web: Web, other: Web) -> None:
    """A quarter of a second's worth is free: 1,000,000 bytes at 2,000,000 a second take 0.25 s."""
    loading = download(web, other, limits=replace(BRISK, rate=2e6), way=Way(connections=4))
    began = time.monotonic()

    fetch(loading, pieces(10_000))

    assert time.monotonic() - began >= 0.24


def test_a_network_says_whether_its_rate_holds_it_back(web: Web) -> None:
    slow, fast = Network(Limits(rate=1e6)), Network(Limits(rate=1e12))
    get(slow, web.url(), max_size=len(BLOB))
    get(fast, web.url(), max_size=len(BLOB))

    assert (slow.throttled, fast.throttled) == (True, False)


def test_a_rate_is_kept_in_small_steps(web: Web) -> None:
    """Nobody sleeps for seconds with a server waiting, which might lose its own patience."""
    network = Network(Limits(rate=100_000))
    waits: list[float] = []

    class Waits(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return True

    watch = http.Watch(network, web.url(), len(BLOB), Waits())
    with network.session() as session, http.request(watch, session, {}) as answer:
        next(http.body_of(watch, answer, len(BLOB)))

    assert all(seconds < 0.5 for seconds in waits)


def test_a_network_keeps_its_rate_after_a_fetch_that_failed(web: Web) -> None:
    loading = download(web, limits=replace(BRISK, rate=2e6))

    def deliver(_span: Piece, _data: bytearray) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        loading.fetch(pieces(), deliver)
    began = time.monotonic()
    fetch(loading, pieces())

    assert time.monotonic() - began >= 0.24


def test_the_rate_counts_what_lies_around_a_body(web: Web) -> None:
    web.always = Raw(data=head(f"Padding: {'x' * 60_000}", "Content-Length: 1", "") + b"1")
    network = Network(Limits(rate=200_000))
    began = time.monotonic()

    assert [get(network, web.url(), max_size=1) for _ in range(2)] == [b"1", b"1"]
    assert time.monotonic() - began >= 0.3  # 120,000 bytes, 50,000 of them free


# Redirects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_followed(status: int, web: Web, other: Web) -> None:
    web.always = redirect(other.url(), status)

    assert get(Network(), web.url(), max_size=len(BLOB)) == BLOB
    fetch(download(web), pieces())

    assert other.ranges == [(0, len(BLOB))]


@pytest.mark.case(30)
@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        pytest.param("https://a.example/x", "http://a.example/x", "wanted https", id="no-tls"),
        pytest.param("http://a.example/x", "file:///etc/passwd", "wanted http", id="file"),
        pytest.param("http://a.example/x", "ftp://a.example/x", "wanted http", id="ftp"),
        pytest.param(
            "http://a.example/x", "http://169.254.169.254/latest", "link-local", id="cloud"
        ),
        pytest.param("http://a.example/x", "//169.254.169.254/latest", "link-local", id="relative"),
        pytest.param("http://a.example/x", "http://2852039166/", "link-local", id="as-a-number"),
        pytest.param("http://a.example/x", "http://0xa9fea9fe/", "link-local", id="in-hex"),
        pytest.param(
            "http://10.0.0.1/x", "http://[::ffff:169.254.169.254]/", "link-local", id="mapped"
        ),
        pytest.param(
            "http://a.example/x", "http://169.254.169.254\\@b.example/", "link-local",
            id="two-ways-to-read-it",
        ),
        pytest.param("http://a.example/x", "http://127.1/", "loopback", id="short-loopback"),
        pytest.param("http://10.0.0.1/x", "http://0.0.0.0/", "loopback", id="any-address"),
        pytest.param("http://a.example/x", "http://localhost.:80/", "loopback", id="localhost"),
        pytest.param("http://a.example/x", "http://[::1]/", "loopback", id="loopback-6"),
        pytest.param("http://a.example/x", "http://10.1.2.3/", "private", id="private"),
        pytest.param("http://a.example/x", "http://[fe80::1]/", "link-local", id="link-local-6"),
        pytest.param("http://a.example/x", "http://[bad/", "is no URL", id="no-url"),
    ],
)  # fmt: skip
def test_a_redirect_leads_nowhere_it_should_not(here: str, there: str, message: str) -> None:
    with pytest.raises(RedirectError, match=message):
        http._redirected(here, there)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        pytest.param("http://a.example/x", "https://b.example/y", id="to-https"),
        pytest.param("http://10.0.0.1/x", "http://10.0.0.2/y", id="private-to-private"),
        pytest.param("http://10.0.0.1/x", "https://b.example/y", id="private-to-global"),
    ],
)
def test_a_redirect_may_lead_to_its_like_or_the_open(here: str, there: str) -> None:
    assert http._redirected(here, there) == there


# TLS and proxies ---------------------------------------------------------------------------------


def test_a_server_with_the_right_certificate_is_believed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Web({"/blob": BLOB}, tls=authority.context()) as web:
        way = Way(ca_file=str(authority.file), connections=1)
        loading = download(web, limits=replace(BRISK, attempts=3), way=way)

        fetch(loading, pieces())
        web.play(Truncated(after=SPAN // 2), Truncated(after=SPAN // 2, reset=True))
        fetch(loading, pieces())

        assert isinstance(loading.mirrors[0].error, TooShortError | BrokenError)


@pytest.mark.case(32)
@pytest.mark.parametrize(
    ("host", "expired", "known", "message"),
    [
        pytest.param("127.0.0.1", False, False, "self-signed|unable to get", id="stranger"),
        pytest.param("127.0.0.1", True, True, "certificate has expired", id="expired"),
        pytest.param("other.example", False, True, "mismatch", id="another-host"),
    ],
)
def test_a_server_with_a_wrong_certificate_is_not_asked(
    host: str,
    expired: bool,  # noqa: FBT001  a case
    known: bool,  # noqa: FBT001
    message: str,
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    believed = authority if known else Authority(tmp_path, "another authority")
    way = Way(connections=1, ca_file=str(believed.file))
    with Web({"/blob": BLOB}, tls=authority.context(host, expired=expired)) as web:
        with pytest.raises(TlsError, match=message):
            get(Network(way=way), web.url(), max_size=len(BLOB))
        with pytest.raises(NoMirrorError, match=message) as caught:
            download(web, way=way).fetch(pieces(), Taker())

        assert "the host's clock" in (caught.value.hint or "")
        assert web.requests == []


def test_without_a_file_of_our_own_the_authorities_of_the_system_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    with Web({"/blob": BLOB}, tls=authority.context()) as web:
        assert get(Network(), web.url(), max_size=len(BLOB)) == BLOB


def test_without_a_file_of_our_own_only_the_known_authorities_count(tmp_path: Path) -> None:
    with (
        Web({"/blob": BLOB}, tls=Authority(tmp_path).context()) as web,
        pytest.raises(TlsError, match="certificate verify failed"),
    ):
        get(Network(), web.url(), max_size=len(BLOB))


def test_a_server_that_speaks_no_tls() -> None:
    def work() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            peer.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work)
        thread.start()
        with pytest.raises(TlsError):
            get(Network(), f"https://127.0.0.1:{listener.getsockname()[1]}/", max_size=9)
        thread.join()


def test_a_handshake_that_nobody_answers_has_an_end(web: Web) -> None:
    """The server waits for a line of HTTP, the client for TLS."""
    with pytest.raises(SilentError):
        get(Network(Limits(connect=0.1)), web.url().replace("http:", "https:"), max_size=9)


@pytest.mark.case(30)
def test_a_redirect_never_leaves_https(tmp_path: Path, other: Web) -> None:
    authority = Authority(tmp_path)
    with Web({"/blob": BLOB}, tls=authority.context()) as web:
        web.always = redirect(other.url())

        with pytest.raises(RedirectError, match=r"to http://.*, wanted https"):
            get(Network(way=Way(ca_file=str(authority.file))), web.url(), max_size=len(BLOB))

    assert other.requests == []


@pytest.mark.case(33)
def test_the_environment_decides_nothing(
    web: Web, other: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, other.url(""))
        monkeypatch.setenv(name.upper(), other.url(""))
    monkeypatch.delenv("REQUEST_METHOD", raising=False)
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")

    get(Network(), web.url(), max_size=len(BLOB))
    fetch(download(web), pieces())

    assert other.requests == []
    assert [it.headers.get("authorization") for it in web.requests] == [None, None]


@pytest.mark.case(33)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_a_proxy_from_the_configuration_is_used_whatever_the_environment_says(
    variable: str, web: Web, other: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "*")
    other.always = Altered(headers={"Via": "1.1 other"})

    fetch(download(web, way=Way(proxy=other.url(""), connections=1)), pieces())

    assert web.requests == []
    assert [it.target for it in other.requests] == [web.url()]


def test_https_goes_through_a_proxy_in_a_tunnel(other: Web, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Web({"/blob": BLOB}, tls=authority.context()) as web:
        way = Way(proxy=f"127.0.0.1:{other.port}", ca_file=str(authority.file), connections=1)

        fetch(download(web, way=way), pieces())

        assert [it.method for it in other.requests] == ["CONNECT"]
        assert web.ranges == [(0, len(BLOB))]


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        pytest.param("http://127.0.0.1:1", "proxy", id="nobody-listens"),
        pytest.param("gopher://127.0.0.1:70", "proxy", id="no-proxy-we-know"),
    ],
)
def test_a_proxy_that_does_not_work(proxy: str, message: str, web: Web) -> None:
    with pytest.raises(UnreachableError, match=message):
        get(Network(way=Way(proxy=proxy)), web.url(), max_size=9)
    with pytest.raises(HttpError, match=message):
        download(web, way=Way(proxy=proxy)).fetch(pieces(), Taker())


# Ranges ------------------------------------------------------------------------------------------

RANGE_FAILURES = [
    *FAILURES,
    pytest.param(
        Altered(status=200, headers={"Content-Range": None}, body=BLOB),
        RangeIgnoredError, "asked for bytes 0-999999 and answers with the whole of application",
        id="range-ignored", marks=pytest.mark.case(26),
    ),
    pytest.param(
        PORTAL, RangeIgnoredError, "the whole of text/html",
        id="captive-portal", marks=pytest.mark.case(31),
    ),
    pytest.param(
        Altered(headers={"Content-Range": "bytes 1-1000000/1000000"}),
        WrongRangeError, "sends range bytes 1-1000000/1000000, wanted bytes 0-999999/1000000",
        id="another-range", marks=pytest.mark.case(27),
    ),
    pytest.param(
        Altered(headers={"Content-Range": "bytes 0-999999/1000001"}),
        WrongRangeError, "wanted bytes 0-999999/1000000",
        id="another-size", marks=pytest.mark.case(27),
    ),
    pytest.param(
        Altered(headers={"Content-Range": None, "Content-Type": "multipart/byteranges"}),
        WrongRangeError, "sends range none", id="several-ranges",
    ),
    pytest.param(
        Altered(headers={"Content-Length": "1000001"}),
        WrongRangeError, "announces 1000001 bytes, wanted 1000000",
        id="announces-more", marks=pytest.mark.case(22),
    ),
    pytest.param(
        Altered(headers={"Content-Length": "999999"}),
        WrongRangeError, "announces 999999 bytes", id="announces-less",
    ),
    pytest.param(
        Raw(data=b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999999/1000000\r\n\r\n" + b"few"),
        TooShortError, "ended after 3 of 1000000 bytes",
        id="no-length-and-too-few", marks=pytest.mark.case(21),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "error", "message"), RANGE_FAILURES)
def test_a_fetch_survives_a_failure_and_remembers_it(
    fault: Fault, error: type[HttpError], message: str, web: Web
) -> None:
    faults = 6 if "more than 5 times" in message else 1  # one request is redirected six times
    web.play(*[fault] * faults)
    loading = download(web, limits=limits_for(error))

    fetch(loading, pieces())

    assert type(loading.mirrors[0].error) is error
    assert loading.mirrors[0].error is not None
    assert loading.mirrors[0].error.args[0]
    with pytest.raises(error, match=message):
        raise loading.mirrors[0].error


@pytest.mark.parametrize(("fault", "error", "message"), RANGE_FAILURES)
def test_a_failure_that_lasts_ends_the_fetch_and_is_named(
    fault: Fault, error: type[HttpError], message: str, web: Web
) -> None:
    web.always = fault
    loading = download(web, limits=replace(limits_for(error), attempts=2))

    with pytest.raises(NoMirrorError, match=message):
        loading.fetch(pieces(1_000_000), Taker())

    assert type(loading.mirrors[0].error) is error


@pytest.mark.case(22)
def test_a_range_that_never_ends_is_cut_off(web: Web) -> None:
    web.play(Chunked(size=5000, endless=True))
    loading = download(web)

    fetch(loading, [Piece(0, SPAN), Piece(500_000, SPAN)])

    assert loading.network.fetched == 2 * SPAN
    assert isinstance(loading.mirrors[0].error, TooLongError)


@pytest.mark.case(29)
@pytest.mark.case(30)
def test_the_body_of_a_redirect_is_not_read(web: Web, other: Web) -> None:
    """Least of all decoded: it may be a bomb, and requests by itself unpacks it all."""
    bomb = gzip.compress(bytes(200_000_000), 1)
    headers = {"Location": other.url(), "Content-Encoding": "gzip"}
    web.play(Altered(status=302, headers=headers, body=bomb))
    tracemalloc.start()
    try:
        fetch(download(web, limits=BRISK), pieces(SPAN, SPAN))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.case(22)
def test_bytes_beyond_a_range_do_not_disturb_the_next_one(web: Web) -> None:
    web.always = Longer(by=b"HTTP/1.1 206 Partial Content\r\n\r\n" * 1000)
    loading = download(web)

    for _ in range(3):
        fetch(loading, pieces())

    assert len(web.ranges) == 3


@pytest.mark.case(23)
def test_a_mirror_that_drips_is_given_up(web: Web) -> None:
    clock = Clock()
    web.always = DrippingHeader(clock.forward)
    nobody = "http://127.0.0.1:1/blob"  # an answer could be late by the clock that the drip moves
    network = Network(replace(BRISK, deadline=10**9), ONE, clock)
    loading = Download(network, [web.url(), nobody], blob_size=len(BLOB))

    with pytest.raises(NoMirrorError, match=r"wanted 4096 a second; .*refused"):
        loading.fetch(pieces(), Taker())


@pytest.mark.case(25)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_what_was_delivered_is_not_fetched_again(reset: bool, web: Web) -> None:  # noqa: FBT001
    web.play(Truncated(after=250_000, reset=reset), Truncated(after=130_000, reset=reset))

    fetch(download(web), pieces())

    assert web.ranges[0] == (0, 1_000_000)
    if not reset:  # a reset also throws away what the client had not read yet
        assert web.ranges[1:] == [(200_000, 1_000_000), (300_000, 1_000_000)]
    assert all(begin % SPAN == 0 and end == 1_000_000 for begin, end in web.ranges)


def test_a_mirror_that_always_breaks_off_is_asked_as_long_as_it_gives_something(web: Web) -> None:
    web.always = Truncated(after=130_000)

    with pytest.raises(NoMirrorError):  # the last span is whole: Truncated then ends with it
        download(web, limits=BRISK).fetch([*pieces(), Piece(5, 200_000)], Taker())
    fetch(download(web), pieces())

    assert len(web.ranges) >= 10


@pytest.mark.case(28)
def test_a_file_that_changes_between_requests(web: Web) -> None:
    loading = download(web)
    fetch(loading, pieces(SPAN, SPAN))
    web.play(Altered(headers={"ETag": '"another"'}))

    fetch(loading, pieces())

    error = loading.mirrors[0].error
    assert isinstance(error, ChangedError)
    assert 'changed: its ETag was "1000000" and is "another"' in str(error)
    assert web.ranges[1:] == [(0, 1_000_000)] * 2


def test_a_server_without_etags_is_trusted_all_the_same(web: Web) -> None:
    loading = download(web)
    fetch(loading, pieces())
    web.always = Altered(headers={"ETag": None})

    fetch(loading, pieces())

    assert loading.mirrors[0].error is None


def test_connections_are_kept(web: Web) -> None:
    far = [Piece(at, 1000) for at in range(0, 1_000_000, 50_000)]
    for always in (Fine(), Chunked(size=333)):
        web.always = always
        before = web.connections

        fetch(download(web), far)

        assert web.connections == before + 1


def test_a_server_that_silently_closes_its_connections(web: Web) -> None:
    web.always = Leaving()

    fetch(download(web, limits=replace(BRISK, attempts=5)), pieces(10_000)[::3])

    assert web.connections >= 30


# Spans -------------------------------------------------------------------------------------------


def test_neighbours_are_one_request(web: Web) -> None:
    fetch(download(web), pieces(50))

    assert web.ranges == [(0, 1_000_000)]


def test_a_small_gap_is_fetched_for_nothing_and_a_large_one_is_not(web: Web) -> None:
    near = [Piece(0, 1000), Piece(1000 + 8 * 1024, 1000)]
    far = [Piece(500_000, 1000), Piece(501_000 + 8 * 1024 + 1, 1000)]
    loading = download(web)

    fetch(loading, near + far)

    assert web.ranges == [(0, 10_192), (500_000, 501_000), (509_193, 510_193)]
    assert loading.network.fetched == 10_192 + 2000


def test_a_request_has_an_end() -> None:
    blob = bytes(20 * 2**20)
    with Web({"/blob": blob}) as web:
        taker = Taker()
        loading = Download(Network(BRISK, ONE), [web.url()], blob_size=len(blob))
        loading.fetch(pieces(2**20, len(blob)), taker)

        assert taker.calls == 20
        assert web.ranges == [(0, 2**23), (2**23, 2**24), (2**24, 20 * 2**20)]


def test_spans_in_any_order_overlapping_and_again(web: Web) -> None:
    spans = [*reversed(pieces(70_000)), Piece(0, 100), Piece(50, 100), Piece(60_000, 500_000)]

    fetch(download(web, way=Way(connections=3)), spans)


def test_a_range_that_two_want_is_fetched_once(web: Web) -> None:
    """Two batches of an image with the same bytes share them; each gets a copy of its own."""

    class Batch(Piece):
        pass

    same = [Piece(5000, 1000), Batch(5000, 1000), Batch(5000, 1000)]
    found: list[tuple[Piece, bytearray]] = []

    def deliver(span: Piece, data: bytearray) -> None:
        found.append((span, data))
        data.reverse()

    download(web).fetch([*same, same[0]], deliver)

    assert web.ranges == [(5000, 6000)]
    assert {id(span) for span, _ in found} == {id(span) for span in same}
    assert len(found) == len({id(data) for _, data in found}) == 4
    assert all(bytes(data) == BLOB[5000:6000][::-1] for _, data in found)


def test_nothing_is_delivered_without_a_request(web: Web) -> None:
    loading = download(web)
    loading.fetch([], Taker())
    fetch(loading, [Piece(0, 0), Piece(500, 0)])

    assert web.requests == []

    fetch(loading, [Piece(500, 0), Piece(500, 10)])


def test_a_span_beyond_the_file(web: Web) -> None:
    with pytest.raises(NoMirrorError, match="answers 416 Range Not Satisfiable"):
        download(web).fetch([Piece(2_000_000, 10)], Taker())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_goes_wrong_each_span_is_delivered_once(seed: int, web: Web, other: Web) -> None:
    chance = random.Random(seed)  # noqa: S311
    some: list[Callable[[], Fault]] = [
        lambda: Truncated(after=chance.randrange(300_000), reset=chance.random() < 0.5),
        lambda: Altered(status=503),
        lambda: Raw(data=b""),
        lambda: Chunked(size=chance.randrange(100, 100_000)),
        lambda: Longer(by=b"!" * 100_000),
        Leaving,
        lambda: PORTAL,
        lambda: Altered(headers={"ETag": f'"{chance.random()}"'}),
        Fine,
    ]
    for server in (web, other):
        server.play(*[chance.choice(some)() for _ in range(60)])
    spans = [Piece(chance.randrange(990_000), chance.randrange(1, 10_000)) for _ in range(300)]
    spans += pieces(9999)
    chance.shuffle(spans)

    fetch(
        download(web, other, limits=replace(BRISK, attempts=1000), way=Way(connections=3)),
        list(dict.fromkeys(spans)),
    )


# Mirrors -----------------------------------------------------------------------------------------


@pytest.mark.case(35)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Altered(status=404), id="404"),
        pytest.param(PORTAL, id="captive-portal"),
        pytest.param(Truncated(after=10), id="truncated"),
        pytest.param(Raw(data=b""), id="closed"),
    ],
)
def test_the_first_mirror_is_bad_and_the_second_is_good(fault: Fault, web: Web, other: Web) -> None:
    web.always = fault

    fetch(download(web, other, way=Way(connections=2)), pieces())

    assert sum(end - begin for begin, end in other.ranges) >= 1_000_000


def test_when_all_mirrors_fail_each_is_named_with_its_cause(web: Web, other: Web) -> None:
    web.always = Altered(status=404)
    other.always = PORTAL

    with pytest.raises(NoMirrorError) as caught:
        download(web, other).fetch(pieces(), Taker())

    assert f"{web.url()} answers 404" in str(caught.value)
    assert f"{other.url()} was asked for bytes" in str(caught.value)
    assert caught.value.hint == (
        "the web server must serve ranges; a login page of the network looks so too;"
        " what was fetched so far is kept; the next attempt goes on from there"
    )


def test_there_are_no_mirrors() -> None:
    loading = Download(Network(), [], blob_size=10)

    with pytest.raises(NoMirrorError):
        loading.fetch([Piece(0, 10)], Taker())


def test_a_mirror_that_pauses_keeps_nothing_for_itself(web: Web) -> None:
    """One of two connections fails and pauses for a minute: the other one does its work."""
    web.play(Altered(status=503))

    fetch(download(web, limits=Limits(pause=60), way=Way(connections=2)), pieces())


def test_what_breaks_on_all_connections_at_once_is_one_failure(web: Web) -> None:
    barrier = threading.Barrier(4)

    @dataclass(frozen=True)
    class Restarting:
        def play(self, peer: Peer, answer: Answer) -> None:
            del answer
            barrier.wait(ENOUGH)
            peer.reset()

    web.play(*[Restarting()] * 4)
    far = [Piece(at, 1000) for at in range(0, 1_000_000, 50_000)]

    loading = download(web, way=Way(connections=4))

    fetch(loading, far)

    assert loading.mirrors[0].failures == 0


def test_a_pause_is_not_longer_than_a_minute(web: Web) -> None:
    """Doubled without an end it would soon be too long for a clock."""
    web.always = Altered(status=503)
    limits = Limits(attempts=2000, pause=1e-9)
    loading = download(web, limits=limits)
    loading.mirrors[0].failures = 1990

    with pytest.raises(NoMirrorError):
        loading.fetch(pieces(), Taker())


def silence_until(gate: Gate, then: Gate) -> threading.Thread:
    """Let ``then`` open once a server hangs at ``gate``."""

    def work() -> None:
        gate.wait_for_arrival()
        then.open()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("after", [None, 0, 150_000], ids=["no-headers", "headers", "midway"])
def test_a_silent_mirror_does_not_hold_up_a_fast_one(
    after: int | None, web: Web, other: Web
) -> None:
    """The slow one gets work first, then nothing moves there until the test is over."""
    gate, ready = Gate(), Gate()
    web.always = Hanging(after=after, gate=gate)
    other.play(Hanging(after=None, gate=ready))
    waiting = silence_until(gate, ready)
    far = [*pieces(SPAN, 500_000), *[Piece(600_000 + at, 1000) for at in range(0, 400_000, 20_000)]]
    loading = download(web, other, way=Way(connections=1))

    fetch(loading, far)
    waiting.join()

    assert len(web.ranges) == 1
    assert loading.mirrors[0].failures == 0
    begin, end = web.ranges[0]
    doubled = [it for it in other.ranges if begin <= it[0] < end]
    assert len(doubled) <= 2  # what came after the silence began, and that only once


def test_a_silent_connection_does_not_hold_up_the_others_to_the_same_mirror(web: Web) -> None:
    gate, ready = Gate(), Gate()
    web.play(Hanging(after=100, gate=gate), Hanging(after=None, gate=ready))
    far = [Piece(0, 1000), Piece(500_000, 1000)]
    waiting = silence_until(gate, ready)

    fetch(download(web, way=Way(connections=5)), far)
    waiting.join()

    assert len(web.ranges) == 3


def test_a_rest_that_was_taken_over_in_vain_is_not_lost(web: Web, other: Web) -> None:
    """The taker fails until it is given up; then the silent one goes on."""
    gate, ready = Gate(), Gate()

    @dataclass(frozen=True)
    class Last:
        def play(self, peer: Peer, answer: Answer) -> None:
            Altered(status=404).play(peer, answer)
            gate.open()

    web.play(Hanging(after=100, gate=gate))
    other.play(Hanging(after=None, gate=ready), Altered(status=404), Last())
    other.always = Altered(status=404)
    waiting = silence_until(gate, ready)

    fetch(download(web, other), [*pieces(SPAN, 500_000), Piece(900_000, 1000)])
    waiting.join()

    assert {begin for begin, _ in web.ranges} & {begin for begin, _ in other.ranges[1:]}


def test_after_a_fetch_its_stragglers_change_nothing(web: Web, other: Web) -> None:
    gate, ready = Gate(), Gate()
    web.play(Hanging(after=100, gate=gate))
    other.play(Hanging(after=None, gate=ready))
    waiting = silence_until(gate, ready)
    loading = download(web, other)
    taker = Taker()
    spans = [Piece(0, 1000), Piece(500_000, 1000)]

    loading.fetch(spans, taker)
    waiting.join()
    stragglers = fetchers()
    gate.open()
    for thread in stragglers:
        thread.join(ENOUGH)

    assert taker.calls == 2
    assert [(it.failures, it.error) for it in loading.mirrors] == [(0, None)] * 2


def flawed(data: bytearray) -> bool:
    return bytes(data) not in {BLOB[at : at + SPAN] for at in range(0, len(BLOB), SPAN)}


@pytest.mark.case(34)
def test_whoever_gave_wrong_bytes_is_not_asked_again(web: Web, other: Web) -> None:
    gate, ready = Gate(), Gate()
    ready.open()
    web.files["/blob"] = bytes(len(BLOB))
    other.always = Hanging(after=None, gate=gate)
    loading = download(web, other)
    wrong: list[Piece] = []

    def deliver(span: Piece, data: bytearray) -> None:
        if flawed(data):
            wrong.append(Piece(span.blob_offset, span.blob_length))
        gate.open()

    loading.fetch(pieces(), deliver)
    assert wrong
    loading.distrust(wrong)
    asked = len(web.requests)
    fetch(loading, wrong)

    assert len(web.requests) == asked
    assert f"{web.url()} sends bytes with a wrong hash" in str(loading.mirrors[0].error)
    other.always = Altered(status=500)
    with pytest.raises(NoMirrorError, match=r"wrong hash; .* answers 500"):
        loading.fetch(pieces(), Taker())


@pytest.mark.case(34)
def test_when_all_gave_wrong_bytes_all_are_asked_again(web: Web) -> None:
    """Then the network garbles: the only mirror may do better at the next try."""
    loading = download(web)
    web.files["/blob"] = bytes(len(BLOB))
    loading.fetch(pieces(), Taker())
    web.files["/blob"] = BLOB

    loading.distrust(pieces())

    fetch(loading, pieces())


def test_distrust_is_for_those_who_gave_something(web: Web) -> None:
    loading = download(web)

    loading.distrust(pieces())
    fetch(loading, pieces())
    loading.distrust([Piece(1, 1)])

    assert loading.mirrors[0].failures == 0


# Delivering --------------------------------------------------------------------------------------


class DiskError(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(DiskError("full"), id="an-error"),
        pytest.param(SilentError("full, says a disk behind HTTP"), id="an-error-like-a-mirrors"),
        pytest.param(SystemExit("full"), id="no-exception"),
    ],
)
@pytest.mark.parametrize("nth", [1, 4, 10], ids=["first", "middle", "last"])
def test_an_error_of_the_taker_ends_everything(
    error: BaseException, nth: int, web: Web, other: Web
) -> None:
    other.always = Hanging(after=0)
    taker = Taker()

    def deliver(span: Piece, data: bytearray) -> None:
        taker(span, data)
        if taker.calls == nth:
            raise error

    with pytest.raises(type(error), match="full"):
        download(web, other, limits=Limits(), way=Way(connections=2)).fetch(pieces(), deliver)

    assert taker.calls == nth
    assert not [it for it in fetchers() if "deliver" in repr(it)]


def test_nothing_is_delivered_once_a_fetch_has_failed(web: Web) -> None:
    """What is being delivered is waited for: the caller may close its disk then."""
    inside, outside = threading.Event(), threading.Event()
    ended: list[str] = []

    def deliver(span: Piece, _data: bytearray) -> None:
        if span.blob_offset:
            assert inside.wait(ENOUGH)
            outside.set()
            raise DiskError("full")
        inside.set()
        assert outside.wait(ENOUGH)
        for other in set(fetchers()) - {threading.current_thread()}:
            other.join(ENOUGH)  # it has failed then
        ended.append("delivered")

    with pytest.raises(DiskError):
        download(web, way=Way(connections=2)).fetch([Piece(0, 1000), Piece(500_000, 1000)], deliver)

    assert ended == ["delivered"]


def test_a_deadline_waits_for_what_is_being_delivered(web: Web) -> None:
    ended: list[str] = []

    def deliver(_span: Piece, _data: bytearray) -> None:
        time.sleep(0.3)  # a disk that is slower than the deadline
        ended.append("delivered")

    with pytest.raises(DeadlineError):
        download(web, limits=Limits(deadline=0.15)).fetch(pieces(), deliver)

    assert ended == ["delivered"]


def test_an_interrupted_fetch_delivers_nothing_more(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    web.always = Hanging(after=150_000, gate=gate)
    taker = Taker()

    def interrupted(_fetch: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads._Fetch, "_settled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(web).fetch(pieces(), taker)
    before = taker.calls
    gate.open()
    for thread in fetchers():
        thread.join(ENOUGH)

    assert taker.calls == before


def test_two_fetches_may_share_a_network(web: Web, other: Web) -> None:
    network = Network(BRISK, Way(connections=2))
    found: list[dict[Piece, bytes]] = []

    def work(server: Web) -> None:
        taker = Taker()
        Download(network, [server.url()], blob_size=len(BLOB)).fetch(pieces(), taker)
        found.append(taker.data)

    threads = [threading.Thread(target=work, args=(it,)) for it in (web, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)

    assert found == [right(pieces())] * 2
    assert network.fetched == 2 * len(BLOB)


def test_no_connection_is_left_open(web: Web) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    fetch(download(web, way=Way(connections=2)), pieces(1000))
    for thread in fetchers():
        thread.join(ENOUGH)

    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # the server's ends


# Manners -----------------------------------------------------------------------------------------


@contextmanager
def overheard() -> Iterator[Callable[[int], set[int]]]:
    """Listen to the loopback; yield who says how packets of data to a port are marked."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sock:
        sock.bind(("lo", ETH_P_ALL))
        sock.settimeout(0.0)

        def marks(port: int) -> set[int]:
            found = set()
            with suppress(BlockingIOError):
                while packet := sock.recv(65536):
                    first = int.from_bytes(packet[:2])
                    head = first >> 8 & 15 if first >> 12 == 4 else 10
                    tcp = packet[4 * head :]
                    if tcp[2:4] == port.to_bytes(2) and len(tcp) > (tcp[12] >> 4) * 4:
                        found.add(first & 255 if first >> 12 == 4 else first >> 4 & 255)
            return found

        yield marks


ETH_P_ALL = 3


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")],
    ids=["IPv4", "IPv6"],
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_what_is_fetched_is_marked_as_of_lower_effort(
    family: socket.AddressFamily, host: str, tmp_path: Path, *, encrypted: bool
) -> None:
    """Traffic class 0x04: DSCP 1, as RFC 8622 has it, and no word about congestion."""
    authority = Authority(tmp_path)
    tls = authority.context(host.strip("[]")) if encrypted else None
    way = Way(ca_file=str(authority.file))
    with Web({"/blob": b"ok"}, tls=tls, family=family) as web, overheard() as marks:
        assert get(Network(way=way), web.url(host=host), max_size=2) == b"ok"
        assert marks(web.port) == {0x04}
