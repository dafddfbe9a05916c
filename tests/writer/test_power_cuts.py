"""The power goes, or the process is killed, at any moment of an installation and of arming it.

Power cuts are enumerated: every write and flush of an installation, an arm and of the one after it
is recorded, with what the writer remembered by then, and each state is rebuilt that the disk may be
left in. Kills are real: SIGKILL, at moments that a random number chooses.
"""

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tests.hosts import A_AT, World, make_world
from update_agent.core.slot import choose
from update_agent.core.wire import UnverifiedError
from update_agent.errors import HostError
from update_agent.host import files
from update_agent.host.device import Device
from update_agent.host.writer import Writer

KILLS = 30


@dataclass
class Recorder:
    """Every write and flush of the disk, in order; and what the writer's folder held before it."""

    disk: Path
    state: Path
    operations: list[tuple[int, bytes] | None] = field(default_factory=list)
    records: list[bytes | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, operation: tuple[int, bytes] | None) -> None:
        with self.lock:
            record = self.state / "verified.json"
            self.records.append(record.read_bytes() if record.exists() else None)
            self.operations.append(operation)

    def attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Listen to every device that is opened."""
        write, flush = Device.write, Device.flush

        def noted_write(device: Device, buffer: memoryview, offset: int) -> None:
            self.note((offset, bytes(buffer)))
            write(device, buffer, offset)

        def noted_flush(device: Device) -> None:
            flush(device)
            self.note(None)

        monkeypatch.setattr(Device, "write", noted_write)
        monkeypatch.setattr(Device, "flush", noted_flush)

    def crashes(self, before: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield what the disk may hold, and what the writer remembers, after each operation.

        Of the writes since the last flush: none, all, all but one, one alone, and one torn.
        """
        durable, pending = bytearray(before), list[tuple[int, bytes]]()
        for operation, record in zip(self.operations, self.records, strict=True):
            if operation is None:
                for write in pending:
                    _apply(durable, write)
                pending = []
            else:
                pending.append(operation)
            for some in _subsets(pending):
                content = bytearray(durable)
                for write in some:
                    _apply(content, write)
                yield bytes(content), record


def _apply(content: bytearray, write: tuple[int, bytes]) -> None:
    content[write[0] : write[0] + len(write[1])] = write[1]


def _subsets(pending: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    yield []
    if not pending:
        return
    yield pending
    *others, (offset, data) = pending
    yield [(offset, data)]
    yield [*others, (offset, data[: len(data) // 2])]
    yield others[::2]


@pytest.mark.case(47)
def test_wherever_the_power_goes_a_whole_signed_release_boots(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    """Retire, write, verify, record, arm; and then the same again over an armed slot."""
    before = world.disk.read_bytes()
    recorder = Recorder(world.disk, world.state)
    with monkeypatch.context() as patched, world.serving():
        recorder.attach(patched)
        for _ in range(2):
            world.install()
            with Writer(world.address) as writer:
                writer.arm()

    cut = make_world(_folder(tmp_path / "cut"), world.fleet)
    shutil.copytree(world.state, cut.state)
    seen: set[int] = set()
    armed = resumed = 0
    for content, record in recorder.crashes(before):
        key = hash((content, record))
        if key in seen:
            continue
        seen.add(key)
        cut.disk.write_bytes(content)
        cut.want_whole_boot()
        chosen = choose(cut.slots())
        armed += chosen is not None and chosen.name == "B"
        if len(seen) % 2 == 0:
            _remember(cut, record)
            resumed += _goes_on(cut)
    assert armed >= 4
    assert resumed > 10
    figure(
        f"writer: {len(recorder.operations)} writes and flushes of two installations cut,"
        f" {len(seen)} states of the disk, all boot; {resumed} went on to the end"
    )


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _remember(world: World, record: bytes | None) -> None:
    path = world.state / "verified.json"
    path.unlink(missing_ok=True)
    if record is not None:
        files.replace(path, record)


def _goes_on(world: World) -> int:
    """Arm what a cut left, which must be whole or refused; then install again."""
    with world.serving():
        try:
            with Writer(world.address) as writer:
                writer.arm()
        except (UnverifiedError, HostError):
            pass
        world.want_whole_boot()
        world.install()
        with Writer(world.address) as writer:
            assert writer.arm().next == "B"
    world.want_whole_boot()
    assert world.slot_b().startswith(world.fleet.releases.v2.content)
    return 1


@pytest.mark.case(48)
def test_killed_at_any_moment_the_next_writer_goes_on(
    world: World, figure: Callable[[str], None]
) -> None:
    chance = Random(48)  # noqa: S311  must repeat, need not be secret
    world.put(A_AT + 600, b"x")  # slot A gives nothing: all is fetched
    base = world.disk.read_bytes()
    killed = runs = 0
    while killed < KILLS:
        runs += 1
        with world.forked() as kill:
            fate = _Fate(kill, chance.randrange(0, 8), chance.random() * 0.04)
            try:
                world.install(world.fleet.payloads(fate.spoil))
                with Writer(world.address) as writer:
                    writer.arm()
            except HostError:
                killed += 1
            fate.join()
        _want_whole(world)
        if world.slots().b.flags.candidate or chance.random() < 0.2:
            world.disk.write_bytes(base)
            shutil.rmtree(world.state)
    with world.forked():
        world.install()
        with Writer(world.address) as writer:
            assert writer.arm().next == "B"
    assert world.slot_b().startswith(world.fleet.releases.v2.content)
    figure(f"writer: killed {killed} times in {runs} runs by SIGKILL, and went on to the end")


class _Fate:
    """Kills the writer a moment after so many ranges were asked for."""

    def __init__(self, kill: Callable[[], None], after: int, pause: float) -> None:
        self._left = itertools.count(after, -1)
        self._timer = threading.Timer(pause, kill)

    def spoil(self, _data: bytearray, _offset: int, _try: int) -> None:
        if next(self._left) == 0:
            self._timer.start()

    def join(self) -> None:
        if self._timer.ident:
            self._timer.join()


def _want_whole(world: World) -> None:
    """The same as ``want_whole_boot``, for a slot A whose one broken byte is ours."""
    v2 = world.fleet.releases.v2.content
    slots = world.slots()
    assert slots.a.flags.candidate
    assert slots.a.flags.successful
    assert not slots.b.flags.candidate or world.slot_b().startswith(v2)
