"""Finding the disk that the host runs from, and refusing a slot that somebody uses.

On loop devices whose partitions are made known with addpart(8), because this kernel does not scan
them. The walk starts at what is mounted and goes up through sysfs, so no device name is parsed
anywhere: nvme0n1p2 and mmcblk0p2 are found as loop0p2 is (case 45). A root on dm-verity needs
/dev/mapper, which this kernel lacks; ``vm-tests/`` hold that part.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disks import LAYOUT, flags, healthy, loop, tool
from update_agent.core.slot import SlotName
from update_agent.ctl import main, recovery, slots
from update_agent.errors import HostError
from update_agent.host import udev
from update_agent.host.disk import open_disk, read_tables
from update_agent.host.udev import BootedPartition, booted_partition, unused


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A disk with two slots whose partitions the kernel knows. A is successful."""

    image: Path
    disk: Path

    def partition(self, number: int) -> Path:
        return Path(f"{self.disk}p{number}")


@contextmanager
def host(image: Path) -> Iterator[Host]:
    with loop(image) as device:
        for it in LAYOUT:
            size = str(it.last - it.first + 1)
            tool("addpart", device, str(it.number), str(it.first), size)
        try:
            yield Host(image=image, disk=device)
        finally:
            for it in LAYOUT:
                tool("delpart", device, str(it.number))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Host]:
    with host(healthy(512).save(tmp_path / "disk.img")) as made:
        tool("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^has_journal", made.partition(2))
        tool("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^has_journal", made.partition(3))
        yield made


@contextmanager
def mounted(device: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    tool("mount", "-o", "ro", device, where)
    try:
        yield where
    finally:
        tool("umount", where)


# Which disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3])
def test_the_disk_and_partition_under_a_mount_are_found(
    machine: Host, number: int, tmp_path: Path
) -> None:
    with mounted(machine.partition(number), tmp_path / "root") as root:
        assert booted_partition(root) == BootedPartition(disk=machine.disk, number=number)


@pytest.mark.case(45)
def test_the_partitions_number_comes_from_the_kernel_and_not_from_its_name(
    machine: Host, tmp_path: Path
) -> None:
    tool("delpart", machine.disk, "2")
    tool("addpart", machine.disk, "12", "512", "512")
    try:
        with mounted(machine.partition(12), tmp_path / "root") as root:
            assert booted_partition(root).number == 12
    finally:
        tool("delpart", machine.disk, "12")
        tool("addpart", machine.disk, "2", "512", "512")


@pytest.mark.case(46)
@pytest.mark.parametrize("booted", [0, 1], ids=["first", "second"])
def test_of_two_disks_with_identical_guids_only_the_booted_one_is_touched(
    booted: int, tmp_path: Path
) -> None:
    first = healthy(512).save(tmp_path / "0.img")
    with host(first) as it:
        tool("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^has_journal", it.partition(2))
    shutil.copy(first, tmp_path / "1.img")
    original = first.read_bytes()

    with ExitStack() as stack:
        twins = [stack.enter_context(host(tmp_path / f"{index}.img")) for index in (0, 1)]
        root = stack.enter_context(mounted(twins[booted].partition(2), tmp_path / "root"))

        found = booted_partition(root)
        assert found == BootedPartition(disk=twins[booted].disk, number=2)
        assert recovery.main(["arm", "B", "--disk", str(found.disk)]) == 0

    mine, twin = twins[booted].image, twins[1 - booted].image
    assert twin.read_bytes() == original
    with open_disk(mine) as disk:
        assert read_tables(disk).authoritative.partitions[2].attributes == flags(2, 3)


def test_a_root_on_a_whole_disk_is_no_slot(tmp_path: Path) -> None:
    image = tmp_path / "whole.img"
    image.write_bytes(bytes(2**20))
    tool("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", image)

    with loop(image) as device, mounted(device, tmp_path / "root") as root:
        message = rf"^{root} \({device}\) lies on 0 partitions, wanted 1$"
        with pytest.raises(HostError, match=message) as raised:
            booted_partition(root)
    assert raised.value.hint == (
        "this host was not booted from a slot; name a disk or an image with --disk"
    )


def test_a_root_in_memory_is_on_no_block_device() -> None:
    with pytest.raises(HostError, match=r"^/proc is on no block device$"):
        booted_partition(Path("/proc"))


def test_without_a_booted_slot_the_tool_asks_for_a_disk(
    machine: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with mounted(machine.partition(3), tmp_path / "root") as root:
        _boot_from(root, monkeypatch)
        assert main.main(["slots"]) == 0
        assert "  B*    3 " in capsys.readouterr().out
        _boot_from(Path("/proc"), monkeypatch)
        assert main.main(["slots"]) == 4
        assert capsys.readouterr().err == (
            "update-agentctl: /proc is on no block device\n"
            "(this host was not booted from a slot; name a disk or an image with --disk)\n"
        )


def _boot_from(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the programs take ``root`` for the root of this host."""
    monkeypatch.setattr(udev, "booted_partition", lambda: booted_partition(root))


# Slots in use ------------------------------------------------------------------------------------


@pytest.mark.case(42)
def test_a_mounted_slot_is_refused_by_its_mount_point(machine: Host, tmp_path: Path) -> None:
    node = machine.partition(3)
    with mounted(node, tmp_path / "somewhere") as place:
        message = rf"^{node} is in use \(mounted at {place}\): Device or resource busy$"
        with pytest.raises(HostError, match=message) as raised, unused(machine.disk, 3):
            pytest.fail("held a mounted slot")
        assert raised.value.hint == "unmount it or end its user; nothing was changed"

    with unused(machine.disk, 3):
        pass


@pytest.mark.case(42)
@pytest.mark.parametrize("verb", ["retire", "arm"])
def test_the_tool_changes_no_mounted_slot_and_names_the_mount_point(
    machine: Host, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = machine.image.read_bytes()
    with mounted(machine.partition(3), tmp_path / "somewhere") as place:
        assert recovery.main([verb, "B", "--disk", str(machine.disk)]) == 4

    assert f"(mounted at {place}): Device or resource busy" in capsys.readouterr().err
    assert machine.image.read_bytes() == before
    assert recovery.main([verb, "B", "--disk", str(machine.disk)]) == 0


@pytest.mark.case(42)
def test_a_dry_run_tells_of_a_mounted_slot_as_well(machine: Host, tmp_path: Path) -> None:
    with mounted(machine.partition(3), tmp_path / "somewhere"):
        assert recovery.main(["arm", "B", "--disk", str(machine.disk), "--dry-run"]) == 4


@pytest.mark.case(42)
def test_a_slot_mounted_in_another_namespace_is_refused_as_well(
    machine: Host, tmp_path: Path
) -> None:
    place = tmp_path / "private"
    place.mkdir()
    script = 'mount -o ro "$1" "$2" && echo mounted && cat'
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", machine.partition(3), place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"mounted\n"
        message = rf"^{machine.partition(3)} is in use: Device or resource busy$"
        with pytest.raises(HostError, match=message), unused(machine.disk, 3):
            pytest.fail("held a slot that is mounted elsewhere")
        other.communicate()


HOLD = (
    "import os, sys; os.open(sys.argv[1], os.O_EXCL); print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.case(42)
@pytest.mark.parametrize("what", ["partition", "disk"])
def test_a_slot_held_by_another_program_is_refused_until_it_is_free(
    machine: Host, what: str
) -> None:
    held = machine.partition(3) if what == "partition" else machine.disk
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(HostError, match=r"is in use: Device or resource busy$"),
            unused(machine.disk, 3),
        ):
            pytest.fail("held a slot that another program holds")
        other.communicate()

    with unused(machine.disk, 3):
        pass


def test_a_slot_that_we_hold_cannot_be_mounted(machine: Host, tmp_path: Path) -> None:
    with unused(machine.disk, 3):
        with pytest.raises(AssertionError, match="already mounted or mount point busy"):
            tool("mount", "-o", "ro", machine.partition(3), tmp_path)
        with mounted(machine.partition(2), tmp_path / "other"):
            pass


@pytest.mark.case(42)
@pytest.mark.parametrize("verb", ["retire", "arm"])
def test_the_slot_that_the_host_runs_from_is_refused_by_name(
    machine: Host,
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = machine.image.read_bytes()
    with mounted(machine.partition(3), tmp_path / "root") as root:
        _boot_from(root, monkeypatch)
        assert slots.look(machine.disk).booted is SlotName.B
        assert recovery.main([verb, "B", "--disk", str(machine.disk)]) == 4

    assert capsys.readouterr().err == (
        "update-agent-slots: slot B is the one this host runs from; it is not touched\n"
        "(roll back to slot A and reboot first)\n"
    )
    assert machine.image.read_bytes() == before


def test_the_booted_slot_is_confirmed_while_it_is_mounted(
    machine: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(machine.partition(2), tmp_path / "root") as root:
        _boot_from(root, monkeypatch)
        assert recovery.main(["arm", "B", "--disk", str(machine.disk)]) == 0
        assert recovery.main(["confirm", "A", "--disk", str(machine.disk)]) == 0
        assert recovery.main(["rollback", "A", "--disk", str(machine.disk)]) == 0


def test_an_image_file_has_nobody_to_fear(tmp_path: Path) -> None:
    with unused(healthy(512).save(tmp_path / "disk.img"), 3):
        pass


def test_a_partition_that_the_kernel_does_not_know_has_nobody_to_fear(tmp_path: Path) -> None:
    image = healthy(512).save(tmp_path / "disk.img")

    with loop(image) as device, unused(device, 3):
        assert not os.path.lexists(f"{device}p3")
