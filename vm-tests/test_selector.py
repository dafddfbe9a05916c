"""The selector in a machine: every row of the boot rule that matters is booted for real.

Each row begins with a disk as some history left it and names the kernel that must run. What the
selector did to the disk is held against ``core/slot.py`` and ``host/disk.py``, which do the same to
a copy of it, and against ``cgpt``.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from tests.disks import tool
from tests.firmware import firmware_sees, linux_sees
from tests.host.recorded import Recording, Write
from tests.layout import Image
from tests.power import Tears, crashes
from tests.selector import model, rig
from tests.selector.rig import BLOCK, BootDisk, Machine, kernel
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


@dataclass(frozen=True, kw_only=True)
class Booted:
    """What was said, the disk, and a copy on which Python did what the selector must do."""

    said: list[str]
    disk: BootDisk
    twin: BootDisk


def boot_row(row: Row, folder: Path) -> Booted:
    disk = rig.lay_out(folder / "disk", (row.a, row.b))
    for bad in row.bad:
        disk.flip(disk.offset(bad.label) + 4 * BLOCK + 700)
    twin = expected(disk, folder / "twin", set(row.bad))
    return Booted(said=rig.boot(disk), disk=disk, twin=twin)


def boot_a_trial_that_hangs(folder: Path) -> Booted:
    """Boot until the trial is given up, with a watchdog that is in a hurry."""
    hurry = rig.selector("-DWATCHDOG_SECONDS=2")
    kernels = (kernel("one"), kernel("two", "h"))
    disk = rig.lay_out(folder / "disk", (OK, ARMED), kernels, program=hurry)
    twin = disk.copy(folder / "twin")
    with Machine(disks=[disk], reboots=True) as machine:
        return Booted(said=machine.wait_for_end(), disk=disk, twin=twin)


Ahead = dict[str, Future[Booted]]


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead]:
    """Boot ahead, two machines at a time: the slow stories, and all rows."""
    rig.accelerator()
    rig.selector()
    hopeless = Row(a=OK, b=ARMED, bad=frozenset({A, B}), runs="")
    work: dict[str, Callable[[Path], Booted]] = {
        "hopeless": partial(boot_row, hopeless),
        "hangs": boot_a_trial_that_hangs,
        **{name: partial(boot_row, row) for name, row in ROWS.items()},
    }
    with ThreadPoolExecutor(max_workers=2) as machines:
        yield {
            name: machines.submit(story, tmp_path_factory.mktemp(name))
            for name, story in work.items()
        }


@pytest.mark.case(63)
@pytest.mark.case(64)
@pytest.mark.case(75)
@pytest.mark.parametrize("name", ROWS)
def test_the_boot_rule(name: str, booted: Ahead) -> None:
    row = booted[name].result()

    assert row.said[-1] == RUNS[ROWS[name].runs]
    assert_left_as(row.disk, row.twin)
    assert cgpt_flags(row.disk) == [
        (it.flags.priority, it.flags.tries, it.flags.successful) for it in row.twin.slots()
    ]
    assert "INVALID" not in tool("cgpt", "show", row.disk.path)


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
        pytest.param(
            519, "slot header: magic", id="slot-of-a-later-version", marks=pytest.mark.case(74)
        ),
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
def test_a_trial_that_hangs_is_reset_by_the_watchdog_until_it_is_given_up(booted: Ahead) -> None:
    story = booted["hangs"].result()

    kernels = [line for line in story.said if line.startswith("kernel")]
    assert kernels == [RUNS["two"]] * 3 + [RUNS["one"]]
    assert story.disk.slots()[B].flags == flags(2, 0)


@pytest.mark.case(75)
def test_when_nothing_can_be_started_it_says_so_waits_and_resets(booted: Ahead) -> None:
    story = booted["hopeless"].result()  # ended by the reset, 30 s after the last line

    assert story.said[-3:] == [
        "gptprio: slot B skipped: kernel: SHA-256 is wrong",
        "gptprio: slot A skipped: kernel: SHA-256 is wrong",
        "gptprio: no slot could be started; reset in 30 s",
    ]
    assert_left_as(story.disk, story.twin)
    assert story.disk.slots()[A].flags == OK
    assert story.disk.slots()[B].flags == flags(2, 0)


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


@pytest.mark.case(45)
@pytest.mark.parametrize(
    ("controller", "sector_size"),
    [
        pytest.param("ide-hd", 512, id="SATA"),
        pytest.param("nvme,serial=1", 4096, id="NVMe"),
    ],
)
def test_other_disks_than_virtual_ones_boot(
    controller: str, sector_size: int, tmp_path: Path
) -> None:
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED), sector_size=sector_size)
    twin = expected(disk, tmp_path / "twin", set())

    with Machine(disks=[disk], controller=controller) as machine:
        said = machine.wait_for_end()

    assert said[-1] == RUNS["two"]
    assert_left_as(disk, twin)


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


# Secure Boot -------------------------------------------------------------------------------------


def test_a_kernel_that_secure_boot_refuses_is_given_up(tmp_path: Path) -> None:
    good = rig.signed(kernel("one"), tmp_path).read_bytes()
    disk = rig.lay_out(
        tmp_path / "disk",
        (OK, ARMED),
        (good, kernel("two")),
        program=rig.signed(rig.selector(), tmp_path),
    )

    with Machine(disks=[disk], secure=True) as machine:
        said = machine.wait_for_end()

    assert "gptprio: slot B skipped: kernel: refused by Secure Boot" in said
    assert said[-1] == RUNS["one"]
    assert disk.slots()[B].flags == flags(2, 0)


# Power cuts --------------------------------------------------------------------------------------


def _nothing(_disk: BootDisk) -> None:
    """The disk stays as it was laid out."""


HISTORIES = [
    pytest.param(_nothing, (2, 3, 5, 7), 9, id="armed"),
    pytest.param(_diverge, (2, 3, 5, 6, 8, 10), 12, id="diverging-copies"),
]
"""What the selector finds, which of its operations on the disk are writes, and how many it does.

Of an armed disk: flush, look, flush; backup array, backup header, flush; spare array, flush;
header, flush. Before that, diverging copies cost a backup array, a backup header and a flush.
"""


@pytest.mark.case(47)
@pytest.mark.case(69)
@pytest.mark.parametrize(("history", "writes", "operations"), HISTORIES)
def test_a_power_cut_between_any_two_writes_of_the_selector_costs_at_most_a_try(
    history: Callable[[BootDisk], None],
    writes: tuple[int, ...],
    operations: int,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    rig.selector_that_stops(0, tmp_path)  # built before the others ask for it

    def cut(number: int) -> int:
        """Cut the power before an operation, or in the kernel; return the tries that are left."""
        program = rig.selector_that_stops(number, tmp_path)
        disk = rig.lay_out(tmp_path / f"disk-{number}", (OK, ARMED), program=program)
        history(disk)
        with Machine(disks=[disk]) as machine:
            machine.wait_for("gptprio: stopped" if number < operations else RUNS["two"])
        after_cut = disk.slots()
        rig.put_esp(disk, rig.selector())

        said = rig.boot(disk)

        assert said[-1] == RUNS["two"], f"stopped before operation {number}"
        assert disk.tables().sound
        left = disk.slots()
        assert left[A].flags == after_cut[A].flags == OK
        assert left[B].flags == flags(2, after_cut[B].flags.tries - 1)
        return left[B].flags.tries

    with ThreadPoolExecutor(max_workers=2) as machines:
        tries = list(machines.map(cut, (*writes, operations)))

    figure(f"selector in a machine, power cut before each of {len(writes)} writes, and after them")
    assert tries == [2] * len(writes) + [1]


@pytest.mark.case(47)
@pytest.mark.case(69)
@pytest.mark.parametrize(("history", "writes", "operations"), HISTORIES)
def test_what_reaches_the_disk_survives_a_power_cut_at_any_point_and_in_any_order(
    history: Callable[[BootDisk], None],
    writes: tuple[int, ...],
    operations: int,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """What the machine's disk was told is told to the model disk of ``tests/power.py``."""
    disk = rig.lay_out(tmp_path / "disk", (OK, ARMED))
    history(disk)
    start = table_areas(disk)
    with Machine(disks=[disk], log=tmp_path / "log") as machine:
        machine.wait_for_end()
    end = table_areas(disk)
    told = tuple(rig.read_log(tmp_path / "log"))
    recording = Recording(steps=told, after=end, exit_code=0)

    states = lost = 0
    allowed = {firmware_sees(start), firmware_sees(end)}
    for state in crashes(start, recording.replay, Tears(step=8, rewritten=True)):
        seen = firmware_sees(state)
        states += 1
        lost += seen not in allowed or linux_sees(state) != seen

    figure(f"selector in a machine, its {len(told)} steps replayed: {states:,} states, {lost} lost")
    assert len([it for it in told if isinstance(it, Write)]) == len(writes)
    assert len(told) == operations - 2  # flushes of a clean disk are not passed on
    assert len(allowed) == 2
    assert not lost


def table_areas(disk: BootDisk) -> Image:
    """Return the disk as far as tables go: what is in partitions is of no interest here."""
    content = disk.memory().sectors
    return Image(
        sector_size=disk.geometry.sector_size, sectors=disk.geometry.sectors, content=content
    )
