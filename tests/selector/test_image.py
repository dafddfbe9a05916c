"""What stands in a slot, as the selector in C reads it: held against ``core/slot_image.py``."""

import hashlib
import struct
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_slot_image import header, kernel_block
from tests.disks import MemoryDisk
from tests.selector import native, rig
from tests.selector.native import Selector
from update_agent.core import slot_image
from update_agent.core.gpt import Geometry
from update_agent.core.slot_image import ImageError

BLOCK = 4096
EDGES = (0, 1, 511, 4095, 4096, 4097, 8192, 2**31, 2**32, 2**63, 2**64 - 4096, 2**64 - 1)
FIELDS = ("image_size", "fs_size", "verity_offset", "kernel_offset", "kernel_region_size")
NUMBERS = st.sampled_from(EDGES) | st.integers(0, 40).map(lambda it: it * BLOCK)


def python_header(raw: bytes) -> tuple[int, int] | None:
    try:
        layout = slot_image.parse_header(raw)
    except ImageError:
        return None
    return layout.kernel_offset, layout.kernel_region_size


@settings(max_examples=2000)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), NUMBERS), room=NUMBERS)
def test_a_slot_header_is_accepted_when_python_does_and_it_fits_the_partition(
    changes: dict[str, int], room: int
) -> None:
    raw = header(**changes)
    found, wanted = native.parse_header(raw, room), python_header(raw)

    if wanted is None or sum(wanted) > room:
        assert isinstance(found, str)
    else:
        assert found == wanted


def test_no_flipped_byte_of_a_slot_header_or_a_kernel_block_goes_unnoticed() -> None:
    head, block = header(), kernel_block()
    assert native.parse_header(head, 17 * BLOCK) == (12 * BLOCK, 5 * BLOCK)
    assert native.parse_kernel(block, 5 * BLOCK) == (12000, b"k" * 32)
    for at in range(512):
        assert isinstance(native.parse_header(flipped(head, at), 2**64 - 1), str)
    for at in range(BLOCK):
        assert isinstance(native.parse_kernel(flipped(block, at), 5 * BLOCK), str)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@given(size=st.sampled_from(EDGES) | st.integers(0, 50000), region=NUMBERS)
def test_a_kernel_block_is_accepted_when_python_does(size: int, region: int) -> None:
    block = kernel_block(size=size)
    try:
        wanted = slot_image.parse_kernel(block, region_size=region)
    except ImageError:
        wanted = None
    found = native.parse_kernel(block, region)

    if wanted is None or wanted.size > 2**30:
        assert isinstance(found, str)
    else:
        assert found == (wanted.size, wanted.digest)


# Kernels -----------------------------------------------------------------------------------------


def slot_disk(image: bytes, sector_size: int, sectors: int) -> MemoryDisk:
    """Return a disk with a slot image from LBA 10 on."""
    disk = MemoryDisk(Geometry(sector_size=sector_size, sectors=10 + sectors))
    disk.put(10, image)
    return disk


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize(
    "size", [1, 4095, 4096, 4097, 2**20 - 1, 2**20, 2**20 + 1, 2**20 + 4096, 2**21 + 5]
)
def test_a_whole_kernel_is_read_as_it_is(size: int, sector_size: int) -> None:
    content = Random(size).randbytes(size)  # noqa: S311  must repeat, need not be secret
    image = rig.slot_image(content)
    sectors = len(image) // sector_size
    disk = slot_disk(image, sector_size, sectors)

    assert Selector(disk).load_kernel(10, 10 + sectors - 1, size + BLOCK) == content


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_kernel_with_a_flipped_bit_anywhere_is_refused(sector_size: int) -> None:
    content = bytes(range(256)) * 40
    image = rig.slot_image(content)
    sectors = len(image) // sector_size
    for at in (0, 1, 4095, 4096, 5000, len(content) - 1):
        disk = slot_disk(flipped(image, 4 * BLOCK + at), sector_size, sectors)

        loaded = Selector(disk).load_kernel(10, 10 + sectors - 1, 2**20)

        assert loaded == "kernel: SHA-256 is wrong"


def test_an_image_larger_than_its_partition_is_refused_before_a_kernel_is_read() -> None:
    image = rig.slot_image(b"kernel")
    sectors = len(image) // 512
    disk = slot_disk(image, 512, sectors)

    assert Selector(disk).load_kernel(10, 10 + sectors - 2, 2**20) == (
        "slot header: image size is beyond the slot's partition"
    )


@pytest.mark.parametrize(
    ("last", "bad", "why"),
    [
        (10, None, "slot header: cannot be read"),
        (16, None, "slot header: cannot be read"),
        (2**64 - 1, 10, "slot header: cannot be read"),
        (2**64 - 1, 10 + 24, "kernel region: cannot be read"),
        (2**64 - 1, 10 + 32, "kernel: cannot be read"),
    ],
)
def test_sectors_that_cannot_be_read_are_named(last: int, bad: int | None, why: str) -> None:
    image = rig.slot_image(b"kernel")
    disk = slot_disk(image, 512, len(image) // 512)
    disk.bad = {bad} if bad is not None else set()

    assert Selector(disk).load_kernel(10, last, 2**20) == why


# SHA-256 -----------------------------------------------------------------------------------------


def test_digests_of_all_lengths_are_those_of_hashlib() -> None:
    chance = Random("lengths")  # noqa: S311  must repeat, need not be secret
    for size in range(301):
        data = chance.randbytes(size)
        for step in (1, 7, 63, 64, 65, 1000):
            assert native.sha256(data, step) == hashlib.sha256(data).digest()


@given(data=st.binary(max_size=5000), step=st.integers(1, 5000))
def test_digests_of_random_pieces_are_those_of_hashlib(data: bytes, step: int) -> None:
    assert native.sha256(data, step) == hashlib.sha256(data).digest()


# The version -------------------------------------------------------------------------------------


def pe(text: bytes, *, name: bytes = b".osrel", **changes: int) -> bytes:
    """Return the least of a PE file with one section."""
    fields = {"pe": 64, "sections": 1, "optional": 16, "start": 256, "size": len(text)} | changes
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", fields["pe"])
    coff = b"PE\0\0" + struct.pack("<2H3I2H", 0x8664, fields["sections"], 0, 0, 0,
                                   fields["optional"], 0)  # fmt: skip
    section = struct.pack("<8s6I2HI", name, fields["size"], 0, 512, fields["start"], 0, 0, 0, 0, 0)
    return (head + coff + bytes(16) + section).ljust(256, b"\0") + text


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (b"ID=x\nIMAGE_VERSION=1.2.3\n", "1.2.3"),
        (b'IMAGE_VERSION="1.2.3-rc.1+5"', "1.2.3-rc.1+5"),
        (b"VERSION_ID=12\nIMAGE_VERSION='7'\n", "7"),
        (b"VERSION_ID=12\nMY_IMAGE_VERSION=7\n", "12"),
        (b"", None),
        (b"IMAGE_VERSION=", None),
        (b"IMAGE_VERSION=\nVERSION_ID=4", "4"),
        (b"IMAGE_VERSION=\x1b[31mred\n", None),
        (b"IMAGE_VERSION=a b\n", None),
        (b"IMAGE_VERSION=" + b"9" * 32, "9" * 32),
        (b"IMAGE_VERSION=" + b"9" * 33, None),
        (b"IMAGE_VERSIO", None),
    ],
)
def test_a_version_is_read_where_it_is_plain(text: bytes, version: str | None) -> None:
    assert native.version(pe(text)) == version


@pytest.mark.parametrize(
    "image",
    [
        b"", b"MZ", bytes(300), pe(b"VERSION_ID=1", pe=2**32 - 1), pe(b"VERSION_ID=1", pe=300),
        pe(b"VERSION_ID=1", sections=0), pe(b"VERSION_ID=1", optional=65535),
        pe(b"VERSION_ID=1", start=2**32 - 1), pe(b"VERSION_ID=1", size=2**32 - 1),
        pe(b"VERSION_ID=1", name=b".data"), pe(b"VERSION_ID=1")[:100], pe(b"VERSION_ID=1", size=13),
    ],
)  # fmt: skip
def test_what_is_no_whole_pe_has_no_version(image: bytes) -> None:
    assert native.version(image) is None


def test_a_real_pe_has_its_version(tmp_path: Path) -> None:
    path = tmp_path / "kernel.efi"
    path.write_bytes(rig.kernel("one"))

    assert native.version(path.read_bytes()) == "1.2.3"
