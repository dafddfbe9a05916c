"""Random partition tables against the promise that nothing but the two table areas is ever written.

Takes a good table, changes headers and entries at random (bits, bytes, values at the edge of what a
field may be; with and without right checksums; in either copy; the disk's size too) and then flips
boot flags on it. Held, with a judge that shares no code with ``update_agent``:

* nothing comes out but our own errors;
* a disk without a copy that firmware would accept is not written to at all;
* LBA 0, the partitions, and all between the first and the last usable sector are never written,
  but for the second place of the primary array, which ends below the first partition;
* after success, both copies are good, equal, and differ from what counted only in the slots' flags.

    python -m tests.fuzz.gpt --count 1000000 --seed 1
"""

import functools
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.disks import (
    A_SUCCESSFUL,
    ENTRY,
    ENTRY_FIELDS,
    HEADER,
    HEADER_FIELDS,
    ROOT_A,
    STATE,
    MemoryDisk,
    healthy,
)
from tests.fuzz import search
from update_agent.core.gpt import Copy
from update_agent.core.slot import BootFlags, SlotName, Slots
from update_agent.errors import HostError
from update_agent.host.disk import change_slots, read_tables

PART = 500
"""Disks that a worker tries before it tells."""

OURS = 0x01FF << 48
"""The bits of the boot flags."""

EDGES = (
    0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 33, 34, 35, 65, 66, 67, 91, 92, 93, 127, 128, 129, 255, 256, 257,
    511, 512, 513, 1023, 1024, 1025, 1535, 1536, 1791, 1792, 2014, 2015, 2016, 2042, 2043, 2046,
    2047, 2048, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
"""Addresses around everything on the disk of ``tests/disks.py``, limits of sizes, and of words."""

SIGNATURES = (b"EFI PART", b"CHROMEOS", b"IGNOREME", b"EFI PARU", bytes(8))


class BrokenPromiseError(AssertionError):
    """What must never happen, with the disk it happened on."""


# Mutations ---------------------------------------------------------------------------------------


@functools.cache
def _base(sector_size: int, count: int, *, shadow: bool) -> MemoryDisk:
    disk = healthy(sector_size, A_SUCCESSFUL, count=count)
    if shadow:
        for copy in Copy:
            disk.patch(copy, FirstUsableLBA=256)
        disk.move_array(Copy.PRIMARY, 50)
    return disk


def fresh(random: Random) -> MemoryDisk:
    """Return a good disk, of any kind that we know."""
    kind = random.choice((512, 4096)), random.choice((4, 5, 8, 33, 128))
    base = _base(*kind, shadow=random.random() < 0.3)
    return replace(base, sectors=dict(base.sectors), writes=[], bad=set())


def mutate(disk: MemoryDisk, random: Random) -> None:
    """Change the disk in one to four ways."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        random.choice(MUTATIONS)(disk, random, random.choice(tuple(Copy)))


def _header_edge(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    name = random.choice(HEADER_FIELDS)
    value: int | bytes
    if name == "Signature":
        value = random.choice(SIGNATURES)
    elif name == "DiskGUID":
        value = random.randbytes(16)
    else:
        wide = name.endswith("LBA")
        value = random.choice(EDGES) & (2**64 - 1 if wide else 2**32 - 1)
    if random.random() < 0.8:
        disk.patch(copy, **{name: value})
    else:
        disk.corrupt(copy, **{name: value})


def _header_bits(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    at = disk.header_lba(copy) * disk.geometry.sector_size + random.randrange(100)
    disk.poke(at, bytes([disk.peek(at, 1)[0] ^ 1 << random.randrange(8)]))
    if random.random() < 0.8:
        disk.mend_checksums(disk.header_lba(copy))


def _header_bytes(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    at = disk.header_lba(copy) * disk.geometry.sector_size + random.randrange(8, 92)
    disk.poke(at, random.randbytes(random.randrange(1, 9)))
    if random.random() < 0.8:
        disk.mend_checksums(disk.header_lba(copy))


def _entry_edge(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    name = random.choice(ENTRY_FIELDS)
    value: int | bytes
    if name.endswith("GUID"):
        value = random.choice((bytes(16), ROOT_A.guid.bytes_le, ROOT_A.type.bytes_le))
    elif name == "PartitionName":
        value = random.choice((ROOT_A.label, STATE.label, "x" * 36)).encode("utf-16-le")
    else:
        value = random.choice(EDGES)
    offset = ENTRY_FIELDS.index(name)
    at = _entry_offset(disk, random, copy)
    if at is not None:
        entry = list(ENTRY.unpack(disk.peek(at, 128)))
        entry[offset] = value
        disk.poke(at, ENTRY.pack(*entry))
        if random.random() < 0.9:
            disk.mend_checksums(disk.header_lba(copy))


def _entry_bytes(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    at = _entry_offset(disk, random, copy)
    if at is not None:
        disk.poke(at + random.randrange(128 - 8), random.randbytes(random.randrange(1, 9)))
        if random.random() < 0.9:
            disk.mend_checksums(disk.header_lba(copy))


def _entry_offset(disk: MemoryDisk, random: Random, copy: Copy) -> int | None:
    """Return where an entry stands, or None when the header points nowhere by now."""
    lba = disk.get(copy, "PartitionEntryLBA")
    if not 0 < lba < disk.geometry.last_lba:
        return None
    return lba * disk.geometry.sector_size + random.randrange(4) * 128


def _both_alike(disk: MemoryDisk, random: Random, _copy: Copy) -> None:
    """The same wrong value in both copies: nothing to fall back to."""
    name = random.choice([it for it in HEADER_FIELDS if it.endswith("LBA") or "Size" in it])
    value = random.choice(EDGES) & (2**64 - 1 if name.endswith("LBA") else 2**32 - 1)
    for copy in Copy:
        disk.patch(copy, **{name: value})


def _move_array(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    array = disk.get(copy, "PartitionEntryLBA"), disk.get(copy, "NumberOfPartitionEntries")
    if array[0] < disk.geometry.sectors and array[1] <= 128:
        low, high = (2, 256) if copy is Copy.PRIMARY else (1792, 2047)
        for it in Copy:
            disk.patch(it, FirstUsableLBA=random.randrange(6, 257))
        disk.move_array(copy, random.randrange(low, high))


def _swap_copies(disk: MemoryDisk, _random: Random, copy: Copy) -> None:
    other = Copy.BACKUP if copy is Copy.PRIMARY else Copy.PRIMARY
    disk.put(disk.header_lba(copy), disk.sectors[disk.header_lba(other)])


def _lose(disk: MemoryDisk, random: Random, copy: Copy) -> None:
    disk.put(disk.header_lba(copy), random.choice((b"\0", b"\xff")) * disk.geometry.sector_size)


def _unreadable(disk: MemoryDisk, random: Random, _copy: Copy) -> None:
    disk.bad.add(random.choice((1, 2, 3, 34, 50, 2015, 2046, disk.geometry.last_lba)))


def _resize(disk: MemoryDisk, random: Random, _copy: Copy) -> None:
    last = disk.geometry.last_lba
    grown = last + random.choice((-1, 1, 2, 3, 4, 5, 31, 32, 33, 34, 2048)) + 1
    if random.random() < 0.3:  # as if the backup had moved along: a table of another disk's size
        disk.put(grown - 1, disk.sectors[last])
    else:
        disk.sectors.setdefault(grown - 1, bytes(disk.geometry.sector_size))
    disk.grow(grown)


MUTATIONS = (
    _header_edge, _header_edge, _header_edge, _header_edge, _header_bits, _header_bits,
    _header_bytes, _entry_edge, _entry_edge, _entry_edge, _entry_bytes, _both_alike, _both_alike,
    _move_array, _move_array, _swap_copies, _lose, _unreadable, _resize,
)  # fmt: skip
"""Named as often as they shall be drawn."""


# The judge ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A copy as firmware accepts it (UEFI 2.10, 5.3.2): signature, checksums, own address."""

    first_usable: int
    last_usable: int
    entries: tuple[tuple[bytes | int, ...], ...]

    @property
    def used(self) -> list[tuple[int, int]]:
        """First and last sector of each partition."""
        found = []
        for kind, _guid, first, last, _word, _name in self.entries:
            assert isinstance(kind, bytes)
            assert isinstance(first, int)
            assert isinstance(last, int)
            if any(kind):
                found.append((first, last))
        return found

    @property
    def without_flags(self) -> list[tuple[bytes | int, ...]]:
        """The entries with the bits of the boot flags taken out of the two slots' words."""
        return [
            (kind, guid, first, last, word & ~OURS, name)
            if kind == ROOT_A.type.bytes_le and isinstance(word, int)
            else (kind, guid, first, last, word, name)
            for kind, guid, first, last, word, name in self.entries
        ]


def firmware_accepts(disk: MemoryDisk, lba: int) -> Accepted | None:
    """Return the copy whose header is at ``lba`` if firmware would use it."""
    try:
        sector = disk.read(lba, 1)
        (signature, _, size, crc, _, own, _, first_usable, last_usable, _, at, count, entry_size,
         entries_crc) = HEADER.unpack_from(sector)  # fmt: skip
        if signature != b"EFI PART" or not 92 <= size <= len(sector) or own != lba:
            return None
        if zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) != crc:
            return None
        if entry_size != 128 or count > 2**16 or at >= disk.geometry.sectors:
            return None
        array = disk.read(at, -(-count * 128 // len(sector)))[: count * 128]
    except (OSError, struct.error):
        return None
    if zlib.crc32(array) != entries_crc:
        return None
    return Accepted(
        first_usable=first_usable,
        last_usable=last_usable,
        entries=tuple(ENTRY.iter_unpack(array)),
    )


def judge(disk: MemoryDisk, flags: tuple[BootFlags, BootFlags]) -> str:
    """Flip the slots' flags on ``disk`` and return how it ended. Raises BrokenPromiseError."""
    last = disk.geometry.last_lba
    counted = firmware_accepts(disk, 1) or firmware_accepts(disk, last)
    before = dict(disk.sectors)

    def edit(slots: Slots) -> Slots:
        return slots.with_flags(dict(zip(SlotName, flags, strict=True)))

    try:
        change_slots(disk, edit)
        outcome = "flipped" if disk.writes else "nothing to do"
    except HostError as error:
        damage = getattr(error, "damage", None)
        outcome = f"{type(error).__name__}, {damage}" if damage else type(error).__name__
        outcome += ", after a repair" if disk.writes else ""
    _hold_writes(disk, counted, before)
    if outcome == "flipped":
        assert counted
        _hold_success(disk, counted)
    return outcome


def _hold_writes(disk: MemoryDisk, counted: Accepted | None, before: dict[int, bytes]) -> None:
    written = disk.written
    if not written:
        return
    if counted is None:
        raise BrokenPromiseError("written to a disk without a table that firmware accepts")
    lowest = min((first for first, _ in counted.used), default=counted.first_usable)
    room = -(-len(counted.entries) * 128 // disk.geometry.sector_size)
    low = min(lowest, max(counted.first_usable, 2 + 2 * room) + room)
    for lba in written:
        if any(first <= lba <= last for first, last in counted.used):
            raise BrokenPromiseError(f"LBA {lba} of a partition was written")
        if not (1 <= lba < low or counted.last_usable < lba <= disk.geometry.last_lba):
            raise BrokenPromiseError(f"LBA {lba} outside of the table areas was written")
    untouched = before.keys() - written
    if any(disk.sectors[lba] != before[lba] for lba in untouched):
        raise BrokenPromiseError("the fake disk lost a write")


def _hold_success(disk: MemoryDisk, counted: Accepted) -> None:
    primary, backup = firmware_accepts(disk, 1), firmware_accepts(disk, disk.geometry.last_lba)
    if not read_tables(disk).sound or primary is None or primary != backup:
        raise BrokenPromiseError("after a flip the tables are not sound")
    if primary.without_flags != counted.without_flags:
        raise BrokenPromiseError("a flip changed more than flags")


def one(random: Random) -> tuple[str, int]:
    """Try one random disk; return how it ended and how many sectors were written."""
    disk = fresh(random)
    mutate(disk, random)
    flags = (_flags(random), _flags(random))
    return judge(disk, flags), len(disk.written)


def _flags(random: Random) -> BootFlags:
    return BootFlags(
        priority=random.randrange(16), tries=random.randrange(16), successful=random.random() < 0.5
    )


# The program -------------------------------------------------------------------------------------


def counted(random: Random) -> Counter[str]:
    outcome, written = one(random)
    return Counter({outcome: 1, _SECTORS: written})


_SECTORS = "sectors"
"""Is counted beside the outcomes."""


def main(argv: Sequence[str] | None = None) -> int:
    about = "Flip boot flags on random partition tables; fails on a broken promise."
    options = search.parser("tests.fuzz.gpt", about, "disks", count=100_000).parse_args(argv)
    if options.repeat:
        print(*one(Random(options.repeat)))  # noqa: S311  must repeat, need not be secret
        return 0
    outcomes = search.searched(counted, options, part=PART)
    sectors = outcomes.pop(_SECTORS, 0)
    disks = f"{outcomes.total():,} disks, {sectors:,} written sectors checked"
    search.tell(outcomes, f"{disks}, 0 promises broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
