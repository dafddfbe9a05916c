"""The selector in C does what Python does: rule by rule, table by table, write by write."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import pytest

import tests.core.test_gpt as python_tables
from tests.core.test_gpt import *  # noqa: F403  the same damaged tables: each goes to C as well
from tests.core.test_slot import A_FIRST, B_FIRST, pairs
from tests.disks import A_SUCCESSFUL, ESP, ROOT_A, ROOT_B, STATE, Entry, MemoryDisk, healthy
from tests.disks import flags as word
from tests.fuzz import selector as fuzz
from tests.selector import model, native
from tests.selector.model import LOADING, NoSuchTrialError, Recorded, StartedError
from tests.selector.native import Refusal, Selector
from update_agent.core import slot
from update_agent.core.gpt import Copy, Tables
from update_agent.core.slot import BootFlags, Slot, SlotName
from update_agent.host.disk import read_tables

A, B = SlotName


@pytest.fixture(scope="module", autouse=True)
def _to_c_as_well() -> Iterator[None]:
    """Let C judge every table that the tests of ``core/gpt.py`` read."""

    def both(disk: MemoryDisk) -> Tables:
        if disk.geometry.sectors >= 6:  # efi.c takes no smaller ones
            assert Selector(disk).look() == fuzz.faults(disk)
        return read_tables(disk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_tables, "read_tables", both)
        yield


# The boot rule -----------------------------------------------------------------------------------


@pytest.mark.case(63)
@pytest.mark.case(64)
@pytest.mark.parametrize("order", [A_FIRST, B_FIRST], ids=["A-first", "B-first"])
def test_every_pair_of_flags_has_the_same_slot_first(
    order: tuple[list[Slot], list[Slot]],
) -> None:
    for slots in pairs(order):
        assert native.first(slots) is slot.attempts(slots)[0].name


def test_both_sides_number_refusals_alike() -> None:
    assert native.constants("gpt.h") == {it.name: it.value for it in Refusal}


# What a boot does --------------------------------------------------------------------------------


def disk_with(a: int, b: int, sector_size: int = 512) -> MemoryDisk:
    entries = (ESP, replace(ROOT_A, attributes=a), replace(ROOT_B, attributes=b), STATE)
    return healthy(sector_size, entries)


OK, OK_2, ARMED = word(1, 0, ok=True), word(2, 0, ok=True), word(2, 3)


def boot(disk: Recorded, *broken: SlotName, returns: bool = False) -> list[str]:
    """Boot; return what the console says, and at its end which slot runs."""
    said: list[str] = []
    started: list[SlotName] = []

    def attempt(starting: bool, name: SlotName) -> bool:  # noqa: FBT001  as C calls it
        if starting is LOADING:
            return name not in broken
        started.append(name)
        if not returns:
            raise StartedError
        return False

    try:
        said = Selector(disk).boot(attempt)
    except StartedError:
        return [f"{started[-1]} runs"]
    return said


def left(disk: Recorded) -> tuple[BootFlags, BootFlags]:
    slots = slot.from_table(read_tables(disk).authoritative)
    return slots.a.flags, slots.b.flags


def test_a_successful_slot_is_started_without_a_write() -> None:
    disk = Recorded(disk_with(OK, word(0, 0)))

    assert boot(disk) == ["A runs"]
    assert disk.operations == ["flush"]


@pytest.mark.case(69)
def test_a_trial_is_counted_down_before_anything_of_the_slot_is_read() -> None:
    disk = Recorded(disk_with(OK, ARMED))
    seen: list[BootFlags] = []

    def attempt(_starting: bool, _name: SlotName) -> bool:  # noqa: FBT001  as C calls it
        seen.append(left(disk)[1])
        raise StartedError

    with pytest.raises(StartedError):
        Selector(disk).boot(attempt)

    assert seen == [BootFlags(priority=2, tries=2)]
    assert left(disk)[0] == BootFlags(priority=1, successful=True)


def test_a_slot_that_does_not_load_is_given_up_and_the_next_one_started() -> None:
    disk = Recorded(disk_with(OK, ARMED))

    assert boot(disk, B) == ["A runs"]
    assert left(disk)[1] == BootFlags(priority=2)


def test_a_slot_on_its_last_try_that_does_not_load_is_not_written_twice() -> None:
    disk = Recorded(disk_with(OK, word(2, 1)))

    assert boot(disk, B) == ["A runs"]
    assert len([it for it in disk.operations if it != "flush"]) == 4


@pytest.mark.case(66)
def test_where_no_try_can_be_counted_no_trial_is_started() -> None:
    for number in range(1, 9):
        disk = Recorded(disk_with(OK, ARMED), {number: "fails"})

        assert boot(disk) == ["A runs"], f"operation {number} failed"


@pytest.mark.case(66)
@pytest.mark.case(75)
def test_each_slot_is_tried_once_whatever_happens() -> None:
    for a in (OK, ARMED, word(0, 3), word(2, 0), word(0, 0, ok=True)):
        for b in (OK, ARMED, word(0, 3), word(2, 0), word(0, 0, ok=True)):
            for returns in (False, True):
                disk = Recorded(disk_with(a, b))
                said = boot(disk, *(() if returns else (A, B)), returns=returns)

                assert len([line for line in said if "skipped" in line]) == 2
                assert left(disk) == tuple(
                    replace(it, tries=0) if it.candidate else it
                    for it in (BootFlags.from_word(a), BootFlags.from_word(b))
                )


def test_the_console_names_slot_flags_and_reason() -> None:
    disk = Recorded(disk_with(word(1, 0), ARMED))

    assert boot(disk, A, B) == [
        "slot A: priority 1, tries 0, not successful",
        "slot B: priority 2, tries 3, not successful",
        "slot B: priority 2, tries 2, not successful",
        "slot B skipped: does not load",
        "slot A may not boot by its flags: tried as a last resort",
        "slot A skipped: does not load",
    ]


def _malformed(disk: MemoryDisk) -> None:
    disk.patch_entry(Copy.PRIMARY, 3, StartingLBA=1000)


def _foreign(disk: MemoryDisk) -> None:
    disk.patch(Copy.PRIMARY, Signature=b"CHROMEOS")


def _both(disk: MemoryDisk) -> None:
    disk.corrupt(Copy.PRIMARY, HeaderCRC32=0)
    disk.corrupt_entry(Copy.BACKUP, 1, Attributes=1)


def _no_mbr(disk: MemoryDisk) -> None:
    disk.corrupt(Copy.PRIMARY, HeaderCRC32=0)
    disk.put(0, bytes(512))


def _no_slot(disk: MemoryDisk) -> None:
    for copy in Copy:
        disk.patch_entry(copy, 3, PartitionName="ROOT-C".encode("utf-16-le"))


@pytest.mark.case(57)
@pytest.mark.case(58)
@pytest.mark.case(61)
@pytest.mark.case(62)
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_malformed, "primary partition table is malformed (partition 3 StartingLBA)"),
        (_foreign, "primary partition table is foreign (signature)"),
        (
            _both,
            (
                "primary partition table is damaged (HeaderCRC32); "
                "backup partition table is damaged (PartitionEntryArrayCRC32)"
            ),
        ),
        (
            _no_mbr,
            (
                "the MBR does not speak of a GPT, and the "
                "primary partition table is damaged (HeaderCRC32)"
            ),
        ),
        (_no_slot, "the disk has not exactly one ROOT-A and one ROOT-B of the slot type"),
    ],
)
def test_a_disk_without_usable_slots_is_refused_with_a_reason_and_not_written(
    damage: Callable[[MemoryDisk], None], why: str
) -> None:
    memory = disk_with(OK, ARMED)
    damage(memory)
    disk = Recorded(memory)

    assert boot(disk) == [f"no slot can be found: {why}"]
    assert disk.operations == ["flush"]


@pytest.mark.case(55)
@pytest.mark.case(62)
def test_a_foreign_backup_stops_a_trial_and_not_a_successful_slot() -> None:
    memory = disk_with(OK, ARMED)
    memory.patch(Copy.BACKUP, Signature=b"IGNOREME")
    disk = Recorded(memory)

    assert boot(disk) == ["A runs"]
    assert not memory.writes
    assert boot(Recorded(memory), A, B)[:4] == [
        "backup partition table is foreign (signature)",
        "slot A: priority 1, tries 0, successful",
        "slot B: priority 2, tries 3, not successful",
        "slot B skipped: its try cannot be counted: backup partition table is foreign (signature)",
    ]


def test_the_longest_reason_fits_a_line() -> None:
    memory = disk_with(OK, ARMED)
    memory.patch_entry(Copy.PRIMARY, 3, UniquePartitionGUID=ROOT_A.guid.bytes_le)

    assert boot(Recorded(memory)) == [
        (
            "no slot can be found: "
            "primary partition table is malformed (partition 3 UniquePartitionGUID)"
        )
    ]


# At random ---------------------------------------------------------------------------------------


def test_on_random_disks_c_and_python_do_the_same() -> None:
    """The long run is ``python -m tests.fuzz.selector --count 1000000``."""
    for number in range(4000):
        fuzz.one(Random(f"suite:{number}"))  # noqa: S311  must repeat, need not be secret


def test_an_edit_that_python_refuses_is_refused_by_c() -> None:
    disk = disk_with(OK, word(2, 0))

    for name in SlotName:
        assert Selector(disk).count_down(name) is Refusal.NO_SUCH_TRIAL
        with pytest.raises(NoSuchTrialError):
            model.count_down(name)(slot.from_table(read_tables(disk).authoritative))
    assert not disk.writes


def test_a_table_with_other_entries_than_slots_keeps_them_to_the_bit() -> None:
    far = Entry(number=100, first=1800, last=1900, label="other", attributes=2**63 | 5)
    disk = healthy(512, (*A_SUCCESSFUL[:2], replace(ROOT_B, attributes=ARMED | 2**63 | 1), far))
    before = disk.stored(2, 32)

    assert Selector(disk).count_down(B) is Refusal.NO_REFUSAL

    at = 2 * 128 + 48
    after = disk.stored(34, 32)
    assert int.from_bytes(after[at : at + 8], "little") == word(2, 2) | 2**63 | 1
    assert (after[:at], after[at + 8 :]) == (before[:at], before[at + 8 :])
