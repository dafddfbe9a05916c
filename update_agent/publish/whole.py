"""Whether a slot image is whole: every block of it is what its root hash says.

A host takes what the release team signed, and leaves the blocks of the file system to dm-verity,
which finds a damaged one only at the boot that reads it. So an image is held here, once, before it
is signed or put on a disk: a copy that went wrong is found where it is cheap.
"""

from collections.abc import Callable
from hashlib import sha256

from update_agent.core import slot_image
from update_agent.core.chunking import BLOCK
from update_agent.core.slot_image import ImageError, Layout
from update_agent.errors import HostError
from update_agent.host import slot
from update_agent.host.device import Device, aligned
from update_agent.publish import uki

_DIGEST = 32
_PIECE = BLOCK * (BLOCK // _DIGEST) * 8
"""4 MiB: the hashes of a piece fill whole blocks of the tree, as reads past the cache want it."""

_COPY_AGAIN = "copy it again from where it was made, or make it again"


def check(device: Device, advance: Callable[[int], object]) -> None:
    """Hold the slot image on ``device`` against its own hashes: tree, kernel and all data blocks.

    ``advance`` is called with the bytes that were held. Memory does not grow with the image. Raises
    ReleaseError, HostError.
    """
    try:
        parts, root_hash = slot.layout(device), slot.root_hash(device)
        try:
            slot.judge(
                device,
                device.read(0, BLOCK),
                image_size=parts.image_size,
                root_hash=root_hash,
            )
            advance(parts.image_size - parts.fs_size)
            _check_data(device, parts, advance)
        except ImageError as error:
            raise ImageError(f"{device.path} is damaged: {error}", hint=_COPY_AGAIN) from error
        _check_kernel(device, parts, root_hash.hex())
    except OSError as error:
        raise HostError(f"cannot read {device.path}: {error.strerror}") from error


def _check_data(device: Device, parts: Layout, advance: Callable[[int], object]) -> None:
    """Hold each block of the file system against the lowest level of the tree, itself held."""
    superblock = device.read(parts.verity_offset, BLOCK)
    verity = slot_image.parse_verity(superblock, fs_size=parts.fs_size)
    salted = sha256(verity.salt)
    offset, _ = verity.levels[-1]
    data = aligned(_PIECE)
    for at in range(0, parts.fs_size, _PIECE):
        piece = data[: parts.fs_size - at]
        hashes = device.read(parts.verity_offset + offset + at // BLOCK * _DIGEST, _hashes(piece))
        device.read_into(piece, at)
        for start in range(0, len(piece), BLOCK):
            number = start // BLOCK
            found = salted.copy()
            found.update(piece[start : start + BLOCK])
            if found.digest() != hashes[number * _DIGEST : (number + 1) * _DIGEST]:
                raise ImageError(
                    f"block {at // BLOCK + number} of {parts.fs_size // BLOCK} in its file system"
                    " does not have the hash in the verity tree"
                )
        advance(len(piece))


def _hashes(piece: memoryview) -> int:
    """Return the bytes of whole blocks of the tree that hold the hashes of ``piece``."""
    return -(-len(piece) // BLOCK * _DIGEST // BLOCK) * BLOCK


def _check_kernel(device: Device, parts: Layout, root_hash: str) -> None:
    """Hold that the kernel will look for this root: with another one, no boot ends well."""
    region = device.read(parts.kernel_offset + BLOCK, parts.kernel_region_size - BLOCK)
    named = uki.named_roots(region)
    if named not in (None, [root_hash]):
        raise ImageError(
            f"the kernel in {device.path} names the root {' and '.join(named or ['nowhere'])},"
            f" the root hash is {root_hash}",
            hint="seal the image again: update-agent-image seal",
        )
