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
        self.is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self._fd = fd

    def logical_sector_size(self) -> int:
        """Return the sector size of a block device, in bytes."""
        (size,) = struct.unpack("i", fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4)))
        return int(size)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; return the bytes read, fewer only at the end."""
        if not self.is_block:
            os.posix_fadvise(self._fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
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
            done += os.pwritev(self._fd, [buffer[done:]], offset + done)

    def flush(self) -> None:
        """Return when everything written before is on the medium.

        An error here means that nobody knows what the medium holds: never flush again and go on.
        """
        os.fsync(self._fd)


def aligned(size: int) -> memoryview:
    """Return ``size`` zero bytes that begin on a page, as O_DIRECT wants them."""
    return memoryview(mmap.mmap(-1, size))


@contextmanager
def open_device(path: Path, *, writable: bool = False, exclusive: bool = False) -> Iterator[Device]:
    """Open a block device or a file. Raises HostError.

    ``exclusive`` refuses a block device that is mounted or mapped, and keeps it from becoming so.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    try:
        if stat.S_ISBLK(path.stat().st_mode):
            flags |= os.O_DIRECT | (os.O_EXCL if exclusive else 0)
        fd = os.open(path, flags)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", hint=_hint(error)) from error
    try:
        yield Device(fd, path)
    finally:
        os.close(fd)


def _hint(error: OSError) -> str | None:
    return {
        errno.EACCES: "run it as root",
        errno.EBUSY: "it is mounted or in use; end its user first",
    }.get(error.errno or 0)
