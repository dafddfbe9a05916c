"""Slot images field by field, and dm-verity trees as the real ``veritysetup`` makes them."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest

from tests.disks import tool
from tests.images import noise
from update_agent.core import slot_image
from update_agent.core.slot_image import ImageError, Kernel, Layout, Verity

BLOCK = 4096

LAYOUT = Layout(
    fs_size=10 * BLOCK,
    verity_offset=10 * BLOCK,
    kernel_offset=12 * BLOCK,
    kernel_region_size=5 * BLOCK,
    image_size=17 * BLOCK,
)


# Slot header -------------------------------------------------------------------------------------


def header(**changes: int | bytes) -> bytes:
    """Spell a slot header out as DESIGN.md does, with a right checksum unless told otherwise."""
    fields: dict[str, int | bytes] = {
        "magic": b"UASLOT\0\1", "crc": 0, "zero": 0, "image_size": 17 * BLOCK,
        "fs_size": 10 * BLOCK, "verity_offset": 10 * BLOCK, "kernel_offset": 12 * BLOCK,
        "kernel_region_size": 5 * BLOCK,
    }  # fmt: skip
    fields |= changes
    packed = bytearray(struct.pack("<8sII5Q", *fields.values()).ljust(512, b"\0"))
    if "crc" not in changes:
        struct.pack_into("<I", packed, 8, crc32(packed))
    return bytes(packed)


def test_a_slot_header_is_read_and_written_as_the_format_says() -> None:
    assert slot_image.parse_header(header()) == LAYOUT
    assert LAYOUT.encode() == header()
    assert LAYOUT.verity_size == 2 * BLOCK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"UASLOT\0\2"}, r"^slot header: magic is b'UASLOT\\x00\\x02', wanted b'UASLOT"),
        ({"crc": 1}, r"^slot header: CRC-32 is 1, wanted \d+$"),
        ({"image_size": 18 * BLOCK}, "^slot header: image size is 73728, wanted 69632$"),
        ({"image_size": 17 * BLOCK + 1}, "^slot header: image_size modulo 4096 is 1, wanted 0$"),
        ({"fs_size": 9 * BLOCK}, "^slot header: verity offset is 40960, wanted 36864$"),
        ({"verity_offset": 11 * BLOCK}, "^slot header: verity offset is 45056, wanted 40960$"),
        ({"kernel_offset": 10 * BLOCK}, "^slot header: kernel offset 40960 is inside the root$"),
        ({"kernel_offset": 0}, "^slot header: kernel offset 0 is inside the root$"),
        ({"kernel_offset": 13 * BLOCK}, "^slot header: image size is 69632, wanted 73728$"),
        ({"kernel_region_size": 2**63}, "^slot header: image size is 69632, wanted"),
        ({"fs_size": 0, "verity_offset": 0}, "^slot header: fs size is 0, wanted at least 8192$"),
        ({"fs_size": BLOCK, "verity_offset": BLOCK}, "^slot header: fs size is 4096, wanted at"),
    ],
)
def test_each_field_of_a_slot_header_is_checked(
    changes: dict[str, int | bytes], message: str
) -> None:
    with pytest.raises(ImageError, match=message) as refusal:
        slot_image.parse_header(header(**changes))

    assert refusal.value.exit_code == 3


def test_no_flipped_byte_of_a_slot_header_goes_unnoticed() -> None:
    good = header()
    for at in range(512):
        with pytest.raises(ImageError):
            slot_image.parse_header(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])


@pytest.mark.parametrize("size", [0, 511, 513])
def test_a_slot_header_has_512_bytes(size: int) -> None:
    with pytest.raises(ImageError, match=f"^slot header: length is {size}, wanted 512$"):
        slot_image.parse_header(header().ljust(513, b"\0")[:size])


# Kernel ------------------------------------------------------------------------------------------


def kernel_block(**changes: int | bytes) -> bytes:
    fields: dict[str, int | bytes] = {
        "magic": b"UAKERN\0\1", "size": 12000, "digest": b"k" * 32, "crc": 0,
    }  # fmt: skip
    fields |= changes
    packed = bytearray(struct.pack("<8sQ32sI", *fields.values()).ljust(BLOCK, b"\0"))
    if "crc" not in changes:
        struct.pack_into("<I", packed, 48, crc32(packed))
    return bytes(packed)


def test_a_kernel_block_is_read_and_written_as_the_format_says() -> None:
    kernel = Kernel(size=12000, digest=b"k" * 32)

    assert slot_image.parse_kernel(kernel_block(), region_size=4 * BLOCK) == kernel
    assert kernel.encode() == kernel_block()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"UAKERN\0\2"}, "^kernel region: magic is"),
        ({"crc": 7}, r"^kernel region: CRC-32 is 7, wanted \d+$"),
        ({"size": 0}, "^kernel region: kernel size is 0, wanted 1 to 12288$"),
        ({"size": 12289}, "^kernel region: kernel size is 12289, wanted 1 to 12288$"),
        ({"size": 2**64 - 1}, "^kernel region: kernel size is 18446744073709551615, wanted"),
    ],
)
def test_each_field_of_a_kernel_block_is_checked(
    changes: dict[str, int | bytes], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        slot_image.parse_kernel(kernel_block(**changes), region_size=4 * BLOCK)


@pytest.mark.parametrize("size", [0, 51, 4095])
def test_a_kernel_block_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(ImageError, match=f"^kernel region: bytes in its first block is {size}"):
        slot_image.parse_kernel(kernel_block()[:size], region_size=4 * BLOCK)


# dm-verity ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Formatted:
    """What ``veritysetup format`` made of a sparse file: superblock and tree, and what it said."""

    data_blocks: int
    tree: bytes
    root_hash: bytes

    @property
    def verity(self) -> Verity:
        return slot_image.parse_verity(self.tree, fs_size=self.data_blocks * BLOCK)

    def blocks(self) -> Iterator[bytes]:
        for at in range(BLOCK, len(self.tree), BLOCK):
            yield self.tree[at : at + BLOCK]

    def check(self) -> None:
        slot_image.check_tree(self.verity, self.blocks(), self.root_hash)


def veritysetup(folder: Path, blocks: int, *options: str, salt: str = "-") -> Formatted:
    image = folder / "image"
    with image.open("wb") as file:
        file.write(noise(3 * BLOCK, "data"))
        file.truncate(blocks * BLOCK)
    size = image.stat().st_size
    said = tool(
        "veritysetup", "format", "--data-blocks", str(blocks), "--hash-offset", str(size),
        "--salt", salt, *options, image, image,
    )  # fmt: skip
    with image.open("rb") as file:
        file.seek(size)
        tree = file.read()
    root_hash = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash"))
    return Formatted(data_blocks=blocks, tree=tree, root_hash=bytes.fromhex(root_hash))


@pytest.mark.parametrize(
    ("blocks", "levels"),
    [
        (2, [1]),
        (128, [1]),
        (129, [1, 2]),
        (128 * 128, [1, 128]),
        (128 * 128 + 1, [1, 2, 129]),
    ],
)
@pytest.mark.parametrize("salt", ["-", "5a17" * 16], ids=["no-salt", "salt"])
def test_a_tree_of_veritysetup_is_accepted(
    blocks: int, levels: list[int], salt: str, tmp_path: Path
) -> None:
    made = veritysetup(tmp_path, blocks, salt=salt)

    made.check()
    assert slot_image.root_hash_of(made.verity, made.tree) == made.root_hash
    assert slot_image.level_sizes(blocks) == [size for _, size in made.verity.levels] == levels
    assert len(made.tree) == BLOCK * (1 + sum(levels))


def test_a_single_block_has_no_tree_so_no_image_is_that_small(tmp_path: Path) -> None:
    """veritysetup gives the hash of the block itself for its root hash, and no tree at all."""
    made = veritysetup(tmp_path, 1)

    assert len(made.tree) == BLOCK
    assert made.root_hash == hashlib.sha256(noise(3 * BLOCK, "data")[:BLOCK]).digest()
    with pytest.raises(ImageError, match="wanted at least 8192"):
        Layout(
            fs_size=BLOCK, verity_offset=BLOCK, kernel_offset=2 * BLOCK,
            kernel_region_size=2 * BLOCK, image_size=4 * BLOCK,
        )  # fmt: skip


def test_every_flipped_byte_of_a_tree_is_found(tmp_path: Path) -> None:
    made = veritysetup(tmp_path, 129)  # one block above two
    blocks = list(made.blocks())

    for number, block in enumerate(blocks):
        level, place = ((0, 0), (1, 0), (1, 1))[number]
        for at in range(BLOCK):
            garbled = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
            with pytest.raises(
                ImageError, match=f"^verity tree: block {place} of level {level} has a wrong hash$"
            ):
                slot_image.check_tree(
                    made.verity, [*blocks[:number], garbled, *blocks[number + 1 :]], made.root_hash
                )


@pytest.mark.case(51)
def test_a_tree_under_another_root_hash_or_salt_is_refused(tmp_path: Path) -> None:
    made = veritysetup(tmp_path, 129, salt="5a17" * 16)
    unsalted = Verity(salt=b"", levels=made.verity.levels)

    for verity, root_hash in ((made.verity, bytes(32)), (unsalted, made.root_hash)):
        with pytest.raises(ImageError, match=r"^verity tree: block 0 of level 0 has a wrong hash$"):
            slot_image.check_tree(verity, made.blocks(), root_hash)


def test_a_tree_that_ends_early_is_refused(tmp_path: Path) -> None:
    made = veritysetup(tmp_path, 129)
    blocks = list(made.blocks())

    for count in range(len(blocks)):
        with pytest.raises(ImageError, match=r"has a wrong hash$"):
            slot_image.check_tree(made.verity, blocks[:count], made.root_hash)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "0"], r"^verity superblock: version and hash type is \(1, 0\), wanted"),
        (["--hash", "sha512"], "^verity superblock: algorithm is b'sha512', wanted b'sha256'$"),
        (["--data-block-size", "1024"], r"^verity superblock: block sizes is \(1024, 4096\)"),
        (["--hash-block-size", "1024"], r"^verity superblock: block sizes is \(4096, 1024\)"),
    ],
    ids=["chrome-os-format", "sha512", "data-blocks", "hash-blocks"],
)
def test_another_kind_of_tree_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    made = veritysetup(tmp_path, 16, *options)

    with pytest.raises(ImageError, match=message):
        slot_image.parse_verity(made.tree, fs_size=16 * BLOCK)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"VERITY\0\0", "^verity superblock: signature is b'VERITY"),
        (72, struct.pack("<Q", 15), "^verity superblock: data blocks is 15, wanted 16$"),
        (72, struct.pack("<Q", 2**63), "^verity superblock: data blocks is 9223372036854775808"),
        (80, struct.pack("<H", 257), "^verity superblock: salt size is 257, wanted 0 to 256$"),
    ],
)
def test_each_field_of_a_superblock_is_checked(
    at: int, value: bytes, message: str, tmp_path: Path
) -> None:
    good = veritysetup(tmp_path, 16).tree

    with pytest.raises(ImageError, match=message):
        slot_image.parse_verity(good[:at] + value + good[at + len(value) :], fs_size=16 * BLOCK)


def test_a_superblock_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    tree = veritysetup(tmp_path, 16).tree

    for size in (0, 100, 341):
        with pytest.raises(ImageError, match=f"^verity superblock: {size} bytes, wanted 344$"):
            slot_image.parse_verity(tree[:size], fs_size=16 * BLOCK)
