"""Bad callers: everything that a process may try which is allowed to talk to the writer."""

import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.hosts import ENOUGH, V2, World, listening, wait_until
from update_agent.core import wire
from update_agent.core.wire import (
    ANSWERS,
    Arm,
    AskState,
    Failed,
    GiveIndex,
    Install,
    Message,
    Missing,
    Piece,
    Planned,
    State,
    Stored,
    Want,
    WantIndex,
)
from update_agent.errors import HostError
from update_agent.host.systemd import Notifier
from update_agent.host.wire import Connection, GoneError
from update_agent.host.writer import Writer
from update_agent.writer import memory
from update_agent.writer.server import CALLERS, Patience, Server, uid_of

NOBODY = uid_of("nobody")


@pytest.fixture
def unharmed(world: World) -> Iterator[World]:
    """A host that must be afterwards as it was before, with a writer that still answers."""
    before = world.disk.read_bytes()
    with world.serving():
        yield world
        assert world.look().next == "A"
    assert world.disk.read_bytes() == before


def answers(connection: Connection) -> list[Message]:
    """Return what the writer says until it hangs up."""
    found: list[Message] = []
    while True:
        try:
            found.append(connection.receive(ANSWERS, silence=ENOUGH)[0])
        except GoneError:
            connection.close()
            return found


def said(world: World, *parts: bytes) -> list[Message]:
    """Say bytes, then nothing more; return what the writer says to that."""
    sock = world.dial()
    try:
        for part in parts:
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # it hung up before the end
        pass
    return answers(Connection(sock))


def header(text: int, data: int) -> bytes:
    return struct.pack("<4sII", b"UAW\1", text, data)


# What is no conversation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"\0"],
        [b"UAW"],
        [b"GET / HTTP/1.1\r\nHost: writer\r\n\r\n"],
        [header(2**32 - 1, 2**32 - 1)],
        [header(65536, 0), b" " * 65536],
        [header(10, 0), b"{"],
        [header(2, 0), b"{}"],
        [header(9, 0), b'{"a": {}}'],
        [header(11, 2**32 - 1), b'{"arm": {}}', b"x" * 200_000],
        [wire.encode(Arm(), 1), b"x"],
        [wire.encode(AskState(), 2**31)],
        [wire.encode(Stored(offset=0, length=5), 5), b"12345"],
        [wire.encode(GiveIndex())],
        [wire.encode(Planned(fetch=0, write=0, copy=0, keep=0, saved=0))],
    ],
    ids=lambda parts: repr(b"".join(parts)[:40]),
)
def test_what_is_no_request_ends_the_conversation(parts: list[bytes], unharmed: World) -> None:
    found = said(unharmed, *parts)

    assert all(isinstance(it, Failed) and it.kind == "WireError" for it in found)
    assert len(found) <= 1


def test_noise_ends_the_conversation(unharmed: World) -> None:
    chance = Random(5)  # noqa: S311  must repeat, need not be secret
    for _ in range(200):
        said(unharmed, chance.randbytes(chance.randrange(1, 3000)))


# Lies during an installation ----------------------------------------------------------------------


class Liar:
    """Begins an installation as it should be, and then says what the test wants."""

    def __init__(self, world: World, **fields: object) -> None:
        self.world = world
        self.connection = world.raw()
        evidence = world.fleet.evidence()
        self.pieces = [
            (Piece(name="targets"), evidence.targets),
            (Piece(name="releases"), evidence.releases),
            (Piece(name="release"), evidence.release),
        ]
        install = Install(product="os", version=V2, attempt="liar")
        self.connection.send(replace(install, **fields))  # type: ignore[arg-type]

    def prove(self) -> None:
        for piece, data in self.pieces:
            self.connection.send(piece, data)

    def hear(self) -> Message:
        return self.connection.receive(ANSWERS, silence=ENOUGH)[0]

    def want_refused(self, match: str, kind: str = "WireError") -> None:
        """Hold that the writer hangs up, with this as its last word."""
        last = answers(self.connection)[-1]
        assert isinstance(last, Failed), last
        assert last.kind == kind
        assert match in last.message

    def until_wanted(self) -> list[wire.Range]:
        """Prove, give the right index, and return the ranges that are wanted then."""
        self.prove()
        asked = self.hear()
        assert isinstance(asked, WantIndex)
        release = self.world.fleet.release()
        reference = next(it for it in release.payloads if it.index_sha256 == asked.sha256)
        www = self.world.fleet.folder / "www"
        self.blob = (www / release.blob_path(reference)).read_bytes()
        self.connection.send(GiveIndex(), (www / release.index_path(reference)).read_bytes())
        while not isinstance(it := self.hear(), Want):
            pass
        return it.each()


def test_evidence_out_of_order_is_refused(unharmed: World) -> None:
    liar = Liar(unharmed)
    liar.pieces.reverse()
    liar.connection.send(*liar.pieces[0])
    liar.want_refused("Piece(name='release') comes, wanted the evidence 'targets'")


@pytest.mark.parametrize("name", ["targets", "releases", "release"])
def test_evidence_that_is_too_long_is_refused_before_it_is_read(name: str, unharmed: World) -> None:
    liar = Liar(unharmed)
    for piece, data in liar.pieces:
        if piece.name == name:
            size = wire.max_piece(name) + 1
            sock = liar.connection
            with pytest.raises(GoneError):
                sock.send(piece, bytes(size + 2**20))
            break
        liar.connection.send(piece, data)
    liar.want_refused("wanted at most")


def test_roots_that_are_too_many_bytes_together_are_refused(unharmed: World) -> None:
    liar = Liar(unharmed, roots=256)
    liar.connection.send(Piece(name="root"), b" " * 400_000)
    with pytest.raises(GoneError):
        liar.connection.send(Piece(name="root"), b" " * 400_000)
    liar.want_refused("wanted at most 112000")


@pytest.mark.parametrize("junk", [b"[]," * 1_300_000, b'{"a":' * 800_000, b"[" * 4_000_000])
def test_evidence_that_would_fill_the_memory_is_refused(junk: bytes, unharmed: World) -> None:
    liar = Liar(unharmed)
    liar.connection.send(*liar.pieces[0])
    liar.connection.send(Piece(name="releases"), junk)
    liar.want_refused("which is odd", kind="ReleaseError")


def test_an_index_before_the_evidence_is_refused(unharmed: World) -> None:
    liar = Liar(unharmed)
    liar.connection.send(GiveIndex(), b"")
    liar.want_refused("wanted the evidence 'targets'")


def test_another_request_in_the_middle_is_refused(unharmed: World) -> None:
    liar = Liar(unharmed)
    liar.connection.send(Arm())
    liar.want_refused("a message is of the kind 'arm', wanted evidence, index, stored, missing")


def want_unarmed(world: World) -> None:
    """Hold that the writer answers, that A boots next, and that nobody can arm B."""
    state = world.look()
    assert (state.next, state.b.state, state.verified) == ("A", "retired", None)
    world.want_whole_boot()


@pytest.mark.parametrize("size", ["shorter", "longer", "same"])
def test_an_index_that_is_not_the_signed_one_is_refused(size: str, world: World) -> None:
    with world.serving():
        liar = Liar(world)
        liar.prove()
        asked = liar.hear()
        assert isinstance(asked, WantIndex)
        release = world.fleet.release()
        length = next(it for it in release.payloads if it.index_sha256 == asked.sha256).index_size
        wrong = bytes(length + {"shorter": -1, "longer": 1, "same": 0}[size])
        with suppress(GoneError):  # it may hang up in the middle of it
            liar.connection.send(GiveIndex(), wrong)
        if size == "longer":
            liar.want_refused("wanted at most")
        else:
            liar.want_refused("the index has", kind="UntrustedError")
        want_unarmed(world)


@pytest.mark.parametrize(
    "lie",
    ["never-asked-for", "other-length", "shorter", "longer", "twice", "none"],
)
def test_stored_bytes_that_were_not_asked_for_are_refused(lie: str, world: World) -> None:
    with world.serving():
        liar = Liar(world)
        first, *_ = liar.until_wanted()
        offset, length = first.blob_offset, first.blob_length
        data = liar.blob[offset : offset + length]
        match = f"Stored(offset={offset}, length={length}) comes"
        match lie:
            case "never-asked-for":
                message = Stored(offset=offset + 1, length=length)
                match = "which is not wanted, or not any more"
            case "other-length":
                message, data = Stored(offset=offset, length=length - 1), data[:-1]
                match = "which is not wanted, or not any more"
            case "twice":
                message = Stored(offset=offset, length=length)
                liar.connection.send(message, data)
                match = "which is not wanted, or not any more"
            case "none":
                message, data = Stored(offset=offset, length=length), b""
            case "shorter":
                message, data = Stored(offset=offset, length=length), data[:-1]
            case _:
                message, data = Stored(offset=offset, length=length), data + b"x"
                match = f"Stored comes with {length + 1} bytes, wanted at most {length}"
        with suppress(GoneError):
            liar.connection.send(message, data)
        liar.want_refused(match)
        want_unarmed(world)


def test_who_lacks_a_payload_says_so_without_data(world: World) -> None:
    with world.serving():
        liar = Liar(world)
        liar.until_wanted()
        with suppress(GoneError):
            liar.connection.send(Missing(why="404"), b"x")
        liar.want_refused("Missing comes with 1 bytes, wanted at most 0")
        want_unarmed(world)


def test_who_lacks_every_payload_is_told_that_none_is_left(world: World) -> None:
    with world.serving():
        liar = Liar(world)
        liar.prove()
        wanted = []
        for _ in world.fleet.release().payloads:
            asked = liar.hear()
            assert isinstance(asked, WantIndex)
            wanted.append(asked.sha256)
            liar.connection.send(Missing(why="404"))
        liar.want_refused("the payload cannot be had: 404", kind="MissingError")

        full = world.fleet.release().full.index_sha256
        assert (len(set(wanted)), wanted[-1]) == (2, full)
        want_unarmed(world)


def test_who_leaves_at_any_moment_leaves_a_host_that_boots(world: World) -> None:
    """After each piece that a caller may have said."""
    with world.serving() as server:
        for pieces in range(4):
            liar = Liar(world)
            del liar.pieces[pieces:]
            liar.prove()
            leave(liar, server)
        for ranges in range(3):
            liar = Liar(world)
            wanted = liar.until_wanted()
            assert len(wanted) > ranges
            for it in wanted[:ranges]:
                data = liar.blob[it.blob_offset :][: it.blob_length]
                liar.connection.send(Stored(offset=it.blob_offset, length=it.blob_length), data)
            leave(liar, server)
        world.install()
    assert world.slot_b().startswith(world.fleet.releases.v2.content)


def leave(liar: Liar, server: Server) -> None:
    liar.connection.close()
    wait_until(lambda: not server.callers)
    want_unarmed(liar.world)


# Many, slow, and strange callers ------------------------------------------------------------------


def test_ten_thousand_connections_leave_a_writer_that_answers(
    unharmed: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(100):
        for sock in [unharmed.dial() for _ in range(100)]:
            sock.close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)  # noqa: PTH208
    assert unharmed.look().next == "A"


def test_more_than_a_few_callers_at_once_are_told_to_try_again(world: World) -> None:
    with world.serving() as server:
        held = [Writer(world.address) for _ in range(CALLERS + 2)]
        wait_until(lambda: len(server.callers) == CALLERS + 2)
        with pytest.raises(HostError, match=rf"^{CALLERS + 2} callers are at the writer$") as busy:
            world.look()
        assert busy.value.hint == "try again"
        for it in held:
            it.close()
        wait_until(lambda: not server.callers)
        assert world.look().next == "A"


def test_a_caller_who_says_nothing_is_sent_away(world: World) -> None:
    world.patience = Patience(silent_caller=0.05)
    with world.serving():
        assert said_nothing(world) == []


def said_nothing(world: World) -> list[Message]:
    return answers(world.raw())


def test_a_caller_who_drips_is_sent_away_within_the_time_for_a_frame(world: World) -> None:
    world.patience = Patience(frame=0.2)
    frame = wire.encode(AskState())
    with world.serving() as server:
        sock = world.dial()
        began = time.monotonic()
        for byte in frame[:-1]:
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                break
            threading.Event().wait(0.03)
        wait_until(lambda: not server.callers)
        took = time.monotonic() - began
        sock.close()
        assert world.look().next == "A"
    assert took < 5


def test_who_takes_no_answer_is_left(world: World) -> None:
    """Thousands of requests, and never an answer read: the writer ends with the one it is at."""
    with world.serving() as server:
        sock = world.dial()
        sock.settimeout(0.5)
        try:
            while True:
                sock.sendall(wire.encode(AskState()) * 100)
        except TimeoutError:
            pass
        assert world.look().next == "A"
        sock.close()
        wait_until(lambda: not server.callers)


_STRANGER = """
import os, sys, socket
sock = socket.socket(socket.AF_UNIX)
os.setgroups([]); os.setgid(65534); os.setuid(int(sys.argv[2]))
sock.connect(sys.argv[1])
data = b""
try:
    sock.sendall(bytes.fromhex(sys.argv[3]))
except OSError:
    pass
try:
    while piece := sock.recv(65536): data += piece
except OSError:
    pass
sys.stdout.buffer.write(data)
"""


def as_user(uid: int, world: World, request: bytes) -> bytes:
    """Say something as another user, and return the answer."""
    folder = world.address.parent
    while not folder.stat().st_mode & 0o001:
        folder.chmod(0o711)
        folder = folder.parent
    return subprocess.run(
        [sys.executable, "-c", _STRANGER, world.address, str(uid), request.hex()],
        stdout=subprocess.PIPE, check=True, timeout=ENOUGH,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(("uid", "known"), [(NOBODY, True), (12345, False), (1, False)])
def test_only_root_and_the_daemons_user_are_answered(
    *, uid: int, known: bool, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.patience = Patience(silent_caller=0.2)
    with world.serving(users=frozenset({NOBODY})):
        data = as_user(uid, world, wire.encode(AskState()))

    answer = wire.decode(data[wire.HEADER_SIZE :], ANSWERS)
    if known:
        assert isinstance(answer, State)
    else:
        assert isinstance(answer, Failed)
        assert answer.message.endswith(f"of user {uid} may not talk to the writer")
        assert f"a caller is refused: {answer.message}" in caplog.text


# The life of the process --------------------------------------------------------------------------


def test_the_writer_ends_when_nobody_asks_for_anything(world: World) -> None:
    with memory.opened(world.state) as known, listening(world.address) as sock:
        server = Server(
            sock, world.terms(known), users=frozenset(), notifier=Notifier({}),
            patience=Patience(idle=0.1),
        )  # fmt: skip
        began = time.monotonic()
        server.serve()

    assert 0.1 <= time.monotonic() - began < ENOUGH


def test_systemd_is_told_that_the_writer_is_ready_alive_and_ending(world: World) -> None:
    address = world.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(ENOUGH)
        environment = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "60000"}
        with memory.opened(world.state) as known, listening(world.address) as sock:
            Server(
                sock, world.terms(known), users=frozenset(), notifier=Notifier(environment),
                patience=Patience(idle=0.1),
            ).serve()  # fmt: skip
        heard = [notify.recv(1000)]
        while heard[-1] != b"STOPPING=1":
            heard.append(notify.recv(1000))

    assert heard[0] == b"READY=1\nSTATUS=waiting for callers"
    assert heard.count(b"WATCHDOG=1") >= 3
    assert set(heard[1:-1]) == {b"WATCHDOG=1"}


@pytest.mark.case(49)
def test_one_memory_has_one_writer(world: World) -> None:
    with (
        memory.opened(world.state),
        pytest.raises(HostError, match=r"^another writer uses "),
        memory.opened(world.state),
    ):
        pytest.fail("two writers")


def test_the_program_says_what_is_missing(world: World) -> None:
    with world.program("--user", "no-such-user") as process:
        _, err = process.communicate(timeout=ENOUGH)
    assert "there is no user no-such-user\n(systemd-sysusers makes it" in err


def test_the_program_takes_the_socket_that_systemd_passes(world: World) -> None:
    with listening(world.address) as sock:
        process = started(world, sock)
        assert world.look().next == "A"
        process.kill()
        _, err = process.communicate()
    assert f"<6>os 1.0.0 runs from partition 2 of {world.disk}\n" in err


def started(world: World, sock: socket.socket) -> "subprocess.Popen[str]":
    """Start the program as systemd does, with the socket at which callers wait."""
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', JOURNAL_STREAM='1:1');"
        "from update_agent.writer.main import main; sys.exit(main(sys.argv[2:]))"
    )
    return subprocess.Popen(
        [
            sys.executable, "-c", code, str(sock.fileno()), "--disk", world.disk, "--booted",
            "2", "--product", "os", "--running", "1.0.0", "--root", world.fleet.root,
            "--state", world.state, "--user", "nobody",
        ],
        pass_fds=[sock.fileno()], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_who_waits_for_a_writer_that_cannot_start_is_told_why(world: World) -> None:
    shutil.rmtree(world.state, ignore_errors=True)
    world.state.write_text("no folder")
    with listening(world.address) as sock, Writer(world.address) as writer:
        process = started(world, sock)
        with pytest.raises(HostError, match=f"{world.state}"):
            writer.state()
        _, err = process.communicate(timeout=ENOUGH)
    assert process.returncode == 4
    assert "a caller is refused" in err


def test_without_systemd_and_without_a_path_there_is_nowhere_to_listen(world: World) -> None:
    program = Path(sys.executable).with_name("update-agent-writer")
    done = subprocess.run(
        [
            program, "--disk", world.disk, "--booted", "2", "--product", "os", "--running",
            "1.0.0", "--root", world.fleet.root, "--state", world.state, "--user", "nobody",
        ],
        capture_output=True, text=True, check=False, timeout=ENOUGH,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        4, "update-agent-writer: systemd passed no socket",
    )  # fmt: skip
