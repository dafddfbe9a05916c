"""Disks for tests, laid out byte by byte and without our code, so that it can be judged by them.

Every disk has an ESP, the two slots and STATE, ten sectors each, under the numbers asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from struct import pack
from uuid import UUID
from zlib import crc32

Sectors = Mapping[int, bytes | None]
"""Content by address. What is absent is zeros, None is a sector that cannot be read (EIO)."""

ESP_TYPE = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_TYPE = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
SLOT_TYPE = UUID("14df45bd-ad68-4deb-ae12-8e00afdd62f4")
CHROMEOS_KERNEL_TYPE = UUID("fe3a2a5d-4f32-41a7-b725-accc3285a309")
"""The only type of partition that ``cgpt prioritize`` takes for a slot."""

ENTRIES = 128
SECTORS = 2048
KEPT_BITS = 1 << 63 | 1 << 57 | 1
"""Set in each slot's attribute word: bits beside the boot flags, which nobody may touch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A disk's bytes, of which only sectors that matter are kept."""

    sector_size: int
    sectors: int
    content: Sectors = field(repr=False)

    @property
    def last_lba(self) -> int:
        return self.sectors - 1

    def sector(self, lba: int) -> bytes | None:
        return self.content.get(lba, bytes(self.sector_size))

    def read(self, lba: int, count: int) -> bytes | None:
        """Return ``count`` sectors, or None where one is unreadable or beyond the disk's end."""
        if lba + count > self.sectors:
            return None
        sectors = [self.sector(number) for number in range(lba, lba + count)]
        readable = [sector for sector in sectors if sector is not None]
        return b"".join(readable) if len(readable) == count else None

    def with_sectors(self, changed: Sectors) -> "Image":
        return replace(self, content={**self.content, **changed})

    def to_bytes(self) -> bytes:
        whole = self.read(0, self.sectors)
        assert whole is not None, "an image file has no unreadable sectors"
        return whole


def image_of(data: bytes, sector_size: int) -> Image:
    """Return the bytes of a whole disk as an image."""
    chunks = (data[at : at + sector_size] for at in range(0, len(data), sector_size))
    content = {lba: chunk for lba, chunk in enumerate(chunks) if any(chunk)}
    return Image(sector_size=sector_size, sectors=len(data) // sector_size, content=content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A sound partition table. ``a`` and ``b`` are the attribute words of the slots."""

    sector_size: int
    a: int
    b: int
    slot_b: int = 3
    """The number of ROOT-B; far from ROOT-A's 2, its entry is in another sector of the array."""
    filled: bool = False
    """Whether all other entries are in use as well."""
    at_shadow_place: bool = False
    """Whether the primary's array stands where the first flip puts it."""
    first_usable: int | None = None
    """None for room for two arrays."""
    slot_type: UUID = SLOT_TYPE

    @property
    def array_sectors(self) -> int:
        return ENTRIES * 128 // self.sector_size

    def array(self) -> bytes:
        entries = {number: _entry(number, LINUX_TYPE, f"DATA-{number}") for number in self._others}
        entries[1] = _entry(1, ESP_TYPE, "ESP")
        entries[2] = _entry(2, self.slot_type, "ROOT-A", self.a | KEPT_BITS)
        entries[self.slot_b] = _entry(self.slot_b, self.slot_type, "ROOT-B", self.b | KEPT_BITS)
        return b"".join(entries.get(number, bytes(128)) for number in range(1, ENTRIES + 1))

    @property
    def _others(self) -> range:
        return range(1, ENTRIES + 1) if self.filled else range(4, 5)

    def image(self, sectors: int = SECTORS) -> Image:
        """Return a disk with this table: protective MBR, primary and backup."""
        last, count = sectors - 1, self.array_sectors
        home = 2 + count if self.at_shadow_place else 2
        content = {0: _protective_mbr(self.sector_size, last)}
        content |= self._spread(home) | self._spread(last - count)
        content[1] = self._header(1, last, home, last)
        content[last] = self._header(last, 1, last - count, last)
        return Image(sector_size=self.sector_size, sectors=sectors, content=content)

    def _spread(self, lba: int) -> dict[int, bytes]:
        array, size = self.array(), self.sector_size
        return {lba + at: array[at * size : (at + 1) * size] for at in range(self.array_sectors)}

    def _header(self, lba: int, alternate: int, entries_lba: int, last: int) -> bytes:
        first_usable = self.first_usable or 2 + 2 * self.array_sectors
        fields = (lba, alternate, first_usable, last - self.array_sectors - 1)
        start = b"EFI PART" + pack("<2I", 0x10000, 92)
        end = pack("<I4Q", 0, *fields) + _guid(0).bytes_le
        end += pack("<Q3I", entries_lba, ENTRIES, 128, crc32(self.array()))
        header = start + pack("<I", crc32(start + bytes(4) + end)) + end
        return header.ljust(self.sector_size, b"\0")


def _entry(number: int, kind: UUID, label: str, attributes: int = 0) -> bytes:
    first = 100 + 10 * number
    where = pack("<3Q", first, first + 9, attributes)
    return (
        kind.bytes_le + _guid(number).bytes_le + where + label.encode("utf-16-le").ljust(72, b"\0")
    )


def _guid(number: int) -> UUID:
    return UUID(int=0x5EED0000_0000_4000_8000_000000000000 + number)


def _protective_mbr(sector_size: int, last_lba: int) -> bytes:
    record = bytes((0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF)) + pack("<2I", 1, last_lba)
    return (bytes(446) + record + bytes(48) + b"\x55\xaa").ljust(sector_size, b"\0")
