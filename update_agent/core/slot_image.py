"""The slot image: what stands where in a slot, for slot A and B alike.

    0                 erofs root file system, 4 KiB blocks
      512..1023         slot header, in the boot-block area that erofs leaves free
    verity_offset     dm-verity superblock and hash tree over the erofs
    kernel_offset     kernel region: one block that describes the kernel, then the kernel (PE)

Numbers are little endian, sizes and offsets are in bytes and multiples of 4 KiB. The slot header is
covered by the verity tree and holds sizes only; the kernel's command line names the root hash.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from zlib import crc32

from update_agent.core.chunking import BLOCK
from update_agent.errors import ReleaseError

HEADER_OFFSET = 512
"""Where the slot header stands in the image."""

HEADER_SIZE = 512

_HEADER = Struct("<8sII5Q")
_HEADER_MAGIC = b"UASLOT\0\1"
_KERNEL = Struct("<8sQ32sI")
_KERNEL_MAGIC = b"UAKERN\0\1"


class ImageError(ReleaseError):
    """A slot image is not what it should be: says which field, found and wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the parts of a slot image begin, as its slot header says."""

    fs_size: int
    verity_offset: int
    kernel_offset: int
    kernel_region_size: int
    image_size: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _want(f"slot header: {name} modulo {BLOCK}", getattr(self, name) % BLOCK, 0)
        _want("slot header: verity offset", self.verity_offset, self.fs_size)
        if self.fs_size < 2 * BLOCK:  # of a single block dm-verity makes no tree
            raise ImageError(f"slot header: fs size is {self.fs_size}, wanted at least {2 * BLOCK}")
        if self.kernel_offset <= self.fs_size:
            raise ImageError(f"slot header: kernel offset {self.kernel_offset} is inside the root")
        end = self.kernel_offset + self.kernel_region_size
        _want("slot header: image size", self.image_size, end)

    @property
    def verity_size(self) -> int:
        """Bytes of the dm-verity superblock and hash tree."""
        return self.kernel_offset - self.verity_offset

    def encode(self) -> bytes:
        """Return the 512 bytes of the slot header."""
        return _with_crc(8, self._packed().ljust(HEADER_SIZE, b"\0"))

    def _packed(self) -> bytes:
        return _HEADER.pack(
            _HEADER_MAGIC, 0, 0, self.image_size, self.fs_size, self.verity_offset,
            self.kernel_offset, self.kernel_region_size,
        )  # fmt: skip


def parse_header(header: bytes) -> Layout:
    """Return the layout that a slot header (512 bytes) describes. Raises ImageError."""
    _want("slot header: length", len(header), HEADER_SIZE)
    magic, crc, _zero, image_size, fs_size, verity_offset, kernel_offset, kernel_region_size = (
        _HEADER.unpack_from(header)
    )
    _want("slot header: magic", magic, _HEADER_MAGIC)
    _want("slot header: CRC-32", crc, crc32(header[:8] + bytes(4) + header[12:]))
    return Layout(
        fs_size=fs_size,
        verity_offset=verity_offset,
        kernel_offset=kernel_offset,
        kernel_region_size=kernel_region_size,
        image_size=image_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel behind the first block of the kernel region."""

    size: int
    digest: bytes

    def encode(self) -> bytes:
        """Return the 4 KiB block that describes the kernel."""
        packed = _KERNEL.pack(_KERNEL_MAGIC, self.size, self.digest, 0)
        return _with_crc(_KERNEL.size - 4, packed.ljust(BLOCK, b"\0"))


def parse_kernel(block: bytes, *, region_size: int) -> Kernel:
    """Return the kernel that the first block of a kernel region describes. Raises ImageError."""
    _want("kernel region: bytes in its first block", len(block), BLOCK)
    magic, size, digest, crc = _KERNEL.unpack_from(block)
    _want("kernel region: magic", magic, _KERNEL_MAGIC)
    at = _KERNEL.size - 4
    _want("kernel region: CRC-32", crc, crc32(block[:at] + bytes(4) + block[at + 4 :]))
    if not 0 < size <= region_size - BLOCK:
        raise ImageError(f"kernel region: kernel size is {size}, wanted 1 to {region_size - BLOCK}")
    return Kernel(size=size, digest=digest)


def _with_crc(at: int, packed: bytes) -> bytes:
    return packed[:at] + crc32(packed).to_bytes(4, "little") + packed[at + 4 :]


def _want(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ImageError(f"{what} is {found!r}, wanted {wanted!r}", hint=_NOT_SEALED)


_NOT_SEALED = "slot images are made by 'update-agent-image seal'"


# dm-verity ---------------------------------------------------------------------------------------

_VERITY = Struct("<8sII16s32sIIQH6x256s")
_VERITY_MAGIC = b"verity\0\0"
_DIGEST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """A dm-verity superblock (kernel documentation, device-mapper/verity; cryptsetup's verity.h).

    ``levels`` are the parts of the hash tree as (offset, blocks) from the superblock, top first.
    """

    salt: bytes
    levels: tuple[tuple[int, int], ...]


def parse_verity(superblock: bytes, *, fs_size: int) -> Verity:
    """Return what a dm-verity superblock says of the tree behind it. Raises ImageError."""
    if len(superblock) < _VERITY.size:
        raise ImageError(f"verity superblock: {len(superblock)} bytes, wanted {_VERITY.size}")
    (magic, version, hash_type, _uuid, algorithm, data_block, hash_block, data_blocks,
     salt_size, salt) = _VERITY.unpack_from(superblock)  # fmt: skip
    _want("verity superblock: signature", magic, _VERITY_MAGIC)
    _want("verity superblock: version and hash type", (version, hash_type), (1, 1))
    _want("verity superblock: algorithm", algorithm.rstrip(b"\0"), b"sha256")
    _want("verity superblock: block sizes", (data_block, hash_block), (BLOCK, BLOCK))
    _want("verity superblock: data blocks", data_blocks, fs_size // BLOCK)
    if salt_size > len(salt):
        raise ImageError(f"verity superblock: salt size is {salt_size}, wanted 0 to {len(salt)}")
    sizes = level_sizes(data_blocks)
    offsets = [BLOCK + BLOCK * sum(sizes[:level]) for level in range(len(sizes))]
    return Verity(
        salt=salt[:salt_size],
        levels=tuple(zip(offsets, sizes, strict=True)),
    )


def level_sizes(data_blocks: int) -> list[int]:
    """Return the blocks in each level of a hash tree, top first."""
    sizes: list[int] = []
    below = data_blocks
    while below > 1 or not sizes:
        below = -(-below * _DIGEST // BLOCK)
        sizes.insert(0, below)
    return sizes


def check_tree(verity: Verity, blocks: Iterable[bytes | memoryview], root_hash: bytes) -> None:
    """Hold every block of a hash tree against the one above it, and the top against the root hash.

    ``blocks`` are those behind the superblock, in order. Of them only the level above is kept: a
    tree has a hundredth of the size of its image. What the lowest level says of the file system is
    left to dm-verity, which checks each block that is ever read. Raises ImageError.
    """
    source = iter(blocks)
    above: bytes | bytearray = root_hash
    for number, (_, count) in enumerate(verity.levels):
        level = bytearray()
        for block in range(count):
            content = next(source, b"")
            wanted = above[block * _DIGEST : (block + 1) * _DIGEST]
            if sha256(verity.salt + content).digest() != wanted:
                raise ImageError(f"verity tree: block {block} of level {number} has a wrong hash")
            if number + 1 < len(verity.levels):
                level += content
        above = level


def root_hash_of(verity: Verity, tree: bytes) -> bytes:
    """Return the root hash of a tree, which begins with the superblock."""
    offset, _ = verity.levels[0]
    return sha256(verity.salt + tree[offset : offset + BLOCK]).digest()
