"""A block device or an image file, read and written past the page cache.

The rule kept here: what is read comes from the medium, what was flushed is on it, and the host's
working set is not evicted for either. Block devices are opened with O_DIRECT, so buffers begin on a
page (``aligned``) and sizes are whole sectors. For image files, which no host runs from, the page
cache is used and dropped.

What the bytes mean is left to others: ``disk.py`` (partition tables), ``slot.py`` (slots).
"""

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from update_agent.errors import HostError

_BLKSSZGET = 0x1268
"""linux/fs.h: the logical sector size of a block device, as an int."""


class Device:
    """An open block device or file. Methods raise OSError."""

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        status = os.fstat(fd)
        self.is_block = stat.S_ISBLK(status.st_mode)
        file = (status.st_dev, status.st_ino)
        self.identity: tuple[int, ...] = (0, status.st_rdev) if self.is_block else file
        """Equal for two that are one, whatever their paths are."""
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self._fd = fd

    def fileno(self) -> int:
        """Return the open file's descriptor, for locks."""
        return self._fd

    def logical_sector_size(self) -> int:
        """Return the sector size of a block device, in bytes."""
        (size,) = struct.unpack("i", fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4)))
        return int(size)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; return the bytes read, fewer only at the end."""
        if not self.is_block:
            self._forget(offset, len(buffer))
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, fewer only at the end."""
        buffer = aligned(size)
        return bytes(buffer[: self.read_into(buffer, offset)])

    def write(self, buffer: memoryview, offset: int) -> None:
        """Write all of ``buffer`` at ``offset``; durable only after ``flush``."""
        done = 0
        while done < len(buffer):
            wrote = os.pwritev(self._fd, [buffer[done:]], offset + done)
            if wrote == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += wrote

    def flush(self) -> None:
        """Return when everything written before is on the medium.

        An error here means that nobody knows what the medium holds: never flush again and go on.
        """
        os.fsync(self._fd)

    def _forget(self, offset: int, size: int) -> None:
        """Drop clean pages from the cache; whole ones, or the kernel keeps those at the ends."""
        start = offset - offset % mmap.PAGESIZE
        end = -(-(offset + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        os.posix_fadvise(self._fd, start, end - start, os.POSIX_FADV_DONTNEED)


class Section(Device):
    """A part of an open device, as a device: what lies outside is out of reach."""

    def __init__(self, device: Device, start: int, size: int) -> None:
        super().__init__(device.fileno(), device.path)
        if start < 0 or start + size > self.size:
            raise ValueError(f"bytes {start} to {start + size} are not all on {device.path}")
        self.identity = (*self.identity, start)
        self.size = size
        self._start = start

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; return the bytes read, fewer only at the end."""
        return super().read_into(buffer[: max(0, self.size - offset)], self._start + offset)

    def write(self, buffer: memoryview, offset: int) -> None:
        """Write all of ``buffer`` at ``offset``; durable only after ``flush``."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(buffer, self._start + offset)


class Front(Section):
    """Stands before a device: who derives says what happens on the way to it."""

    def __init__(self, device: Device) -> None:
        self._inner = device
        super().__init__(device, 0, device.size)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """See ``Device``."""
        return self._inner.read_into(buffer, offset)

    def write(self, buffer: memoryview, offset: int) -> None:
        """See ``Device``."""
        self._inner.write(buffer, offset)


def aligned(size: int) -> memoryview:
    """Return ``size`` zero bytes that begin on a page, as O_DIRECT wants them."""
    return memoryview(mmap.mmap(-1, size))


@contextmanager
def open_device(path: Path, *, writable: bool = False, exclusive: bool = False) -> Iterator[Device]:
    """Open a block device or a file. Raises HostError.

    ``exclusive`` refuses a block device that is mounted or mapped, and keeps it from becoming so;
    and a device or file that is open so already.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    try:
        mode = path.stat().st_mode
        if stat.S_ISBLK(mode):
            flags |= os.O_DIRECT | (os.O_EXCL if exclusive else 0)
        elif not stat.S_ISREG(mode):
            raise HostError(f"{path} is neither a block device nor a file")
        fd = os.open(path, flags)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", hint=_hint(error)) from error
    try:
        if exclusive and not flags & os.O_EXCL:
            _lock(fd, path)
        yield Device(fd, path)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostError(f"{path} is in use by another update", hint="end it first") from error


def _hint(error: OSError) -> str | None:
    return {
        errno.EACCES: "run it as root",
        errno.EBUSY: "it is mounted or in use; end its user first",
    }.get(error.errno or 0)
