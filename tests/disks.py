"""Partition tables to test with: built, broken and judged without any help from ``update_agent``.

``MemoryDisk`` is a whole disk whose unwritten sectors cost nothing, so it may have terabytes. It
speaks the ``Disk`` protocol, remembers what was written to it, and names fields as the UEFI
specification does: ``disk.patch(Copy.PRIMARY, MyLBA=7)`` also mends the checksums,
``disk.corrupt`` does not.

The disk of ``healthy()`` has the same addresses for both sector sizes, so that tests can name them:

    ESP 256-511   ROOT-A 512-1023   ROOT-B 1024-1535   STATE 1536-1791   last LBA 2047

    sectors of 512:  primary array 2-33, its second place 34-65, backup array 2015-2046
    sectors of 4096: primary array 2-5,  its second place 6-9,   backup array 2043-2046
"""

import errno
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from update_agent.core.gpt import Copy, Geometry

ESP_TYPE = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_TYPE = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
SLOT_TYPE = UUID("14df45bd-ad68-4deb-ae12-8e00afdd62f4")
KERNEL_TYPE = UUID("fe3a2a5d-4f32-41a7-b725-accc3285a309")
"""ChromeOS kernel: the only type that ``cgpt prioritize`` looks at."""

DISK_GUID = UUID("00000000-1111-2222-3333-444444444444")

HEADER = struct.Struct("<8s4I4Q16sQ3I")
HEADER_FIELDS = (
    "Signature", "Revision", "HeaderSize", "HeaderCRC32", "Reserved",
    "MyLBA", "AlternateLBA", "FirstUsableLBA", "LastUsableLBA", "DiskGUID",
    "PartitionEntryLBA", "NumberOfPartitionEntries", "SizeOfPartitionEntry",
    "PartitionEntryArrayCRC32",
)  # fmt: skip
ENTRY = struct.Struct("<16s16sQQQ72s")
ENTRY_FIELDS = (
    "PartitionTypeGUID", "UniquePartitionGUID", "StartingLBA", "EndingLBA", "Attributes",
    "PartitionName",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A partition to put into a table."""

    number: int
    first: int
    last: int
    type: UUID = LINUX_TYPE
    label: str = ""
    attributes: int = 0

    @property
    def guid(self) -> UUID:
        """A GUID that tells the number: 00000000-0000-0000-0000-000000000002 for partition 2."""
        return UUID(int=self.number)

    def encode(self) -> bytes:
        return ENTRY.pack(
            self.type.bytes_le, self.guid.bytes_le, self.first, self.last, self.attributes,
            self.label.encode("utf-16-le"),
        )  # fmt: skip


ESP = Entry(number=1, first=256, last=511, type=ESP_TYPE, label="ESP")
ROOT_A = Entry(number=2, first=512, last=1023, type=SLOT_TYPE, label="ROOT-A")
ROOT_B = Entry(number=3, first=1024, last=1535, type=SLOT_TYPE, label="ROOT-B")
STATE = Entry(number=4, first=1536, last=1791, label="STATE")
LAYOUT = (ESP, ROOT_A, ROOT_B, STATE)


def flags(priority: int, tries: int, *, ok: bool = False) -> int:
    """Return an attribute word by the bit table of DESIGN.md: 48-51, 52-55, 56."""
    return priority << 48 | tries << 52 | ok << 56


A_SUCCESSFUL = (ESP, replace(ROOT_A, attributes=flags(1, 0, ok=True)), ROOT_B, STATE)
"""As installed: A is successful, B is retired."""


@dataclass(slots=True)
class MemoryDisk:
    """A disk as a dictionary of its written sectors. ``update_agent.host.disk.Disk`` in memory."""

    geometry: Geometry
    name: str = "memory"
    sectors: dict[int, bytes] = field(default_factory=dict)
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """What was written through the protocol, in order."""

    flushes: int = 0
    bad: set[int] = field(default_factory=set)
    """Sectors that the disk refuses to give, with EIO."""

    # The protocol

    def read(self, lba: int, count: int) -> bytes:
        end = min(lba + count, self.geometry.sectors)
        if self.bad & set(range(lba, end)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.stored(lba, count)

    def write(self, lba: int, data: bytes) -> None:
        self.writes.append((lba, data))
        self.put(lba, data)

    def flush(self) -> None:
        self.flushes += 1

    # For tests

    @property
    def written(self) -> set[int]:
        """The addresses that were written through the protocol."""
        size = self.geometry.sector_size
        return {lba + i for lba, data in self.writes for i in range(len(data) // size)}

    def stored(self, lba: int, count: int) -> bytes:
        """Return sectors without the disk's faults; fewer at its end."""
        empty = bytes(self.geometry.sector_size)
        end = min(lba + count, self.geometry.sectors)
        return b"".join(self.sectors.get(at, empty) for at in range(lba, end))

    def put(self, lba: int, data: bytes) -> None:
        """Set sectors without it counting as a write."""
        size = self.geometry.sector_size
        assert len(data) % size == 0
        for i in range(len(data) // size):
            self.sectors[lba + i] = data[i * size : (i + 1) * size]

    def put_table(self, entries: Sequence[Entry], *, count: int = 128) -> None:
        """Write a protective MBR and both copies of a table, as partitioning tools lay it out."""
        last, size = self.geometry.last_lba, self.geometry.sector_size
        room = -(-count * 128 // size)
        array = bytearray(room * size)
        for entry in entries:
            ENTRY.pack_into(array, (entry.number - 1) * 128, *ENTRY.unpack(entry.encode()))
        self.put(0, protective_mbr(size))
        for own, other, at in ((1, last, 2), (last, 1, last - room)):
            header = HEADER.pack(
                b"EFI PART", 0x10000, 92, 0, 0, own, other, 2 + room, last - room - 1,
                DISK_GUID.bytes_le, at, count, 128, 0,
            )  # fmt: skip
            self.put(own, header.ljust(size, b"\0"))
            self.put(at, bytes(array))
            self.mend_checksums(own)

    def header_lba(self, copy: Copy) -> int:
        return 1 if copy is Copy.PRIMARY else self.geometry.last_lba

    def get(self, copy: Copy, name: str) -> int:
        """Return a number from a header, by its name in the specification."""
        fields = HEADER.unpack_from(self.sectors[self.header_lba(copy)])
        value = fields[HEADER_FIELDS.index(name)]
        assert isinstance(value, int)
        return value

    def patch(self, copy: Copy, **values: int | bytes) -> None:
        """Replace fields of a header and make its checksums right."""
        self.corrupt(copy, **values)
        self.mend_checksums(self.header_lba(copy), array="PartitionEntryArrayCRC32" not in values)

    def corrupt(self, copy: Copy, **values: int | bytes) -> None:
        """Replace fields of a header and nothing else."""
        sector = self.sectors[self.header_lba(copy)]
        fields = dict(zip(HEADER_FIELDS, HEADER.unpack_from(sector), strict=True))
        assert values.keys() <= fields.keys()
        packed = HEADER.pack(*(fields | values).values())
        self.put(self.header_lba(copy), packed + sector[HEADER.size :])

    def patch_entry(self, copy: Copy, number: int, **values: int | bytes) -> None:
        """Replace fields of an entry of the array in use and make the checksums right."""
        self.corrupt_entry(copy, number, **values)
        self.mend_checksums(self.header_lba(copy))

    def corrupt_entry(self, copy: Copy, number: int, **values: int | bytes) -> None:
        """Replace fields of an entry of the array in use and nothing else."""
        size = self.geometry.sector_size
        at = self.get(copy, "PartitionEntryLBA") * size + (number - 1) * 128
        fields = dict(zip(ENTRY_FIELDS, ENTRY.unpack(self.peek(at, ENTRY.size)), strict=True))
        assert values.keys() <= fields.keys()
        self.poke(at, ENTRY.pack(*(fields | values).values()))

    def move_array(self, copy: Copy, lba: int) -> None:
        """Move the array of entries to ``lba`` and let the header say so."""
        old = self.get(copy, "PartitionEntryLBA")
        sectors = -(-self.get(copy, "NumberOfPartitionEntries") * 128 // self.geometry.sector_size)
        array = self.stored(old, sectors)
        self.put(old, bytes(len(array)))
        self.put(lba, array)
        self.patch(copy, PartitionEntryLBA=lba)

    def grow(self, sectors: int) -> None:
        """Make the disk larger; its backup table stays where it was."""
        self.geometry = replace(self.geometry, sectors=sectors)

    def peek(self, offset: int, size: int) -> bytes:
        """Return bytes at any offset."""
        unit = self.geometry.sector_size
        first = offset // unit
        data = self.stored(first, (offset + size - 1) // unit - first + 1)
        return data[offset - first * unit :][:size]

    def poke(self, offset: int, data: bytes) -> None:
        """Set bytes at any offset, without it counting as a write."""
        unit = self.geometry.sector_size
        first = offset // unit
        old = bytearray(self.stored(first, (offset + len(data) - 1) // unit - first + 1))
        old[offset - first * unit : offset - first * unit + len(data)] = data
        self.put(first, bytes(old))

    def mend_checksums(self, lba: int, *, array: bool = True) -> None:
        """Make the checksums of the header at ``lba`` right, as far as its fields make sense."""
        sector = bytearray(self.sectors[lba])
        fields = dict(zip(HEADER_FIELDS, HEADER.unpack_from(sector), strict=True))
        length = fields["NumberOfPartitionEntries"] * fields["SizeOfPartitionEntry"]
        at, unit = fields["PartitionEntryLBA"], len(sector)
        if array and length <= 2**20:
            entries = (
                self.stored(at, -(-length // unit)) if 0 <= at < self.geometry.sectors else b""
            )
            struct.pack_into("<I", sector, 88, zlib.crc32(entries[:length]))
        size = fields["HeaderSize"]
        struct.pack_into("<I", sector, 16, 0)
        struct.pack_into("<I", sector, 16, zlib.crc32(sector[:size]))
        self.sectors[lba] = bytes(sector)

    def save(self, path: Path) -> Path:
        """Write the disk to a sparse file."""
        with path.open("wb") as file:
            file.truncate(self.geometry.sectors * self.geometry.sector_size)
            for lba, sector in self.sectors.items():
                file.seek(lba * self.geometry.sector_size)
                file.write(sector)
        return path


def healthy(
    sector_size: int = 512,
    entries: Sequence[Entry] = A_SUCCESSFUL,
    *,
    sectors: int = 2048,
    count: int = 128,
) -> MemoryDisk:
    """Return a disk with both copies of a good table."""
    disk = MemoryDisk(Geometry(sector_size=sector_size, sectors=sectors))
    disk.put_table(entries, count=count)
    return disk


def protective_mbr(sector_size: int) -> bytes:
    """Return an MBR with one partition of type 0xEE from LBA 1."""
    record = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, 0xFFFFFFFF)
    mbr = bytes(446) + record + bytes(48) + b"\x55\xaa"
    return mbr.ljust(sector_size, b"\0")


# Tools and devices -------------------------------------------------------------------------------


def tool(*command: str | Path, stdin: str = "") -> str:
    """Run a tool that must succeed and return what it printed. A missing tool is a failure."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


_AS_NOBODY = """
import os, sys
import pyudev._ctypeslib.libudev
from update_agent.ctl.main import command, main
command()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def as_nobody(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``update-agentctl`` without any privilege.

    They are dropped once everything is loaded: a checkout may lie in a home that only its owner
    may enter.
    """
    return subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@contextmanager
def loop(image: Path, sector_size: int = 512) -> Iterator[Path]:
    """Attach ``image`` as a loop device with that sector size, and detach it whatever happens."""
    device = tool(
        "losetup", "--find", "--show", "--nooverlap", "--sector-size", str(sector_size), image
    ).strip()
    try:
        yield Path(device)
    finally:
        tool("losetup", "--detach", device)
