"""Block devices as sysfs and udev know them: which disk the host runs from, and who uses a slot.

The rule kept here: a disk is found by walking *up* from the device that is mounted as root, through
dm-verity to its partition and the disk around it. Searching by label or GUID would find the twin of
a cloned disk just as well.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyudev

from update_agent.errors import HostError

_SYSFS_SECTOR = 512
"""Bytes in which sysfs counts, whatever sectors a disk has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootedPartition:
    """The partition that holds the running system, by its disk's node and its number there."""

    disk: Path
    number: int


def booted_partition(root: Path = Path("/")) -> BootedPartition:
    """Return the partition under the file system mounted at ``root``.

    Raises HostError when that is no partition, or more than one.
    """
    try:
        mounted = pyudev.Devices.from_device_number(pyudev.Context(), "block", root.stat().st_dev)
    except (pyudev.DeviceNotFoundError, OSError) as error:
        raise HostError(f"{root} is on no block device", hint=_NO_SLOT) from error
    found = list(_partitions_under(mounted))
    if len(found) != 1:
        raise HostError(
            f"{root} ({mounted.device_node}) lies on {len(found)} partitions, wanted 1",
            hint=_NO_SLOT,
        )
    disk = found[0].find_parent("block", "disk")
    return BootedPartition(
        disk=Path(disk.device_node), number=found[0].attributes.asint("partition")
    )


_NO_SLOT = "this host was not booted from a slot; name a disk or an image with --disk"


def _partitions_under(device: pyudev.Device) -> Iterator[pyudev.Device]:
    """Yield the partitions that ``device`` is, or is mapped to."""
    if device.device_type == "partition":
        yield device
    for below in _names(device, "slaves"):
        yield from _partitions_under(pyudev.Devices.from_name(device.context, "block", below))


def _names(device: pyudev.Device, folder: str) -> list[str]:
    path = Path(device.sys_path, folder)
    return sorted(it.name for it in path.iterdir()) if path.is_dir() else []


@contextmanager
def unused(disk: Path, number: int) -> Iterator[None]:
    """Hold partition ``number`` of ``disk`` so that nobody can mount or map it meanwhile.

    Raises HostError when somebody already has, in whatever mount namespace, and says who. An image
    file, and a disk whose partitions the kernel doesn't know, has nobody to fear.
    """
    partition = _partition(disk, number)
    if partition is None:
        yield
        return
    try:
        fd = os.open(partition.device_node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"{partition.device_node} is in use{_users(partition)}: {error.strerror}",
            hint="unmount it or end its user; nothing was changed",
        ) from error
    try:
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionNode:
    """A partition as the kernel knows it: its node, and where on its disk it lies, in bytes."""

    path: Path
    start: int
    size: int


def partition_node(disk: Path, number: int) -> PartitionNode | None:
    """Return partition ``number`` of ``disk``, or None when the kernel knows of no such."""
    found = _partition(disk, number)
    if found is None:
        return None
    return PartitionNode(
        path=Path(found.device_node),
        start=found.attributes.asint("start") * _SYSFS_SECTOR,
        size=found.attributes.asint("size") * _SYSFS_SECTOR,
    )


def _partition(disk: Path, number: int) -> pyudev.Device | None:
    status = disk.stat()
    if not stat.S_ISBLK(status.st_mode):
        return None
    device = pyudev.Devices.from_device_number(pyudev.Context(), "block", status.st_rdev)
    for child in device.children:
        if child.device_type == "partition" and child.attributes.asint("partition") == number:
            return child
    return None


def _users(partition: pyudev.Device) -> str:
    """Return who uses a partition, as far as this mount namespace and sysfs tell."""
    number = partition.device_number
    device = f"{os.major(number)}:{os.minor(number)}"
    mounts = [
        fields[4]
        for fields in map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
        if fields[2] == device
    ]
    places = [f"mounted at {place}" for place in mounts]
    places += [f"held by {name}" for name in _names(partition, "holders")]
    return f" ({', '.join(places)})" if places else ""
