"""The last partition grows to the end of a disk that grew, with the phases of every change."""

from dataclasses import replace

import pytest

from tests.disks import MemoryDisk, healthy
from update_agent.core.gpt import Partition
from update_agent.errors import HostError
from update_agent.host import disk as disks

both_sector_sizes = pytest.mark.parametrize("sector_size", [512, 4096])


def grown(sector_size: int) -> MemoryDisk:
    """Return a healthy disk of 2048 sectors that has 8 MiB more now."""
    disk = healthy(sector_size)
    disk.geometry = replace(disk.geometry, sectors=2048 + 8 * 2**20 // sector_size)
    return disk


def partitions(disk: MemoryDisk) -> tuple[Partition, ...]:
    return disks.read_tables(disk).authoritative.partitions


@pytest.mark.case(60)
@pytest.mark.parametrize(
    ("sector_size", "last_lba", "last_usable"),
    [
        # 18432 sectors, the last 33 for the backup: whole MiB end at 16384
        pytest.param(512, 16383, 18398, id="512"),
        # 4096 sectors, the last 5 for the backup: whole MiB end at 3840
        pytest.param(4096, 3839, 4090, id="4096"),
    ],
)
def test_it_ends_at_the_last_whole_mib_and_nothing_else_changes(
    sector_size: int, last_lba: int, last_usable: int
) -> None:
    disk = grown(sector_size)
    before = partitions(disk)

    part = disks.grow(disk, "STATE")

    tables = disks.read_tables(disk)
    assert tables.sound
    assert tables.authoritative.header.last_usable == last_usable
    assert part == replace(before[-1], last_lba=last_lba)
    assert tables.authoritative.partitions == (*before[:-1], part)


@both_sector_sizes
def test_growing_again_writes_nothing(sector_size: int) -> None:
    disk = grown(sector_size)
    part = disks.grow(disk, "STATE")
    disk.writes.clear()

    assert disks.grow(disk, "STATE") == part
    assert disk.writes == []


def test_a_disk_that_did_not_grow_is_left_alone() -> None:
    disk = healthy()

    disks.grow(disk, "STATE")

    assert disk.writes == []


@both_sector_sizes
def test_ended_between_any_two_writes_it_has_the_old_size_or_the_new(sector_size: int) -> None:
    whole = grown(sector_size)
    sizes = {partitions(whole), (*partitions(whole)[:-1], disks.grow(whole, "STATE"))}

    for count in range(len(whole.writes)):
        disk = grown(sector_size)
        for lba, data in whole.writes[:count]:
            disk.put(lba, data)
        assert partitions(disk) in sizes
        disks.grow(disk, "STATE")
        assert partitions(disk) == partitions(whole)


def test_only_the_last_partition_can_grow() -> None:
    disk = grown(512)

    with pytest.raises(HostError, match=r"^partition 2 \(ROOT-A\) is not the last one"):
        disks.grow(disk, "ROOT-A")
    with pytest.raises(HostError, match=r"^the disk has 0 partitions labelled DATA, wanted 1$"):
        disks.grow(disk, "DATA")
    assert disk.writes == []
