"""Block devices, as hosts have them: partitions that the kernel knows, mounts, large sectors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.disks import healthy, loop, tool
from tests.hosts import A_AT, B_AT, LAYOUT, SECTORS, SLOT_SIZE, V1, World
from update_agent.agent.slots import WriterSlots
from update_agent.core.settings import Settings
from update_agent.core.slot import BootFlags, SlotName
from update_agent.core.wire import UnverifiedError
from update_agent.errors import HostError
from update_agent.host.disk import change_slots, open_disk
from update_agent.host.writer import Writer


@contextmanager
def attached(world: World, sector_size: int = 512) -> Iterator[Path]:
    """Give the host a block device with partitions for a disk; yield the node of slot B."""
    parts = sector_size // 512
    entries = [replace(it, first=it.first // parts, last=(it.last + 1) // parts - 1)
               for it in LAYOUT]  # fmt: skip
    healthy(sector_size, entries, sectors=SECTORS // parts).save(world.disk)
    world.put(A_AT, world.fleet.releases.v1.content)
    with loop(world.disk, sector_size) as device:
        for number, at in ((2, A_AT), (3, B_AT)):
            tool("addpart", device, str(number), str(at // 512), str(SLOT_SIZE // 512))
        world.host = replace(world.host, disk=device)
        try:
            yield Path(f"{device}p3")
        finally:
            for number in (2, 3):
                tool("delpart", device, str(number))


@pytest.mark.case(43)
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_release_is_installed_and_armed_on_partitions(sector_size: int, world: World) -> None:
    with attached(world, sector_size), world.serving():
        world.install()
        with Writer(world.address) as writer:
            state = writer.arm()
    assert (state.next, state.b.size) == ("B", SLOT_SIZE)
    assert world.slot_b().startswith(world.fleet.releases.v2.content)


@pytest.mark.case(42)
def test_a_slot_that_is_mounted_or_held_is_neither_written_nor_armed(
    world: World, tmp_path: Path
) -> None:
    with attached(world) as node, world.serving():
        tool("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", node)
        before = world.disk.read_bytes()
        where = tmp_path / "mounted"
        where.mkdir()
        tool("mount", "-o", "ro", node, where)
        try:
            with pytest.raises(HostError, match=rf"^{node} is in use \(mounted at {where}\): Dev"):
                world.install()
        finally:
            tool("umount", where)
        assert world.disk.read_bytes() == before
        world.install()
        held = os.open(node, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(HostError, match=rf"^{node} is in use: Device or resource busy"):
                _arm(world)
        finally:
            os.close(held)
        assert world.look().next == "A"
        _arm(world)
        assert world.look().next == "B"


def _arm(world: World) -> None:
    with Writer(world.address) as writer:
        writer.arm()


def test_a_partition_that_the_kernel_knows_at_another_place_is_not_opened(world: World) -> None:
    with attached(world) as node, world.serving():
        before = world.disk.read_bytes()
        tool("delpart", world.host.disk, "3")
        tool("addpart", world.host.disk, "3", str(B_AT // 512 + 8), str(SLOT_SIZE // 512))
        with pytest.raises(HostError, match=rf"^{node} is bytes {B_AT + 4096} to .* of its disk, "):
            world.install()
        assert world.disk.read_bytes() == before


def test_a_change_is_no_failure_when_only_the_other_slot_cannot_be_looked_at(
    world: World,
) -> None:
    with attached(world) as node, world.serving():
        with open_disk(world.host.disk, writable=True) as disk:
            on_trial = BootFlags(priority=1, tries=2)
            change_slots(disk, lambda it: it.with_flags({SlotName.A: on_trial}))
        tool("delpart", world.host.disk, "3")
        tool("addpart", world.host.disk, "3", str(B_AT // 512 + 8), str(SLOT_SIZE // 512))
        with Writer(world.address) as writer:
            state = writer.confirm()

    assert (state.booted.state, state.booted.unknown) == ("successful", None)
    assert (state.other.root_hash, state.other.size) == (None, None)
    assert state.other.unknown is not None
    assert state.other.unknown.startswith(f"{node} is bytes {B_AT + 4096} to ")


def test_a_booted_slot_that_cannot_be_looked_at_is_not_taken_for_another_release(
    world: World, tmp_path: Path
) -> None:
    slots = WriterSlots(Settings(), lambda: world.now, tmp_path, world.address)
    with attached(world), world.serving():
        assert slots.boot().root_hash == world.fleet.release(V1).root_hash
        tool("delpart", world.host.disk, "2")
        tool("addpart", world.host.disk, "2", str(A_AT // 512 - 8), str(SLOT_SIZE // 512))
        with pytest.raises(HostError, match=r"^what slot A holds is not known: .* of its disk, "):
            slots.boot()


@pytest.mark.case(41)
def test_a_slot_that_changed_after_it_was_verified_is_not_armed(world: World) -> None:
    with attached(world) as node, world.serving():
        world.install()
        fd = os.open(node, os.O_WRONLY)
        os.pwrite(fd, bytes(4096), world.fleet.release().image_size - 8192)
        os.fsync(fd)
        os.close(fd)
        with pytest.raises(UnverifiedError, match=r"the kernel does not have the hash"):
            _arm(world)
