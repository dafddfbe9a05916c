"""Sectors on real loop devices and files, and what a change does when the disk plays false.

Loop devices count what reaches them (``/sys/block/*/stat``), so "one sector" and "three flushes"
are the kernel's own figures.
"""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.disks import A_SUCCESSFUL, ESP, MemoryDisk, as_nobody, flags, healthy, loop, tool
from update_agent.core import slot
from update_agent.core.gpt import Copy, Mbr, Table
from update_agent.core.slot import SlotName, Slots
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host.disk import change_slots, open_disk, read_tables

ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""So that our programs are found beside the Python that runs the tests."""

both_sector_sizes = pytest.mark.parametrize("sector_size", [512, 4096])


def arm_b(slots: Slots) -> Slots:
    return slot.arm(slots, SlotName.B)


def retire_b(slots: Slots) -> Slots:
    return slot.retire(slots, SlotName.B)


OPERATIONS = {
    "arm": arm_b,
    "confirm": lambda slots: slot.confirm(slots, SlotName.B),
    "rollback": lambda slots: slot.rollback(slots, SlotName.A),
    "retire": retire_b,
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return healthy(512).save(tmp_path / "disk.img")


# Which sectors a disk has ------------------------------------------------------------------------


@pytest.mark.case(43)
@both_sector_sizes
@pytest.mark.parametrize("lost", [[], [1], [2047], [0]], ids=["whole", "primary", "backup", "mbr"])
def test_an_images_sector_size_is_found_by_what_is_left_of_its_table(
    sector_size: int, lost: list[int], tmp_path: Path
) -> None:
    disk = healthy(sector_size)
    for lba in lost:
        disk.put(lba, bytes(sector_size))

    with open_disk(disk.save(tmp_path / "disk.img")) as found:
        assert (found.geometry.sector_size, found.geometry.sectors) == (sector_size, 2048)
        assert read_tables(found).mbr is (Mbr.MISSING if 0 in lost else Mbr.PROTECTIVE)


@pytest.mark.case(43)
@both_sector_sizes
def test_a_device_tells_its_own_sector_size_even_without_a_table(
    sector_size: int, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(2**20))

    with loop(blank, sector_size) as device, open_disk(device) as found:
        assert found.geometry.sector_size == sector_size
        assert found.geometry.sectors * sector_size == 2**20


def test_an_images_sector_size_may_be_told(image: Path) -> None:
    with open_disk(image, sector_size=4096) as found:
        assert (found.geometry.sector_size, found.geometry.sectors) == (4096, 256)


@pytest.mark.case(44)
@both_sector_sizes
def test_a_sparse_image_of_more_than_two_terabytes_is_flipped(
    sector_size: int, tmp_path: Path
) -> None:
    sectors = 3 * 2**40 // sector_size
    image = healthy(sector_size, sectors=sectors).save(tmp_path / "large.img")

    with open_disk(image, writable=True) as disk:
        change_slots(disk, arm_b)
        tables = read_tables(disk)

    assert tables.sound
    assert isinstance(tables.backup, Table)
    assert tables.backup.header.lba * sector_size == 3 * 2**40 - sector_size
    assert image.stat().st_blocks * 512 < 2**20


# One sector is one sector ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What reached a device: in units of 512 bytes and in requests (block/stat.rst)."""

    sectors: int
    flushes: int


@contextmanager
def counting(device: Path) -> Iterator[list[Counted]]:
    """Count what is written to ``device`` while the block runs; the result is in the list."""
    result: list[Counted] = []
    before = _counters(device)
    yield result
    after = _counters(device)
    result.append(Counted(sectors=after[6] - before[6], flushes=after[15] - before[15]))


def _counters(device: Path) -> list[int]:
    return [int(it) for it in Path("/sys/block", device.name, "stat").read_text().split()]


@both_sector_sizes
def test_the_commit_is_a_write_of_one_sector(sector_size: int, tmp_path: Path) -> None:
    image = healthy(sector_size).save(tmp_path / "disk.img")
    with loop(image, sector_size) as device:
        with open_disk(device, writable=True) as disk, counting(device) as counted:
            disk.write(1, disk.read(1, 1))

        assert counted == [Counted(sectors=sector_size // 512, flushes=0)]


@pytest.mark.parametrize(
    ("sector_size", "sectors"),
    [
        pytest.param(512, 32 + 1 + 32 + 1, id="512"),
        pytest.param(4096, (4 + 1 + 4 + 1) * 8, id="4096"),
    ],
)
def test_a_flip_writes_two_arrays_and_two_headers_with_four_flushes(
    sector_size: int, sectors: int, tmp_path: Path
) -> None:
    image = healthy(sector_size).save(tmp_path / "disk.img")
    with loop(image, sector_size) as device:
        with open_disk(device, writable=True) as disk, counting(device) as counted:
            change_slots(disk, arm_b)

        assert counted == [Counted(sectors=sectors, flushes=4)]


def test_what_another_program_has_in_the_cache_around_our_sector_is_kept(image: Path) -> None:
    """Through the page cache, our write to LBA 1 would carry LBA 0 and 2 to 7 along."""
    with loop(image) as device, device.open("r+b", buffering=0) as cached:
        cached.seek(66 * 512)
        cached.write(b"theirs, not yet on the disk")  # in the page of LBA 64-71, as are 64 and 65
        cached.seek(7 * 512)
        old = cached.read(512)
        with open_disk(device, writable=True) as disk:
            change_slots(disk, arm_b)
            tables = read_tables(disk)

        assert tables.sound
        assert isinstance(tables.primary, Table)
        assert tables.primary.header.entries_lba == 34  # so 64 and 65 were written
        cached.seek(66 * 512)
        assert cached.read(27) == b"theirs, not yet on the disk"
        cached.seek(7 * 512)
        assert cached.read(512) == old


def test_a_flip_is_seen_by_whoever_reads_through_the_cache(image: Path) -> None:
    with loop(image) as device, device.open("rb", buffering=0) as cached:
        stale = cached.read(2048 * 512)
        with open_disk(device, writable=True) as disk:
            change_slots(disk, arm_b)
        cached.seek(0)
        fresh = cached.read(2048 * 512)

        assert fresh != stale
        assert fresh == image.read_bytes()


def test_a_flip_takes_milliseconds(image: Path, figure: Callable[[str], None]) -> None:
    with loop(image) as device:
        times = []
        for edit in [arm_b, retire_b] * 10:
            began = time.perf_counter()
            with open_disk(device, writable=True) as disk:
                change_slots(disk, edit)
            times.append((time.perf_counter() - began) * 1000)

    times.sort()
    figure(f"a flip on a loop device: median {times[10]:.1f} ms, slowest of 20 {times[-1]:.1f} ms")
    assert times[10] < 500


# Locks -------------------------------------------------------------------------------------------


@contextmanager
def locked_by_another_program(path: Path, kind: str) -> Iterator[None]:
    """Hold the BSD lock as udev and sfdisk do, from another process."""
    command = ["flock", kind, str(path), "sh", "-c", "echo held; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.communicate()


@pytest.fixture(params=["file", "loop"])
def lockable(request: pytest.FixtureRequest, image: Path) -> Iterator[Path]:
    if request.param == "file":
        yield image
    else:
        with loop(image) as device:
            yield device


@pytest.mark.case(49)
@pytest.mark.parametrize(
    ("theirs", "writable"),
    [
        pytest.param("--exclusive", True, id="two-writers"),
        pytest.param("--exclusive", False, id="reader-beside-a-writer"),
        pytest.param("--shared", True, id="writer-beside-a-reader"),
    ],
)
def test_a_lock_of_another_program_is_waited_for_and_then_told(
    lockable: Path, theirs: str, monkeypatch: pytest.MonkeyPatch, *, writable: bool
) -> None:
    monkeypatch.setattr(disks, "LOCK_SECONDS", 0.1)
    message = rf"^another program has {lockable} locked, for more than 0.1 s$"
    with (
        locked_by_another_program(lockable, theirs),
        pytest.raises(HostError, match=message) as raised,
        open_disk(lockable, writable=writable),
    ):
        pytest.fail("opened a locked disk")
    assert raised.value.hint == (
        "'lslocks' shows which one; end it, or try again: nothing was changed"
    )
    with open_disk(lockable, writable=writable) as disk:
        assert read_tables(disk).sound


def test_readers_do_not_wait_for_each_other(
    lockable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "LOCK_SECONDS", 0.0)

    with locked_by_another_program(lockable, "--shared"), open_disk(lockable) as disk:
        assert read_tables(disk).sound


def test_a_lock_is_taken_as_soon_as_it_is_free(image: Path) -> None:
    with image.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with subprocess.Popen(
            ["update-agentctl", "slots", "--disk", str(image)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
        ) as waiting:
            _wait_until_opened(image, waiting.pid)
            fcntl.flock(other, fcntl.LOCK_UN)
            waiting.communicate()

    assert waiting.returncode == 0


def _wait_until_opened(path: Path, pid: int) -> None:
    descriptors = Path("/proc", str(pid), "fd")
    while True:
        with suppress(FileNotFoundError):  # a descriptor closed while the folder was read
            if any(it.resolve() == path for it in descriptors.iterdir()):
                return
        os.sched_yield()


# Doors that do not open --------------------------------------------------------------------------


def test_a_missing_disk_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "none"

    with pytest.raises(HostError, match=rf"^cannot open {path}: No such file or directory$"):
        open_disk(path).__enter__()


def test_a_folder_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=rf"^{tmp_path} is neither a block device nor a file$"):
        open_disk(tmp_path, writable=True).__enter__()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.touch(), id="empty-file"),
        pytest.param(lambda path: path.write_bytes(bytes(100)), id="100-bytes"),
        pytest.param(lambda path: path.write_bytes(bytes(513)), id="a-sector-and-a-byte"),
    ],
)
def test_what_has_no_room_for_a_table_is_refused_without_a_write(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    make(path)
    before = path.read_bytes()

    with pytest.raises(HostError, match=r"^.*/disk has \d+ bytes, too few for a partition table$"):
        open_disk(path, writable=True).__enter__()
    assert path.read_bytes() == before


def test_a_disk_that_only_root_may_read_says_so_to_others(image: Path) -> None:
    with loop(image) as device:
        assert stat.S_IMODE(device.stat().st_mode) & 0o007 == 0
        refused = as_nobody("slots", "--disk", device)

        assert refused.returncode == 4
        assert refused.stdout == ""
        assert refused.stderr == (
            f"update-agentctl: cannot open {device}: Permission denied\n(run it as root)\n"
        )


@pytest.mark.parametrize("sector_size", [1024, 2048])
def test_a_disk_with_sectors_of_another_size_is_refused(sector_size: int, image: Path) -> None:
    with (
        loop(image, sector_size) as device,
        pytest.raises(HostError, match=rf"{device} has sectors of {sector_size} bytes"),
        open_disk(device),
    ):
        pytest.fail("opened it")


@pytest.mark.parametrize("fault", [{"SizeOfPartitionEntry": 256}, {"Signature": b"CHROMEOS"}])
def test_an_images_sector_size_is_found_by_a_table_that_is_refused(
    fault: dict[str, int | bytes], tmp_path: Path
) -> None:
    disk = healthy(4096)
    for copy in Copy:
        disk.patch(copy, **fault)

    with open_disk(disk.save(tmp_path / "disk.img")) as found:
        if found.geometry.sector_size != 4096:
            pytest.fail("the table was looked for where it is not")


@pytest.mark.parametrize("path", [Path("/"), Path("/dev/null")], ids=["folder", "dev-null"])
def test_what_is_neither_a_block_device_nor_a_file_is_not_opened(path: Path) -> None:
    with (
        pytest.raises(HostError, match=rf"^{path} is neither a block device nor a file$"),
        open_disk(path),
    ):
        pytest.fail("opened it")


def test_a_write_protected_disk_stays_as_it_is(image: Path) -> None:
    before = image.read_bytes()
    device = tool("losetup", "--find", "--show", "--read-only", image).strip()
    try:
        with (
            pytest.raises(HostError, match=device),
            open_disk(Path(device), writable=True) as disk,
        ):
            change_slots(disk, arm_b)
    finally:
        tool("losetup", "--detach", device)
    assert image.read_bytes() == before


# What is written, and when nothing is ------------------------------------------------------------


@both_sector_sizes
def test_a_life_of_flips_never_writes_to_lba_0_nor_to_a_partition(sector_size: int) -> None:
    disk = healthy(sector_size)
    for edit in OPERATIONS.values():
        change_slots(disk, edit)

    assert read_tables(disk).sound
    room = 32 if sector_size == 512 else 4
    assert disk.written == {*range(1, 2 + 2 * room), *range(2047 - room, 2048)}
    assert disk.flushes == 4 * 4


def test_flags_that_stand_there_already_are_not_written() -> None:
    disk = healthy()
    first = change_slots(disk, arm_b)
    disk.writes.clear()

    assert change_slots(disk, arm_b) == first
    assert disk.writes == []


def test_what_an_edit_refuses_is_not_written_even_on_a_disk_in_need_of_repair() -> None:
    disk = healthy()
    disk.put(1, bytes(512))

    with pytest.raises(slot.SlotStateError, match=r"^cannot roll back to slot B"):
        change_slots(disk, lambda slots: slot.rollback(slots, SlotName.B))
    assert disk.writes == []


def test_a_change_for_which_there_is_no_room_is_refused_before_the_repair() -> None:
    disk = healthy(512, (replace(ESP, first=40), *A_SUCCESSFUL[1:]))
    disk.put(2047, bytes(512))

    with pytest.raises(HostError, match=r"^no room for the partition table"):
        change_slots(disk, arm_b)
    assert disk.writes == []


@pytest.mark.case(58)
def test_a_disk_that_was_laid_out_anew_with_a_dos_table_is_not_repaired_from_a_stale_backup() -> (
    None
):
    disk = healthy()
    disk.put(1, bytes(512))
    disk.poke(446 + 4, b"\x83")
    disk.poke(446 + 8, (63).to_bytes(4, "little"))  # as old tools begin the first partition

    with pytest.raises(HostError, match="MBR"):
        change_slots(disk, arm_b)
    assert disk.writes == []


@pytest.mark.case(70)
@pytest.mark.parametrize("lost", [1, 2, 2015, 2047])
def test_a_flip_with_one_copy_bad_repairs_it_first(lost: int) -> None:
    disk = healthy()
    disk.put(lost, b"\xff" * 512)

    change_slots(disk, arm_b)

    tables = read_tables(disk)
    assert tables.sound
    assert tables.authoritative.partitions[2].attributes == flags(2, 3)


@pytest.mark.case(56)
def test_of_two_valid_tables_the_primary_is_the_one_that_is_edited() -> None:
    disk = healthy()
    disk.patch_entry(Copy.BACKUP, 2, Attributes=flags(9, 9))

    after = change_slots(disk, arm_b)

    assert (after.a.flags.priority, after.a.flags.tries) == (1, 0)
    assert read_tables(disk).sound


# A disk that plays false -------------------------------------------------------------------------


@dataclass(slots=True)
class FailingDisk(MemoryDisk):
    """Fails one write or one flush with EIO, or forgets a bit of what it was given, and goes on."""

    fails_write: int = -1
    fails_flush: int = -1
    forgets_at: int = -1

    def write(self, lba: int, data: bytes) -> None:
        if len(self.writes) == self.fails_write:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        MemoryDisk.write(self, lba, data)
        if lba == self.forgets_at:
            self.poke(lba * 512 + 77, bytes([data[77] ^ 8]))

    def flush(self) -> None:
        self.flushes += 1
        if self.flushes == self.fails_flush:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def failing(*, write: int = -1, flush: int = -1, forgets: int = -1) -> FailingDisk:
    whole = healthy()
    return FailingDisk(
        geometry=whole.geometry, sectors=whole.sectors,
        fails_write=write, fails_flush=flush, forgets_at=forgets,
    )  # fmt: skip


@pytest.mark.case(38)
@pytest.mark.parametrize("write", range(4))
def test_a_failed_write_ends_the_change_and_a_table_still_counts(write: int) -> None:
    disk = failing(write=write)

    message = r"^cannot write the partition table of memory: Input/output error$"
    with pytest.raises(HostError, match=message):
        change_slots(disk, arm_b)
    assert len(disk.writes) == write
    assert slot.from_table(read_tables(disk).authoritative).b.flags == slot.RETIRED


@pytest.mark.case(39)
@pytest.mark.parametrize(("flush", "writes"), [(1, 0), (2, 2), (3, 3), (4, 4)])
def test_a_failed_flush_is_never_followed_by_another(flush: int, writes: int) -> None:
    disk = failing(flush=flush)

    with pytest.raises(HostError, match=r"^cannot write the partition table of memory: Input/"):
        change_slots(disk, arm_b)
    assert disk.flushes == flush
    assert len(disk.writes) == writes


@pytest.mark.case(41)
@pytest.mark.parametrize("lba", [2015, 2047, 34, 1])
def test_a_bit_that_the_disk_did_not_keep_is_found_by_reading_back(lba: int) -> None:
    disk = failing(forgets=lba)

    with pytest.raises(HostError, match=rf"^memory does not hold at LBA {lba} what was written"):
        change_slots(disk, arm_b)
    assert slot.from_table(read_tables(disk).authoritative).a.flags.successful
    assert disk.writes[-1][0] == (2047 if lba > 2000 else lba)


def test_another_program_that_ignores_the_lock_is_noticed() -> None:
    @dataclass(slots=True)
    class Rival(MemoryDisk):
        def flush(self) -> None:
            self.flushes += 1
            if self.flushes == 3:
                self.patch_entry(Copy.BACKUP, 4, Attributes=1)

    disk = Rival(geometry=healthy().geometry, sectors=healthy().sectors)

    message = r"^the partition table of memory was changed by another program$"
    with pytest.raises(HostError, match=message):
        change_slots(disk, arm_b)
