"""The governor at work, on a clock of its own: a host that waits, a disk, io.max, and the end."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cgroups import Cgroups
from tests.disks import loop
from update_agent.core.settings import Bytes, Limits
from update_agent.errors import HostError
from update_agent.host import cgroup, governor
from update_agent.host.device import Device, open_device
from update_agent.host.governor import TICK, Governor, governed

MB = 1_000_000
MIB = 2**20


class Clock:
    """Time that passes when somebody waits, and is told of it."""

    def __init__(self) -> None:
        self.time = 100.0
        self.passed: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds
        self.passed()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def groups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path / "cgroup")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk whose number the kernel knows; here an image of one."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096 * 8)
    return path


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the image count as disk 254:0."""
    monkeypatch.setattr(cgroup, "number", lambda _: "254:0")


def made(
    disk: Path,
    groups: Cgroups,
    clock: Clock,
    **limits: Any,  # noqa: ANN401  Limits' own
) -> Governor:
    return Governor(disk, Limits(**limits), root=groups.root, now=clock.now, pause=clock.pause)


class Noted(Device):
    """A device that notes how it is used, and when."""

    def __init__(self, device: Device, clock: Clock) -> None:
        super().__init__(device.fileno(), device.path)
        self._clock = clock
        self.calls: list[tuple[float, int, int]] = []

    def read_into(self, buffer: memoryview, offset: int) -> int:
        self.calls.append((self._clock.time, offset, len(buffer)))
        return super().read_into(buffer, offset)

    def write(self, buffer: memoryview, offset: int) -> None:
        self.calls.append((self._clock.time, offset, len(buffer)))
        super().write(buffer, offset)


@contextmanager
def noted(disk: Path, clock: Clock) -> Iterator[Noted]:
    with open_device(disk, writable=True) as device:
        yield Noted(device, clock)


# Pieces ------------------------------------------------------------------------------------------


def test_bytes_pass_in_small_pieces_at_the_rate(disk: Path, groups: Cgroups, clock: Clock) -> None:
    """4 MB/s, in pieces of 32 KiB: one each 8 ms, and nothing at once."""
    slow = made(disk, groups, clock)
    with noted(disk, clock) as device:
        slow.paced(device).write(memoryview(bytes(MIB)), 4096)

    assert [it[1:] for it in device.calls] == [(4096 + n * 32768, 32768) for n in range(32)]
    times = [it[0] for it in device.calls]
    steps = [later - time for time, later in itertools.pairwise(times)]
    assert steps == pytest.approx([0.008192] * 31)
    assert times[0] == pytest.approx(100.008192)


def test_reads_share_the_rate_with_writes(disk: Path, groups: Cgroups, clock: Clock) -> None:
    slow = made(disk, groups, clock)
    with noted(disk, clock) as device, noted(disk, clock) as booted:
        target, source = slow.paced(device), slow.paced(booted)
        for at in range(4):
            buffer = memoryview(bytearray(MIB))
            assert source.read_into(buffer, at * MIB) == MIB
            target.write(buffer, at * MIB)

    assert clock.time - 100 == pytest.approx(8 * MIB / 4e6)


def test_what_is_read_and_written_is_the_same_as_without(
    disk: Path, groups: Cgroups, clock: Clock
) -> None:
    content = disk.read_bytes()
    fast = made(disk, groups, clock, floor=Bytes(10**9))
    with noted(disk, clock) as device:
        paced = fast.paced(device)
        assert paced.size == len(content)
        assert paced.read(4096, 300_000) == content[4096:304_096]
        assert paced.read(len(content) - 100, 4096) == content[-100:]
        assert paced.read(len(content), 4096) == b""
        paced.write(memoryview(b"x" * 200_000), 500)
        paced.flush()

    assert disk.read_bytes() == content[:500] + b"x" * 200_000 + content[200_500:]


def test_only_one_piece_is_on_its_way_at_a_time(disk: Path, groups: Cgroups, clock: Clock) -> None:
    """Whoever of the host's syncs waits behind one piece, not behind one of each thread."""
    fast = made(disk, groups, clock, floor=Bytes(10**12))
    at_once: list[int] = []
    under_way = 0

    class Watched(Noted):
        def write(self, buffer: memoryview, offset: int) -> None:
            nonlocal under_way
            under_way += 1
            at_once.append(under_way)
            super().write(buffer, offset)
            under_way -= 1

    with open_device(disk, writable=True) as device:
        paced = fast.paced(Watched(device, clock))
        threads = [
            threading.Thread(target=paced.write, args=(memoryview(bytes(2 * MIB)), n * 2 * MIB))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert at_once == [1] * 8


# The host waits ----------------------------------------------------------------------------------


def running(it: Governor, clock: Clock, device: Device, ticks: int) -> list[float]:
    """Let an installation read for some ticks; return the rate after each."""
    rates: list[float] = []
    paced, ends = it.paced(device), clock.time + TICK

    while len(rates) < ticks:
        paced.read(0, 65536)
        clock.time += 0.0005  # the disk's own: 131 MB/s
        while clock.time >= ends and len(rates) < ticks:
            it.tick()
            rates.append(it.rate)
            ends += TICK
    return rates


def test_on_an_idle_host_it_is_soon_no_limit(disk: Path, groups: Cgroups, clock: Clock) -> None:
    free = made(disk, groups, clock)
    with open_device(disk) as device:
        rates = running(free, clock, device, 8)

    assert rates[0] > 3 * 4 * MB
    assert rates[-1] > 3 * 100 * MB
    assert free.throttled_by is None


def test_when_the_hosts_work_waits_it_is_at_the_floor_with_the_next_look(
    disk: Path, groups: Cgroups, clock: Clock
) -> None:
    it = made(disk, groups, clock)
    with open_device(disk) as device:
        running(it, clock, device, 8)
        groups.waits("system.slice", 200_000)
        assert running(it, clock, device, 1) == [4 * MB]
        for _ in range(3):
            groups.waits("system.slice", 200_000)
            running(it, clock, device, 1)

    assert it.throttled_by == "the host's work"


def test_more_groups_waiting_than_time_passed_is_all_of_the_time(
    disk: Path, groups: Cgroups, clock: Clock
) -> None:
    it = made(disk, groups, clock)
    for name in ("a.slice", "b.slice"):
        groups.waits(name, 0)
    clock.time += TICK
    it.tick()
    for name in ("a.slice", "b.slice"):
        groups.waits(name, 250_000)
    clock.time += TICK
    it.tick()

    assert it.rate == 4 * MB


def test_a_clock_that_stands_still_is_no_tick(disk: Path, groups: Cgroups, clock: Clock) -> None:
    it = made(disk, groups, clock)
    it.tick()

    assert it.rate == 4 * MB


@pytest.mark.parametrize(
    ("limits", "rate", "by"),
    [
        pytest.param({}, 4 * MB, "limits.floor", id="the-floor"),
        pytest.param({"ceiling": Bytes(20 * MB)}, 20 * MB, "limits.ceiling", id="the-ceiling"),
    ],
)
def test_without_pressure_the_rate_is_static_and_that_is_said(
    limits: dict[str, Bytes], rate: int, by: str, disk: Path, groups: Cgroups, clock: Clock
) -> None:
    groups.vanish("system.slice")
    blind = made(disk, groups, clock, **limits)
    with open_device(disk) as device:
        assert running(blind, clock, device, 6) == [rate] * 6

    assert blind.throttled_by == by


def test_that_the_rate_is_static_is_said_with_the_way_out(
    disk: Path, groups: Cgroups, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    groups.vanish("system.slice")
    made(disk, groups, clock, ceiling=Bytes(20 * MB))

    (line,) = caplog.messages
    assert "an update moves 20.0 MB/s whatever" in line
    assert "psi=1" in line


def test_pressure_that_goes_away_meanwhile_leaves_the_static_rate(
    disk: Path, groups: Cgroups, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    it = made(disk, groups, clock)
    with open_device(disk) as device:
        running(it, clock, device, 8)
        groups.vanish("system.slice")
        assert running(it, clock, device, 4) == [4 * MB] * 4

    assert len(caplog.messages) == 1


def test_a_ceiling_below_the_floor_counts(disk: Path, groups: Cgroups, clock: Clock) -> None:
    it = made(disk, groups, clock, ceiling=Bytes(1 * MB))
    with open_device(disk) as device:
        assert running(it, clock, device, 4) == [1 * MB] * 4

    assert it.throttled_by == "limits.ceiling"


# The wall ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_io_max_stands_a_quarter_above_the_pace(disk: Path, groups: Cgroups, clock: Clock) -> None:
    it = made(disk, groups, clock, ceiling=Bytes(100 * MB))
    assert groups.io_max == "254:0 rbps=5000000 wbps=5000000"

    with open_device(disk) as device:
        running(it, clock, device, 8)
    assert groups.io_max.startswith("254:0 rbps=125000000 wbps=125000000")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("ceiling", "wanted"),
    [(None, "rbps=max wbps=max"), (Bytes(7 * MB), "rbps=7000000 wbps=7000000")],
)
def test_in_the_end_io_max_is_what_the_settings_say_even_after_an_error(
    ceiling: Bytes | None, wanted: str, disk: Path, groups: Cgroups
) -> None:
    def fail() -> None:
        with governed(disk, Limits(ceiling=ceiling), groups.root):
            assert wanted not in groups.io_max
            raise HostError("the disk failed")

    with pytest.raises(HostError):
        fail()

    assert groups.io_max.startswith(f"254:0 {wanted}")
    assert "governor" not in {it.name for it in threading.enumerate()}


@pytest.mark.usefixtures("known")
def test_what_a_killed_writer_left_is_undone_by_the_next(disk: Path, groups: Cgroups) -> None:
    Governor(disk, Limits(), root=groups.root)
    assert "rbps=5000000" in groups.io_max

    governor.rest(disk, Limits(), groups.root)

    assert groups.io_max.startswith("254:0 rbps=max wbps=max")


@pytest.mark.usefixtures("known")
def test_without_io_max_pieces_must_do_and_that_is_said_once(
    disk: Path, groups: Cgroups, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (groups.root / cgroup.SLICE / "io.max").unlink()
    it = made(disk, groups, clock)
    with open_device(disk) as device:
        assert running(it, clock, device, 8)[-1] > 100 * MB

    (line,) = caplog.messages
    assert "without io.max" in line


def test_an_image_file_has_no_wall(
    disk: Path, groups: Cgroups, caplog: pytest.LogCaptureFixture
) -> None:
    with governed(disk, Limits(), groups.root):
        pass

    assert groups.io_max == ""
    assert [it for it in caplog.records if it.levelno >= logging.WARNING] == []


def test_the_thread_looks_by_itself(disk: Path, groups: Cgroups) -> None:
    """Real time: it is over as soon as the rate has changed once."""
    changed = threading.Event()

    class Told(Governor):
        def tick(self) -> None:
            super().tick()
            changed.set()

    it, over = Told(disk, Limits(), root=groups.root), threading.Event()
    thread = threading.Thread(target=it.run, args=(over,))
    thread.start()
    assert changed.wait(30)
    over.set()
    thread.join(30)

    assert not thread.is_alive()


def test_a_block_device_is_paced_as_well(disk: Path, groups: Cgroups, clock: Clock) -> None:
    """Its buffers begin on a page, and so does each piece of them."""
    content = disk.read_bytes()
    it = made(disk, groups, clock)
    with loop(disk) as node, open_device(node) as device:
        assert it.paced(device).read(0, MIB) == content[:MIB]
    assert clock.time - 100 == pytest.approx(MIB / 4e6)
