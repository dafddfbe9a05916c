"""A disk's partition table, read past every cache and changed so that no power cut can hurt.

Knows how to read and write sectors of a block device or an image file, and carries out the plans
of ``core/gpt.py``. The rules kept here:

* What is read is made durable before it is trusted: a writer that was killed may have left the disk
  a table that stands in its cache alone, and to build on it would lose both.
* Every phase of a plan is written, flushed and read back from the medium before the next begins.
  Any error ends the change at once: after a failed flush nobody knows what the disk holds, so
  nothing is flushed again; the next change starts from what it then reads.
* A block device is written with O_DIRECT, in whole sectors. Through the page cache, a write of one
  sector would become a write of the page around it: up to eight sectors, with LBA 0 among them.
* One writer at a time, by the BSD lock on the whole disk that udev, systemd and sfdisk honour
  (systemd, "Locking Block Device Access").

Which disk is the right one is left to ``host/udev.py``.
"""

import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from update_agent.core import gpt, slot
from update_agent.core.gpt import Copy, Geometry, Plan, Table, TableError, Tables
from update_agent.core.slot import Slots
from update_agent.errors import HostError

_BLKSSZGET = 0x1268
"""linux/fs.h: the logical sector size of a block device, as an int."""

LOCK_SECONDS = 10.0
"""How long to wait for another program's lock; udev holds it while it probes a changed disk."""


class Disk(Protocol):
    """What a partition table needs from a disk, and no more. Errors are OSError."""

    name: str
    geometry: Geometry

    def read(self, lba: int, count: int) -> bytes:
        """Return ``count`` sectors from ``lba``, from the medium; fewer at the disk's end."""
        ...

    def write(self, lba: int, data: bytes) -> None:
        """Write whole sectors at ``lba``; durable, and ordered, only after ``flush``."""
        ...

    def flush(self) -> None:
        """Return when everything written before is on the medium."""
        ...


class DiskFile:
    """A block device or an image file, as ``Disk``."""

    def __init__(self, fd: int, name: str, geometry: Geometry, *, direct: bool) -> None:
        self.name = name
        self.geometry = geometry
        self._fd = fd
        self._direct = direct

    def read(self, lba: int, count: int) -> bytes:
        """See ``Disk``."""
        size = self.geometry.sector_size
        if not self._direct:
            os.posix_fadvise(self._fd, lba * size, count * size, os.POSIX_FADV_DONTNEED)
        buffer = _aligned(count * size)
        got = os.preadv(self._fd, [buffer], lba * size)
        return bytes(buffer[:got])

    def write(self, lba: int, data: bytes) -> None:
        """See ``Disk``."""
        buffer = _aligned(len(data))
        buffer[:] = data
        done = 0
        while done < len(data):
            offset = lba * self.geometry.sector_size + done
            done += os.pwritev(self._fd, [buffer[done:]], offset)

    def flush(self) -> None:
        """See ``Disk``."""
        os.fsync(self._fd)


def _aligned(size: int) -> memoryview:
    """Return ``size`` bytes that begin on a page, as O_DIRECT wants them."""
    return memoryview(mmap.mmap(-1, size))[:size]


@contextmanager
def open_disk(
    path: Path, *, writable: bool = False, sector_size: int | None = None
) -> Iterator[DiskFile]:
    """Open and lock a disk or an image of one, for one reader of many or for the only writer.

    ``sector_size`` is for image files, which don't know their own; None finds it by their table.
    Raises HostError.
    """
    try:
        block = stat.S_ISBLK(path.stat().st_mode)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | (os.O_DIRECT if block else 0)
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", hint=_open_hint(error)) from error
    try:
        _lock(fd, path, fcntl.LOCK_EX if writable else fcntl.LOCK_SH)
        size = os.lseek(fd, 0, os.SEEK_END)
        sector_size = _logical_sector_size(fd) if block else sector_size or _guess(fd, path, size)
        geometry = Geometry(sector_size=sector_size, sectors=size // sector_size)
        yield DiskFile(fd, str(path), geometry, direct=block)
    finally:
        os.close(fd)


def _open_hint(error: OSError) -> str | None:
    return "run it as root" if isinstance(error, PermissionError) else None


def _lock(fd: int, path: Path, kind: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise HostError(
                    f"another program has {path} locked, for more than {LOCK_SECONDS:.0f} s",
                    hint=f"'lslocks' shows which one; end it, or try again: {path} is unchanged",
                ) from None
            time.sleep(0.02)  # the kernel offers no event for a lock with a time limit
        else:
            return


def _logical_sector_size(fd: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(size)


def _guess(fd: int, path: Path, size: int) -> int:
    """Return the sector size with which an image's table, or else its backup, can be read."""
    for sector_size in gpt.SECTOR_SIZES:
        geometry = Geometry(sector_size=sector_size, sectors=size // sector_size)
        tables = read_tables(DiskFile(fd, str(path), geometry, direct=False))
        if isinstance(tables.primary, Table) or isinstance(tables.backup, Table):
            return sector_size
    return gpt.SECTOR_SIZES[0]


# Reading -----------------------------------------------------------------------------------------


def read_tables(disk: Disk) -> Tables:
    """Return both copies of the partition table as they stand on the medium.

    The backup is looked for where a valid primary says, else in the last sector, as firmware and
    Linux do. Raises nothing: what cannot be read or used is in the result.
    """
    geometry = disk.geometry
    primary = _read_copy(disk, Copy.PRIMARY, gpt.PRIMARY_LBA)
    backup_lba = geometry.last_lba
    if isinstance(primary, Table):
        backup_lba = primary.header.alternate_lba
    backup = _read_copy(disk, Copy.BACKUP, backup_lba)
    return Tables(geometry=geometry, primary=primary, backup=backup)


def read_mbr(disk: Disk) -> gpt.Mbr:
    """Return what kind of MBR stands in LBA 0."""
    try:
        return gpt.parse_mbr(disk.read(0, 1))
    except OSError:
        return gpt.Mbr.MISSING


def _read_copy(disk: Disk, copy: Copy, lba: int) -> Table | TableError:
    try:
        sector = disk.read(lba, 1) if lba > 0 else b""
        header = gpt.parse_header(copy, sector, lba=lba, geometry=disk.geometry)
        return gpt.parse_table(header, disk.read(header.entries_lba, header.array_sectors))
    except TableError as error:
        return error
    except OSError as error:
        return gpt.unreadable(copy, error.strerror or str(error))


# Writing -----------------------------------------------------------------------------------------


def repair(disk: Disk) -> Tables:
    """Make both copies valid, equal and where firmware looks for them; return them.

    Writes nothing to a sound disk, and nothing to one whose copies are both unusable. Cut the
    power anywhere and firmware reads the table it read before. Raises HostError.
    """
    return _carry_out(disk, gpt.repair(_settled(disk)))


def change_slots(disk: Disk, edit: Callable[[Slots], Slots]) -> Slots:
    """Store the flags that ``edit`` returns for the slots on ``disk``; return them.

    Cut the power anywhere and firmware reads the old flags of both slots or the new ones of both,
    never a mixture and never no table. Raises HostError, and whatever ``edit`` raises, before
    anything is written.
    """
    before = _settled(disk)
    old = slot.from_table(before.authoritative)
    new = edit(old)
    sound = _carry_out(disk, gpt.repair(before))
    _carry_out(disk, gpt.change(sound, slot.words(sound.authoritative, new)))
    return new


def _settled(disk: Disk) -> Tables:
    """Return the tables as they would survive a power cut now."""
    try:
        disk.flush()
    except OSError as error:
        raise _failed(disk, error) from error
    return read_tables(disk)


def _carry_out(disk: Disk, plan: Plan) -> Tables:
    for phase in plan.phases:
        try:
            for write in phase:
                disk.write(write.lba, write.data)
            disk.flush()
            lost = [write for write in phase if _read_back(disk, write) != write.data]
        except OSError as error:
            raise _failed(disk, error) from error
        if lost:
            raise HostError(
                f"{disk.name} does not hold at LBA {lost[0].lba} what was written there",
                hint="one whole copy of the table still counts; replace the disk",
            )
    if plan.phases and read_tables(disk) != plan.after:
        raise HostError(f"the partition table of {disk.name} was changed by another program")
    return plan.after


def _failed(disk: Disk, error: OSError) -> HostError:
    return HostError(
        f"cannot write the partition table of {disk.name}: {error.strerror}",
        hint="one whole copy of the table still counts; replace the disk",
    )


def _read_back(disk: Disk, write: gpt.Write) -> bytes:
    return disk.read(write.lba, len(write.data) // disk.geometry.sector_size)
