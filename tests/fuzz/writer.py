"""Garbled conversations against the writer's promise that nobody can make it do harm.

Takes what a daemon says, as frames: requests, evidence, indexes, stored bytes. Garbles it: frames
lost, doubled, exchanged, cut, their lengths, JSON and data changed, noise between them; and says it
to a writer of a real disk image. Held after each:

* the booted slot's bytes, and everything outside of the slots and the table, are as before;
* its flags are as before, and those of the other slot too, or it is retired, or armed;
* no block of the other slot holds anything but what it held, what is signed, or the marker;
* a slot that may boot is a whole signed release;
* the writer still answers.

    python -m tests.fuzz.writer --count 20000 --seed 1
"""

import logging
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests import hosts, images
from tests.fuzz import search
from tests.hosts import A_AT, B_AT, SLOT_SIZE, V2, Fleet, World
from update_agent.core import wire
from update_agent.core.slot import BootFlags
from update_agent.core.wire import (
    ANSWERS,
    Arm,
    AskState,
    Confirm,
    Disarm,
    GiveIndex,
    Install,
    Message,
    Missing,
    Piece,
    Rollback,
    State,
    Stored,
    Want,
)
from update_agent.host.wire import Connection, GoneError
from update_agent.writer import memory
from update_agent.writer.session import converse

PART = 50
"""Conversations that a worker tries before it tells."""

BLOCK = 4096
HEAD = wire.HEADER_SIZE
SECONDS = 20.0
"""After which a conversation has hung."""

Frames = list[bytes]


class BrokenPromiseError(AssertionError):
    """What must never happen."""


# What is said ------------------------------------------------------------------------------------


class Script:
    """What a daemon says to a host like ours, as frames; the answers are known beforehand."""

    def __init__(self, fleet: Fleet) -> None:
        evidence = fleet.evidence(channel="stable")
        install = Install(product="os", version=V2, channel="stable", attempt="fuzz")
        self.pieces = [
            (Piece(name="targets"), evidence.targets),
            (Piece(name="releases"), evidence.releases),
            (Piece(name="release"), evidence.release),
            (Piece(name="channels"), evidence.channels or b""),
            (Piece(name="channel"), evidence.channel or b""),
        ]
        release = fleet.release()
        www = fleet.folder / "www"
        delta = next(it for it in release.payloads if it.source)
        self.index = (www / release.index_path(delta)).read_bytes()
        self.blob = (www / release.blob_path(delta)).read_bytes()
        self.full_index = (www / release.index_path(release.full)).read_bytes()
        self.begin = [_frame(install), *(_frame(*it) for it in self.pieces)]
        self.requests = [_frame(it()) for it in (AskState, Arm, Disarm, Confirm, Rollback)]
        self.ranges: list[tuple[int, int]] = []

    def whole(self, random: Random) -> Frames:
        """Return a conversation as it should be, or nearly."""
        if random.random() < 0.1:
            return random.choices(self.requests, k=random.randrange(1, 5))
        ranges = list(self.ranges)
        random.shuffle(ranges)
        stored = [
            _frame(Stored(offset=offset, length=length), self.blob[offset : offset + length])
            for offset, length in ranges
        ]
        frames = [*self.begin, _frame(GiveIndex(), self.index), *stored]
        if random.random() < 0.1:
            frames[random.randrange(len(self.begin), len(frames)) :] = [
                _frame(Missing(why="fuzz")), _frame(GiveIndex(), self.full_index),
            ]  # fmt: skip
        return frames + random.choices(self.requests, k=random.randrange(3))


def _frame(message: Message, data: bytes = b"") -> bytes:
    return wire.encode(message, len(data)) + data


# Mutations ---------------------------------------------------------------------------------------


def _lose(frames: Frames, random: Random) -> None:
    del frames[random.randrange(len(frames))]


def _double(frames: Frames, random: Random) -> None:
    at = random.randrange(len(frames))
    frames.insert(random.randrange(len(frames) + 1), frames[at])


def _exchange(frames: Frames, random: Random) -> None:
    one, other = random.randrange(len(frames)), random.randrange(len(frames))
    frames[one], frames[other] = frames[other], frames[one]


def _cut(frames: Frames, random: Random) -> None:
    at = random.randrange(len(frames))
    frames[at] = frames[at][: random.randrange(len(frames[at]))]


def _end(frames: Frames, random: Random) -> None:
    del frames[random.randrange(1, len(frames) + 1) :]


def _noise(frames: Frames, random: Random) -> None:
    frames.insert(random.randrange(len(frames) + 1), random.randbytes(random.randrange(1, 5000)))


def _bits(frames: Frames, random: Random) -> None:
    at = random.randrange(len(frames))
    data = bytearray(frames[at])
    for _ in range(random.randrange(1, 4)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    frames[at] = bytes(data)


def _head(frames: Frames, random: Random) -> None:
    """A header whose lengths are wrong."""
    at = random.choice([it for it, frame in enumerate(frames) if len(frame) >= HEAD] or [-1])
    data = bytearray(frames[at].ljust(HEAD))
    edge = random.choice((0, 1, 2, 65535, 65536, 65537, 2**20, 2**22, 2**31, 2**32 - 1))
    struct.pack_into("<I", data, random.choice((4, 8)), edge)
    frames[at] = bytes(data)


def _digits(frames: Frames, random: Random) -> None:
    """A message with another number, as long as before."""
    at = random.choice([it for it, frame in enumerate(frames) if len(frame) >= HEAD] or [-1])
    data = bytearray(frames[at].ljust(HEAD))
    (length,) = struct.unpack_from("<I", data, 4)
    places = [it for it in range(HEAD, min(HEAD + length, len(data))) if chr(data[it]).isdigit()]
    if places:
        data[random.choice(places)] = random.choice(b"0123456789-.eE")
    frames[at] = bytes(data)


def _data(frames: Frames, random: Random) -> None:
    """Data that is wrong, behind a message that is right."""
    at = random.choice([it for it, frame in enumerate(frames) if len(frame) >= HEAD] or [-1])
    data = bytearray(frames[at].ljust(HEAD))
    (length,) = struct.unpack_from("<I", data, 4)
    if len(data) > HEAD + length:
        data[random.randrange(HEAD + length, len(data))] ^= 1 << random.randrange(8)
    frames[at] = bytes(data)


MUTATIONS: tuple[Callable[[Frames, Random], None], ...] = (
    _lose, _double, _exchange, _cut, _end, _noise, _bits, _head, _digits, _digits, _data, _data,
)  # fmt: skip
"""Named as often as they shall be drawn."""


# The judge ---------------------------------------------------------------------------------------


class Judge:
    """A host, and what must be true of it whatever was said."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self.world: World = hosts.make_world(folder, fleet)
        self.script = Script(fleet)
        self._stack = memory.opened(self.world.state)
        self._terms = self.world.terms(self._stack.__enter__())
        self._first = self.world.disk.read_bytes()
        self._signed = fleet.releases.v2.content.ljust(SLOT_SIZE, b"\0")
        self.script.ranges = self._ranges()
        self._reset()

    def _ranges(self) -> list[tuple[int, int]]:
        """Learn once what the writer wants."""
        frames = [*self.script.begin, _frame(GiveIndex(), self.script.index)]
        wants = [it for it in self.say(frames) if isinstance(it, Want)]
        return [it for want in wants for it in want.ranges]

    def _reset(self) -> None:
        self.world.disk.write_bytes(self._first)
        self._terms.slots.memory.forget()

    def say(self, frames: Frames) -> list[Message]:
        """Say frames; return what the writer says until it hangs up."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        all_said = threading.Event()
        connection = _Impatient(theirs, all_said)
        speaking = threading.Thread(target=_speak, args=(ours, frames, all_said))
        listening = _Listener(ours)
        speaking.start()
        listening.start()
        began = time.monotonic()
        converse(self._terms, connection, idle_seconds=SECONDS)
        connection.close()
        speaking.join()
        listening.join()
        ours.close()
        if time.monotonic() - began > SECONDS:
            raise BrokenPromiseError("the conversation hung")
        return listening.heard

    def try_one(self, random: Random) -> str:
        """Say one garbled conversation; return how it ended. Raises BrokenPromiseError."""
        frames = self.script.whole(random)
        for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
            frames = [it for it in frames if it] or [b"\0"]
            random.choice(MUTATIONS)(frames, random)
        heard = self.say([it for it in frames if it])
        self.hold()
        if not isinstance(self.say([self.script.requests[0]])[0], State):
            raise BrokenPromiseError("the writer does not tell how the slots stand")
        if random.random() < 0.3:
            self._reset()
        return _ending(heard)

    def hold(self) -> None:
        """Hold the promises against the disk as it is."""
        content = self.world.disk.read_bytes()
        first = self._first
        if content[A_AT:B_AT] != first[A_AT:B_AT]:
            raise BrokenPromiseError("the booted slot was written to")
        if content[256 * 512 : A_AT] != first[256 * 512 : A_AT]:
            raise BrokenPromiseError("the ESP was written to")
        slots = self.world.slots()
        if slots.a.flags != BootFlags(priority=1, successful=True):
            raise BrokenPromiseError(f"the booted slot has {slots.a.flags}")
        if slots.b.flags not in (BootFlags(), BootFlags(priority=2, tries=3)):
            raise BrokenPromiseError(f"the other slot has {slots.b.flags}")
        self._hold_blocks(content[B_AT : B_AT + SLOT_SIZE], armed=slots.b.flags.candidate)

    def _hold_blocks(self, content: bytes, *, armed: bool) -> None:
        if armed and content != self._signed:
            raise BrokenPromiseError("a slot is armed that is not whole")
        if content == self._signed:
            return
        for at in range(0, SLOT_SIZE, BLOCK):
            block = content[at : at + BLOCK]
            if block not in (self._signed[at : at + BLOCK], bytes(BLOCK)) and not (
                at == 0 and block.startswith(images.MARKER)
            ):
                raise BrokenPromiseError(f"an unsigned block stands at {at} of the other slot")


class _Impatient(Connection):
    """The writer's end, that takes it for the caller's leaving when there is no more to come."""

    def __init__(self, sock: socket.socket, all_said: threading.Event) -> None:
        super().__init__(sock, frame_seconds=SECONDS)
        self._all_said = all_said

    def _wait(self, event: int, deadline: float) -> None:
        if event != select.POLLIN:
            super()._wait(event, deadline)
            return
        while not self.has_something():
            if self._all_said.wait(0.001) and not self.has_something():
                raise GoneError("no more to come")


def _speak(sock: socket.socket, frames: Frames, all_said: threading.Event) -> None:
    try:
        for frame in frames:
            sock.sendall(frame)
    except OSError:  # the writer hung up
        pass
    finally:
        all_said.set()


class _Listener(threading.Thread):
    """Hears what the writer says until it hangs up."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.heard: list[Message] = []
        self._socket = sock.dup()

    def run(self) -> None:
        data = b""
        try:
            while piece := self._socket.recv(65536):
                data += piece
        except OSError:
            pass
        finally:
            self._socket.close()
        while data:
            lengths = wire.decode_header(data[: wire.HEADER_SIZE])
            end = wire.HEADER_SIZE + lengths.json
            self.heard.append(wire.decode(data[wire.HEADER_SIZE : end], ANSWERS))
            data = data[end:]


def _ending(heard: Sequence[Message]) -> str:
    if not heard:
        return "nothing said"
    last: Any = heard[-1]
    if isinstance(last, wire.Failed):
        return f"refused: {last.kind}"
    return f"answered: {type(last).__name__}"


# The program -------------------------------------------------------------------------------------


_judges: dict[int, Judge] = {}


def prepare(folder: Path, fleet: Fleet) -> None:
    """Give this process a host of its own."""
    logging.disable()
    own = Path(tempfile.mkdtemp(dir=folder))
    _judges[0] = Judge(own, fleet)


def one(random: Random) -> str:
    return _judges[0].try_one(random)


def main(argv: Sequence[str] | None = None) -> int:
    about = "Say garbled conversations to the writer; fails on a broken promise."
    parser = search.parser("tests.fuzz.writer", about, "conversations", count=10_000)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        fleet = hosts.publish(Path(folder, "fleet"), images.make_releases(Path(folder)))
        host = (Path(folder), fleet)
        if options.repeat:
            prepare(*host)
            print(search.repeated(one, options.repeat))
            return 0
        outcomes = search.searched(one, options, part=PART, prepare=prepare, prepared=host)
    search.tell(outcomes, f"{outcomes.total():,} conversations, 0 promises broken")
    return 0


def _fast_folder() -> str | None:
    """Return a folder in memory, if there is one: a slow disk would test itself."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


if __name__ == "__main__":
    sys.exit(main())
