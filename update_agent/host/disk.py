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

import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from update_agent.core import gpt, slot
from update_agent.core.gpt import Copy, Geometry, Partition, Plan, Table, TableError, Tables
from update_agent.core.slot import Slots
from update_agent.errors import HostError
from update_agent.host.device import Device, aligned, open_device

LOCK_SECONDS = 10.0
"""How long to wait for another program's lock; udev holds it while it probes a changed disk."""

_MIN_SECTORS = 6
"""An MBR, two headers, two arrays of at least a sector, and something between them."""


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

    def __init__(self, device: Device, geometry: Geometry) -> None:
        self.name = str(device.path)
        self.geometry = geometry
        self._device = device

    def read(self, lba: int, count: int) -> bytes:
        """See ``Disk``."""
        size = self.geometry.sector_size
        return self._device.read(lba * size, count * size)

    def write(self, lba: int, data: bytes) -> None:
        """See ``Disk``."""
        buffer = aligned(len(data))
        buffer[:] = data
        self._device.write(buffer, lba * self.geometry.sector_size)

    def flush(self) -> None:
        """See ``Disk``."""
        self._device.flush()


@contextmanager
def open_disk(
    path: Path, *, writable: bool = False, sector_size: int | None = None
) -> Iterator[DiskFile]:
    """Open and lock a disk or an image of one, for one reader of many or for the only writer.

    ``sector_size`` is for image files, which don't know their own; None finds it by their table.
    Raises HostError.
    """
    with open_device(path, writable=writable) as device:
        _lock(device, fcntl.LOCK_EX if writable else fcntl.LOCK_SH)
        if device.is_block:
            sector_size = device.logical_sector_size()
        yield DiskFile(device, _geometry(device, sector_size or _found_sector_size(device)))


def _geometry(device: Device, sector_size: int) -> Geometry:
    if sector_size not in gpt.SECTOR_SIZES:
        raise HostError(
            f"{device.path} has sectors of {sector_size} bytes, wanted 512 or 4096",
            hint="no disk that hosts boot from has such sectors",
        )
    sectors = device.size // sector_size
    if sectors < _MIN_SECTORS:
        raise HostError(
            f"{device.path} has {device.size} bytes, too few for a partition table",
            hint="name a whole disk, or an image of one",
        )
    return Geometry(sector_size=sector_size, sectors=sectors)


def _found_sector_size(device: Device) -> int:
    """Return the sector size at which an image has headers; 512 when it has none at all."""
    found = [size for size in gpt.SECTOR_SIZES if _has_header(device, size)]
    if len(found) > 1:
        raise HostError(
            f"{device.path} has partition tables for sectors of 512 and of 4096 bytes",
            hint="say which one counts with --sector-size",
        )
    return found[0] if found else gpt.SECTOR_SIZES[0]


def _has_header(device: Device, size: int) -> bool:
    sectors = device.size // size
    return sectors >= _MIN_SECTORS and any(
        gpt.marks_header(device.read(lba * size, size)) for lba in (gpt.PRIMARY_LBA, sectors - 1)
    )


def _lock(device: Device, kind: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(device.fileno(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise HostError(
                    f"another program has {device.path} locked, for more than {LOCK_SECONDS:g} s",
                    hint="'lslocks' shows which one; end it, or try again: nothing was changed",
                ) from None
            time.sleep(0.02)  # the kernel offers no event for a lock with a time limit
        else:
            return


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
    return Tables(geometry=geometry, primary=primary, backup=backup, mbr=_read_mbr(disk))


def _read_mbr(disk: Disk) -> gpt.Mbr:
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
    mend = gpt.repair(before)
    table = mend.after.authoritative
    new = edit(slot.from_table(table))
    flip = gpt.change(mend.after, slot.words(table, new))
    _carry_out(disk, mend)
    _carry_out(disk, flip)
    return new


def grow(disk: Disk, label: str) -> Partition:
    """Let the partition ``label``, the last one, end where the disk does; return it.

    As safe as a change of flags: cut the power anywhere and it has its old size or the new one.
    Raises HostError.
    """
    mend = gpt.repair(_settled(disk))
    number = _labelled(mend.after.authoritative, label).number
    larger = gpt.grow(mend.after, number)
    if larger.phases:
        _carry_out(disk, mend)
        _carry_out(disk, larger)
    return _labelled(larger.after.authoritative, label)


def _labelled(table: Table, label: str) -> Partition:
    found = [it for it in table.partitions if it.label == label]
    if len(found) != 1:
        raise HostError(f"the disk has {len(found)} partitions labelled {label}, wanted 1")
    return found[0]


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
    protected = error.errno in (errno.EPERM, errno.EROFS)
    return HostError(
        f"cannot write the partition table of {disk.name}: {error.strerror}",
        hint="the disk is write-protected; nothing was written"
        if protected
        else "one whole copy of the table still counts; replace the disk",
    )


def _read_back(disk: Disk, write: gpt.Write) -> bytes:
    return disk.read(write.lba, len(write.data) // disk.geometry.sector_size)
