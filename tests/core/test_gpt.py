"""Tables to the bit, malformed tables one field at a time, and the order of writes.

The tables come from ``tests/disks.py``, which shares no code with what is tested here. All
addresses are those of its healthy disk: last LBA 2047; with sectors of 512 an array fills 32 of
them, so usable LBAs are 34 to 2014; with sectors of 4096 an array fills 4, usable are 6 to 2042.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disks import (
    A_SUCCESSFUL,
    DISK_GUID,
    ENTRY_FIELDS,
    ESP,
    ESP_TYPE,
    LAYOUT,
    ROOT_A,
    ROOT_B,
    SLOT_TYPE,
    STATE,
    Entry,
    MemoryDisk,
    flags,
    healthy,
    protective_mbr,
)
from update_agent.core import gpt
from update_agent.core.gpt import (
    Copy,
    Damage,
    Geometry,
    Mbr,
    Plan,
    Table,
    TableError,
    Tables,
)
from update_agent.errors import HostError
from update_agent.host.disk import read_tables

PRIMARY, BACKUP = Copy.PRIMARY, Copy.BACKUP
DAMAGED, MALFORMED, FOREIGN = Damage.DAMAGED, Damage.MALFORMED, Damage.FOREIGN
both_sector_sizes = pytest.mark.parametrize("sector_size", [512, 4096])

TRIAL_OF_B = {2: flags(1, 0, ok=True), 3: flags(2, 3)}
"""A change of both slots' words from what a healthy disk has."""


def tables_of(disk: MemoryDisk) -> Tables:
    """Return what ``host.disk`` reads, after holding it against the sectors themselves."""
    tables = read_tables(disk)
    for table in (tables.primary, tables.backup):
        if isinstance(table, Table):
            at, size = table.header.entries_lba, disk.geometry.sector_size
            assert table.header.encode() == disk.read(table.header.lba, 1)
            assert table.array == disk.peek(at * size, table.header.entry_count * 128)
    return tables


def good(copy: Table | TableError) -> Table:
    assert isinstance(copy, Table), copy
    return copy


def fault(copy: Table | TableError) -> TableError:
    assert isinstance(copy, TableError)
    return copy


def carry_out(disk: MemoryDisk, plan: Plan) -> Tables:
    """Write all of a plan, and return what is then read: it must be what the plan promised."""
    for phase in plan.phases:
        for write in phase:
            disk.write(write.lba, write.data)
    after = tables_of(disk)
    assert after == plan.after
    return after


def addresses(disk: MemoryDisk, plan: Plan) -> list[list[range]]:
    size = disk.geometry.sector_size
    return [
        [range(write.lba, write.lba + len(write.data) // size) for write in phase]
        for phase in plan.phases
    ]


# Bytes to values and back ------------------------------------------------------------------------


@both_sector_sizes
def test_a_good_table_is_read_as_it_was_written(sector_size: int) -> None:
    tables = tables_of(healthy(sector_size, LAYOUT))

    first = gpt.Partition(
        number=1, type_guid=ESP_TYPE, guid=ESP.guid,
        first_lba=256, last_lba=511, attributes=0, label="ESP",
    )  # fmt: skip
    assert tables.sound
    assert tables.backup_at_end
    assert good(tables.primary).partitions[0] == first
    assert [it.label for it in good(tables.primary).partitions] == [
        "ESP", "ROOT-A", "ROOT-B", "STATE",
    ]  # fmt: skip
    assert good(tables.primary).header.disk_guid == DISK_GUID
    assert good(tables.primary).says_the_same_as(good(tables.backup))


@both_sector_sizes
def test_numbers_follow_the_place_in_the_array_and_not_the_place_on_the_disk(
    sector_size: int,
) -> None:
    entries = (replace(STATE, number=128), replace(ROOT_B, number=1), replace(ROOT_A, number=7))

    found = good(tables_of(healthy(sector_size, entries)).primary).partitions

    assert [(it.number, it.label) for it in found] == [(1, "ROOT-B"), (7, "ROOT-A"), (128, "STATE")]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        pytest.param("ROOT-A".encode("utf-16-le").ljust(72, b"\0"), "ROOT-A", id="usual"),
        pytest.param("B\0garbage".encode("utf-16-le").ljust(72, b"\0"), "B", id="after-its-end"),
        pytest.param(bytes(72), "", id="empty"),
        pytest.param("x".encode("utf-16-le") * 36, "x" * 36, id="no-room-for-an-end"),
        pytest.param("é𝄞".encode("utf-16-le").ljust(72, b"\0"), "é𝄞", id="surrogate-pair"),
        pytest.param(b"\x00\xd8".ljust(72, b"\0"), "\ufffd", id="half-a-surrogate-pair"),
    ],
)
def test_a_label_is_read_up_to_its_end_whatever_it_holds(name: bytes, label: str) -> None:
    disk = healthy()
    disk.patch_entry(PRIMARY, 4, PartitionName=name)

    assert good(tables_of(disk).primary).partitions[3].label == label


@both_sector_sizes
@given(st.data())
def test_what_is_not_ours_survives_a_change_to_the_bit(
    sector_size: int, data: st.DataObject
) -> None:
    rest = st.binary(min_size=1, max_size=40).map(lambda it: (it * 4096)[: sector_size - 92])
    header_size = st.integers(92, sector_size)
    disk = healthy(sector_size)
    for copy in Copy:
        lba = disk.header_lba(copy)
        disk.put(lba, disk.sectors[lba][:92] + data.draw(rest))
        disk.patch(copy, HeaderSize=data.draw(header_size), Reserved=data.draw(st.integers(0, 99)))
    unused = bytes(16) + data.draw(st.binary(min_size=112, max_size=112))
    attributes = data.draw(st.integers(0, 2**64 - 1))
    for copy in Copy:
        disk.patch_entry(copy, 9, **dict(zip(ENTRY_FIELDS, _entry(unused), strict=True)))
        disk.patch_entry(copy, 4, Attributes=attributes)
    before = dict(disk.sectors)
    old = tables_of(disk)

    new = carry_out(disk, gpt.change(old, TRIAL_OF_B))

    assert old.sound
    assert new.sound
    for lba in (1, 2047):
        assert disk.sectors[lba][92:] == before[lba][92:]
        assert disk.sectors[lba][8:16] == before[lba][8:16]  # Revision, HeaderSize
        assert disk.sectors[lba][20:24] == before[lba][20:24]  # Reserved
    array = good(new.primary).array
    assert array[8 * 128 : 9 * 128] == unused
    assert good(new.primary).partitions[3].attributes == attributes
    assert _without_words(array, 2, 3) == _without_words(good(old.primary).array, 2, 3)


def _entry(raw: bytes) -> tuple[bytes | int, ...]:
    return struct.unpack("<16s16sQQQ72s", raw)


def _without_words(array: bytes, *numbers: int) -> bytes:
    left = bytearray(array)
    for number in numbers:
        at = (number - 1) * 128 + 48
        left[at : at + 8] = bytes(8)
    return bytes(left)


@both_sector_sizes
def test_unused_entries_with_rubbish_in_them_are_no_partitions(sector_size: int) -> None:
    disk = healthy(sector_size)
    disk.patch_entry(PRIMARY, 5, StartingLBA=300, EndingLBA=100, UniquePartitionGUID=b"\x01" * 16)

    assert len(good(tables_of(disk).primary).partitions) == 4


@pytest.mark.parametrize(
    ("count", "array_sectors"),
    [
        pytest.param(1, 1, id="one-entry"),
        pytest.param(4, 1, id="exactly-one-sector"),
        pytest.param(5, 2, id="a-sector-in-part"),
        pytest.param(128, 32, id="usual"),
        pytest.param(1024, 256, id="most"),
    ],
)
def test_an_array_may_have_from_1_to_1024_entries(count: int, array_sectors: int) -> None:
    entry = Entry(number=1, first=700, last=700)
    tables = tables_of(healthy(512, [entry], count=count))

    assert tables.sound
    assert good(tables.primary).header.array_sectors == array_sectors
    assert good(tables.backup).header.entries_lba == 2047 - array_sectors


def test_bytes_behind_the_last_entry_in_its_sector_are_not_part_of_the_table() -> None:
    disk = healthy(512, A_SUCCESSFUL, count=5)
    disk.poke(2 * 512 + 5 * 128, b"rubbish")

    assert tables_of(disk).sound


@pytest.mark.case(61)
@both_sector_sizes
def test_a_header_may_fill_its_sector(sector_size: int) -> None:
    disk = healthy(sector_size)
    for copy in Copy:
        disk.patch(copy, HeaderSize=sector_size)

    assert tables_of(disk).sound


@pytest.mark.case(44)
@both_sector_sizes
def test_a_disk_of_ten_terabytes_is_changed_beyond_two_to_the_32nd_sector(
    sector_size: int,
) -> None:
    sectors = 2**33 + 2048
    far = 2**32
    entries = (
        replace(ROOT_A, first=far + 512, last=far + 1023),
        replace(ROOT_B, first=far + 1024, last=2**33),
    )
    disk = healthy(sector_size, entries, sectors=sectors)

    after = carry_out(disk, gpt.change(tables_of(disk), TRIAL_OF_B))

    assert after.sound
    assert good(after.backup).header.lba == 8_589_936_639  # 2**33 + 2047
    assert [it.attributes for it in good(after.backup).partitions] == list(TRIAL_OF_B.values())
    assert good(after.primary).partitions[0].first_lba == 4_294_967_808


@both_sector_sizes
def test_a_geometry_counts_whole_sectors(sector_size: int) -> None:
    geometry = Geometry(sector_size=sector_size, sectors=100)

    assert geometry.last_lba == 99
    assert [geometry.sectors_of(sector_size * 3 + extra) for extra in (-1, 0, 1)] == [3, 3, 4]


def test_sectors_of_other_sizes_are_a_programmers_mistake_to_claim() -> None:
    with pytest.raises(ValueError, match=r"^sector size must be one of \(512, 4096\), got 520$"):
        Geometry(sector_size=520, sectors=1)


# Malformed tables --------------------------------------------------------------------------------


HUGE = 2**64 - 1

OF_EITHER_COPY = [
    pytest.param(
        {"Signature": b"EFI PARU"}, DAMAGED,
        "signature", "b'EFI PARU'", "b'EFI PART'", id="signature",
    ),
    pytest.param({"HeaderSize": 0}, DAMAGED, "HeaderSize", "0", "92 to 512", id="size-0"),
    pytest.param({"HeaderSize": 91}, DAMAGED, "HeaderSize", "91", "92 to 512", id="size-91"),
    pytest.param({"HeaderSize": 513}, DAMAGED, "HeaderSize", "513", "92 to 512", id="size-513"),
    pytest.param({"HeaderSize": 4096}, DAMAGED, "HeaderSize", "4096", "92 to 512", id="size-4096"),
    pytest.param(
        {"HeaderSize": 2**32 - 1}, DAMAGED,
        "HeaderSize", "4294967295", "92 to 512", id="size-huge",
    ),
    pytest.param(
        {"Revision": 0x20000}, MALFORMED,
        "Revision", "0x00020000", "0x00010000", id="revision",
    ),
    pytest.param(
        {"SizeOfPartitionEntry": 256}, MALFORMED,
        "SizeOfPartitionEntry", "256", "128", id="entry-size-256",
    ),
    pytest.param(
        {"SizeOfPartitionEntry": 0}, MALFORMED,
        "SizeOfPartitionEntry", "0", "128", id="entry-size-0",
    ),
    pytest.param(
        {"NumberOfPartitionEntries": 0}, MALFORMED,
        "NumberOfPartitionEntries", "0", "1 to 1024", id="count-0",
    ),
    pytest.param(
        {"NumberOfPartitionEntries": 1025}, MALFORMED,
        "NumberOfPartitionEntries", "1025", "1 to 1024", id="count-1025",
    ),
    pytest.param(
        {"NumberOfPartitionEntries": 2**32 - 1}, MALFORMED,
        "NumberOfPartitionEntries", "4294967295", "1 to 1024", id="count-huge",
    ),
    pytest.param(
        {"LastUsableLBA": 2015}, MALFORMED,
        "LastUsableLBA", "2015", "34 to 2014", id="last-usable-in-the-backup-array",
    ),
    pytest.param(
        {"LastUsableLBA": HUGE}, MALFORMED,
        "LastUsableLBA", "18446744073709551615", "34 to 2014", id="last-usable-huge",
    ),
    pytest.param(
        {"LastUsableLBA": 33}, MALFORMED,
        "LastUsableLBA", "33", "34 to 2014", id="last-usable-in-the-primary-array",
    ),
    pytest.param(
        {"FirstUsableLBA": 33}, MALFORMED,
        "FirstUsableLBA", "33", "34 to 2014", id="first-usable-in-the-primary-array",
    ),
    pytest.param(
        {"FirstUsableLBA": 2015}, MALFORMED,
        "FirstUsableLBA", "2015", "34 to 2014", id="first-usable-above-last-usable",
    ),
    pytest.param(
        {"FirstUsableLBA": 257}, MALFORMED,
        "partition 1 StartingLBA", "256", "257 to 2014", id="partition-below-first-usable",
    ),
    pytest.param(
        {"LastUsableLBA": 1790}, MALFORMED,
        "partition 4 EndingLBA", "1791", "1536 to 1790", id="partition-above-last-usable",
    ),
]  # fmt: skip


@pytest.mark.case(53)
@pytest.mark.case(55)
@pytest.mark.case(61)
@pytest.mark.parametrize("copy", list(Copy))
@pytest.mark.parametrize(("values", "damage", "field", "found", "wanted"), OF_EITHER_COPY)
def test_a_wrong_header_is_refused_by_copy_and_field(
    copy: Copy,
    values: dict[str, int | bytes],
    damage: Damage,
    field: str,
    found: str,
    wanted: str,
) -> None:
    disk = healthy()
    disk.patch(copy, **values)

    _assert_fault(disk, copy, damage, (field, found, wanted))


@pytest.mark.case(61)
@pytest.mark.parametrize(
    ("copy", "values", "damage", "field", "found", "wanted"),
    [
        pytest.param(PRIMARY, {"MyLBA": 2}, DAMAGED, "MyLBA", "2", "1", id="primary-elsewhere"),
        pytest.param(PRIMARY, {"MyLBA": 2047}, DAMAGED, "MyLBA", "2047", "1", id="backup-copied"),
        pytest.param(
            BACKUP, {"MyLBA": 2046}, DAMAGED, "MyLBA", "2046", "2047", id="backup-elsewhere"
        ),
        pytest.param(BACKUP, {"MyLBA": 1}, DAMAGED, "MyLBA", "1", "2047", id="primary-copied"),
        pytest.param(
            PRIMARY, {"AlternateLBA": 2048}, MALFORMED,
            "AlternateLBA", "2048", "2 to 2047", id="backup-beyond-the-disk",
        ),
        pytest.param(
            PRIMARY, {"AlternateLBA": HUGE}, MALFORMED,
            "AlternateLBA", "18446744073709551615", "2 to 2047", id="backup-beyond-all-disks",
        ),
        pytest.param(
            PRIMARY, {"AlternateLBA": 1}, MALFORMED,
            "AlternateLBA", "1", "2 to 2047", id="no-backup-at-all",
        ),
        pytest.param(
            PRIMARY, {"AlternateLBA": 0}, MALFORMED,
            "AlternateLBA", "0", "2 to 2047", id="backup-in-the-mbr",
        ),
        pytest.param(
            PRIMARY, {"AlternateLBA": 60}, MALFORMED,
            "LastUsableLBA", "2014", "room for it", id="backup-beside-the-primary",
        ),
        pytest.param(
            BACKUP, {"AlternateLBA": 2}, MALFORMED,
            "AlternateLBA", "2", "1", id="backup-of-something-else",
        ),
        pytest.param(
            PRIMARY, {"PartitionEntryLBA": 0}, MALFORMED,
            "PartitionEntryLBA", "0", "2 to 2", id="primary-array-over-the-mbr",
        ),
        pytest.param(
            PRIMARY, {"PartitionEntryLBA": 1}, MALFORMED,
            "PartitionEntryLBA", "1", "2 to 2", id="primary-array-over-its-header",
        ),
        pytest.param(
            PRIMARY, {"PartitionEntryLBA": 3}, MALFORMED,
            "PartitionEntryLBA", "3", "2 to 2", id="primary-array-in-usable-space",
        ),
        pytest.param(
            PRIMARY, {"PartitionEntryLBA": 2015}, MALFORMED,
            "PartitionEntryLBA", "2015", "2 to 2", id="primary-array-over-the-backup",
        ),
        pytest.param(
            PRIMARY, {"PartitionEntryLBA": HUGE}, MALFORMED,
            "PartitionEntryLBA", "18446744073709551615", "2 to 2", id="primary-array-huge",
        ),
        pytest.param(
            BACKUP, {"PartitionEntryLBA": 0}, MALFORMED,
            "PartitionEntryLBA", "0", "2015 to 2015", id="backup-array-over-the-mbr",
        ),
        pytest.param(
            BACKUP, {"PartitionEntryLBA": 2}, MALFORMED,
            "PartitionEntryLBA", "2", "2015 to 2015", id="backup-array-over-the-primary",
        ),
        pytest.param(
            BACKUP, {"PartitionEntryLBA": 2014}, MALFORMED,
            "PartitionEntryLBA", "2014", "2015 to 2015", id="backup-array-in-usable-space",
        ),
        pytest.param(
            BACKUP, {"PartitionEntryLBA": 2016}, MALFORMED,
            "PartitionEntryLBA", "2016", "2015 to 2015", id="backup-array-over-its-header",
        ),
    ],
)  # fmt: skip
def test_an_address_out_of_place_is_refused_by_copy_and_field(
    copy: Copy, values: dict[str, int], damage: Damage, field: str, found: str, wanted: str
) -> None:
    disk = healthy()
    disk.patch(copy, **values)

    _assert_fault(disk, copy, damage, (field, found, wanted))


@pytest.mark.parametrize("copy", list(Copy))
@pytest.mark.parametrize(
    ("number", "values", "field", "found", "wanted"),
    [
        pytest.param(
            2, {"StartingLBA": 1024}, "partition 2 EndingLBA", "1023", "1024 to 2014",
            id="first-above-last",
        ),
        pytest.param(
            1, {"StartingLBA": 33}, "partition 1 StartingLBA", "33", "34 to 2014",
            id="begins-in-the-primary-array",
        ),
        pytest.param(
            1, {"StartingLBA": 0}, "partition 1 StartingLBA", "0", "34 to 2014",
            id="begins-in-the-mbr",
        ),
        pytest.param(
            4, {"EndingLBA": 2015}, "partition 4 EndingLBA", "2015", "1536 to 2014",
            id="ends-in-the-backup-array",
        ),
        pytest.param(
            4, {"EndingLBA": HUGE}, "partition 4 EndingLBA", "18446744073709551615",
            "1536 to 2014", id="ends-beyond-all-disks",
        ),
        pytest.param(
            3, {"StartingLBA": 1023}, "partition 3 StartingLBA", "1023", "1024 to 2014",
            id="overlaps-by-one-sector",
        ),
        pytest.param(
            1, {"StartingLBA": 1100, "EndingLBA": 1101}, "partition 1 StartingLBA", "1100",
            "1536 to 2014", id="lies-within-another",
        ),
        pytest.param(
            1, {"EndingLBA": 2014}, "partition 2 StartingLBA", "512", "room for it",
            id="covers-all-others",
        ),
        pytest.param(
            3, {"UniquePartitionGUID": ROOT_A.guid.bytes_le}, "partition 3 UniquePartitionGUID",
            "00000000-0000-0000-0000-000000000002", "one that partition 2 does not have",
            id="guid-of-another",
        ),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_by_copy_and_field(
    copy: Copy, number: int, values: dict[str, int | bytes], field: str, found: str, wanted: str
) -> None:
    disk = healthy()
    disk.patch_entry(copy, number, **values)

    _assert_fault(disk, copy, MALFORMED, (field, found, wanted))


def _assert_fault(disk: MemoryDisk, copy: Copy, damage: Damage, said: tuple[str, str, str]) -> None:
    """Hold one faulty copy against what must be said about it, and what may then be done."""
    tables = tables_of(disk)
    other = tables.backup if copy is PRIMARY else tables.primary
    error = fault(tables.primary if copy is PRIMARY else tables.backup)
    field, found, wanted = said

    assert (error.copy, error.damage) == (copy, damage)
    assert (error.field, error.found, error.wanted) == said
    assert str(error) == f"{copy} partition table is {damage}: {field} is {found}, wanted {wanted}"
    assert isinstance(other, Table)
    assert not tables.sound
    with pytest.raises(ValueError, match="must be repaired before"):
        gpt.change(tables, TRIAL_OF_B)
    if copy is BACKUP or damage is DAMAGED:
        assert tables.authoritative == other
        assert carry_out(disk, gpt.repair(tables)).sound
    else:
        with pytest.raises(TableError, match=re.escape(str(error))) as raised:
            gpt.repair(tables)
        assert raised.value.hint == (
            "nothing is written to such a disk; correct its table with sgdisk or sfdisk"
        )


@pytest.mark.case(61)
def test_a_header_of_4096_bytes_is_limited_by_its_sector_and_not_by_512() -> None:
    disk = healthy(4096)
    disk.patch(PRIMARY, HeaderSize=4097)

    assert fault(tables_of(disk).primary).wanted == "92 to 4096"


@pytest.mark.case(61)
def test_limits_follow_the_sector_size() -> None:
    disk = healthy(4096)
    disk.patch(PRIMARY, LastUsableLBA=2043)
    disk.patch(BACKUP, FirstUsableLBA=5)
    tables = tables_of(disk)

    assert fault(tables.primary).wanted == "6 to 2042"
    assert fault(tables.backup).wanted == "6 to 2042"


@pytest.mark.case(53)
@pytest.mark.case(55)
@both_sector_sizes
@pytest.mark.parametrize("copy", list(Copy))
def test_every_flipped_bit_of_a_header_damages_its_copy(sector_size: int, copy: Copy) -> None:
    disk = healthy(sector_size)
    lba = disk.header_lba(copy)
    sector = disk.sectors[lba]
    for bit in range(92 * 8):
        flipped = bytearray(sector)
        flipped[bit // 8] ^= 1 << bit % 8
        disk.put(lba, bytes(flipped))
        tables = tables_of(disk)

        assert fault(tables.primary if copy is PRIMARY else tables.backup).damage is DAMAGED


@pytest.mark.case(53)
def test_a_wrong_header_checksum_is_told_with_both_sums() -> None:
    disk = healthy()
    disk.corrupt(PRIMARY, HeaderCRC32=0x1234)
    right = healthy().get(PRIMARY, "HeaderCRC32")

    error = fault(tables_of(disk).primary)

    assert error.field == "HeaderCRC32"
    assert (error.found, error.wanted) == ("0x00001234", f"0x{right:08x}")
    assert error.hint == (
        "the other copy is used while it is good; 'update-agent-slots repair' mends it"
    )


@pytest.mark.case(54)
@pytest.mark.case(55)
@pytest.mark.parametrize("copy", list(Copy))
@both_sector_sizes
def test_damaged_entries_make_the_other_copy_count_and_are_repaired(
    sector_size: int, copy: Copy
) -> None:
    disk = healthy(sector_size)
    disk.corrupt_entry(copy, 3, Attributes=flags(15, 15))
    tables = tables_of(disk)
    error = fault(tables.primary if copy is PRIMARY else tables.backup)

    assert (error.field, error.damage) == ("PartitionEntryArrayCRC32", DAMAGED)
    assert tables.authoritative.partitions[2].attributes == 0
    assert carry_out(disk, gpt.repair(tables)).sound
    assert disk.sectors == healthy(sector_size).sectors


def test_unreadable_sectors_are_damage_and_name_the_cause() -> None:
    disk = healthy()
    disk.bad = {1}
    error = fault(tables_of(disk).primary)

    assert str(error) == (
        "primary partition table is damaged: its content is unreadable"
        " (Input/output error), wanted readable"
    )
    assert error.damage is DAMAGED


def test_an_unreadable_array_is_damage_as_well() -> None:
    disk = healthy()
    disk.bad = {2047 - 1}

    assert fault(tables_of(disk).backup).found == "unreadable (Input/output error)"


@pytest.mark.parametrize("sectors", [0, 1, 2, 3])
def test_a_disk_too_small_for_any_table_is_damaged_and_no_crash(sectors: int) -> None:
    disk = MemoryDisk(Geometry(sector_size=512, sectors=sectors))

    with pytest.raises(HostError, match=r"^both copies of the partition table are unusable"):
        gpt.repair(tables_of(disk))


@pytest.mark.case(62)
@pytest.mark.parametrize("signature", [b"CHROMEOS", b"IGNOREME"])
@pytest.mark.parametrize("copy", list(Copy))
def test_a_disk_that_chromeos_marked_as_its_own_is_left_alone(signature: bytes, copy: Copy) -> None:
    disk = healthy()
    disk.patch(copy, Signature=signature)
    tables = tables_of(disk)
    error = fault(tables.primary if copy is PRIMARY else tables.backup)

    assert (error.copy, error.field, error.damage) == (copy, "signature", FOREIGN)
    message = rf"^{copy} partition table is foreign: signature is b'{signature.decode()}'"
    with pytest.raises(TableError, match=message):
        gpt.repair(tables)


# Both copies -------------------------------------------------------------------------------------


def _flags_differ(disk: MemoryDisk) -> None:
    disk.patch_entry(BACKUP, 2, Attributes=0)


def _guids_differ(disk: MemoryDisk) -> None:
    disk.patch(BACKUP, DiskGUID=bytes(16))


def _first_usable_differs(disk: MemoryDisk) -> None:
    disk.patch(BACKUP, FirstUsableLBA=66)


def _last_usable_differs(disk: MemoryDisk) -> None:
    disk.patch(BACKUP, LastUsableLBA=2000)


def _counts_differ(disk: MemoryDisk) -> None:
    disk.patch(BACKUP, NumberOfPartitionEntries=64)


@pytest.mark.case(56)
@pytest.mark.parametrize(
    "differ",
    [_flags_differ, _guids_differ, _first_usable_differs, _last_usable_differs, _counts_differ],
)
def test_when_both_copies_are_valid_but_differ_the_primary_counts(
    differ: Callable[[MemoryDisk], None],
) -> None:
    disk = healthy()
    differ(disk)
    tables = tables_of(disk)
    primary = good(tables.primary)

    plan = gpt.repair(tables)

    assert not tables.sound
    assert tables.authoritative == primary
    assert addresses(disk, plan) == [[range(2015, 2047), range(2047, 2048)]]
    after = carry_out(disk, plan)
    assert after.sound
    assert after.primary == primary


def test_unknown_header_bytes_may_differ_between_copies() -> None:
    disk = healthy()
    disk.poke(2047 * 512 + 200, b"theirs")

    assert tables_of(disk).sound


@pytest.mark.case(57)
def test_two_bad_copies_are_refused_and_both_faults_are_told() -> None:
    disk = healthy()
    disk.corrupt(PRIMARY, HeaderCRC32=0)
    disk.patch(BACKUP, HeaderSize=91)

    with pytest.raises(
        HostError,
        match=r"^both copies of the partition table are unusable \(primary .*HeaderCRC32 is "
        r"0x00000000, .*; backup .*HeaderSize is 91, wanted 92 to 512\)$",
    ):
        gpt.repair(tables_of(disk))


@pytest.mark.case(57)
def test_a_damaged_primary_beside_a_malformed_backup_is_refused() -> None:
    disk = healthy()
    disk.patch(PRIMARY, MyLBA=7)
    disk.patch(BACKUP, SizeOfPartitionEntry=256)

    with pytest.raises(HostError, match=r"^both copies .*MyLBA is 7.*SizeOfPartitionEntry is 256"):
        gpt.repair(tables_of(disk))


@pytest.mark.case(57)
def test_a_malformed_primary_beside_a_damaged_backup_is_refused_for_the_primary() -> None:
    disk = healthy()
    disk.patch(PRIMARY, SizeOfPartitionEntry=256)
    disk.patch(BACKUP, MyLBA=7)

    with pytest.raises(TableError, match=r"^primary .*SizeOfPartitionEntry is 256, wanted 128$"):
        gpt.repair(tables_of(disk))


@pytest.mark.case(60)
@pytest.mark.parametrize("by", [1, 5, 32, 33, 34, 5000])
@both_sector_sizes
def test_the_backup_follows_when_the_disk_has_grown(sector_size: int, by: int) -> None:
    disk = healthy(sector_size)
    disk.grow(2048 + by)
    tables = tables_of(disk)

    assert not tables.backup_at_end
    assert good(tables.backup).header.lba == 2047
    room = 32 if sector_size == 512 else 4
    last = 2047 + by
    plan = gpt.repair(tables)
    assert addresses(disk, plan) == [
        [range(last - room, last), range(last, last + 1)],
        [range(1, 2)],
    ]
    after = carry_out(disk, plan)
    assert after.sound
    assert good(after.primary).header.alternate_lba == last
    assert good(after.primary).partitions == good(tables.primary).partitions


@pytest.mark.case(60)
def test_a_grown_disk_with_a_damaged_primary_shows_no_backup_where_firmware_looks() -> None:
    disk = healthy()
    disk.grow(4096)
    disk.patch(PRIMARY, MyLBA=7)

    with pytest.raises(HostError, match=r"^both copies .*MyLBA is 7, wanted 1; backup .*signature"):
        gpt.repair(tables_of(disk))


@pytest.mark.case(60)
def test_a_disk_that_shrank_below_its_backup_is_refused() -> None:
    disk = healthy()
    disk.grow(2047)

    with pytest.raises(TableError, match=r"AlternateLBA is 2047, wanted 2 to 2046$"):
        gpt.repair(tables_of(disk))


@both_sector_sizes
def test_a_damaged_primary_is_rebuilt_from_the_backup_array_first(sector_size: int) -> None:
    disk = healthy(sector_size)
    disk.put(1, bytes(sector_size))
    room = 32 if sector_size == 512 else 4

    plan = gpt.repair(tables_of(disk))

    assert addresses(disk, plan) == [[range(2, 2 + room)], [range(1, 2)]]
    assert carry_out(disk, plan).sound
    assert disk.sectors == healthy(sector_size).sectors


def test_a_damaged_backup_is_rebuilt_from_a_primary_whose_array_lies_elsewhere() -> None:
    disk = healthy()
    for copy in Copy:
        disk.patch(copy, FirstUsableLBA=256)
    disk.move_array(PRIMARY, 100)
    disk.put(2047, bytes(512))

    after = carry_out(disk, gpt.repair(tables_of(disk)))

    assert after.sound
    assert good(after.primary).header.entries_lba == 100
    assert good(after.backup).header.entries_lba == 2015
    assert disk.written == set(range(2015, 2048))


def test_a_sound_disk_needs_no_repair() -> None:
    tables = tables_of(healthy())

    assert gpt.repair(tables) == Plan(phases=(), after=tables)


@pytest.mark.case(58)
@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("kinds", "mbr"),
    [
        pytest.param([0xEE, 0, 0, 0], Mbr.PROTECTIVE, id="as-uefi-wants-it"),
        pytest.param([0, 0, 0xEE, 0], Mbr.PROTECTIVE, id="in-another-record"),
        pytest.param([0xEE, 0xEF, 0, 0], Mbr.HYBRID, id="beside-an-esp"),
        pytest.param([0x83, 0x82, 7, 0xEE], Mbr.HYBRID, id="last-of-four"),
        pytest.param([0x83, 0, 0, 0], Mbr.MISSING, id="dos-table"),
        pytest.param([0, 0, 0, 0], Mbr.MISSING, id="no-partition"),
    ],
)
@both_sector_sizes
def test_the_mbr_is_told_by_its_partition_types(
    sector_size: int, kinds: list[int], mbr: Mbr
) -> None:
    sector = bytearray(protective_mbr(sector_size))
    for index, kind in enumerate(kinds):
        sector[446 + 16 * index + 4] = kind

    assert gpt.parse_mbr(bytes(sector)) is mbr


@pytest.mark.case(58)
@pytest.mark.parametrize("sector", [b"", bytes(512), protective_mbr(512)[:511] + b"\0"])
def test_without_its_signature_an_mbr_is_missing(sector: bytes) -> None:
    assert gpt.parse_mbr(sector) is Mbr.MISSING


# Changes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sector_size", "backup", "spare"),
    [(512, range(2015, 2047), range(34, 66)), (4096, range(2043, 2047), range(6, 10))],
)
def test_a_change_writes_the_backup_then_the_spare_array_then_one_sector(
    sector_size: int, backup: range, spare: range
) -> None:
    disk = healthy(sector_size)

    first = gpt.change(tables_of(disk), TRIAL_OF_B)
    tables = carry_out(disk, first)
    second = gpt.change(tables, {3: 0})

    header = range(1, 2)
    behind_header = range(2, 2 + len(spare))
    assert addresses(disk, first) == [[backup, range(2047, 2048)], [spare], [header]]
    assert addresses(disk, second) == [[backup, range(2047, 2048)], [behind_header], [header]]
    assert carry_out(disk, second).sound


@both_sector_sizes
def test_a_change_touches_the_two_words_and_nothing_else(sector_size: int) -> None:
    disk = healthy(sector_size)
    before = good(tables_of(disk).primary)

    after = carry_out(disk, gpt.change(tables_of(disk), TRIAL_OF_B))

    different = [i for i in range(128 * 128) if good(after.primary).array[i] != before.array[i]]
    assert different == [2 * 128 + 54]  # B: priority and tries; A had its word already
    assert good(after.primary).array == good(after.backup).array
    assert good(after.primary).partitions[2].attributes == flags(2, 3)


@pytest.mark.parametrize(
    ("sector_size", "found", "raised"),
    [
        pytest.param(512, 34, 66, id="512-as-sgdisk-makes-it"),
        pytest.param(512, 66, 66, id="512-already-raised"),
        pytest.param(512, 256, 256, id="512-never-lowered"),
        pytest.param(4096, 6, 10, id="4096-as-sgdisk-makes-it"),
        pytest.param(4096, 256, 256, id="4096-never-lowered"),
    ],
)
def test_both_places_for_the_array_are_kept_out_of_reach(
    sector_size: int, found: int, raised: int
) -> None:
    disk = healthy(sector_size)
    for copy in Copy:
        disk.patch(copy, FirstUsableLBA=found)

    carry_out(disk, gpt.change(tables_of(disk), TRIAL_OF_B))

    assert [disk.get(copy, "FirstUsableLBA") for copy in Copy] == [raised, raised]


@both_sector_sizes
def test_wherever_the_array_lies_the_next_one_lies_beside_it(sector_size: int) -> None:
    room = 32 if sector_size == 512 else 4
    for at in range(2, 256 - 2 * room + 1):
        disk = healthy(sector_size)
        for copy in Copy:
            disk.patch(copy, FirstUsableLBA=256)
        disk.move_array(PRIMARY, at)
        in_use = set(range(at, at + room))

        for words in (TRIAL_OF_B, {3: 0}, TRIAL_OF_B):
            disk.writes.clear()
            after = carry_out(disk, gpt.change(tables_of(disk), words))

            assert after.sound
            assert not disk.written & in_use
            assert disk.written <= set(range(1, 256)) | set(range(2047 - room, 2048))
            new_place = good(after.primary).header.entries_lba
            in_use = set(range(new_place, new_place + room))


@pytest.mark.parametrize(
    ("sector_size", "entries_lba", "first", "needed"),
    [
        pytest.param(512, 2, 65, 65, id="512"),
        pytest.param(4096, 2, 9, 9, id="4096"),
        pytest.param(512, 20, 83, 83, id="512-array-moved"),
        pytest.param(512, 33, 96, 96, id="512-array-one-before-a-second-place"),
    ],
)
def test_no_room_for_two_arrays_is_refused_by_partition_and_address(
    sector_size: int, entries_lba: int, first: int, needed: int
) -> None:
    disk = _crowded(sector_size, entries_lba, first)

    message = (
        rf"^no room for the partition table: partition 1 begins at LBA {first}, and its array of"
        rf" entries needs the sectors up to {needed}$"
    )
    with pytest.raises(HostError, match=message) as raised:
        gpt.change(tables_of(disk), TRIAL_OF_B)
    assert raised.value.hint == "lay the disk out with its first partition at 1 MiB"
    roomy = _crowded(sector_size, entries_lba, first + 1)
    assert carry_out(roomy, gpt.change(tables_of(roomy), TRIAL_OF_B)).sound


def _crowded(sector_size: int, entries_lba: int, first: int) -> MemoryDisk:
    disk = healthy(sector_size, (replace(ESP, first=first), *A_SUCCESSFUL[1:]))
    for copy in Copy:
        disk.patch(copy, FirstUsableLBA=first)
    disk.move_array(PRIMARY, entries_lba)
    return disk


def test_words_that_stand_there_already_need_no_write() -> None:
    tables = tables_of(healthy())

    assert gpt.change(tables, {2: flags(1, 0, ok=True)}) == Plan(phases=(), after=tables)


@pytest.mark.parametrize("place", [2015 - 40, 2015 - 1])
def test_a_backup_array_in_a_legal_odd_place_comes_home_with_the_next_change(place: int) -> None:
    disk = healthy()
    for copy in Copy:
        disk.patch(copy, LastUsableLBA=1800)
    disk.move_array(BACKUP, place)
    tables = tables_of(disk)

    after = carry_out(disk, gpt.change(tables, TRIAL_OF_B))

    assert tables.sound
    assert good(after.backup).header.entries_lba == 2015


def test_the_slot_type_of_the_design_is_the_one_tested_with() -> None:
    partitions = good(tables_of(healthy()).primary).partitions

    assert [it.type_guid for it in partitions[1:3]] == [SLOT_TYPE, SLOT_TYPE]
