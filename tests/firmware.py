"""What others make of a disk's partition table. Judges our code, so it uses none of it.

``firmware_sees`` follows EDK2 (MdeModulePkg/Universal/Disk/PartitionDxe/Gpt.c): without a
protective MBR in LBA 0 there is no table; the primary in LBA 1 if it is valid, else the backup in
the last sector. ``linux_sees`` follows block/partitions/efi.c with ``gpt`` on the command line: the
MBR does not matter, and a valid header obeys some rules more.

Neither repairs anything here, as EDK2 does when it finds one copy damaged: what a table that was
lost would have been repaired from is no longer there.
"""

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from tests.layout import Image

_HEADER = Struct("<8s4I4Q16sQ3I")
_MAX_ARRAY = 4 << 20
"""Linux's KMALLOC_MAX_SIZE; keeps a wild count from being read here too."""


class _Header(NamedTuple):
    signature: bytes
    revision: int
    size: int
    crc: int
    reserved: int
    my_lba: int
    alternate_lba: int
    first_usable: int
    last_usable: int
    disk_guid: bytes
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int


class Copies(NamedTuple):
    """The entry array of each copy that firmware accepts."""

    primary: bytes | None
    backup: bytes | None

    @property
    def valid(self) -> int:
        return sum(array is not None for array in self)


def firmware_sees(image: Image) -> bytes | None:
    """Return the entry array of the table that UEFI firmware uses."""
    if not _has_protective_mbr(image):
        return None
    array = _firmware_copy(image, 1)
    return array if array is not None else _firmware_copy(image, image.last_lba)


def linux_sees(image: Image) -> bytes | None:
    """Return the entry array of the table that Linux uses."""
    array = _linux_copy(image, 1)
    return array if array is not None else _linux_copy(image, image.last_lba)


def copies(image: Image) -> Copies:
    """Return both copies as firmware would use them."""
    return Copies(_firmware_copy(image, 1), _firmware_copy(image, image.last_lba))


def _has_protective_mbr(image: Image) -> bool:
    sector = image.sector(0)
    if sector is None:
        return False
    records = (sector[at : at + 16] for at in range(446, 510, 16))
    return any(
        record[0] == 0 and record[4] == 0xEE and record[8:12] == b"\1\0\0\0" for record in records
    )


def _firmware_copy(image: Image, lba: int) -> bytes | None:
    header = _header(image, lba, smallest=20)
    if header is None or header.entry_size < 128:
        return None
    return _array(image, header)


def _linux_copy(image: Image, lba: int) -> bytes | None:
    header = _header(image, lba, smallest=_HEADER.size)
    if header is None or header.entry_size != 128:
        return None
    if not header.first_usable <= header.last_usable <= image.last_lba:
        return None
    return _array(image, header)


def _header(image: Image, lba: int, *, smallest: int) -> _Header | None:
    """Return the header at ``lba`` if signature, size, checksum and its own address are right.

    ``smallest`` is 20 for EDK2, which refuses only a size that does not reach over the checksum.
    """
    sector = image.sector(lba)
    if sector is None:
        return None
    header = _Header(*_HEADER.unpack_from(sector))
    if header.signature != b"EFI PART" or not smallest <= header.size <= image.sector_size:
        return None
    if crc32(sector[:16] + bytes(4) + sector[20 : header.size]) != header.crc:
        return None
    return header if header.my_lba == lba else None


def _array(image: Image, header: _Header) -> bytes | None:
    size = header.entry_count * header.entry_size
    if not 0 < size <= _MAX_ARRAY:
        return None
    read = image.read(header.entries_lba, -(-size // image.sector_size))
    if read is None or crc32(read[:size]) != header.entries_crc:
        return None
    return read[:size]
