"""STATE and the disk it ends: grown to fill the disk, while it is mounted.

An image is small and a disk is large, and a disk may grow later. First the partition grows on the
disk (``host/disk.py``, safe from power cuts), then in the kernel, then its file system in it; each
step is taken up where a power cut left it.
"""

import ctypes
import fcntl
import os
from pathlib import Path
from struct import Struct

from update_agent.core.gpt import Partition
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host import udev
from update_agent.host.device import open_device
from update_agent.run import run

LABEL = "STATE"

_BLKPG = 0x1269
_BLKPG_RESIZE_PARTITION = 3
_BLKPG_ARGUMENT = Struct("iiiP")
_BLKPG_PARTITION = Struct("qqi64s64s4x")
"""linux/blkpg.h: operation, flags, size and place of: start, length, number, two unused names."""

_EXT4_SUPERBLOCK = 1024
_EXT4_BLOCKS, _EXT4_BLOCK_SIZE, _EXT4_BLOCKS_HIGH = 4, 24, 0x150
"""Documentation/filesystems/ext4/super.rst: s_blocks_count_lo, s_log_block_size, _hi."""


def grow(disk: Path) -> bool:
    """Let STATE fill ``disk``; return whether it grew. Raises HostError."""
    with disks.open_disk(disk, writable=True) as opened:
        part = disks.grow(opened, LABEL)
        sector = disks.read_tables(opened).geometry.sector_size
    size = (part.last_lba - part.first_lba + 1) * sector
    node = udev.partition_node(disk, part.number)
    if node is None:
        raise HostError(f"the kernel knows no partition {part.number} of {disk}")
    with open_device(node.path) as device:
        if device.size < size:
            _tell_kernel(disk, part, sector)
        superblock = device.read(0, 4096)[_EXT4_SUPERBLOCK:]
    if _file_system_size(superblock) + 2**20 > size:
        return False
    run(["resize2fs", node.path])
    return True


def _tell_kernel(disk: Path, part: Partition, sector: int) -> None:
    """Let the kernel know where a partition in use ends now."""
    length = (part.last_lba - part.first_lba + 1) * sector
    described = ctypes.create_string_buffer(
        _BLKPG_PARTITION.pack(part.first_lba * sector, length, part.number, b"", b"")
    )
    argument = _BLKPG_ARGUMENT.pack(
        _BLKPG_RESIZE_PARTITION, 0, _BLKPG_PARTITION.size, ctypes.addressof(described)
    )
    fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKPG, argument)
    except OSError as error:
        raise HostError(
            f"the kernel does not take the new size of {disk}'s partition {part.number}:"
            f" {error.strerror}",
            hint="it has it after a reboot",
        ) from error
    finally:
        os.close(fd)


def _file_system_size(superblock: bytes) -> int:
    def number(offset: int) -> int:
        return int.from_bytes(superblock[offset : offset + 4], "little")

    blocks = number(_EXT4_BLOCKS_HIGH) << 32 | number(_EXT4_BLOCKS)
    return blocks << (10 + number(_EXT4_BLOCK_SIZE))
