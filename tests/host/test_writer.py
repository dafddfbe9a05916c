"""The client, against a writer that the test plays: what it gives, and what it makes of answers."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from update_agent.core import trust, wire
from update_agent.core.release import PayloadReference, Release
from update_agent.core.slot import SlotName
from update_agent.core.trust import Evidence
from update_agent.core.version import Version
from update_agent.core.wire import (
    GIFTS,
    REQUESTS,
    BusyError,
    Distrust,
    Failed,
    Install,
    Installed,
    Message,
    Planned,
    Progress,
    Range,
    Stored,
    Verified,
    Want,
    WantIndex,
    WireError,
)
from update_agent.errors import HostError, ReleaseError
from update_agent.host.wire import Connection, GoneError
from update_agent.host.writer import Writer

ENOUGH = 20.0
NOW = datetime(2026, 11, 24, tzinfo=UTC)
SHA = "0" * 64
REFERENCE = PayloadReference(index_size=3, index_sha256=SHA, blob_size=100, stored_size=100)
RELEASE = Release(
    product="os", architecture="x86_64", version=Version("1.1.0"), published=NOW, image_size=4096,
    root_hash=SHA, payloads=(REFERENCE,),
)  # fmt: skip
EVIDENCE = Evidence(roots=(b"r1", b"r2"), targets=b"t", releases=b"rs", release=b"r")
DONE = Installed(
    verified=Verified(
        slot=SlotName.B, product="os", version=Version("1.1.0"), root_hash=SHA, image_size=4096,
        attempt="a", time=NOW,
    ),
    payload=SHA, fetched=1, saved=2, written=3, milliseconds={}, peak_memory=4,
)  # fmt: skip

Play = Callable[[Connection], None]


@contextmanager
def played(path: Path, play: Play) -> Iterator[Path]:
    """Listen at ``path``; whoever comes talks to ``play``."""
    failures: list[BaseException] = []

    def answer() -> None:
        sock, _ = listening.accept()
        connection = Connection(sock)
        try:
            play(connection)
        except BaseException as error:  # noqa: BLE001  raised in the test's own thread
            failures.append(error)
        finally:
            connection.close()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        yield path
        thread.join(ENOUGH)
    assert not failures, failures


def hear(connection: Connection, kinds: wire.Kinds = GIFTS) -> tuple[Message, bytes]:
    message, data = connection.receive(kinds, lambda _: 2**20, silence=ENOUGH)
    return message, bytes(data)


@dataclass
class Given:
    """A payload whose blob is a hundred different bytes; notes what it is asked for."""

    wanted: list[Range] = field(default_factory=list)
    distrusted: list[Range] = field(default_factory=list)
    plans: list[Planned] = field(default_factory=list)
    shown: list[Progress] = field(default_factory=list)

    def index(self, payload: PayloadReference) -> bytes:
        assert payload == REFERENCE
        return b"idx"

    def blob(self, payload: PayloadReference) -> "Given":
        assert payload == REFERENCE
        return self

    def fetch(self, spans: Sequence[Range], deliver: Callable[[Range, bytearray], None]) -> None:
        self.wanted.extend(spans)
        for it in spans:
            deliver(it, bytearray(range(it.blob_offset, it.blob_offset + it.blob_length)))

    def distrust(self, spans: Sequence[Range]) -> None:
        self.distrusted.extend(spans)

    def planned(self, plan: Planned) -> None:
        self.plans.append(plan)

    def show(self, progress: Progress) -> None:
        self.shown.append(progress)


def install(path: Path, given: Given, evidence: Evidence = EVIDENCE) -> Installed:
    return Writer(path).install(RELEASE, evidence, given, attempt="a", watcher=given)


def until_proven(connection: Connection) -> list[bytes]:
    """Take a request and its evidence."""
    request, _ = hear(connection, REQUESTS)
    assert isinstance(request, Install)
    return [hear(connection)[1] for _ in request.pieces]


def test_an_installation_gives_what_is_asked_for_and_hears_what_is_said(tmp_path: Path) -> None:
    stored: list[bytes] = []
    evidence: list[bytes] = []

    def play(connection: Connection) -> None:
        evidence.extend(until_proven(connection))
        connection.send(WantIndex(sha256=SHA))
        assert hear(connection)[1] == b"idx"
        connection.send(Planned(fetch=9, write=2, copy=3, keep=4, saved=5))
        connection.send(Want(ranges=((0, 4),), more=True))
        connection.send(Want(ranges=((10, 5),)))
        for _ in range(2):
            stored.append(hear(connection)[1])
            connection.send(Progress(step="write", done=len(stored), size=2))
        connection.send(Distrust(ranges=((10, 5),)))
        connection.send(Want(ranges=((10, 5),)))
        stored.append(hear(connection)[1])
        connection.send(DONE)

    given = Given()
    with played(tmp_path / "socket", play) as path:
        assert install(path, given) == DONE

    assert evidence == [b"r1", b"r2", b"t", b"rs", b"r"]
    assert stored == [bytes(range(4)), bytes(range(10, 15)), bytes(range(10, 15))]
    assert given.distrusted == [Range(blob_offset=10, blob_length=5)]
    assert [it.fetch for it in given.plans] == [9]
    assert [it.done for it in given.shown] == [1, 2]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Failed(family="release", kind="ExpiredError", message="m", hint="h"), trust.ExpiredError),
        (Failed(family="host", kind="BusyError", message="m", hint="h"), BusyError),
        (Failed(family="release", kind="Unheard", message="m", hint="h"), ReleaseError),
        (Failed(family="host", kind="OSError", message="m", hint="h"), HostError),
    ],
)
def test_a_failure_is_raised_as_what_it_was(
    said: Failed, kind: type[Exception], tmp_path: Path
) -> None:
    def play(connection: Connection) -> None:
        until_proven(connection)
        connection.send(said)

    with (
        played(tmp_path / "socket", play) as path,
        pytest.raises(kind, match=r"^m$") as raised,
    ):
        install(path, Given())
    assert type(raised.value) is kind
    assert getattr(raised.value, "hint", None) == "h"


def test_a_failure_that_comes_while_much_is_being_given_is_heard(tmp_path: Path) -> None:
    def play(connection: Connection) -> None:
        hear(connection, REQUESTS)
        connection.send(Failed(family="host", kind="HostError", message="the disk is broken"))

    big = Evidence(targets=b"t" * 200_000, releases=b"r" * 4_000_000, release=b"r")
    with (
        played(tmp_path / "socket", play) as path,
        pytest.raises(HostError, match=r"^the disk is broken$"),
    ):
        install(path, Given(), big)


def test_a_writer_that_dies_is_told(tmp_path: Path) -> None:
    with (
        played(tmp_path / "socket", lambda connection: connection.close()) as path,
        pytest.raises(GoneError, match=r"^the other end left"),
    ):
        install(path, Given())


@pytest.mark.parametrize(
    "answer",
    [
        WantIndex(sha256="1" * 64),
        Want(ranges=((0, 1),)),
        Distrust(ranges=((0, 1),)),
        Planned(fetch=0, write=0, copy=0, keep=0, saved=0),
    ],
    ids=lambda it: type(it).__name__,
)
def test_a_writer_that_is_out_of_its_mind_is_told_of_or_gets_nothing(
    answer: Message, tmp_path: Path
) -> None:
    def play(connection: Connection) -> None:
        until_proven(connection)
        connection.send(answer)

    given = Given()
    with played(tmp_path / "socket", play) as path, pytest.raises((WireError, GoneError)):
        install(path, given)
    assert given.wanted == []


def test_evidence_that_the_writer_would_not_read_is_not_even_sent(tmp_path: Path) -> None:
    def play(connection: Connection) -> None:
        with suppress(GoneError):
            until_proven(connection)

    large = Evidence(targets=b"t", releases=b"r" * (wire.MAX_PIECE + 1), release=b"r")
    with (
        played(tmp_path / "socket", play) as path,
        pytest.raises(ReleaseError, match=r"^releases has 4194305 bytes, the writer takes at most"),
    ):
        install(path, Given(), large)


def test_what_a_download_raises_ends_the_installation(tmp_path: Path) -> None:
    class Broken(Given):
        def fetch(self, *_: object) -> None:
            raise HostError("no mirror is left")

    def play(connection: Connection) -> None:
        until_proven(connection)
        connection.send(WantIndex(sha256=SHA))
        hear(connection)
        connection.send(Want(ranges=((0, 1),)))
        with pytest.raises(GoneError):
            hear(connection)

    with (
        played(tmp_path / "socket", play) as path,
        pytest.raises(HostError, match=r"^no mirror is left$"),
    ):
        install(path, Broken())


def test_a_watcher_who_raises_ends_the_installation(tmp_path: Path) -> None:
    class Enough(Given):
        def planned(self, _: Planned) -> None:
            raise KeyboardInterrupt

    def play(connection: Connection) -> None:
        until_proven(connection)
        connection.send(Planned(fetch=0, write=0, copy=0, keep=0, saved=0))
        with pytest.raises(GoneError):
            hear(connection)

    with played(tmp_path / "socket", play) as path, pytest.raises(KeyboardInterrupt):
        install(path, Enough())


def test_nobody_at_the_socket_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"^cannot reach the writer at .*: No such file") as raised:
        Writer(tmp_path / "nowhere")
    assert raised.value.hint == "systemctl status update-agent-writer.socket"


def test_stored_bytes_keep_their_place(tmp_path: Path) -> None:
    """From many threads at once, as a download gives them."""

    class Many(Given):
        def fetch(
            self, spans: Sequence[Range], deliver: Callable[[Range, bytearray], None]
        ) -> None:
            threads = [threading.Thread(target=Given().fetch, args=([it], deliver)) for it in spans]
            for it in threads:
                it.start()
            for it in threads:
                it.join()

    got: dict[int, bytes] = {}

    def play(connection: Connection) -> None:
        until_proven(connection)
        connection.send(WantIndex(sha256=SHA))
        hear(connection)
        connection.send(Want(ranges=tuple((at, 3) for at in range(0, 90, 3))))
        for _ in range(30):
            message, data = hear(connection)
            assert isinstance(message, Stored)
            got[message.offset] = data
        connection.send(DONE)

    with played(tmp_path / "socket", play) as path:
        install(path, Many())
    assert got == {at: bytes(range(at, at + 3)) for at in range(0, 90, 3)}
