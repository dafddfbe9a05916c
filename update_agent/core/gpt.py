"""GUID partition tables: bytes to values and back, and the order in which a change is written.

A disk carries two copies of its table, the primary at its start and the backup at its end. A copy
is a header (one sector) and an array of 128-byte entries (UEFI specification 2.10, section 5.3):

    LBA 0        protective MBR, never written by us
    LBA 1        primary header; its PartitionEntryLBA says which array is in use
    LBA 2..      array, or a second place for it: each change goes to the place not in use
    ...          partitions
    last - n..   backup array (n sectors)
    last         backup header

The rules kept here:

* A copy is used only when every field of it validated. *Damaged* is what firmware refuses too
  (signature, checksums, its own address): the other copy then counts. *Malformed* is a table
  whose checksums are good but that breaks a rule: programs would disagree about it, so a malformed
  primary is refused together with its disk.
* What is not ours is kept to the bit: unknown header bytes, attribute bits, unused entries.
* A change is a sequence of phases. Each is durable and read back before the next begins, and the
  last one is a single sector. Cut anywhere, the disk shows the old table or the new one.

Reading and writing sectors is left to ``host/disk.py``, the meaning of attribute bits to
``core/slot.py``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from struct import Struct
from typing import Self
from uuid import UUID
from zlib import crc32

from update_agent.errors import HostError

SECTOR_SIZES = (512, 4096)
"""Bytes in a logical block of the disks we know."""

PRIMARY_LBA = 1
"""The primary header's address, fixed by UEFI."""

_PRIMARY_HOME = 2
"""Where every tool puts the primary's array: behind the header."""

ENTRY_SIZE = 128
"""Bytes in an entry. UEFI allows larger ones; Linux refuses them, so the two would disagree."""

MAX_ENTRIES = 1024
"""More than any tool writes; bounds what a header can make us read to 128 KiB."""

_SIGNATURE = b"EFI PART"
"""Begins a header."""

_FOREIGN = {b"CHROMEOS", b"IGNOREME"}
"""Signatures of ChromeOS tools, which mean: keep your hands off this copy."""

_REVISION = 0x00010000
_HEADER = Struct("<8s4I4Q16sQ3I")
_CRC = slice(16, 20)
_ENTRY = Struct("<16s16sQQQ72s")
_WORD = Struct("<Q")
_LAST_LBA_OFFSET = 40
_WORD_OFFSET = 48
"""Where the attribute word stands in an entry."""

_PROTECTIVE = 0xEE
"""The partition type by which an MBR says: this disk has a GPT."""


class Copy(StrEnum):
    """Which of the two copies of a table."""

    PRIMARY = "primary"
    BACKUP = "backup"


class Damage(StrEnum):
    """Why a copy is not used, which decides what may be done about it."""

    DAMAGED = "damaged"
    """Firmware refuses this copy as well, so it may be rewritten from the other one."""

    MALFORMED = "malformed"
    """The checksums are good but a rule is broken: firmware may follow it, we don't."""

    FOREIGN = "foreign"
    """Marked by another system's tools as theirs."""


class TableError(HostError):
    """A copy of the table cannot be used: says which copy, which field, found and wanted."""

    def __init__(
        self, copy: Copy, field: str, *, found: object, wanted: object, damage: Damage
    ) -> None:
        super().__init__(
            f"{copy} partition table is {damage}: {field} is {found}, wanted {wanted}",
            hint=_HINTS[damage],
        )
        self.copy = copy
        self.field = field
        self.found = str(found)
        self.wanted = str(wanted)
        self.damage = damage


_HINTS = {
    Damage.DAMAGED: "the other copy is used while it is good; 'update-agent-slots repair' mends it",
    Damage.MALFORMED: "nothing is written to such a disk; correct its table with sgdisk or sfdisk",
    Damage.FOREIGN: "nothing is written to such a disk; 'cgpt legacy -e' undoes what ChromeOS did",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A disk's size: ``sectors`` of ``sector_size`` bytes."""

    sector_size: int
    sectors: int

    def __post_init__(self) -> None:
        if self.sector_size not in SECTOR_SIZES:
            raise ValueError(f"sector size must be one of {SECTOR_SIZES}, got {self.sector_size}")

    @property
    def last_lba(self) -> int:
        """The address of the disk's last sector."""
        return self.sectors - 1

    def sectors_of(self, size: int) -> int:
        """Return how many sectors ``size`` bytes fill, the last one perhaps in part."""
        return -(-size // self.sector_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header whose own checksum and every field validated, so its addresses may be read."""

    copy: Copy
    lba: int
    alternate_lba: int
    first_usable: int
    last_usable: int
    disk_guid: UUID
    entries_lba: int
    entry_count: int
    entries_crc32: int
    sector: bytes = field(repr=False)
    """The sector as found; what ``encode`` does not own in it is kept."""

    @property
    def array_size(self) -> int:
        """Bytes in the array of entries."""
        return self.entry_count * ENTRY_SIZE

    @property
    def array_sectors(self) -> int:
        """Sectors that the array fills, the last one perhaps in part."""
        return -(-self.array_size // len(self.sector))

    def encode(self) -> bytes:
        """Return the sector that says what this value says, with its checksum."""
        size = _HEADER.unpack_from(self.sector)[2]
        packed = bytearray(self.sector)
        _HEADER.pack_into(
            packed, 0, _SIGNATURE, _REVISION, size, 0, _HEADER.unpack_from(self.sector)[4],
            self.lba, self.alternate_lba, self.first_usable, self.last_usable,
            self.disk_guid.bytes_le, self.entries_lba, self.entry_count, ENTRY_SIZE,
            self.entries_crc32,
        )  # fmt: skip
        packed[_CRC] = crc32(packed[:size]).to_bytes(4, "little")
        return bytes(packed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A used entry. ``number`` counts from 1, ``last_lba`` is the last sector of the partition."""

    number: int
    type_guid: UUID
    guid: UUID
    first_lba: int
    last_lba: int
    attributes: int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One copy of a table that validated completely."""

    header: Header
    array: bytes = field(repr=False)
    """All entries as found, used or not."""

    partitions: tuple[Partition, ...]

    def says_the_same_as(self, other: Self) -> bool:
        """Whether both copies describe the same disk, each from its own place on it."""
        return self.array == other.array and _shared(self.header) == _shared(other.header)

    def with_attributes(self, words: Mapping[int, int]) -> "Table":
        """Return the table with the attribute words of the numbered partitions replaced."""
        array = bytearray(self.array)
        for number, word in words.items():
            _WORD.pack_into(array, (number - 1) * ENTRY_SIZE + _WORD_OFFSET, word)
        partitions = tuple(
            replace(partition, attributes=words.get(partition.number, partition.attributes))
            for partition in self.partitions
        )
        header = replace(self.header, entries_crc32=crc32(array))
        return Table(header=header, array=bytes(array), partitions=partitions)

    def with_last_lba(self, number: int, last_lba: int, *, last_usable: int) -> "Table":
        """Return the table with a partition that ends elsewhere, and the disk as well."""
        array = bytearray(self.array)
        _WORD.pack_into(array, (number - 1) * ENTRY_SIZE + _LAST_LBA_OFFSET, last_lba)
        partitions = tuple(
            replace(partition, last_lba=last_lba) if partition.number == number else partition
            for partition in self.partitions
        )
        header = replace(self.header, last_usable=last_usable, entries_crc32=crc32(array))
        return Table(header=header, array=bytes(array), partitions=partitions)


class Mbr(StrEnum):
    """What LBA 0 says to programs that look there first."""

    PROTECTIVE = "protective"
    MISSING = "missing"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Both copies as found on a disk, each a table or the reason why it is not used."""

    geometry: Geometry
    primary: Table | TableError
    backup: Table | TableError
    mbr: Mbr

    @property
    def authoritative(self) -> Table:
        """The copy that counts: the primary if it is valid, else the backup, as in firmware.

        Raises HostError when neither can be used, when a valid-looking primary breaks a rule, and
        when only a backup is left on a disk whose MBR does not speak of a GPT: there firmware sees
        none either, and the disk may have been laid out anew.
        """
        if isinstance(self.primary, Table):
            return self.primary
        if self.primary.damage is not Damage.DAMAGED:
            raise self.primary
        if isinstance(self.backup, Table) and self.mbr is not Mbr.MISSING:
            return self.backup
        if isinstance(self.backup, Table):
            raise HostError(
                f"the MBR does not speak of a GPT, and the {self.primary}",
                hint="the disk may have been laid out anew; 'gdisk' recovers the old table from its"
                " backup if that is what you want",
            )
        raise HostError(
            f"both copies of the partition table are unusable ({self.primary}; {self.backup})",
            hint="nothing was written; 'sgdisk --load-backup' brings a saved table back; or make"
            " the partitions again where they were",
        )

    @property
    def backup_at_end(self) -> bool:
        """Whether the backup stands in the last sector, where firmware looks for it."""
        return isinstance(self.backup, Table) and self.backup.header.lba == self.geometry.last_lba

    @property
    def sound(self) -> bool:
        """Whether both copies are valid, equal, and where firmware looks for them."""
        return (
            isinstance(self.primary, Table)
            and isinstance(self.backup, Table)
            and self.primary.says_the_same_as(self.backup)
            and self.backup_at_end
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Bytes to write at a sector's address."""

    lba: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to change a table. Writes of a phase may reach the disk in any order, phases may not."""

    phases: tuple[tuple[Write, ...], ...]
    after: Tables
    """What must be read back when all is done."""


# Reading -----------------------------------------------------------------------------------------


def parse_header(copy: Copy, sector: bytes, *, lba: int, geometry: Geometry) -> Header:
    """Return the header in ``sector``, which was read from ``lba``.

    Raises TableError. After it returned, ``entries_lba`` and ``array_sectors`` are safe to read.
    """
    check = _Checks(copy)
    check.equal("bytes in its header", len(sector), geometry.sector_size, Damage.DAMAGED)
    (signature, revision, size, stored_crc, _reserved, own_lba, alternate_lba, first_usable,
     last_usable, disk_guid, entries_lba, entry_count, entry_size, entries_crc32,
     ) = _HEADER.unpack_from(sector)  # fmt: skip
    if signature in _FOREIGN:
        check.equal("signature", signature, _SIGNATURE, Damage.FOREIGN)
    check.equal("signature", signature, _SIGNATURE, Damage.DAMAGED)
    check.within("HeaderSize", size, _HEADER.size, geometry.sector_size, Damage.DAMAGED)
    computed = crc32(sector[:16] + bytes(4) + sector[20:size])
    check.equal("HeaderCRC32", f"{stored_crc:#010x}", f"{computed:#010x}", Damage.DAMAGED)
    check.equal("MyLBA", own_lba, lba, Damage.DAMAGED)
    check.equal("Revision", f"{revision:#010x}", f"{_REVISION:#010x}")
    check.equal("SizeOfPartitionEntry", entry_size, ENTRY_SIZE)
    check.within("NumberOfPartitionEntries", entry_count, 1, MAX_ENTRIES)
    array_sectors = geometry.sectors_of(entry_count * ENTRY_SIZE)
    if copy is Copy.PRIMARY:
        check.within("AlternateLBA", alternate_lba, lba + 1, geometry.last_lba)
        backup_lba, arrays = alternate_lba, (_PRIMARY_HOME, first_usable)
    else:
        check.equal("AlternateLBA", alternate_lba, PRIMARY_LBA)
        backup_lba, arrays = lba, (last_usable + 1, lba)
    lowest = _PRIMARY_HOME + array_sectors
    check.within("LastUsableLBA", last_usable, lowest, backup_lba - array_sectors - 1)
    check.within("FirstUsableLBA", first_usable, lowest, last_usable)
    check.within("PartitionEntryLBA", entries_lba, arrays[0], arrays[1] - array_sectors)
    return Header(
        copy=copy,
        lba=lba,
        alternate_lba=alternate_lba,
        first_usable=first_usable,
        last_usable=last_usable,
        disk_guid=UUID(bytes_le=disk_guid),
        entries_lba=entries_lba,
        entry_count=entry_count,
        entries_crc32=entries_crc32,
        sector=sector,
    )


def parse_table(header: Header, array: bytes) -> Table:
    """Return the table of ``header`` and the ``array`` it points to. Raises TableError."""
    check = _Checks(header.copy)
    array = array[: header.array_size]
    check.equal(
        "PartitionEntryArrayCRC32",
        f"{header.entries_crc32:#010x}", f"{crc32(array):#010x}",
        Damage.DAMAGED,
    )  # fmt: skip
    partitions = tuple(_used_entries(array))
    _check_partitions(check, header, partitions)
    return Table(header=header, array=array, partitions=partitions)


def unreadable(copy: Copy, cause: str) -> TableError:
    """Return the error for a copy whose sectors the disk refuses to give."""
    return TableError(
        copy, "its content", found=f"unreadable ({cause})", wanted="readable", damage=Damage.DAMAGED
    )


def _used_entries(array: bytes) -> Iterator[Partition]:
    for index in range(len(array) // ENTRY_SIZE):
        entry = _ENTRY.unpack_from(array, index * ENTRY_SIZE)
        type_guid, guid, first_lba, last_lba, attributes, label = entry
        if any(type_guid):
            yield Partition(
                number=index + 1,
                type_guid=UUID(bytes_le=type_guid),
                guid=UUID(bytes_le=guid),
                first_lba=first_lba,
                last_lba=last_lba,
                attributes=attributes,
                label=label.decode("utf-16-le", errors="replace").partition("\0")[0],
            )


def _check_partitions(check: "_Checks", header: Header, partitions: tuple[Partition, ...]) -> None:
    for part in partitions:
        name = f"partition {part.number}"
        check.within(f"{name} StartingLBA", part.first_lba, header.first_usable, header.last_usable)
        check.within(f"{name} EndingLBA", part.last_lba, part.first_lba, header.last_usable)
    for below, above in pairwise(sorted(partitions, key=lambda part: part.first_lba)):
        check.within(
            f"partition {above.number} StartingLBA",
            above.first_lba,
            below.last_lba + 1,
            header.last_usable,
        )
    seen: dict[UUID, int] = {}
    for part in partitions:
        if part.guid in seen:
            check.fail(
                f"partition {part.number} UniquePartitionGUID",
                part.guid,
                f"one that partition {seen[part.guid]} does not have",
            )
        seen[part.guid] = part.number


@dataclass(frozen=True, slots=True)
class _Checks:
    """Compare what was found with what is wanted, and name it when it is not."""

    copy: Copy

    def fail(
        self, field: str, found: object, wanted: object, damage: Damage = Damage.MALFORMED
    ) -> None:
        raise TableError(self.copy, field, found=found, wanted=wanted, damage=damage)

    def equal(
        self, field: str, found: object, wanted: object, damage: Damage = Damage.MALFORMED
    ) -> None:
        if found != wanted:
            self.fail(field, found, wanted, damage)

    def within(
        self, field: str, found: int, low: int, high: int, damage: Damage = Damage.MALFORMED
    ) -> None:
        if not low <= found <= high:
            self.fail(field, found, f"{low} to {high}" if low <= high else "room for it", damage)


def marks_header(sector: bytes) -> bool:
    """Whether ``sector`` looks like a header, of whatever health or owner."""
    return sector[:8] in {_SIGNATURE, *_FOREIGN}


def parse_mbr(sector: bytes) -> Mbr:
    """Return what kind of MBR ``sector`` (LBA 0) holds (UEFI 2.10, section 5.2.3)."""
    if sector[510:512] != b"\x55\xaa":
        return Mbr.MISSING
    kinds = {sector[offset + 4] for offset in range(446, 510, 16)}
    if _PROTECTIVE not in kinds:
        return Mbr.MISSING
    return Mbr.PROTECTIVE if kinds <= {0, _PROTECTIVE} else Mbr.HYBRID


# Writing -----------------------------------------------------------------------------------------


def repair(tables: Tables) -> Plan:
    """Return how to make both copies valid, equal, and the backup stand at the disk's end.

    Changes no partition and no flag. While it runs, the copy that counts is left alone: either it
    is never written, or only by the last phase and with what the other copy already says.
    Raises TableError or HostError when no copy may be trusted. A sound disk needs no phase.
    """
    good = tables.authoritative
    if isinstance(tables.backup, TableError) and tables.backup.damage is Damage.FOREIGN:
        raise tables.backup
    if tables.sound:
        return Plan(phases=(), after=tables)
    if good.header.copy is Copy.BACKUP:
        primary = _as_primary(good, _PRIMARY_HOME, tables.geometry)
        return Plan(
            phases=((_array_write(primary),), (_header_write(primary),)),
            after=replace(tables, primary=primary),
        )
    backup = _as_backup(good, tables.geometry)
    mend_backup = (_array_write(backup), _header_write(backup))
    if good.header.alternate_lba == backup.header.lba:
        return Plan(phases=(mend_backup,), after=replace(tables, backup=backup))
    primary = _as_primary(good, good.header.entries_lba, tables.geometry)
    return Plan(
        phases=(mend_backup, (_header_write(primary),)),
        after=replace(tables, primary=primary, backup=backup),
    )


def change(tables: Tables, words: Mapping[int, int]) -> Plan:
    """Return how to replace the attribute ``words`` of the numbered partitions, and no other bit.

    The backup goes first, so that a torn commit falls back to the *new* table; the primary's array
    goes to the place that is not in use, so that the primary stays valid until the commit, which
    is the one sector of its header. FirstUsableLBA is raised to keep both places out of reach of
    partitioning tools, where it was lower. Raises HostError when there is no room for two arrays.
    """
    if not tables.sound:
        raise ValueError("tables must be repaired before they are changed")
    return _changed(tables, tables.authoritative.with_attributes(words))


def grow(tables: Tables, number: int) -> Plan:
    """Return how to let the last partition on the disk, ``number``, end where the disk does.

    In whole MiB, with the phases of a change. Raises HostError when it is not the last one.
    """
    if not tables.sound:
        raise ValueError("tables must be repaired before they are changed")
    table = tables.authoritative
    part = next(it for it in table.partitions if it.number == number)
    if any(it.first_lba > part.last_lba for it in table.partitions):
        raise HostError(f"partition {number} ({part.label}) is not the last one, so it can't grow")
    last_usable = tables.geometry.last_lba - table.header.array_sectors - 1
    mib = tables.geometry.sectors_of(2**20)
    last_lba = (last_usable + 1) // mib * mib - 1
    if last_lba <= part.last_lba:
        return Plan(phases=(), after=tables)
    return _changed(tables, table.with_last_lba(number, last_lba, last_usable=last_usable))


def _changed(tables: Tables, changed: Table) -> Plan:
    if changed.array == tables.authoritative.array:
        return Plan(phases=(), after=tables)
    primary = _as_primary(changed, _spare_place(changed.header), tables.geometry)
    backup = _as_backup(primary, tables.geometry, sector=_sector(tables.backup))
    return Plan(
        phases=(
            (_array_write(backup), _header_write(backup)),
            (_array_write(primary),),
            (_header_write(primary),),
        ),
        after=replace(tables, primary=primary, backup=backup),
    )


def _spare_place(header: Header) -> int:
    """Return where the next primary array goes: behind the header, or behind the one in use."""
    behind_header = _PRIMARY_HOME + header.array_sectors
    if header.entries_lba >= behind_header:
        return _PRIMARY_HOME
    return header.entries_lba + header.array_sectors


def _as_primary(table: Table, entries_lba: int, geometry: Geometry) -> Table:
    """Return ``table`` as primary copy with its array at ``entries_lba``, in free sectors."""
    old = table.header
    in_use = old.entries_lba if old.copy is Copy.PRIMARY else entries_lba
    end = max(entries_lba, in_use) + old.array_sectors
    for part in table.partitions:
        if part.first_lba < end:
            raise HostError(
                f"no room for the partition table: partition {part.number} begins at LBA"
                f" {part.first_lba}, and its array of entries needs the sectors up to {end - 1}",
                hint="lay the disk out with its first partition at 1 MiB",
            )
    header = replace(
        old,
        copy=Copy.PRIMARY,
        lba=PRIMARY_LBA,
        alternate_lba=geometry.last_lba,
        first_usable=max(old.first_usable, end),
        entries_lba=entries_lba,
    )
    return replace(table, header=_settled(header))


def _as_backup(table: Table, geometry: Geometry, *, sector: bytes | None = None) -> Table:
    """Return ``table`` as backup copy, its array right before the header in the last sector.

    ``sector`` is the backup header to keep unknown bytes from; without one, the table's own.
    """
    old = table.header
    entries_lba = geometry.last_lba - old.array_sectors
    _Checks(old.copy).within("LastUsableLBA", old.last_usable, old.first_usable, entries_lba - 1)
    header = replace(
        old,
        copy=Copy.BACKUP,
        lba=geometry.last_lba,
        alternate_lba=PRIMARY_LBA,
        entries_lba=entries_lba,
        sector=sector or old.sector,
    )
    return replace(table, header=_settled(header))


def _settled(header: Header) -> Header:
    """Return the header with ``sector`` holding what it says, as it will be read back."""
    return replace(header, sector=header.encode())


def _sector(table: Table | TableError) -> bytes | None:
    return table.header.sector if isinstance(table, Table) else None


def _shared(header: Header) -> tuple[object, ...]:
    """Return what both copies of a header must agree about."""
    return (header.first_usable, header.last_usable, header.disk_guid, header.entry_count)


def _array_write(table: Table) -> Write:
    """Return the write of the array, its last sector filled up with zeros."""
    size = table.header.array_sectors * len(table.header.sector)
    return Write(lba=table.header.entries_lba, data=table.array.ljust(size, b"\0"))


def _header_write(table: Table) -> Write:
    return Write(lba=table.header.lba, data=table.header.encode())
