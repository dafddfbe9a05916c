"""A partition of a disk, opened: by the kernel's node for it, or as a part of an image file.

The rule kept here: what is opened is what the disk's table says and the kernel knows. Where the two
differ (a table was edited, and the kernel still has the old one) nothing is opened at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from update_agent.core.gpt import Partition, Table
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host import udev
from update_agent.host.device import Device, Section, open_device


@contextmanager
def open_partition(path: Path, number: int, *, writable: bool = False) -> Iterator[Device]:
    """Open partition ``number`` of the disk or image at ``path``. Raises HostError."""
    with disks.open_disk(path) as disk:
        sector = disk.geometry.sector_size
        found = _entry(disks.read_tables(disk).authoritative, number, path)
    start, size = found.first_lba * sector, (found.last_lba + 1 - found.first_lba) * sector
    node = udev.partition_node(path, number)
    if node and (node.start, node.size) != (start, size):
        raise HostError(
            f"{node.path} is bytes {node.start} to {node.start + node.size} of its disk, the"
            f" partition table says {start} to {start + size}",
            hint="the table was changed while it was in use: reboot",
        )
    with open_device(node.path if node else path, writable=writable) as device:
        yield Section(device, 0 if node else start, size)


def _entry(table: Table, number: int, path: Path) -> Partition:
    for partition in table.partitions:
        if partition.number == number:
            return partition
    raise HostError(f"{path} has no partition {number}")
