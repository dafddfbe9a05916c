"""The plug is pulled at every point of every change of a partition table, on a model disk.

A state is *lost* when firmware or Linux sees neither exactly the table from before the change nor
exactly the one after it, or when the two see different ones. It *hangs on one copy* when one more
bad sector loses it, and *on the backup* when that is the copy: firmware that looks at the primary
alone, and Linux without ``gpt``, see no table then.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from tests.firmware import copies, firmware_sees, linux_sees
from tests.host.recorded import Recording, Write, record
from tests.layout import CHROMEOS_KERNEL_TYPE, SECTORS, SLOT_TYPE, Image, Layout
from tests.power import (
    Change,
    Fault,
    ModelDisk,
    Tears,
    crashes,
    crashes_of,
    survives,
)
from update_agent.core import slot
from update_agent.core.slot import SlotName, Slots
from update_agent.errors import HostError
from update_agent.host.disk import Disk, change_slots, repair

SECTOR_SIZES = (512, 4096)

FINE = {512: Tears(step=8, rewritten=True), 4096: Tears(step=16, rewritten=True)}
MIDDLE = {512: Tears(step=64, rewritten=False), 4096: Tears(step=512, rewritten=False)}
COARSE = {512: Tears(step=256, rewritten=False), 4096: Tears(step=2048, rewritten=False)}
"""How finely the crash states of a change, of a recovery's start, and inside a recovery are tried.

Where exactly a sector is torn makes a difference only to who reads it, so the finest goes with the
judges, which are fast.
"""

# Attribute words, by hand: priority in bits 48-51, tries in 52-55, successful in 56.
RETIRED = 0x0000 << 48
SUCCESSFUL_1 = 0x0101 << 48
SUCCESSFUL_2 = 0x0102 << 48
ARMED = 0x0032 << 48
ON_TRIAL = 0x0022 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One of ours: what it does, and the attribute words of both slots before and after."""

    change: Change
    before: tuple[int, int]
    after: tuple[int, int]


def _flip(edit: Callable[[Slots], Slots]) -> Change:
    return lambda disk: change_slots(disk, edit)


OPERATIONS = {
    "retire": Operation(
        change=_flip(lambda slots: slot.retire(slots, SlotName.B)),
        before=(SUCCESSFUL_2, SUCCESSFUL_1),
        after=(SUCCESSFUL_2, RETIRED),
    ),
    "arm": Operation(
        change=_flip(lambda slots: slot.arm(slots, SlotName.B)),
        before=(SUCCESSFUL_2, RETIRED),
        after=(SUCCESSFUL_1, ARMED),
    ),
    "confirm": Operation(
        change=_flip(lambda slots: slot.confirm(slots, SlotName.B)),
        before=(SUCCESSFUL_1, ON_TRIAL),
        after=(SUCCESSFUL_1, SUCCESSFUL_2),
    ),
    "rollback": Operation(
        change=_flip(lambda slots: slot.rollback(slots, SlotName.A)),
        before=(SUCCESSFUL_1, SUCCESSFUL_2),
        after=(SUCCESSFUL_2, SUCCESSFUL_1),
    ),
    "repair": Operation(
        change=repair,
        before=(SUCCESSFUL_2, SUCCESSFUL_1),
        after=(SUCCESSFUL_2, SUCCESSFUL_1),
    ),
}


# Where a change may start ------------------------------------------------------------------------


def _healthy(layout: Layout) -> Image:
    return layout.image()


def _flipped(image: Image, lba: int, at: int = 24) -> Image:
    """Return the disk with a bit of a sector flipped."""
    sector = bytearray(image.sector(lba) or b"")
    sector[at] ^= 1
    return image.with_sectors({lba: bytes(sector)})


def _diverging(image: Image, other: Layout) -> Image:
    """Return the disk with the backup of another table, valid as well."""
    theirs = other.image()
    ends = range(image.last_lba - other.array_sectors, image.last_lba + 1)
    return image.with_sectors({lba: theirs.sector(lba) for lba in ends})


def _grown(image: Image, by: int) -> Image:
    return Image(sector_size=image.sector_size, sectors=image.sectors + by, content=image.content)


def starts(
    sector_size: int, words: tuple[int, int], slot_type: UUID = SLOT_TYPE
) -> dict[str, tuple[Layout, Image]]:
    """Return disks that show ``words`` to firmware, with the layout that made their table."""
    plain = Layout(sector_size=sector_size, a=words[0], b=words[1], slot_type=slot_type)
    shadow = replace(plain, at_shadow_place=True)
    tight = replace(plain, first_usable=2 + plain.array_sectors)
    apart = replace(plain, slot_b=100)
    filled = replace(plain, slot_b=100, filled=True)
    other = replace(plain, a=SUCCESSFUL_1, b=ON_TRIAL | 1 << 58)
    sound, moved, last = plain.image(), shadow.image(), SECTORS - 1
    first_of_backup = last - plain.array_sectors
    return {
        "healthy": (plain, sound),
        "array at the shadow place": (shadow, moved),
        "usable from the home array on": (tight, tight.image()),
        "slots in far entries": (apart, apart.image()),
        "every entry in use": (filled, filled.image()),
        "backup header damaged": (plain, _flipped(sound, last)),
        "backup array damaged": (plain, _flipped(sound, first_of_backup)),
        "backup header unreadable": (plain, sound.with_sectors({last: None})),
        "backup array unreadable": (plain, sound.with_sectors({first_of_backup: None})),
        "backup damaged, array at the shadow place": (shadow, _flipped(moved, last)),
        "primary header damaged": (plain, _flipped(sound, 1)),
        "primary header wiped": (plain, sound.with_sectors({1: bytes(sector_size)})),
        "primary array damaged": (plain, _flipped(sound, 2)),
        "primary header unreadable": (plain, sound.with_sectors({1: None})),
        "primary array unreadable": (plain, sound.with_sectors({2: None})),
        "primary damaged, array at the shadow place": (shadow, _flipped(moved, 1)),
        "primary damaged, usable from the home array on": (tight, _flipped(tight.image(), 1)),
        "primary damaged, every entry in use": (filled, _flipped(filled.image(), 1)),
        "diverging": (plain, _diverging(sound, other)),
        "diverging, array at the shadow place": (shadow, _diverging(moved, other)),
        "grown": (plain, _grown(sound, 500)),
        "grown by less than an array": (plain, _grown(sound, 2)),
        "grown, array at the shadow place": (shadow, _grown(moved, 500)),
    }  # fmt: skip


ALL = tuple(starts(512, (RETIRED, RETIRED)))
SMALL = tuple(name for name in ALL if "every entry" not in name)
"""Starts whose changes are of few sectors, so that crashes inside of crashes can all be tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An operation on a disk, with the entry arrays that may be seen: before, and after."""

    start: Image
    change: Change
    old: bytes
    new: bytes

    @property
    def outcomes(self) -> tuple[bytes, bytes]:
        return self.old, self.new

    def again(self, disk: Disk) -> None:
        """Do what a host does after a power cut: repair, then the same operation."""
        repair(disk)
        self.change(disk)


def cases(sector_size: int, names: Iterable[str] = ALL) -> Iterator[tuple[str, Case]]:
    """Yield every operation from every start, with a name for it."""
    for name, operation in OPERATIONS.items():
        before, after = starts(sector_size, operation.before), starts(sector_size, operation.after)
        for start in names:
            layout, image = before[start]
            new = after[start][0].array()
            yield (
                f"{name}: {start}",
                Case(start=image, change=operation.change, old=layout.array(), new=new),
            )


@dataclass(slots=True)
class Survey:
    """What became of the states that were tried."""

    states: int = 0
    lost: int = 0
    hanging: int = 0
    on_backup: int = 0

    def judge(self, state: Image, allowed: tuple[bytes, ...]) -> bool:
        """Count the state; whether it shows one of the ``allowed`` tables to everyone."""
        seen = firmware_sees(state)
        fine = seen in allowed and linux_sees(state) == seen
        self.states += 1
        self.lost += not fine
        primary, backup = copies(state)
        self.hanging += (primary is None) != (backup is None)
        self.on_backup += primary is None and backup is not None
        return fine

    def judge_all(self, states: Iterable[Image], allowed: tuple[bytes, ...]) -> bool:
        """Count the states; whether none of them is lost."""
        lost = self.lost
        for state in states:
            self.judge(state, allowed)
        return self.lost == lost


def finished(case: Case, disk: ModelDisk) -> bool:
    """Whether the new table stands on the disk in both copies, and in every state left by a cut."""
    if not survives(disk, case.again):
        return False
    return all(copies(state) == (case.new, case.new) for state in disk.crash_states(COARSE[512]))


# Our operations ----------------------------------------------------------------------------------


@pytest.mark.case(47)
@pytest.mark.case(43)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_power_cut_leaves_the_old_table_or_the_new_one(
    sector_size: int, figure: Callable[[str], None]
) -> None:
    survey, lost = Survey(), []
    for name, case in cases(sector_size):
        tears = (FINE if name.partition(": ")[2] in SMALL else MIDDLE)[sector_size]
        if not survey.judge_all(crashes(case.start, case.change, tears), case.outcomes):
            lost.append(name)

    figure(_figure(f"power cuts, {sector_size}-byte sectors", survey))
    assert not lost
    assert survey.states > 5_000


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_after_a_power_cut_the_same_again_ends_in_the_new_table(sector_size: int) -> None:
    unfinished = []
    for name, case in cases(sector_size, SMALL):
        states = crashes(case.start, case.change, MIDDLE[sector_size])
        if not all(finished(case, ModelDisk(state)) for state in states):
            unfinished.append(name)

    assert not unfinished


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_power_cut_while_recovering_from_one_loses_nothing(
    sector_size: int, figure: Callable[[str], None]
) -> None:
    lost: list[str] = []
    tears, survey = COARSE[sector_size], Survey()
    for name, case in cases(sector_size, SMALL):
        seen: set[object] = set()
        lost.extend(
            name
            for state in crashes(case.start, case.change, tears)
            if not survey.judge_all(crashes(state, case.again, tears, seen=seen), case.outcomes)
        )

    figure(_figure(f"power cuts in the recovery, {sector_size}-byte sectors", survey))
    assert not lost


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_on_a_disk_that_ignores_flushes_our_order_loses_tables_too(sector_size: int) -> None:
    """Flushes are what keeps a table; a model in which they change nothing would be wrong."""
    for name, case in cases(sector_size, ["healthy"]):
        operations = _operations(case)
        writes = any(done.startswith("write") for done in operations)
        flushes = [at for at, done in enumerate(operations) if done == "flush"]
        ignored = dict.fromkeys(flushes, Fault.DROPPED)
        states = crashes_of(partial(_ignoring, case, ignored), case.change, MIDDLE[sector_size])

        assert Survey().judge_all(states, case.outcomes) is not writes, name


def _ignoring(case: Case, ignored: Mapping[int, Fault], faults: Mapping[int, Fault]) -> ModelDisk:
    return ModelDisk(case.start, {**ignored, **faults})


@pytest.mark.case(47)
def test_a_physical_sector_of_eight_may_become_unreadable_at_once(
    figure: Callable[[str], None],
) -> None:
    """LBA 0 lies in the physical sector of the primary header, so only Linux is asked here."""
    tears = Tears(step=256, rewritten=True, together=8)
    states = 0
    for name, case in cases(512, SMALL):
        for state in crashes(case.start, case.change, tears):
            assert linux_sees(state) in case.outcomes, name
            states += 1

    figure(f"power cuts, 512-byte sectors in physical ones of 4096: {states:,} states, 0 lost")


def _killed(case: Case, before: int, faults: Mapping[int, Fault]) -> ModelDisk:
    """Return a disk whose power stayed on when our process died before an operation."""
    disk = ModelDisk(case.start, {before: Fault.POWER_CUT})
    survives(disk, case.change)
    disk.operations.clear()
    disk.faults = faults
    return disk


def _operations(case: Case) -> list[str]:
    disk = ModelDisk(case.start)
    case.change(disk)
    return disk.operations


@pytest.mark.case(48)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_power_cut_after_a_kill_loses_nothing(sector_size: int) -> None:
    """What a killed process wrote and did not flush is read back, but may be gone afterwards."""
    tears, survey, lost = COARSE[sector_size], Survey(), []
    for name, case in cases(sector_size, SMALL):
        for number in range(len(_operations(case))):
            again = crashes_of(partial(_killed, case, number), case.change, tears)
            if not survey.judge_all(again, case.outcomes):
                lost.append(f"{name}, killed before operation {number}")

    assert not lost


@pytest.mark.case(48)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_the_same_again_after_a_kill_is_durable_when_it_returns(sector_size: int) -> None:
    volatile = []
    for name, case in cases(sector_size, SMALL):
        for number in range(len(_operations(case))):
            disk = _killed(case, number, {})
            case.change(disk)
            left = disk.crash_states(COARSE[sector_size])
            if any(copies(state) != (case.new, case.new) for state in left):
                volatile.append(f"{name}, killed before operation {number}")

    assert not volatile


# Disks that fail ---------------------------------------------------------------------------------


def _ends_in_host_error(disk: ModelDisk, case: Case) -> bool:
    try:
        case.change(disk)
    except HostError:
        return True
    return False


@pytest.mark.case(38)
@pytest.mark.case(39)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_failed_write_or_flush_ends_the_change_and_is_not_tried_again(sector_size: int) -> None:
    for name, case in cases(sector_size):
        for number in range(len(_operations(case))):
            disk = ModelDisk(case.start, {number: Fault.EIO})

            assert _ends_in_host_error(disk, case), name
            assert len(disk.operations) == number + 1, f"{name}: {disk.operations}"
            states = disk.crash_states(COARSE[sector_size])
            assert Survey().judge_all(states, case.outcomes), name


@pytest.mark.case(41)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_write_that_the_disk_silently_dropped_is_found(sector_size: int) -> None:
    for name, case in cases(sector_size):
        for number, operation in enumerate(_operations(case)):
            if operation == "flush":
                continue
            disk = ModelDisk(case.start, {number: Fault.DROPPED})

            if not _ends_in_host_error(disk, case):  # the sectors held that already
                assert copies(disk.running) == (case.new, case.new), name
            states = disk.crash_states(COARSE[sector_size])
            assert Survey().judge_all(states, case.outcomes), name


@pytest.mark.case(38)
@pytest.mark.case(40)
@pytest.mark.parametrize("fault", [Fault.SHORT, Fault.EIO])
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_read_that_fails_once_hurts_no_table(sector_size: int, fault: Fault) -> None:
    # Of diverging copies the backup counts while the primary can't be read, as in firmware.
    agreeing = [name for name in SMALL if "diverging" not in name]
    for name, case in cases(sector_size, agreeing):
        disk = ModelDisk(case.start)
        case.change(disk)
        for number in range(disk.reads):
            disk = ModelDisk(case.start)
            disk.bad_reads = {number: fault}

            if not _ends_in_host_error(disk, case):
                assert copies(disk.running) == (case.new, case.new), name
            states = disk.crash_states(COARSE[sector_size])
            assert Survey().judge_all(states, case.outcomes), f"{name}, read {number}"


@pytest.mark.case(57)
@pytest.mark.case(60)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_written_where_firmware_sees_no_table(sector_size: int, operation: str) -> None:
    both = starts(sector_size, OPERATIONS[operation].before)
    grown = _flipped(both["grown"][1], 1)
    damaged = _flipped(both["primary header damaged"][1], SECTORS - 1)
    for image in (grown, damaged):
        disk = ModelDisk(image)

        with pytest.raises(HostError):
            OPERATIONS[operation].change(disk)

        assert firmware_sees(image) is None
        assert not disk.written


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_no_change_writes_outside_the_two_table_areas(sector_size: int) -> None:
    for name, case in cases(sector_size):
        disk = ModelDisk(case.start)
        case.change(disk)

        assert 0 not in disk.written, name
        assert not disk.written & set(range(110, 110 + 10 * 128)), f"{name}: into a partition"


# Rivals ------------------------------------------------------------------------------------------

OURS = "update-agent arm"
SGDISK = "sgdisk -A 3:set:56"
CGPT_ADD = "cgpt repair, cgpt add -i 3 -P 2 -T 3 -S 0"
CGPT_PRIORITIZE = "cgpt repair, cgpt prioritize -i 3"
"""cgpt changes no table of which a copy is damaged, so it is repaired first, as its manual says."""

RIVALS = {
    SGDISK: SLOT_TYPE,
    CGPT_ADD: SLOT_TYPE,
    CGPT_PRIORITIZE: CHROMEOS_KERNEL_TYPE,
}
"""The rivals' commands, and the type of slot that they work on."""

RIVAL_STARTS = (
    "healthy",
    "array at the shadow place",
    "backup header damaged",
    "backup array damaged",
    "primary header damaged",
    "primary array damaged",
    "diverging",
    "grown",
)


def _recorded(commands: str, start: Image, folder: Path) -> Recording:
    return record(tuple(command.split() for command in commands.split(", ")), start, folder)


def _survey_rival(tool: str, start: str, folder: Path) -> Survey:
    """Return what the tool's own writes and flushes do to the model disk."""
    layout, image = starts(512, OPERATIONS["arm"].before, RIVALS[tool])[start]
    recording = _recorded(tool, image, folder)
    new = firmware_sees(recording.after)
    assert recording.exit_code == 0
    assert new is not None
    assert new != layout.array(), f"{tool} changed nothing"
    _assert_replays(recording, image)
    survey = Survey()
    survey.judge_all(crashes(image, recording.replay, FINE[512]), (layout.array(), new))
    return survey


def _assert_replays(recording: Recording, start: Image) -> None:
    disk = ModelDisk(start)
    recording.replay(disk)
    for lba in range(start.sectors):
        assert disk.running.sector(lba) == recording.after.sector(lba), f"LBA {lba}"


@pytest.fixture(scope="module")
def ours() -> dict[str, Survey]:
    """Return what each start becomes when our arm is cut, at the sector size of the rivals."""
    surveys = {start: Survey() for start in RIVAL_STARTS}
    for name, case in cases(512, RIVAL_STARTS):
        operation, _, start = name.partition(": ")
        if operation == "arm":
            surveys[start].judge_all(crashes(case.start, case.change, FINE[512]), case.outcomes)
    return surveys


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Survey]:
    """Return the same for every rival."""
    return {
        (tool, start): _survey_rival(tool, start, tmp_path_factory.mktemp("rival"))
        for tool in RIVALS
        for start in RIVAL_STARTS
    }


@pytest.mark.case(47)
def test_figures_of_ours_and_the_rivals(
    ours: dict[str, Survey],
    rivals: dict[tuple[str, str], Survey],
    figure: Callable[[str], None],
) -> None:
    figure(
        f"{'power cuts, 512-byte sectors':43}{'start':27}"
        f"{'states':>8}{'lost':>7}{'on one copy':>13}{'on the backup':>15}"
    )
    rows = {(OURS, start): survey for start, survey in ours.items()} | rivals
    for (tool, start), survey in rows.items():
        figure(
            f"{tool:43}{start:27}{survey.states:8,}{survey.lost:7,}"
            f"{survey.hanging:13,}{survey.on_backup:15,}"
        )

    assert not any(survey.lost for survey in ours.values())


@pytest.mark.case(47)
@pytest.mark.parametrize("start", RIVAL_STARTS)
def test_sgdisk_loses_tables(start: str, rivals: dict[tuple[str, str], Survey]) -> None:
    """It writes both copies, and LBA 0, before its first flush."""
    survey = rivals[SGDISK, start]

    assert survey.lost > survey.states / 4


@pytest.mark.case(47)
@pytest.mark.parametrize("start", RIVAL_STARTS)
@pytest.mark.parametrize("tool", [CGPT_ADD, CGPT_PRIORITIZE])
def test_cgpt_loses_no_table_but_hangs_on_one_copy_more_often_than_we_do(
    tool: str, start: str, ours: dict[str, Survey], rivals: dict[tuple[str, str], Survey]
) -> None:
    """It flushes between primary and backup, but writes the primary in place, in many sectors."""
    theirs = rivals[tool, start]

    assert not theirs.lost
    assert theirs.hanging / theirs.states > ours[start].hanging / ours[start].states
    assert theirs.on_backup > ours[start].on_backup


@pytest.mark.case(55)
@pytest.mark.case(70)
@pytest.mark.parametrize("start", [start for start in RIVAL_STARTS if "damaged" in start])
def test_cgpt_alone_changes_no_flag_while_a_copy_is_damaged(start: str, tmp_path: Path) -> None:
    _, image = starts(512, OPERATIONS["arm"].before)[start]

    recording = _recorded(CGPT_ADD.partition(", ")[2], image, tmp_path)

    assert recording.exit_code != 0
    assert not any(isinstance(step, Write) for step in recording.steps)


def _figure(what: str, survey: Survey) -> str:
    return f"{what}: {survey.states:,} states tried, {survey.lost:,} lost"
