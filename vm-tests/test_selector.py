"""The selector in a machine: every row of the boot rule that matters is booted for real.

Each row begins with a disk as some history left it and names the kernel that must run. What the
selector did to the disk is held against ``core/slot.py`` and ``host/disk.py``, which do the same to
a copy of it, and against ``cgpt``.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.disks import tool
from tests.selector import model, rig
from tests.selector.rig import BLOCK, BootDisk, Machine, kernel
from update_agent.core import slot
from update_agent.core.gpt import Copy
from update_agent.core.slot import BootFlags, SlotName
from update_agent.host.disk import open_disk

A, B = SlotName


def flags(priority: int, tries: int, *, ok: bool = False) -> BootFlags:
    return BootFlags(priority=priority, tries=tries, successful=ok)


GONE, OK, OK_2 = flags(0, 0), flags(1, 0, ok=True), flags(2, 0, ok=True)
ARMED = flags(2, 3)

RUNS = {
    "one": "kernel one runs from partition 00000000000000000000000000000002.",
    "two": "kernel two runs from partition 00000000000000000000000000000003.",
}
"""What a kernel says; its device handle is its slot's partition, whose GUID tells the number."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cgpt_flags(disk: BootDisk) -> list[tuple[int, int, bool]]:
    """Return the flags of slot A and B as ``cgpt show`` reads them."""
    return [
        (
            int(tool("cgpt", "show", "-i", number, "-P", disk.path)),
            int(tool("cgpt", "show", "-i", number, "-T", disk.path)),
            tool("cgpt", "show", "-i", number, "-S", disk.path).strip() == "1",
        )
        for number in ("2", "3")
    ]


def expected(disk: BootDisk, path: Path, bad: set[SlotName]) -> BootDisk:
    """Return a copy of the disk on which Python did what the selector must do.

    Slots whose kernel is ``bad`` do not load.
    """
    twin = disk.copy(path)

    def attempt(starting: bool, name: SlotName) -> bool:  # noqa: FBT001  as the model calls it
        if starting:
            raise model.StartedError
        return name not in bad

    with (
        contextlib.suppress(model.StartedError),
        open_disk(twin.path, writable=True, sector_size=twin.geometry.sector_size) as opened,
    ):
        model.boot(opened, attempt)
    return twin


def assert_left_as(disk: BootDisk, twin: BootDisk) -> None:
    """Hold a disk against what Python made of its copy: flags, and every byte."""
    assert disk.slots() == twin.slots()
    assert disk.tables() == twin.tables()
    assert digest(disk.path) == digest(twin.path)


# The truth table ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """Slots' flags, which of the slots are damaged, and which kernel must run."""

    a: BootFlags
    b: BootFlags
    bad: frozenset[SlotName] = frozenset()
    runs: str


ROWS = {
    "as-installed": Row(a=OK, b=GONE, runs="one"),
    "armed": Row(a=OK, b=ARMED, runs="two"),
    "last-try": Row(a=OK, b=flags(2, 1), runs="two"),
    "tries-exhausted": Row(a=OK, b=flags(2, 0), runs="one"),
    "tie-of-successful": Row(a=OK, b=OK, runs="one"),
    "tie-with-a-trial": Row(a=flags(2, 2), b=OK_2, runs="one"),
    "confirmed": Row(a=OK, b=OK_2, runs="two"),
    "largest-numbers": Row(a=flags(14, 0, ok=True), b=flags(15, 15), runs="two"),
    "successful-with-priority-0": Row(a=flags(0, 0, ok=True), b=flags(1, 1), runs="two"),
    "both-exhausted": Row(a=flags(1, 0), b=flags(2, 0), runs="two"),
    "last-resort-prefers-successful": Row(a=flags(0, 0, ok=True), b=flags(2, 0), runs="one"),
    "last-resort-verifies": Row(
        a=flags(0, 0, ok=True), b=flags(2, 0), bad=frozenset({A}), runs="two"
    ),
    "damaged-trial": Row(a=OK, b=ARMED, bad=frozenset({B}), runs="one"),
    "damaged-successful": Row(a=OK, b=OK_2, bad=frozenset({B}), runs="one"),
}


@pytest.mark.case(63)
@pytest.mark.case(64)
@pytest.mark.case(75)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_the_boot_rule(row: Row, tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (row.a, row.b))
    for name in row.bad:
        disk.flip(disk.offset(name.label) + 4 * BLOCK + 700)
    twin = expected(disk, tmp_path / "twin", set(row.bad))

    said = rig.boot(disk)

    assert said[-1] == RUNS[row.runs]
    assert_left_as(disk, twin)
    left = twin.slots()
    assert cgpt_flags(disk) == [
        (it.flags.priority, it.flags.tries, it.flags.successful) for it in left
    ]
    assert "INVALID" not in tool("cgpt", "show", disk.path)


def test_the_console_tells_the_story(tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    disk.flip(disk.offset("ROOT-B") + 4 * BLOCK + 700)

    assert rig.boot(disk) == [
        "gptprio: slot A: priority 1, tries 0, successful",
        "gptprio: slot B: priority 2, tries 3, not successful",
        "gptprio: slot B: priority 2, tries 2, not successful",
        "gptprio: slot B skipped: kernel: SHA-256 is wrong",
        "gptprio: slot A: kernel verified, version 1.2.3",
        RUNS["one"],
    ]


# Slots that do not load --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "why"),
    [
        pytest.param(512, "slot header: magic", id="slot-header-magic"),
        pytest.param(600, "slot header: CRC-32", id="slot-header"),
        pytest.param(3 * BLOCK + 100, "kernel region: CRC-32", id="kernel-block"),
        pytest.param(4 * BLOCK, "kernel: SHA-256 is wrong", id="first-byte-of-the-kernel"),
    ],
)
def test_a_damaged_slot_is_given_up(at: int, why: str, tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    disk.flip(disk.offset("ROOT-B") + at)
    twin = expected(disk, tmp_path / "twin", {B})

    said = rig.boot(disk)

    assert f"gptprio: slot B skipped: {why}" in said
    assert said[-1] == RUNS["one"]
    assert_left_as(disk, twin)
    assert disk.slots()[B].flags == flags(2, 0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"not a program", "the firmware cannot load it", id="no-program"),
        pytest.param(None, "it returned", id="returns"),
    ],
)
def test_a_kernel_that_does_not_run_is_given_up(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    disk = rig.lay_out(
        tmp_path / "disk", (OK, ARMED), (kernel("one"), content or kernel("two", "r"))
    )

    said = rig.boot(disk)

    assert f"gptprio: slot B skipped: kernel: {why}" in said
    assert said[-1] == RUNS["one"]
    assert disk.slots()[B].flags == flags(2, 0)


@pytest.mark.case(65)
@pytest.mark.case(69)
def test_a_trial_that_hangs_is_reset_by_the_watchdog_until_it_is_given_up(tmp_path: Path) -> None:
    disk = rig.lay_out(
        tmp_path / "disk",
        (OK, ARMED),
        (kernel("one"), kernel("two", "h")),
        program=rig.selector("-DWATCHDOG_SECONDS=2"),
    )

    with Machine(disks=[disk], reboots=True) as machine:
        said = machine.wait_for_end()

    assert [line for line in said if line.startswith("kernel")] == [RUNS["two"]] * 3 + [RUNS["one"]]
    assert disk.slots()[B].flags == flags(2, 0)


@pytest.mark.case(75)
def test_when_nothing_can_be_started_it_says_so_waits_and_resets(tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    for name in SlotName:
        disk.flip(disk.offset(name.label) + 4 * BLOCK)
    with Machine(disks=[disk]) as machine:
        machine.wait_for("no slot could be started; reset in 30 s")
        said = machine.wait_for_end()  # a reset ends it

    assert said[-3:] == [
        "gptprio: slot B skipped: kernel: SHA-256 is wrong",
        "gptprio: slot A skipped: kernel: SHA-256 is wrong",
        "gptprio: no slot could be started; reset in 30 s",
    ]
    assert disk.slots()[A].flags == OK


# Damaged tables ----------------------------------------------------------------------------------


def _header(copy: Copy) -> Callable[[BootDisk], None]:
    return lambda disk: disk.flip(_lba(disk, copy) * disk.geometry.sector_size + 24)


def _array(copy: Copy) -> Callable[[BootDisk], None]:
    def damage(disk: BootDisk) -> None:
        lba = 2 if copy is Copy.PRIMARY else disk.geometry.last_lba - 32
        disk.flip(lba * disk.geometry.sector_size + 300)

    return damage


def _lba(disk: BootDisk, copy: Copy) -> int:
    return 1 if copy is Copy.PRIMARY else disk.geometry.last_lba


def _diverge(disk: BootDisk) -> None:
    memory = disk.memory()
    memory.patch_entry(Copy.BACKUP, 3, Attributes=GONE.merged_into(0))
    disk.rewrite(memory)


def _grow(disk: BootDisk) -> None:
    with disk.path.open("r+b") as file:
        file.truncate(disk.path.stat().st_size + 2**20)


@pytest.mark.case(53)
@pytest.mark.case(54)
@pytest.mark.case(55)
@pytest.mark.case(56)
@pytest.mark.case(60)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_header(Copy.PRIMARY), id="primary-header"),
        pytest.param(_array(Copy.PRIMARY), id="primary-array"),
        pytest.param(_header(Copy.BACKUP), id="backup-header"),
        pytest.param(_array(Copy.BACKUP), id="backup-array"),
        pytest.param(_diverge, id="diverging"),
        pytest.param(_grow, id="grown"),
    ],
)
def test_a_table_with_one_good_copy_boots_the_trial_and_is_whole_again(
    damage: Callable[[BootDisk], None], tmp_path: Path
) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    damage(disk)
    sectors = disk.path.stat().st_size // 512
    disk = replace(disk, geometry=replace(disk.geometry, sectors=sectors))
    twin = expected(disk, tmp_path / "twin", set())

    said = rig.boot(disk)

    assert said[-1] == RUNS["two"]
    assert disk.tables().sound
    assert disk.slots() == twin.slots()
    assert disk.slots()[B].flags == flags(2, 2)
    assert cgpt_flags(disk) == [(1, 0, True), (2, 2, False)]
    assert "INVALID" not in tool("cgpt", "show", disk.path)


@pytest.mark.case(57)
@pytest.mark.case(61)
def test_a_malformed_table_is_named_and_not_written(tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    memory = disk.memory()
    memory.patch_entry(Copy.PRIMARY, 4, StartingLBA=disk.entries["ROOT-B"].last)
    disk.rewrite(memory)
    before = digest(disk.path)

    with Machine(disks=[disk]) as machine:
        machine.wait_for("reset in 30 s")

    assert machine.lines[0] == (
        "gptprio: no slot can be found:"
        " primary partition table is malformed (partition 4 StartingLBA)"
    )
    assert digest(disk.path) == before


# Disks -------------------------------------------------------------------------------------------


@pytest.mark.case(43)
def test_a_disk_with_sectors_of_4096_bytes_boots(tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED), sector_size=4096)
    twin = expected(disk, tmp_path / "twin", set())

    said = rig.boot(disk)

    assert said[-1] == RUNS["two"]
    assert_left_as(disk, twin)
    assert disk.slots()[B].flags == flags(2, 2)


@pytest.mark.case(66)
def test_a_disk_that_takes_no_write_starts_no_trial(tmp_path: Path) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    before = digest(disk.path)

    said = rig.boot(disk, read_only=True)

    assert (
        "gptprio: slot B skipped: its try cannot be counted:"
        " the disk refused a write, a flush or a read"
    ) in said
    assert said[-1] == RUNS["one"]
    assert digest(disk.path) == before


@pytest.mark.case(66)
@pytest.mark.case(75)
def test_a_disk_that_takes_no_write_comes_to_its_last_resort_and_not_into_a_loop(
    tmp_path: Path,
) -> None:
    disk = rig.lay_out(tmp_path / "disk", (flags(1, 0), ARMED))

    said = rig.boot(disk, read_only=True)

    assert said[-3:] == [
        "gptprio: slot A may not boot by its flags: tried as a last resort",
        "gptprio: slot A: kernel verified, version 1.2.3",
        RUNS["one"],
    ]


@pytest.mark.case(46)
def test_of_two_disks_with_the_same_guids_only_the_one_it_came_from_is_touched(
    tmp_path: Path,
) -> None:
    others = (kernel("other one"), kernel("other two"))
    first = rig.lay_out(tmp_path / "first", (OK, ARMED))
    second = rig.lay_out(tmp_path / "second", (OK, ARMED), others)
    untouched = digest(second.path)

    said = rig.boot(first, second)

    assert said[-1] == RUNS["two"]
    assert first.slots()[B].flags == flags(2, 2)
    assert digest(second.path) == untouched

    left = digest(first.path)
    said = rig.boot(second, first)

    assert said[-1].startswith("kernel other two runs from")
    assert second.slots()[B].flags == flags(2, 2)
    assert digest(first.path) == left


def test_a_kernel_of_30_megabytes_is_started_soon(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    large = kernel("two") + bytes(range(256)) * (30 * 4096)
    disk = rig.lay_out(
        tmp_path / "disk", (OK, ARMED), (kernel("one"), large), slot_size=40 * rig.MIB
    )

    with Machine(disks=[disk]) as machine:
        machine.wait_for_end()

    arrived = list(machine.arrived.values())
    figure(
        f"selector, from its first line to a kernel of {len(large) / 1e6:.1f} MB that runs:"
        f" {arrived[-1] - arrived[0]:.2f} s on {rig.accelerator()}"
    )
    assert machine.lines[-1] == RUNS["two"]
    assert arrived[-1] - arrived[0] < 20


# Power cuts --------------------------------------------------------------------------------------

STOPPED = "gptprio: stopped"


def _armed(disk: BootDisk) -> None:
    """Flush, flush; backup array, backup header, flush; array, flush; header, flush."""


@pytest.mark.case(47)
@pytest.mark.case(69)
@pytest.mark.parametrize(
    ("history", "operations"),
    [
        pytest.param(_armed, 9, id="armed"),
        pytest.param(_diverge, 12, id="diverging-copies"),
    ],
)
def test_a_power_cut_before_any_operation_of_the_selector_costs_at_most_a_try(
    history: Callable[[BootDisk], None],
    operations: int,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    tries = []
    for number in range(operations + 1):
        disk = rig.lay_out(
            tmp_path / "disk", (OK, ARMED), program=rig.selector_that_stops(number, tmp_path)
        )
        history(disk)
        with Machine(disks=[disk]) as machine:
            machine.wait_for(STOPPED if number < operations else RUNS["two"])
        after_cut = slot.from_table(disk.tables().authoritative)
        rig.put_esp(disk, rig.selector())

        said = rig.boot(disk)

        assert said[-1] == RUNS["two"], f"stopped before operation {number}"
        assert disk.tables().sound
        left = disk.slots()
        assert left[A].flags == after_cut[A].flags == OK
        assert left[B].flags == flags(2, after_cut[B].flags.tries - 1)
        tries.append(left[B].flags.tries)

    figure(f"selector, power cut before each of {operations} operations, tries left: {tries}")
    assert tries == sorted(tries, reverse=True)
    assert set(tries) == {2, 1}
