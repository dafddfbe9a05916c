"""Control groups: a folder that stands for the kernel's, and the kernel's own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cgroups import Cgroups
from tests.disks import loop
from update_agent.errors import HostError
from update_agent.host import cgroup
from update_agent.host.cgroup import SLICE, Waits


@pytest.fixture
def groups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path / "cgroup")


# Who waits ---------------------------------------------------------------------------------------


def test_what_counts_is_how_long_the_hosts_work_waited_since_the_last_look(groups: Cgroups) -> None:
    groups.waits("system.slice", 5_000_000)
    waits = Waits(groups.root)
    assert waits.since_last() == 0

    groups.waits("system.slice", 250_000)
    assert waits.since_last() == 0.25
    assert waits.since_last() == 0


def test_all_groups_are_added_up_but_our_own_and_init(groups: Cgroups) -> None:
    groups.waits("docker", 0)
    waits = Waits(groups.root)

    groups.waits("system.slice", 100_000)
    groups.waits("docker", 200_000)
    groups.waits(SLICE, 5_000_000)
    groups.waits("init.scope", 7_000_000)

    assert waits.since_last() == pytest.approx(0.3)


def test_groups_come_go_and_come_again(groups: Cgroups) -> None:
    waits = Waits(groups.root)

    groups.waits("machine.slice", 9_000_000)  # how much of it since the last look nobody knows
    assert waits.since_last() == 0
    groups.waits("machine.slice", 1_000_000)
    assert waits.since_last() == 1
    groups.vanish("machine.slice")
    assert waits.since_last() == 0
    groups.waits("machine.slice", 500_000)
    assert waits.since_last() == 0
    groups.waits("machine.slice", 500_000)
    assert waits.since_last() == 0.5


def test_a_group_made_anew_between_two_looks_has_not_waited_backwards(groups: Cgroups) -> None:
    groups.waits("machine.slice", 9_000_000)
    waits = Waits(groups.root)
    groups.vanish("machine.slice")
    groups.waits("machine.slice", 1_000)
    groups.waits("system.slice", 50_000)

    assert waits.since_last() == 0.05


def test_a_kernel_without_pressure_is_an_error_with_the_way_out(groups: Cgroups) -> None:
    waits = Waits(groups.root)
    groups.vanish("system.slice")

    for look in (lambda: Waits(groups.root), waits.since_last):
        with pytest.raises(HostError, match=r"tells how long it waits") as found:
            look()
        assert "psi=1" in str(found.value.hint)


def test_a_group_whose_pressure_is_switched_off_does_not_count(groups: Cgroups) -> None:
    (groups.root / "quiet.slice" / "io.pressure").mkdir(parents=True)  # reading it is an error

    assert Waits(groups.root).since_last() == 0


def test_no_control_groups_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file") as found:
        Waits(tmp_path / "none")
    assert "cgroup v2" in str(found.value.hint)


# io.max ------------------------------------------------------------------------------------------


def test_a_limit_is_of_bytes_a_second_and_of_nothing_else(groups: Cgroups) -> None:
    before = {it for it in groups.root.rglob("*") if it.name != "io.max"}
    cgroup.limit("254:0", 4e6 + 0.7, groups.root)
    assert groups.io_max == "254:0 rbps=4000000 wbps=4000000"

    cgroup.limit("254:0", None, groups.root)
    assert groups.io_max.startswith("254:0 rbps=max wbps=max")
    assert {it for it in groups.root.rglob("*") if it.name != "io.max"} == before


def test_where_there_is_no_io_max_none_is_made(groups: Cgroups) -> None:
    (groups.root / SLICE / "io.max").unlink()

    with pytest.raises(HostError, match=r"cannot set .*/io.max for 254:0: No such file") as found:
        cgroup.limit("254:0", 1e6, groups.root)

    assert "io controller" in str(found.value.hint)
    assert not (groups.root / SLICE / "io.max").exists()


def test_a_disk_has_a_number_and_an_image_file_none(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(2**20))
    assert cgroup.number(image) is None
    with pytest.raises(HostError, match="cannot open"):
        cgroup.number(tmp_path / "none")
    with loop(image) as disk:
        assert cgroup.number(disk) == Path("/sys/block", disk.name, "dev").read_text().strip()


# The kernel's ------------------------------------------------------------------------------------


@pytest.fixture
def kernel() -> Iterator[Path]:
    """Yield the mounted cgroup v2 with a group of ours in it."""
    said = re.search(r" (/\S+) \S+(?: \S+)* - cgroup2 ", Path("/proc/self/mountinfo").read_text())
    assert said, "no cgroup v2 is mounted"
    group = Path(said[1], f"update-agent-test-{os.getpid()}.slice")
    group.mkdir()
    try:
        assert (group / "io.pressure").exists(), "the kernel does not tell of pressure: psi=1"
        yield group
    finally:
        group.rmdir()


_SYNCS = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
fd = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o600)
for _ in range(200):
    os.write(fd, bytes(65536))
    os.fdatasync(fd)
"""


def test_the_kernel_tells_of_work_that_syncs(kernel: Path, tmp_path: Path) -> None:
    waits = Waits(kernel.parent)
    assert waits.since_last() >= 0

    where = (kernel / "cgroup.procs", tmp_path / "log")
    subprocess.run([sys.executable, "-c", _SYNCS, *where], check=True)

    assert waits.since_last() > 0
